"""The folder that an export is: OUTPUT/FORMAT with the model and `model.json`, there whole or not at all.

Nothing here imports JAX: what is wrong with it can be told at once.
"""

import contextlib
import importlib.util
import json
import pathlib
import shutil
from collections.abc import Iterator

# Formats, and the packages beside JAX that each needs.
FORMATS = {"stablehlo": (), "savedmodel": ("tensorflow",), "onnx": ("onnx", "onnxruntime")}
DESCRIPTION = "model.json"
PRODUCER = "dlv3p_jax"


def check(folder: pathlib.Path, name: str) -> None:
    """Raises ValueError if a model cannot be written in the format `name`, or `folder` is not to be replaced."""
    missing = [package for package in FORMATS[name] if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(f"--format={name} needs {' and '.join(missing)}: pip install '.[export]'")
    if folder.exists() and not _is_ours(folder):
        raise ValueError(f"{folder} exists and is no export: give another --output, or remove it")


def _is_ours(folder: pathlib.Path) -> bool:
    try:
        return json.loads((folder / DESCRIPTION).read_text())["producer"] == PRODUCER
    except (OSError, ValueError, LookupError, TypeError):
        return False


@contextlib.contextmanager
def whole(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write into, which takes the place of `folder` when all went well and else disappears."""
    unfinished, old = (folder.with_name(f".{folder.name}.{state}") for state in ("unfinished", "old"))
    _clear(folder, unfinished, old)  # of a process that was killed
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if folder.exists():
            folder.rename(old)
        unfinished.rename(folder)
    finally:
        _clear(folder, unfinished, old)


def _clear(folder: pathlib.Path, unfinished: pathlib.Path, old: pathlib.Path) -> None:
    if old.exists() and not folder.exists():
        old.rename(folder)
    for leftover in (unfinished, old):
        shutil.rmtree(leftover, ignore_errors=True)

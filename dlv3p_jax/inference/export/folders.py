"""The folder that an export is: OUTPUT/FORMAT with the model and `model.json`, there whole or not at all.

Nothing here imports JAX: what is wrong with it can be told at once.
"""

import importlib.util
import json
import pathlib

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
        return json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["producer"] == PRODUCER
    except (OSError, ValueError, LookupError, TypeError):
        return False

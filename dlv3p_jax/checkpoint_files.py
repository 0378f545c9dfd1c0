"""The files of a checkpoint: reading them without devices and other processes, and telling whether they are whole."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from dlv3p_jax import local_paths

# What a file system answers that may be there again tomorrow, in the words of errno and of TensorStore.
_OUT_OF_REACH = ("PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")

local_paths.mend()


class CheckpointError(ValueError):
    """A checkpoint is not there, or is not one of this model."""


def read_json(checkpoint: epath.Path, item: str, filename: str = "metadata") -> dict[str, Any]:
    """The JSON values of an item.

    Raises:
      Exception: of many kinds, if it is not whole.
    """
    return ocp.JsonCheckpointHandler(filename).restore(checkpoint / item)


def read_arrays(checkpoint: epath.Path, item: str) -> dict[str, Any]:
    """The tree of an item as NumPy arrays.

    Raises:
      Exception: of many kinds, if it is not whole.
    """
    handler = ocp.PyTreeCheckpointHandler()
    metadata = handler.metadata(checkpoint / item)
    if metadata is None:
        raise FileNotFoundError("some of its files are missing or cut short")
    # As NumPy arrays; left to itself, Orbax looks for the devices that wrote them.
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree)
    return handler.restore(checkpoint / item, args=ocp.args.PyTreeRestore(restore_args=arguments))


def first_line(error: BaseException) -> str:
    """What Orbax raises for damaged files (pages of text, bare Exceptions), in a line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


@contextlib.contextmanager
def naming(checkpoint: epath.Path, item: str) -> Iterator[None]:
    """Turns whatever the reading of an item raises into a line with its path, and with the run's other checkpoints."""
    try:
        yield
    except Exception as error:
        path = checkpoint / item
        others = [other for other in _of_the_same_run(checkpoint) if other != checkpoint]
        advice = f". Others of this run: {', '.join(map(str, others))}" if others else ""
        if others and not checkpoint.exists():
            raise CheckpointError(f"{checkpoint} is gone: a run that goes on has replaced it{advice}") from error
        raise CheckpointError(f"{path} is damaged: {first_line(error)}{advice}") from error


def _of_the_same_run(checkpoint: epath.Path) -> list[epath.Path]:
    if checkpoint.parent.name not in ("best", "latest"):
        return []
    return [path for name in ("best", "latest") for path in steps_in(checkpoint.parent.parent / name)]


def steps_in(folder: epath.Path) -> list[epath.Path]:
    """The checkpoints in a folder that have their final names, by their steps; they may be damaged."""
    found = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name))


def damage(checkpoint: epath.Path, items: Sequence[str]) -> str:
    """What is wrong with a checkpoint that should hold `items`, whose arrays are all read; "" if nothing is.

    Raises:
      CheckpointError: its files cannot be read now, which does not say that they are damaged.
    """
    for item in items:
        try:
            if item in ("meta", "metrics"):
                read_json(checkpoint, item, "metrics" if item == "metrics" else "metadata")
            else:
                read_arrays(checkpoint, item)
                for file in (checkpoint / item / "array_metadatas").glob("*"):  # only devices need them
                    json.loads(file.read_text(encoding="utf-8"))
        except MemoryError:
            raise
        except Exception as error:
            line = first_line(error)
            if isinstance(error, PermissionError) or any(word in str(error) for word in _OUT_OF_REACH):
                raise CheckpointError(f"{checkpoint / item} cannot be read now: {line}") from error
            return f"{item}: {line}"
    return ""


def set_damaged_aside(folder: epath.Path, items: Sequence[str], all_may_go: bool = False) -> None:
    """Renames the damaged checkpoints in `folder` that are newer than its newest whole one, with a warning.

    A damaged one is called STEP.damaged, so that it is not chosen, nor in the way of this step's next save.

    Args:
      folder: of checkpoints.
      items: what each has to hold.
      all_may_go: whether that is no error if none is whole.

    Raises:
      CheckpointError: none is whole, and none was renamed; says what is wrong with each.
    """
    damaged = {}
    for path in reversed(steps_in(folder)):
        damaged[path] = damage(path, items)
        if not damaged[path]:
            del damaged[path]
            break
    else:
        if damaged and not all_may_go:
            lines = "".join(f"\n  {path}: {reason}" for path, reason in damaged.items())
            raise CheckpointError(
                f"no checkpoint in {folder} is whole:{lines}\nto begin a new run, give another --workdir or remove "
                "this folder; --config.pretrained=WORKDIR starts from the weights of its best checkpoint"
            )
    for path, reason in damaged.items():
        names = (path.with_name(f"{path.name}.damaged{suffix}") for suffix in ("", *(f"-{n}" for n in range(2, 100))))
        aside = next(name for name in names if not name.exists())
        path.rename(aside)
        logging.warning("%s is damaged (%s): it is now called %s, and is not used", path, reason, aside.name)

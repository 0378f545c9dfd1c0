"""The files of a checkpoint: reading them without devices and other processes, and telling whether they are whole.

What was read and is wrong is damage. What could not be read is not: a file system may be there again a moment later.
"""

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from dlv3p_jax.runtime import disk_errors, local_paths, text
from dlv3p_jax.runtime.errors import UserError
from dlv3p_jax.weights import checkpoint_digests

# What a bucket answers that may be there again tomorrow, beside what passes by itself, in the words of TensorStore.
_OUT_OF_REACH = ("PERMISSION_DENIED", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED")
# Errors of the system by which a file is missing, and not only out of reach.
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)

ASIDE = ".before"  # ends the name of a best checkpoint until another of the same step has taken its place

local_paths.mend()


class CheckpointError(UserError):
    """A checkpoint is not there, or is not one of this model."""


class UnreadableError(CheckpointError):
    """A checkpoint cannot be read now, which does not say that it is damaged."""


def read_json(checkpoint: epath.Path, item: str) -> dict[str, Any]:
    """The JSON values of an item, `meta` or `metrics`.

    Raises:
      Exception: of many kinds, if it is not whole or cannot be read; see `unreadable`.
    """

    def read() -> dict[str, Any]:
        checkpoint_digests.check(checkpoint, item)
        return ocp.JsonCheckpointHandler("metrics" if item == "metrics" else "metadata").restore(checkpoint / item)

    return disk_errors.patiently(read)


def read_arrays(checkpoint: epath.Path, item: str) -> dict[str, Any]:
    """The tree of an item as NumPy arrays, all of them finite.

    Raises:
      Exception: of many kinds, if it is not whole or cannot be read; see `unreadable`.
    """

    def read() -> dict[str, Any]:
        checkpoint_digests.check(checkpoint, item)
        handler = ocp.PyTreeCheckpointHandler()
        metadata = handler.metadata(checkpoint / item)
        if metadata is None:
            raise FileNotFoundError("some of its files are missing or cut short")
        # As NumPy arrays; left to itself, Orbax looks for the devices that wrote them.
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree)
        return handler.restore(checkpoint / item, args=ocp.args.PyTreeRestore(restore_args=arguments))

    arrays = disk_errors.patiently(read)
    check_finite(arrays)
    return arrays


def check_finite(arrays: Any) -> None:
    """Raises ValueError, with the name of the first, if an array of the tree holds a value that is not finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        if jax.dtypes.issubdtype(leaf.dtype, np.inexact) and not np.isfinite(leaf).all():
            name = "/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
            raise ValueError(f"{name} holds {np.size(leaf) - np.isfinite(leaf).sum()} values that are not finite")


def unreadable(error: BaseException) -> str | None:
    """Why nothing is known of the files that were to be read; None if they were read, or are missing, and so damaged.

    That is whatever an operating system, TensorStore or TensorFlow answers but "there is no such file".
    """
    if words := disk_errors.passing(error):
        return words
    for link in disk_errors.chain(error):
        quoted = re.search(r"(?:OS error |os_error_code=')(\d+)", str(link))  # of TensorStore
        number = int(quoted[1]) if quoted else getattr(link, "errno", None)
        if isinstance(number, int) and number not in _MISSING:
            return os.strerror(number)
        if any(word in str(link) for word in _OUT_OF_REACH):
            return text.first_line(link)
    return None


@contextlib.contextmanager
def naming(checkpoint: epath.Path, item: str) -> Iterator[None]:
    """Turns whatever the reading of an item raises into a line with its path, and with the run's other checkpoints."""
    try:
        yield
    except Exception as error:
        path = checkpoint / item
        if words := unreadable(error):
            raise UnreadableError(f"{path} cannot be read now: {words}") from error
        others = [other for other in _of_the_same_run(checkpoint) if other != checkpoint]
        advice = f". Others of this run: {', '.join(map(str, others))}" if others else ""
        if others and not checkpoint.exists():
            raise CheckpointError(f"{checkpoint} is gone: a run that goes on has replaced it{advice}") from error
        raise CheckpointError(f"{path} is damaged: {text.first_line(error)}{advice}") from error


def _of_the_same_run(checkpoint: epath.Path) -> list[epath.Path]:
    if checkpoint.parent.name not in ("best", "latest"):
        return []
    return [path for name in ("best", "latest") for path in steps_in(checkpoint.parent.parent / name)]


def steps_in(folder: epath.Path, suffix: str = "") -> list[epath.Path]:
    """The checkpoints in a folder that have their final names, by their steps; they may be damaged."""
    paths = folder.iterdir() if folder.is_dir() else ()
    found = {path: path.name.removesuffix(suffix) for path in paths if path.name.endswith(suffix)}
    return sorted((path for path, step in found.items() if step.isdigit()), key=lambda path: int(found[path]))


def replaced(best: Sequence[epath.Path]) -> list[epath.Path]:
    """Those of several best checkpoints that another one took the place of: a kill can leave both.

    A kill while one is deleted leaves it without some of its files: it says nothing then, and its successor names it.

    Raises:
      UnreadableError: what is kept of their scores cannot be read now.
    """
    if len(best) < 2:
        return []
    steps = set()
    for path in best:
        if (path / "metrics").is_dir():
            try:
                with naming(path, "metrics"):
                    steps.update(read_json(path, "metrics").get("replaces", ()))
            except UnreadableError:
                raise
            except CheckpointError:
                continue
    found = [path for path in best if int(path.name) in steps]
    if len(found) == len(best):  # a run that went back replaced what had replaced its like: the last stays
        found.remove(max(found, key=_written))
    return found


def _written(best: epath.Path) -> float:
    """When its scores were written, in seconds since 1970."""
    file = best / "metrics" / "metrics"
    return file.stat().mtime if "://" in str(file) else os.path.getmtime(file)  # etils' are whole seconds


def set_aside(folder: epath.Path) -> list[epath.Path]:
    """The checkpoints in a folder that were set aside for another of the same step, by their steps."""
    return steps_in(folder, ASIDE)


def bring_back(folder: epath.Path) -> None:
    """Ends what a kill left half done when one best checkpoint was to take the place of another: one of them stays.

    What was replaced goes; what was set aside takes its old name again where its successor is not there.

    Raises:
      CheckpointError: scores are damaged, or cannot be read now.
    """
    for path in replaced(steps_in(folder)):
        path.rmtree()
    for path in set_aside(folder):
        successor = path.with_name(path.name.removesuffix(ASIDE))
        if successor.exists():
            path.rmtree()
        else:
            path.rename(successor)
            logging.warning("%s is the best checkpoint again: what was to take its place was not written", successor)


def damage(checkpoint: epath.Path, items: Sequence[str]) -> str:
    """What is wrong with a checkpoint that should hold `items`, whose arrays are all read; "" if nothing is.

    Raises:
      UnreadableError: its files cannot be read now.
    """
    for item in items:
        try:
            if item in ("meta", "metrics"):
                read_json(checkpoint, item)
            else:
                read_arrays(checkpoint, item)
                for file in (checkpoint / item / "array_metadatas").glob("*"):  # only devices need them
                    json.loads(file.read_text(encoding="utf-8"))
        except MemoryError:
            raise
        except Exception as error:
            if words := unreadable(error):
                raise UnreadableError(f"{checkpoint / item} cannot be read now: {words}") from error
            return f"{item}: {text.first_line(error)}"
    return ""


def set_damaged_aside(folder: epath.Path, items: Sequence[str], all_may_go: bool = False) -> None:
    """Renames the damaged checkpoints in `folder` that are newer than its newest whole one, with a warning.

    A damaged one is called STEP.damaged, so that it is not chosen, nor in the way of this step's next save.

    Args:
      folder: of checkpoints.
      items: what each has to hold.
      all_may_go: whether that is no error if none is whole.

    Raises:
      CheckpointError: none is whole, or one cannot be read now, and none was renamed; says what is wrong with each.
    """
    damaged = {}
    for path in reversed([path for path in steps_in(folder) if ocp.utils.is_checkpoint_finalized(path)]):
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


def remove_incomplete(folder: epath.Path, items: Sequence[str]) -> None:
    """Removes from a folder in a bucket what a run that was killed had not written to its end.

    There, a checkpoint has its name from the beginning, and a mark when it is complete. One that is whole but for the
    mark (it may have been copied without) stays, with a warning. On disks, Orbax knows what is incomplete by its name.

    Raises:
      CheckpointError: one cannot be read now.
    """
    for path in steps_in(folder):
        if ocp.utils.is_checkpoint_finalized(path):
            continue
        if damage(path, items):
            path.rmtree()
        else:
            logging.warning(
                "%s is whole, but its commit_success.txt is missing: it stays, and is not used. To use it, put a file "
                "of this name there; else remove it",
                path,
            )

"""What all processes of one run have to have alike, compared before anything is compiled.

Processes with other flags, other copies of the data or other weights would train to the end without a word, each on
what it has, or wait for each other for ever. Each compares its own with what process 0 has.
"""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dlv3p_jax.runtime import board, configuration, provenance
from dlv3p_jax.runtime.errors import UserError

# Where each host has its data, how it reads them, and what only process 0 does. What `pretrained` names is compared by
# what was loaded.
MAY_DIFFER = ("cache_pictures", "data_dir", "pretrained", "profile_steps")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow", "tensorflow-cpu")
_SHOWN = 3  # keys that a message names


class DifferenceError(UserError):
    """A process has something else than process 0; the message names the process, the keys and both values."""


def require(what: str, mine: Mapping[str, Any]) -> None:
    """Compares `mine`, JSON values by name, with those of the other processes, which all come here with the same names.

    Args:
        what: is compared; a name of its own for each call.
        mine: this process's values.

    Raises:
        DifferenceError: this process has another value than process 0. The others are ended by what becomes of it.
    """
    if board.alone():
        return
    text = json.dumps(mine, sort_keys=True)
    if board.index() == 0:
        board.post(f"compared/{what}", text)
    first = json.loads(board.wait_for(f"compared/{what}"))
    differing = configuration.differences(first, json.loads(text)).items()
    if differing:
        lines = [f"{key} is {here!r} here and {there!r} on process 0" for key, (there, here) in differing]
        shown = "; ".join(lines[:_SHOWN])
        more = f"; {len(lines) - _SHOWN} more differ" if len(lines) > _SHOWN else ""
        raise DifferenceError(
            f"{board.name()} has not the {what} of process 0: {shown}{more}. All processes of a run need the same"
        )
    board.barrier(f"compared {what}")


def versions() -> dict[str, Any]:
    """Of this package, with the revision of its code, of Python, and of the libraries that compute."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    described = provenance.describe()
    return found | {"dlv3p_jax": described["version"], "git_revision": described["git_revision"]}


def configured(config) -> dict[str, Any]:
    """The values of a configuration that all processes need alike."""
    return {key: value for key, value in configuration.to_dict(config).items() if key not in MAY_DIFFER}


def data(dataset, splits: Sequence[str]) -> dict[str, Any]:
    """What a prepared data set (`records.Dataset`) is, less where it lies."""
    known = {split: dataset.digest(split) for split in splits if split in dataset.splits}
    names = {"class_names": ", ".join(dataset.class_names), "ignore_label": dataset.ignore_label}
    return {"dataset": dataset.name} | names | known


def digest(tree) -> str:
    """SHA-256, in hex, of the names, types, shapes and values of a tree of arrays on this host."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape} ".encode())
        found.update(array.tobytes())
    return found.hexdigest()

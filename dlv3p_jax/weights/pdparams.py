"""PaddleSeg's weight files, `.pdparams`, without Paddle; needs only NumPy.

state = load_pdparams("model.pdparams")   # {name: array}; no code in the file is ever run
save_pdparams(state, "model.pdparams")    # paddle.load and PaddleSeg take it

A `.pdparams` is a pickle; `pickles` says how it is read. `pdparams_archive` finds it in an archive.
"""

import io
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from dlv3p_jax.runtime import files
from dlv3p_jax.weights import numpy_pickle, pdparams_archive, pickles
from dlv3p_jax.weights.numpy_pickle import DTYPES, Array
from dlv3p_jax.weights.pickle_errors import WeightsFileError, listed, refuse_others, shown
from dlv3p_jax.weights.pickles import kind

__all__ = ["NAME_TABLE", "PdparamsError", "load_pdparams", "save_pdparams"]


class PdparamsError(WeightsFileError):
    """A file cannot be read as `.pdparams`, or arrays cannot be written as such; the message names the file and why."""


# Paddle's own entries beside the parameters: names within the program, and how arrays of over 2^30 bytes were cut up.
NAME_TABLE = "StructuredToParameterName@@"
_SLICES = "UnpackBigParamInfor@@"

# What else Paddle writes, by how its name ends.
_OTHER_FILES = {
    ".pdmodel": "is a program for inference (.pdmodel), which has no weights",
    ".pdiparams": "holds the weights of a program for inference (.pdiparams), without their names",
    ".pdiparams.info": "says of what an inference program's weights are (.pdiparams.info), and has none",
    ".pdopt": "is an optimizer's state (.pdopt), and no weights",
}
# An optimizer's arrays are named by the parameter that they are for: conv2d_0.w_0_velocity_0.
_OF_AN_OPTIMIZER = re.compile(r".*_(velocity|moment[12]?(_max)?|beta[12]_pow_acc|mean_(square|grad)|momentum)_\d+")


def load_pdparams(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the weights that Paddle 1.x (with Python 2 or 3), 2.x or 3.x wrote.

    Args:
        path: a `.pdparams`, or a tar archive, compressed with gzip or not, with one `.pdparams` in any of its folders.
            Which it is shows in its content, whatever its name. `~` is the home folder.

    Returns:
        Names and arrays in the file's order, of the dtypes that the file has: booleans, integers, floating-point and
        complex numbers of the standard sizes. Paddle's own entries are left out, and parameters that Paddle cut into
        slices are whole. The arrays are writable, and share no memory unless they are one object in the file.

    Raises:
        PdparamsError: there is no such file, it cannot be read, holds anything but arrays, or asks for what no weights
            need: a function to call, more than 2 GiB, an archive's path that leads out of it.
    """
    path = pathlib.Path(os.path.expanduser(path))
    where = str(path)
    try:
        if path.is_dir():
            raise WeightsFileError(f"is a folder: {_advice(path)}")
        if not path.is_file():
            raise WeightsFileError("is no regular file" if path.exists() else "there is no such file")
        for ending, what in _OTHER_FILES.items():
            if path.name.endswith(ending):
                raise WeightsFileError(f"{what}: {_advice(path.parent)}")
        with path.open("rb") as file:
            data, member = pdparams_archive.read(file)
        if member is not None:
            where = f"{path}, in it {shown(member)}"
        state = _to_state(data)
        if all(map(_OF_AN_OPTIMIZER.fullmatch, state)):
            raise WeightsFileError(f"{_OTHER_FILES['.pdopt']}: {_advice(path.parent)}")
        return state
    except WeightsFileError as error:
        raise PdparamsError(f"{where}: {error}") from error
    except OSError as error:
        raise PdparamsError(f"{where}: cannot be read: {error.strerror or error}") from error


def save_pdparams(state: Mapping[str, np.ndarray], path: str | os.PathLike) -> None:
    """Writes weights so that `paddle.load`, and with it PaddleSeg, takes them; `load_pdparams` gives the same bits.

    The file is the plain pickled dict of name -> ndarray that `paddle.save` writes for a `state_dict`. It has no entry
    'StructuredToParameterName@@': that only names parameters within a program, and without it `paddle.load` makes
    tensors of all arrays. It is of protocol 4, Paddle's default, and says `numpy.core`, which NumPy 1 and 2 both know.

    Args:
        state: names and arrays of booleans, integers, floating-point or complex numbers, of any shape and memory order.
        path: the file, replaced as a whole once everything is written; missing folders are made. `~` is the home
            folder.

    Raises:
        PdparamsError: a name is no text or one of Paddle's own, or a value is no such array.
        OSError: the file cannot be written.
    """
    path = pathlib.Path(os.path.expanduser(path))
    for name, value in state.items():
        if not isinstance(name, str) or name in (NAME_TABLE, _SLICES):
            raise PdparamsError(f"{path}: {shown(name)} cannot be the name of a parameter")
        if not isinstance(value, np.ndarray):
            raise PdparamsError(f"{path}: {name} is no NumPy array but {kind(value)}")
        if value.dtype.str[1:] not in DTYPES:
            raise PdparamsError(f"{path}: {name} has dtype {value.dtype}, which Paddle cannot read: convert it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as unfinished, unfinished.open("wb") as file:
        file.writelines(numpy_pickle.pieces(state))


def _advice(folder: pathlib.Path) -> str:
    """Which file to give in place of what is beside it."""
    found = weights_in(folder)
    return f"give {found[0]}" if len(found) == 1 else "give the .pdparams that PaddleSeg saved in training"


def weights_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """The `.pdparams` files in a folder, in order."""
    return sorted(folder.glob("*.pdparams"))


def _to_state(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a pickle."""
    _check_beginning(data[:512])
    try:
        loaded = pickles.loads(io.BytesIO(data), numpy_pickle.DIALECT)
    except WeightsFileError:
        raise
    except (ValueError, LookupError, OverflowError) as error:  # what pickletools and an empty stack raise
        raise WeightsFileError(f"is damaged or only a part of a file ({shown(str(error))}): fetch it again") from error
    if not isinstance(loaded, dict):
        raise WeightsFileError(f"holds {kind(loaded)} instead of a dict of arrays")
    if not all(isinstance(name, str) for name in loaded):
        raise WeightsFileError("has numbers where the names of parameters should be")
    loaded.pop(NAME_TABLE, None)
    slices = loaded.pop(_SLICES, {})
    # Paddle 2.1 and later pickle a tensor among other values as (its name within the program, array).
    values = {
        name: value[1] if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) else value
        for name, value in loaded.items()
    }
    wrong = [f"{name}: {kind(value)}" for name, value in values.items() if not isinstance(value, Array)]
    if wrong:
        raise WeightsFileError(
            f"holds values that are no arrays ({listed(wrong)}): give a model's weights alone, no optimizer's state"
        )
    if not values:
        raise WeightsFileError("holds no arrays")
    if empty := [name for name, value in values.items() if value.data is None]:
        raise WeightsFileError(f"holds arrays without content: {listed(empty)}")
    # Many arrays can be made of the same bytes of a file, which would let a small one fill the memory.
    if sum({value: len(value.data) for value in values.values()}.values()) > len(data):
        raise WeightsFileError(
            f"holds arrays that together take more than its own {len(data):,} bytes: do not trust it"
        )
    del loaded
    state = {name: values.pop(name).to_numpy() for name in list(values)}  # frees the bytes of each on the way
    _join_slices(state, slices)
    return state


def _check_beginning(head: bytes) -> None:
    if head.startswith((b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")):
        raise WeightsFileError("is a PyTorch file (.pth, .pt), and no .pdparams")
    refuse_others(head, ".pdparams")
    if not (head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5):
        raise WeightsFileError(f"is no .pdparams: it begins with {head[:8]!r} and not as a pickle of protocol 2 to 5")


def _join_slices(state: dict[str, np.ndarray], slices: Any) -> None:
    """Makes parameters whole that Paddle cut up, {name: {"OriginShape": shape, "slices": names of flat arrays}}.

    What the entries hold is looked at before it is used, for even the hash of a tuple can take for ever: see `shown`.
    """
    if not isinstance(slices, dict):
        raise WeightsFileError(f"does not say which slices make a parameter: {_SLICES} is {kind(slices)}")
    joined: set[int] = set()  # each array once: many slices of the same bytes would let a small file fill the memory
    for name, entry in slices.items():
        try:
            shape, names = _slices_of(entry)
            parts = [state.pop(part) for part in names]
            if len(joined | {id(part) for part in parts}) < len(joined) + len(parts):
                raise ValueError("an array is a slice twice")
            state[name] = np.concatenate(parts, dtype=parts[0].dtype, casting="no").reshape(shape)
            joined.update(map(id, parts), [id(state[name])])
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise WeightsFileError(
                f"the slices of {shown(name)} are not there or do not fit: {shown(str(error))}"
            ) from error


def _slices_of(entry: Any) -> tuple[tuple[int, ...], list[str]]:
    """The shape and the names of the slices that an entry has; raises ValueError where it has something else there."""
    match entry:
        case {"OriginShape": list() | tuple() as shape, "slices": list() | tuple() as names}:
            if all(type(size) is int for size in shape) and all(type(part) is str for part in names):
                return tuple(shape), list(names)
    raise ValueError("an entry is a shape and the names of slices")

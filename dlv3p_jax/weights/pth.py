"""PyTorch's checkpoints, `.pth`, in both of its formats, without PyTorch; needs only NumPy.

    meta, state = load_pth("iter_80000.pth")    # no code in the file is ever run
    save_pth(state, "model.pth", meta={"CLASSES": ("road", "car")})

Since PyTorch 1.6 such a file is a zip archive of a pickle and of the storages that its tensors are views of. Before, it
was a row of pickles (a magic number, the version, facts about the machine, the object, the keys of its storages) and
behind them the storages, each its number of values and these.
"""

import io
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from dlv3p_jax.runtime import files
from dlv3p_jax.weights import pickles, torch_pickle
from dlv3p_jax.weights.pickle_errors import MAX_BYTES, WeightsFileError, listed, refuse_others, shown
from dlv3p_jax.weights.pickles import kind
from dlv3p_jax.weights.torch_pickle import Storage, Tensor

_MAGIC_NUMBER, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_ZIP = b"PK\x03\x04"
_MAX_MEMBERS = 100_000
_SHARING = 4  # tensors of a file may take together so many times its size, as views can share values


class PthError(WeightsFileError):
    """A file cannot be read as one of PyTorch's, or arrays cannot be written as such; it names the file and why."""


def is_pth(path: str | os.PathLike) -> bool:
    """Whether a file begins as PyTorch's do; OSError where it cannot be read."""
    with pathlib.Path(path).open("rb") as file:
        head = file.read(16)
    return head.startswith(_ZIP) or _is_legacy(head)


def load_pth(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads the weights that `torch.save` wrote: a state dict, or a dict with one as its `state_dict`.

    Args:
        path: the file. `~` is the home folder.

    Returns:
        The file's `meta` as plain values (`Unread` for objects; empty where there is none), and the names of the
        weights with their arrays in the file's order: writable, each of its own memory, of the dtypes that the file
        has; bfloat16 becomes float32. `module.` before all names is left out.

    Raises:
        PthError: there is no such file, it cannot be read, holds no state dict, or asks for what no weights need.
    """
    path = pathlib.Path(os.path.expanduser(path))
    try:
        if not path.is_file():
            raise WeightsFileError("is a folder: give a file in it" if path.is_dir() else "there is no such file")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise WeightsFileError(f"has {size:,} bytes, more than the {MAX_BYTES:,} that weights may take here")
        data = path.read_bytes()
        try:
            return _from_zip(data) if data.startswith(_ZIP) else _from_legacy(data)
        except WeightsFileError:
            raise
        # What pickletools, zipfile (NotImplementedError is a RuntimeError) and an empty stack raise.
        except (ValueError, LookupError, OverflowError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
            raise WeightsFileError(
                f"is damaged or only a part of a file ({shown(str(error))}): fetch it again"
            ) from error
    except WeightsFileError as error:
        raise PthError(f"{path}: {error}") from error
    except OSError as error:
        raise PthError(f"{path}: cannot be read: {error.strerror or error}") from error


def save_pth(state: Mapping[str, np.ndarray], path: str | os.PathLike, meta: Mapping[str, Any]) -> None:
    """Writes {"meta": meta, "state_dict": state} in PyTorch's zip format, for `torch.load`, with `weights_only` too.

    Args:
        state: names and arrays of dtypes float16, float32, float64 or int64.
        path: the file, replaced as a whole once everything is written. `~` is the home folder.
        meta: texts, integers, and tuples, lists and dicts of these.

    Raises:
        OSError: the file cannot be written.
    """
    state = {name: np.ascontiguousarray(value).reshape(value.shape) for name, value in state.items()}
    with (
        files.replacing(pathlib.Path(os.path.expanduser(path))) as unfinished,
        zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive,
    ):
        archive.writestr("archive/data.pkl", torch_pickle.written(state, meta))
        archive.writestr("archive/byteorder", "little")
        for number, value in enumerate(state.values()):
            archive.writestr(f"archive/data/{number}", value.astype(value.dtype.newbyteorder("<")).tobytes())
        archive.writestr("archive/version", "3\n")


def _is_legacy(head: bytes) -> bool:
    # A pickle of the magic number, of protocol 2 or later.
    return head[:1] == b"\x80" and head[2:4] == b"\x8a\x0a" and head[4:14] == _MAGIC_NUMBER.to_bytes(10, "little")


def _from_zip(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) < len(archive.infolist()) or len(members) > _MAX_MEMBERS:
            raise WeightsFileError("is a zip archive that holds a name twice, or too many of them: do not trust it")
        found = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(found) != 1:
            raise WeightsFileError(f"is a zip archive, but none of PyTorch's: it holds {listed(list(members))}")
        folder = found[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in members:
            raise WeightsFileError("is a program (TorchScript): give the weights that torch.save wrote")

        def read(name: str, size: int | None = None) -> bytes:
            member = members.get(folder + name)
            if member is None:
                raise WeightsFileError(f"lacks {shown(folder + name)}: fetch it again")
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                raise WeightsFileError("is a zip archive with packed parts, as PyTorch writes none: do not trust it")
            if size not in (None, member.file_size) or member.file_size > len(data):
                raise WeightsFileError(
                    f"says that {shown(folder + name)} has {member.file_size:,} bytes, which is wrong: do not trust it"
                )
            return archive.read(member)

        storages: dict[str, Storage] = {}
        loaded = pickles.loads(io.BytesIO(read("data.pkl")), torch_pickle.dialect(storages))
        order = ">" if f"{folder}byteorder" in members and read("byteorder") == b"big" else "<"
        meta, tensors = _parts(loaded, len(data))
        names: dict[str, list[str]] = {}
        for name, tensor in tensors.items():
            names.setdefault(tensor.storage.key, []).append(name)
        arrays = {}
        for key, views in names.items():  # one storage after the other, as each is read into memory
            content = read(f"data/{key}", storages[key].nbytes)
            arrays.update({name: tensors[name].to_numpy(content, order) for name in views})
    return meta, {name: arrays[name] for name in tensors}


def _from_legacy(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    refuse_others(data[:512], ".pth")
    if not _is_legacy(data):
        raise WeightsFileError(f"is no file of torch.save: it begins with {data[:8]!r}")
    file = io.BytesIO(data)
    storages: dict[str, Storage] = {}
    _, version, _, loaded, keys = (pickles.loads(file, torch_pickle.dialect(storages)) for _ in range(5))
    if version != _VERSION:
        raise WeightsFileError(f"is of version {shown(version)} of PyTorch's format, which is not known here")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise WeightsFileError("does not name its storages: fetch it again")
    meta, tensors = _parts(loaded, len(data))
    contents, position = {}, file.tell()
    for key in keys:
        if key not in storages:
            raise WeightsFileError(f"holds a storage {shown(key)} of no tensor, whose size is not known")
        begin = position + 8
        position = begin + storages[key].nbytes
        if int.from_bytes(data[begin - 8 : begin], "little") != storages[key].size or position > len(data):
            raise WeightsFileError("is only a part of a file, or damaged: fetch it again")
        contents[key] = memoryview(data)[begin:position]
    if missing := [tensor.storage.key for tensor in tensors.values() if tensor.storage.key not in contents]:
        raise WeightsFileError(f"lacks storages of its tensors, {listed(missing)}: fetch it again")
    return meta, {name: tensor.to_numpy(contents[tensor.storage.key]) for name, tensor in tensors.items()}


def _parts(loaded: Any, size: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The `meta` and the tensors of what a file of `size` bytes holds."""
    if not isinstance(loaded, dict):
        raise WeightsFileError(f"holds {kind(loaded)} instead of a dict of tensors")
    meta, state = ({}, loaded) if "state_dict" not in loaded else (loaded.get("meta"), loaded["state_dict"])
    if not isinstance(state, dict) or not state:
        raise WeightsFileError(f"holds no weights: its state_dict is {kind(state)}")
    if wrong := [f"{name}: {kind(value)}" for name, value in state.items() if not isinstance(value, Tensor)]:
        raise WeightsFileError(f"holds values that are no tensors ({listed(wrong)}): give a state_dict")
    if not all(isinstance(name, str) for name in state):
        raise WeightsFileError("has numbers where the names of parameters should be")
    # Many tensors can be made of the same values of a file, which would let a small one fill the memory.
    if sum(tensor.nbytes for tensor in state.values()) > _SHARING * size:
        raise WeightsFileError(
            f"holds tensors that together take more than {_SHARING} times its own {size:,} bytes: do not trust it"
        )
    return meta if isinstance(meta, dict) else {}, state

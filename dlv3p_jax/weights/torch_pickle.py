"""PyTorch's tensors in pickles: views of storages that lie elsewhere in the file; read and written without PyTorch."""

import dataclasses
import math
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlv3p_jax.weights import numpy_pickle, pickles
from dlv3p_jax.weights.pickle_errors import MAX_BYTES, WeightsFileError, shown
from dlv3p_jax.weights.pickles import Global

# The type of a storage -> the dtype of its values. NumPy has no bfloat16: its 16 bits are the upper ones of a float32.
_STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "b1",
    "ComplexFloatStorage": "c8",
    "ComplexDoubleStorage": "c16",
}
_OF_DTYPES = {"f4": "FloatStorage", "f8": "DoubleStorage", "f2": "HalfStorage", "i8": "LongStorage"}  # that are written

_NAMES = {
    **numpy_pickle.NAMES,
    **{f"torch {name}": name for name in _STORAGES},
    **{f"torch._utils {name}": name for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")},
    "torch Size": "Size",
    **{f"{module} getattr": "getattr" for module in ("builtins", "__builtin__")},
}
# What trainers of OpenMMLab keep beside the weights: smoothed losses, settings, hooks.
_UNREAD = ("mmengine.", "mmcv.", "mmseg.")

_MAX_DIMENSIONS = 32


@dataclasses.dataclass(frozen=True)
class Storage:
    """A part of a storage of the file: its key there, the type and number of all its values, and which of them."""

    key: str
    dtype: str  # of `_STORAGES`
    size: int
    first: int = 0
    count: int = 0

    @property
    def nbytes(self) -> int:
        return self.size * (2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage; strides are in values."""

    called = "a tensor"

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * (4 if self.storage.dtype == "bfloat16" else np.dtype(self.storage.dtype).itemsize)

    def to_numpy(self, data: bytes | memoryview, order: str = "<") -> np.ndarray:
        """The tensor's values, an array of its own, from the bytes of the storage; bfloat16 becomes float32."""
        half = self.storage.dtype == "bfloat16"
        dtype = np.dtype(order + ("u2" if half else self.storage.dtype))
        start = (self.storage.first + self.offset) * dtype.itemsize
        strides = [stride * dtype.itemsize for stride in self.strides]
        view = np.ndarray(self.shape, dtype, data, start, strides) if self.size else np.zeros(self.shape, dtype)
        values = np.array(view, dtype.newbyteorder("="), order="C")
        return (values.astype(np.uint32) << 16).view(np.float32) if half else values


def _storage(pid: Any) -> Storage:
    """What a persistent id stands for: ("storage", type, key, device, number of values), in older files with a view."""
    match pid:
        case ("storage", Global(str() as kind), str() as key, str(), int() as size, *view) if kind in _STORAGES:
            if not 0 <= size <= MAX_BYTES:
                raise WeightsFileError(f"holds a storage of the impossible size {size}")
            match view:
                case [] | [None]:
                    return Storage(key, _STORAGES[kind], size, 0, size)
                case [(str(), int() as first, int() as count)] if 0 <= first <= first + count <= size and count >= 0:
                    return Storage(key, _STORAGES[kind], size, first, count)
    raise WeightsFileError("refers to something outside of itself that is no storage of numbers: do not trust it")


def _tensor(storage: Storage, offset: Any, shape: Any, strides: Any) -> Tensor:
    for numbers in (shape, strides):
        if len(numbers) > _MAX_DIMENSIONS or not all(type(n) is int and 0 <= n <= MAX_BYTES for n in numbers):
            raise WeightsFileError(
                f"holds a tensor of the impossible shape {shown(shape)} and strides {shown(strides)}"
            )
    tensor = Tensor(storage, offset, shape, strides)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if math.prod(max(size, 1) for size in shape) > MAX_BYTES or offset < 0 or (tensor.size and last >= storage.count):
        raise WeightsFileError(
            f"holds a tensor of shape {shown(shape)} and strides {shown(strides)} at {shown(offset)} of a storage that "
            f"has {storage.count:,} values"
        )
    return tensor


def _call(name: str, arguments: Any) -> Any:
    match name, arguments:
        case (
            "_rebuild_tensor" | "_rebuild_tensor_v2",
            (Storage() as storage, int() as offset, tuple() as shape, tuple() as strides, *_),
        ) if len(shape) == len(strides):
            return _tensor(storage, offset, shape, strides)
        case "_rebuild_parameter", (Tensor() as tensor, bool(), _):
            return tensor
        case "Size", (tuple() as items,):
            return items
        case "getattr", (pickles.Unread(), str()):
            return pickles.Unread()
    return numpy_pickle.call(name, arguments)


def dialect(storages: dict[str, Storage]) -> pickles.Dialect:
    """What a file of PyTorch's may ask for; `storages` gets those that it refers to, by their keys."""

    def persistent(pid: Any) -> Storage:
        storage = _storage(pid)
        known = storages.setdefault(storage.key, storage)
        if (known.dtype, known.size) != (storage.dtype, storage.size):
            raise WeightsFileError(f"holds a storage {shown(storage.key)} of two kinds: do not trust it")
        return storage

    return pickles.Dialect(_NAMES, _call, persistent, _UNREAD)


def written(state: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> bytes:
    """The pickle of {"meta": meta, "state_dict": state} whose storages have the keys 0, 1, ... in the order of `state`.

    Args:
        state: names and arrays in C's order, of dtypes float16, float32, float64 or int64.
        meta: texts, integers, and sequences of these.
    """
    new_dict = pickles.named("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    parts = [pickle.PROTO + b"\x02" + pickle.EMPTY_DICT]
    parts += [pickles.text("meta"), _plain(meta), pickle.SETITEM, pickles.text("state_dict"), new_dict]
    for number, (name, value) in enumerate(state.items()):
        strides = tuple(stride // value.itemsize for stride in value.strides)
        parts += [pickles.text(name), pickles.named("torch._utils", "_rebuild_tensor_v2"), pickle.MARK]
        parts += [pickle.MARK, pickles.text("storage"), pickles.named("torch", _OF_DTYPES[value.dtype.str[1:]])]
        parts += [pickles.text(str(number)), pickles.text("cpu"), pickles.integer(value.size), pickle.TUPLE]
        parts += [pickle.BINPERSID, pickles.integer(0), _plain(value.shape), _plain(strides), pickle.NEWFALSE]
        parts += [new_dict, pickle.TUPLE, pickle.REDUCE, pickle.SETITEM]
    return b"".join([*parts, pickle.SETITEM, pickle.STOP])


def _plain(value: Any) -> bytes:
    if isinstance(value, str):
        return pickles.text(value)
    if isinstance(value, Mapping):
        items = b"".join(pickles.text(key) + _plain(item) + pickle.SETITEM for key, item in value.items())
        return pickle.EMPTY_DICT + items
    if isinstance(value, list):
        return pickle.EMPTY_LIST + b"".join(_plain(item) + pickle.APPEND for item in value)
    if isinstance(value, Sequence):
        return pickle.MARK + b"".join(map(_plain, value)) + pickle.TUPLE
    return pickles.integer(int(value))

"""NumPy's arrays in pickles: made of plain values, and written so that every NumPy reads them.

Nothing of NumPy's own is called for it, as its functions allocate what they are asked to.
"""

import dataclasses
import math
import pickle
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from dlv3p_jax.weights import pickles
from dlv3p_jax.weights.pickle_errors import MAX_BYTES, WeightsFileError, shown
from dlv3p_jax.weights.pickles import Global

DTYPES = frozenset(("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"))
_MAX_DIMENSIONS = 32  # NumPy 1's

# What a file may name -> the name that `call` knows it by. NumPy 2 moved its modules.
NAMES = {
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    **{f"numpy.{core}.multiarray {name}": name for core in ("core", "_core") for name in ("_reconstruct", "scalar")},
    **{f"numpy.{core}.numeric _frombuffer": "_frombuffer" for core in ("core", "_core")},  # protocol 5
    "_codecs encode": "encode",  # bytes in protocol 2
    **{f"{module} {name}": name for module in ("builtins", "__builtin__") for name in ("bytes", "tuple")},
    "collections OrderedDict": "OrderedDict",
}


@dataclasses.dataclass(eq=False)
class DType:
    """A dtype of a pickle."""

    code: str  # of DTYPES
    order: str = "|"

    def set_state(self, state: Any) -> None:
        match state:
            case (3, "<" | ">" | "|" as order, None, None, None, *_):
                self.order = order
            case _:
                raise pickles.wrong_state("a dtype")

    def to_numpy(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class Array:
    """An array of a pickle: its bytes, and how they are laid out. A text stands for its Latin-1 bytes."""

    called = "an array"

    def __init__(self):
        self.data: bytes | bytearray | str | None = None
        self._value: np.ndarray | None = None

    def fill(
        self,
        dtype: DType,
        shape: tuple,
        data: bytes | bytearray | str,
        order: Literal["C", "F"] = "C",
        axes: tuple = (),
    ) -> "Array":
        if len(shape) > _MAX_DIMENSIONS or not all(type(size) is int and 0 <= size <= MAX_BYTES for size in shape):
            raise WeightsFileError(f"holds an array of the impossible shape {shown(shape)}")
        if math.prod(max(size, 1) for size in shape) > MAX_BYTES:
            raise WeightsFileError(f"holds an array of shape {shown(shape)}, more than {MAX_BYTES:,} bytes")
        if len(data) != math.prod(shape) * dtype.to_numpy().itemsize:
            raise WeightsFileError(
                f"holds {len(data):,} bytes for an array of shape {shown(shape)} and {dtype.to_numpy()}"
            )
        if axes and not (all(type(axis) is int for axis in axes) and sorted(axes) == list(range(len(shape)))):
            raise WeightsFileError(f"holds an array whose axes are in the impossible order {shown(axes)}")
        self.data, self._dtype, self._shape, self._order, self._axes = data, dtype, shape, order, axes
        return self

    def set_state(self, state: Any) -> None:
        match state:
            case (1, tuple() as shape, DType() as dtype, bool() as fortran, (bytes() | str()) as data):
                self.fill(dtype, shape, data, "F" if fortran else "C")
            case _:
                raise pickles.wrong_state("an array")

    def to_numpy(self) -> np.ndarray:
        """The array, the same at every call."""
        if self._value is None:
            try:
                data = self.data.encode("latin1") if isinstance(self.data, str) else self.data
            except UnicodeEncodeError as error:
                raise WeightsFileError("holds an array whose content is text and no bytes") from error
            array = np.ndarray(self._shape, self._dtype.to_numpy(), buffer=data, order=self._order)
            self._value = (array.transpose(self._axes) if self._axes else array).copy(order="K")
        return self._value


def call(name: str, arguments: Any) -> Any:
    """What the call gives that makes an array, a dtype or a container."""
    match name, arguments:
        case "_reconstruct", (Global("ndarray"), _, _):
            return Array()
        case "_frombuffer", (bytes() | bytearray() as data, DType() as dtype, tuple() as shape, *layout):
            match layout:
                case ["C" | "F" as order]:
                    return Array().fill(dtype, shape, data, order)
                case ["K", tuple() as axes]:
                    return Array().fill(dtype, shape, data, axes=axes)
        case "scalar", (DType() as dtype, bytes() | str() as data):
            return Array().fill(dtype, (), data)
        case "dtype", (str() as code, *_):
            if code not in DTYPES:
                raise WeightsFileError(f"holds an array of dtype {shown(code)}; weights are numbers")
            return DType(code)
        case "encode", (str() as text, "latin1"):
            return text  # Array takes it for bytes
        case "bytes", ():
            return b""
        case "tuple", (tuple() as items,):
            return items
        case "OrderedDict", ():
            return pickles.OrderedDict()
    raise pickles.wrong_call(name)


DIALECT = pickles.Dialect(NAMES, call)


def pieces(state: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """A pickle of `state`, whose dtypes are of `DTYPES`, in pieces; by hand, as NumPy 1 cannot read NumPy 2's own."""
    text, named, integer = pickles.text, pickles.named, pickles.integer

    # _reconstruct(ndarray, (0,), b"b"), then its state (1, shape, dtype, is in Fortran's order, bytes); a dtype is
    # dtype(code, False, True), then its state (3, byte order, None, None, None, -1, -1, 0).
    new_array = named("numpy.core.multiarray", "_reconstruct") + named("numpy", "ndarray")
    new_array += integer(0) + pickle.TUPLE1 + pickle.SHORT_BINBYTES + b"\x01b" + pickle.TUPLE3 + pickle.REDUCE
    yield pickle.PROTO + b"\x04" + pickle.EMPTY_DICT
    for name, value in state.items():
        order, code = value.dtype.str[0], value.dtype.str[1:]
        yield text(name) + new_array + pickle.MARK + integer(1)
        yield pickle.MARK + b"".join(map(integer, value.shape)) + pickle.TUPLE
        yield named("numpy", "dtype") + text(code) + pickle.NEWFALSE + pickle.NEWTRUE + pickle.TUPLE3 + pickle.REDUCE
        yield pickle.MARK + integer(3) + text(order) + pickle.NONE * 3 + integer(-1) * 2 + integer(0)
        yield pickle.TUPLE + pickle.BUILD + pickle.NEWFALSE
        yield pickle.BINBYTES8 + value.nbytes.to_bytes(8, "little")
        yield value.tobytes()
        yield pickle.TUPLE + pickle.BUILD + pickle.SETITEM
    yield pickle.STOP

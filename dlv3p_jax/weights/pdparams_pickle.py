"""Pickles of arrays, read without running what they say, and written so that every NumPy reads them.

Unpickling runs what the file says. So nothing is unpickled here: pickletools splits the file into its operations, and
the few that make a dict of arrays are carried out on plain values. Nothing is imported and nothing of the file's
choosing is called. A `pickle.Unpickler` that only refuses globals would not do: one operation with a large memo index
has it allocate 64 GB, a nested tuple as a key overflows the stack and ends the process, and the functions of NumPy that
it would have to allow allocate what they are asked to.
"""

import dataclasses
import math
import pickle
import pickletools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from dlv3p_jax.weights.pdparams_errors import MAX_BYTES, PdparamsError, shown

_MAX_OPERATIONS = 1_000_000  # the largest published model takes 27,000

DTYPES = frozenset(("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"))
_MAX_DIMENSIONS = 32  # NumPy 1's

# What a file may name -> the name that `_call` knows it by. NumPy 2 moved its modules.
_GLOBALS = {
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    **{f"numpy.{core}.multiarray {name}": name for core in ("core", "_core") for name in ("_reconstruct", "scalar")},
    **{f"numpy.{core}.numeric _frombuffer": "_frombuffer" for core in ("core", "_core")},  # protocol 5
    "_codecs encode": "encode",  # bytes in protocol 2
    **{f"{module} {name}": name for module in ("builtins", "__builtin__") for name in ("bytes", "tuple")},
    "collections OrderedDict": "OrderedDict",
}

_LITERALS = frozenset(
    ("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING")
    + ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


@dataclasses.dataclass(frozen=True)
class _Global:
    name: str


@dataclasses.dataclass(eq=False)
class _DType:
    code: str  # of DTYPES
    order: str = "|"

    def to_numpy(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class Array:
    """An array of a pickle: its bytes, and how they are laid out. A text stands for its Latin-1 bytes."""

    def __init__(self):
        self.data: bytes | bytearray | str | None = None
        self._value: np.ndarray | None = None

    def fill(
        self,
        dtype: _DType,
        shape: tuple,
        data: bytes | bytearray | str,
        order: Literal["C", "F"] = "C",
        axes: tuple = (),
    ) -> "Array":
        if len(shape) > _MAX_DIMENSIONS or not all(type(size) is int and 0 <= size <= MAX_BYTES for size in shape):
            raise PdparamsError(f"holds an array of the impossible shape {shown(shape)}")
        if math.prod(max(size, 1) for size in shape) > MAX_BYTES:
            raise PdparamsError(f"holds an array of shape {shown(shape)}, more than {MAX_BYTES:,} bytes")
        if len(data) != math.prod(shape) * dtype.to_numpy().itemsize:
            raise PdparamsError(
                f"holds {len(data):,} bytes for an array of shape {shown(shape)} and {dtype.to_numpy()}"
            )
        if axes and not (all(type(axis) is int for axis in axes) and sorted(axes) == list(range(len(shape)))):
            raise PdparamsError(f"holds an array whose axes are in the impossible order {shown(axes)}")
        self.data, self._dtype, self._shape, self._order, self._axes = data, dtype, shape, order, axes
        return self

    def to_numpy(self) -> np.ndarray:
        """The array, the same at every call."""
        if self._value is None:
            try:
                data = self.data.encode("latin1") if isinstance(self.data, str) else self.data
            except UnicodeEncodeError as error:
                raise PdparamsError("holds an array whose content is text and no bytes") from error
            array = np.ndarray(self._shape, self._dtype.to_numpy(), buffer=data, order=self._order)
            self._value = (array.transpose(self._axes) if self._axes else array).copy(order="K")
        return self._value


def loads(data: bytes) -> Any:
    """Carries out the operations of a pickle.

    What comes out is made of numbers, texts, bytes, None, tuples, lists, dicts with texts as keys, _Global, _DType and
    Array. ValueError or LookupError: the file is damaged.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []
    memo: dict[Any, Any] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if count == _MAX_OPERATIONS:
            raise PdparamsError(f"takes more than {_MAX_OPERATIONS:,} pickle operations; weights take a few thousand")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case name if name in _LITERALS:
                stack.append(_CONSTANTS.get(name, argument))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "MARK":
                outer.append(stack)
                stack = []
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(opcode.name[-1]))]
                stack.append(tuple(reversed(items)))
            case "TUPLE":
                items, stack = stack, outer.pop()
                stack.append(tuple(items))
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND":
                item = stack.pop()
                _extend(stack[-1], [item])
            case "APPENDS":
                items, stack = stack, outer.pop()
                _extend(stack[-1], items)
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _update(stack[-1], [key, value])
            case "SETITEMS":
                items, stack = stack, outer.pop()
                _update(stack[-1], items)
            case "GLOBAL":
                stack.append(_find_global(str(argument)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                if not (isinstance(module, str) and isinstance(attribute, str)):
                    raise ValueError("a global without a name")
                stack.append(_find_global(f"{module} {attribute}"))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(function, arguments))
            case "BUILD":
                state = stack.pop()
                _build(stack[-1], state)
            case name:
                raise PdparamsError(f"uses the pickle operation {name}, which no weights need: do not trust it")
    raise ValueError("no end")


def _extend(target: Any, items: list) -> None:
    if not isinstance(target, list):
        raise ValueError(f"{kind(target)} is no list")
    target.extend(items)


def _update(target: Any, items: list) -> None:
    """Puts key, value, key, value, ... into a dict."""
    keys, values = items[::2], items[1::2]
    if not isinstance(target, dict) or len(keys) != len(values):
        raise ValueError("no dict, or no pairs")
    for key in keys:
        if not isinstance(key, str):
            raise PdparamsError(f"has {kind(key)} where the name of a parameter should be")
    target.update(zip(keys, values, strict=True))


def _find_global(name: str) -> _Global:
    if name not in _GLOBALS:
        raise PdparamsError(
            f"asks for {shown(name.replace(' ', '.', 1))}, which no weights need. It was not run. "
            "The file may be made to do harm: do not trust it"
        )
    return _Global(_GLOBALS[name])


def _call(function: Any, arguments: Any) -> Any:
    """What the call gives that makes an array, a dtype or a container."""
    match function, arguments:
        case _Global("_reconstruct"), (_Global("ndarray"), _, _):
            return Array()
        case _Global("_frombuffer"), (bytes() | bytearray() as data, _DType() as dtype, tuple() as shape, *layout):
            match layout:
                case ["C" | "F" as order]:
                    return Array().fill(dtype, shape, data, order)
                case ["K", tuple() as axes]:
                    return Array().fill(dtype, shape, data, axes=axes)
        case _Global("scalar"), (_DType() as dtype, bytes() | str() as data):
            return Array().fill(dtype, (), data)
        case _Global("dtype"), (str() as code, *_):
            if code not in DTYPES:
                raise PdparamsError(f"holds an array of dtype {shown(code)}; weights are numbers")
            return _DType(code)
        case _Global("encode"), (str() as text, "latin1"):
            return text  # Array takes it for bytes
        case _Global("bytes"), ():
            return b""
        case _Global("tuple"), (tuple() as items,):
            return items
        case _Global("OrderedDict"), ():
            return {}
    name = function.name if isinstance(function, _Global) else kind(function)
    raise PdparamsError(f"calls {name} as no weights need it: do not trust it")


def _build(target: Any, state: Any) -> None:
    match target, state:
        case _DType(), (3, "<" | ">" | "|" as order, None, None, None, *_):
            target.order = order
        case Array(), (1, tuple() as shape, _DType() as dtype, bool() as fortran, (bytes() | str()) as data):
            target.fill(dtype, shape, data, "F" if fortran else "C")
        case _:
            raise PdparamsError(f"sets a state of {kind(target)} that no weights need: do not trust it")


def kind(value: Any) -> str:
    """What `value` is, for a message."""
    if isinstance(value, Array):
        return "an array"
    if isinstance(value, dict | list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"a value of type {type(value).__name__.strip('_')}"


def pieces(state: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """A pickle of `state`, whose dtypes are of `DTYPES`, in pieces; by hand, as NumPy 1 cannot read NumPy 2's own."""

    def text(value):
        encoded = value.encode("utf-8", "surrogatepass")
        return pickle.BINUNICODE + len(encoded).to_bytes(4, "little") + encoded

    def named(module, name):
        return pickle.GLOBAL + f"{module}\n{name}\n".encode()

    def integer(value):
        return pickle.LONG1 + b"\x08" + value.to_bytes(8, "little", signed=True)

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

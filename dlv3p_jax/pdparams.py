"""PaddleSeg's weight files, `.pdparams`, without Paddle; needs only NumPy.

state = load_pdparams("model.pdparams")   # {name: array}; no code in the file is ever run
save_pdparams(state, "model.pdparams")    # paddle.load and PaddleSeg take it

A `.pdparams` is a pickle, and unpickling runs what the file says. So nothing is unpickled here: pickletools splits the
file into its operations, and the few that make a dict of arrays are carried out on plain values. Nothing is imported
and nothing of the file's choosing is called. A `pickle.Unpickler` that only refuses globals would not do: one operation
with a large memo index has it allocate 64 GB, a nested tuple as a key overflows the stack and ends the process, and the
functions of NumPy that it would have to allow allocate what they are asked to.
"""

import dataclasses
import gzip
import math
import os
import pathlib
import pickle
import pickletools
import reprlib
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

# Paddle's own entries beside the parameters: names within the program, and how arrays of over 2^30 bytes were cut up.
NAME_TABLE = "StructuredToParameterName@@"
_SLICES = "UnpackBigParamInfor@@"

# The largest published model takes 183 MB and 27,000 operations, an ImageNet archive about 100 MB and a few members.
# Random weights do not compress, so a real archive holds little more than its own size.
_MAX_BYTES = 2 * 2**30
_MAX_OPERATIONS = 1_000_000
_MAX_MEMBERS = 1_000
_MAX_RATIO, _RATIO_FREE_BYTES = 20, 32 * 2**20

_DTYPES = frozenset(("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"))
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

_BEGINNINGS = (
    (b"PK\x03\x04", "is a zip archive, as PyTorch's files are (.pth, .pt), and no .pdparams"),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "is a PyTorch file, and no .pdparams"),
    (b"BZh", "is compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "is compressed with xz: unpack it first"),
    (b"\x1f\x8b", "is compressed with gzip: unpack it first"),
    (b"\x89HDF", "is an HDF5 file, and no .pdparams"),
)


class PdparamsError(ValueError):
    """A file cannot be read as weights, or arrays cannot be written as such; the message names the file and why."""


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
            raise PdparamsError("is a folder: give the .pdparams file in it")
        if not path.is_file():
            raise PdparamsError("is no regular file" if path.exists() else "there is no such file")
        with path.open("rb") as file:
            data, member = _read(file)
        if member is not None:
            where = f"{path}, in it {_shown(member)}"
        return _to_state(data)
    except PdparamsError as error:
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
            raise PdparamsError(f"{path}: {_shown(name)} cannot be the name of a parameter")
        if not isinstance(value, np.ndarray):
            raise PdparamsError(f"{path}: {name} is no NumPy array but {_kind(value)}")
        if value.dtype.str[1:] not in _DTYPES:
            raise PdparamsError(f"{path}: {name} has dtype {value.dtype}, which Paddle cannot read: convert it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.writelines(_pickled(state))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _pickled(state: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """A pickle of `state` in pieces; written by hand, as what NumPy 2 pickles NumPy 1 cannot read."""

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


def _read(file: BinaryIO) -> tuple[bytes, str | None]:
    """The bytes of the pickle, and the member's name if `file` is an archive."""
    size = os.fstat(file.fileno()).st_size
    if size > _MAX_BYTES:
        raise PdparamsError(f"has {size:,} bytes, more than the {_MAX_BYTES:,} that weights may take here")
    head = file.read(tarfile.BLOCKSIZE)
    file.seek(0)
    if _is_tar(head):
        return _read_archive(file, _MAX_BYTES)
    if not head.startswith(b"\x1f\x8b"):
        return file.read(), None
    with gzip.GzipFile(fileobj=file) as unpacked:
        return _read_archive(unpacked, min(_MAX_BYTES, _RATIO_FREE_BYTES + _MAX_RATIO * size))


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")  # checks the header's checksum
    except tarfile.HeaderError:
        return False
    return True


class _Limited:
    """A stream that ends in an error after so many bytes."""

    def __init__(self, stream: BinaryIO, limit: int):
        self._stream = stream
        self._limit = self._left = limit

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise PdparamsError(
                f"is an archive that unpacks to more than {self._limit:,} bytes, the most that one of its size may. "
                "Weights hardly compress, so this is something else, and may be made to fill the memory"
            )
        return data


def _read_archive(stream: BinaryIO, limit: int) -> tuple[bytes, str]:
    """The only `.pdparams` of a tar archive and its name. The archive is read through once; nothing is extracted."""
    found = None
    names = []
    try:
        if not _is_tar(stream.read(tarfile.BLOCKSIZE)):
            raise PdparamsError("is compressed with gzip, but holds no tar archive: unpack it first, or fetch it again")
        stream.seek(0)
        limited = _Limited(stream, limit)
        with tarfile.open(fileobj=limited, mode="r|", bufsize=2**20) as archive:
            for member in archive:
                names.append(member.name)
                if len(names) > _MAX_MEMBERS:
                    raise PdparamsError(f"is an archive of more than {_MAX_MEMBERS:,} members; weights come in a few")
                if not _is_weights(member):
                    continue
                if found is not None:
                    raise PdparamsError(
                        f"holds several .pdparams, {_listed([found[1], member.name])}: unpack the one meant"
                    )
                found = archive.extractfile(member).read(), member.name
        while limited.read(2**20):  # to the end, where gzip has its checksum
            pass
    except (tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise PdparamsError(f"is a damaged archive or only a part of one ({error}): fetch it again") from error
    if found is None:
        raise PdparamsError(f"is an archive without a .pdparams; it holds {_listed(names)}")
    return found


def _is_weights(member: tarfile.TarInfo) -> bool:
    parts = member.name.replace("\\", "/").split("/")
    if ".." in parts or not parts[0] or parts[0].endswith(":"):
        raise PdparamsError(f"is an archive with a path that leads out of it, {_shown(member.name)}: do not trust it")
    # macOS's tar adds a file ._NAME with attributes to every file NAME.
    if member.isdir() or not parts[-1].endswith(".pdparams") or parts[-1].startswith("._"):
        return False
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        raise PdparamsError(
            f"is an archive whose {_shown(member.name)} is no plain file but a link, a device or sparse"
        )
    return True


def _to_state(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a pickle."""
    _check_beginning(data[:512])
    try:
        loaded = _run(data)
    except PdparamsError:
        raise
    except (ValueError, LookupError, OverflowError) as error:  # what pickletools and an empty stack raise
        raise PdparamsError(f"is damaged or only a part of a file ({_shown(str(error))}): fetch it again") from error
    if not isinstance(loaded, dict):
        raise PdparamsError(f"holds {_kind(loaded)} instead of a dict of arrays")
    loaded.pop(NAME_TABLE, None)
    slices = loaded.pop(_SLICES, {})
    # Paddle 2.1 and later pickle a tensor among other values as (its name within the program, array).
    values = {
        name: value[1] if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) else value
        for name, value in loaded.items()
    }
    wrong = [f"{name}: {_kind(value)}" for name, value in values.items() if not isinstance(value, _Array)]
    if wrong:
        raise PdparamsError(
            f"holds values that are no arrays ({_listed(wrong)}): give a model's weights alone, no optimizer's state"
        )
    if not values:
        raise PdparamsError("holds no arrays")
    if empty := [name for name, value in values.items() if value.data is None]:
        raise PdparamsError(f"holds arrays without content: {_listed(empty)}")
    # Many arrays can be made of the same bytes of a file, which would let a small one fill the memory.
    if sum({value: len(value.data) for value in values.values()}.values()) > len(data):
        raise PdparamsError(f"holds arrays that together take more than its own {len(data):,} bytes: do not trust it")
    del loaded
    state = {name: values.pop(name).to_numpy() for name in list(values)}  # frees the bytes of each on the way
    _join_slices(state, slices)
    return state


def _check_beginning(head: bytes) -> None:
    if not head:
        raise PdparamsError("is empty: fetch it again")
    for beginning, message in _BEGINNINGS:
        if head.startswith(beginning):
            raise PdparamsError(message)
    if head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5:
        return
    if head.lstrip().startswith(b"<"):
        raise PdparamsError("is an HTML or XML page: the download failed, and this is what the server said instead")
    if all(byte >= 32 or byte in b"\t\n\f\r" for byte in head):
        text = head.decode("utf-8", "replace").strip().partition("\n")[0]
        raise PdparamsError(f"is text, which begins with {_shown(text)}, and no .pdparams")
    raise PdparamsError(f"is no .pdparams: it begins with {head[:8]!r} and not as a pickle of protocol 2 to 5")


@dataclasses.dataclass(frozen=True)
class _Global:
    name: str


@dataclasses.dataclass(eq=False)
class _DType:
    code: str  # of _DTYPES
    order: str = "|"

    def to_numpy(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class _Array:
    """An array of a pickle: its bytes, and how they are laid out. A text stands for its Latin-1 bytes."""

    def __init__(self):
        self.data: bytes | bytearray | str | None = None
        self._value: np.ndarray | None = None

    def fill(
        self, dtype: _DType, shape: tuple, data: bytes | bytearray | str, order: str = "C", axes: tuple = ()
    ) -> "_Array":
        if len(shape) > _MAX_DIMENSIONS or not all(type(size) is int and 0 <= size <= _MAX_BYTES for size in shape):
            raise PdparamsError(f"holds an array of the impossible shape {_shown(shape)}")
        if math.prod(max(size, 1) for size in shape) > _MAX_BYTES:
            raise PdparamsError(f"holds an array of shape {_shown(shape)}, more than {_MAX_BYTES:,} bytes")
        if len(data) != math.prod(shape) * dtype.to_numpy().itemsize:
            raise PdparamsError(
                f"holds {len(data):,} bytes for an array of shape {_shown(shape)} and {dtype.to_numpy()}"
            )
        if axes and not (all(type(axis) is int for axis in axes) and sorted(axes) == list(range(len(shape)))):
            raise PdparamsError(f"holds an array whose axes are in the impossible order {_shown(axes)}")
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


def _run(data: bytes) -> Any:
    """Carries out the operations of a pickle.

    What comes out is made of numbers, texts, bytes, None, tuples, lists, dicts with texts as keys, _Global, _DType and
    _Array. ValueError or LookupError: the file is damaged.
    """
    stack, outer, memo = [], [], {}
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
                stack.append(_find_global(argument))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                if not (isinstance(module, str) and isinstance(name, str)):
                    raise ValueError("a global without a name")
                stack.append(_find_global(f"{module} {name}"))
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
        raise ValueError(f"{_kind(target)} is no list")
    target.extend(items)


def _update(target: Any, items: list) -> None:
    """Puts key, value, key, value, ... into a dict."""
    keys, values = items[::2], items[1::2]
    if not isinstance(target, dict) or len(keys) != len(values):
        raise ValueError("no dict, or no pairs")
    for key in keys:
        if not isinstance(key, str):
            raise PdparamsError(f"has {_kind(key)} where the name of a parameter should be")
    target.update(zip(keys, values, strict=True))


def _find_global(name: str) -> _Global:
    if name not in _GLOBALS:
        raise PdparamsError(
            f"asks for {_shown(name.replace(' ', '.', 1))}, which no weights need. It was not run. "
            "The file may be made to do harm: do not trust it"
        )
    return _Global(_GLOBALS[name])


def _call(function: Any, arguments: Any) -> Any:
    """What the call gives that makes an array, a dtype or a container."""
    match function, arguments:
        case _Global("_reconstruct"), (_Global("ndarray"), _, _):
            return _Array()
        case _Global("_frombuffer"), (bytes() | bytearray() as data, _DType() as dtype, tuple() as shape, *layout):
            match layout:
                case ["C" | "F" as order]:
                    return _Array().fill(dtype, shape, data, order)
                case ["K", tuple() as axes]:
                    return _Array().fill(dtype, shape, data, axes=axes)
        case _Global("scalar"), (_DType() as dtype, bytes() | str() as data):
            return _Array().fill(dtype, (), data)
        case _Global("dtype"), (str() as code, *_):
            if code not in _DTYPES:
                raise PdparamsError(f"holds an array of dtype {_shown(code)}; weights are numbers")
            return _DType(code)
        case _Global("encode"), (str() as text, "latin1"):
            return text  # _Array takes it for bytes
        case _Global("bytes"), ():
            return b""
        case _Global("tuple"), (tuple() as items,):
            return items
        case _Global("OrderedDict"), ():
            return {}
    name = function.name if isinstance(function, _Global) else _kind(function)
    raise PdparamsError(f"calls {name} as no weights need it: do not trust it")


def _build(target: Any, state: Any) -> None:
    match target, state:
        case _DType(), (3, "<" | ">" | "|" as order, None, None, None, *_):
            target.order = order
        case _Array(), (1, tuple() as shape, _DType() as dtype, bool() as fortran, (bytes() | str()) as data):
            target.fill(dtype, shape, data, "F" if fortran else "C")
        case _:
            raise PdparamsError(f"sets a state of {_kind(target)} that no weights need: do not trust it")


def _join_slices(state: dict[str, np.ndarray], slices: Any) -> None:
    """Makes parameters whole that Paddle cut up, {name: {"OriginShape": shape, "slices": names of flat arrays}}."""
    if not isinstance(slices, dict):
        raise PdparamsError(f"does not say which slices make a parameter: {_SLICES} is {_kind(slices)}")
    for name, entry in slices.items():
        try:
            parts = [state.pop(part) for part in entry["slices"]]
            state[name] = np.concatenate(parts, dtype=parts[0].dtype, casting="no").reshape(entry["OriginShape"])
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise PdparamsError(f"the slices of {_shown(name)} are not there or do not fit: {error}") from error


def _kind(value: Any) -> str:
    """What `value` is, for a message."""
    if isinstance(value, _Array):
        return "an array"
    if isinstance(value, dict | list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"a value of type {type(value).__name__.strip('_')}"


def _shown(value: Any) -> str:
    """`value` on one short line, with nothing that a terminal would obey."""
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 120
    return shortener.repr(value)


def _listed(names: list[str]) -> str:
    """At most eight names, and how many more there are."""
    shown = [_shown(name) for name in names[:8]] + ([f"{len(names) - 8} more"] if len(names) > 8 else [])
    return ", ".join(shown) or "nothing"

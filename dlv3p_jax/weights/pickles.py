"""Pickles read without running what they say: the interpreter that `.pdparams` and `.pth` files share.

Unpickling runs what the file says. So nothing is unpickled here: pickletools splits the file into its operations, and
the few that make containers of arrays are carried out on plain values. Nothing is imported and nothing of the file's
choosing is called. A `pickle.Unpickler` that only refuses globals would not do: one operation with a large memo index
has it allocate 64 GB, a nested tuple as a key overflows the stack and ends the process, and the functions of NumPy that
it would have to allow allocate what they are asked to.
"""

import dataclasses
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple, Protocol, runtime_checkable

from dlv3p_jax.weights.pickle_errors import WeightsFileError, shown

_MAX_OPERATIONS = 1_000_000  # the largest published model takes 27,000

_LITERALS = frozenset(
    ("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING")
    + ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


@dataclasses.dataclass(frozen=True)
class Global:
    """What a file names of a module; `name` is the one that a dialect calls it by."""

    name: str


class Unread:
    """An object of no interest, of which nothing is kept."""

    called = "an object that is not read"


class OrderedDict(dict):
    """A dict that may have attributes in a file, as PyTorch's state dicts do; they are left out."""


@runtime_checkable
class Stateful(Protocol):
    """What a file may set a state of; WeightsFileError where the state is none of it."""

    def set_state(self, state: Any) -> None: ...


def _no_persistent(pid: Any) -> Any:
    raise WeightsFileError("refers to something outside of itself, which no such weights need: do not trust it")


class Dialect(NamedTuple):
    """What a kind of file may ask for.

    Attributes:
        names: "module name" of the file -> the name that `call` knows it by.
        call: (name, arguments) -> what the call gives; WeightsFileError where it is not one of weights.
        persistent: what a persistent id stands for.
        unread: modules, or how their names begin, whose objects become `Unread`.
    """

    names: Mapping[str, str]
    call: Callable[[str, Any], Any]
    persistent: Callable[[Any], Any] = _no_persistent
    unread: tuple[str, ...] = ()


def loads(file: BinaryIO, dialect: Dialect) -> Any:
    """Carries out the operations of a pickle, and leaves the file behind its end.

    What comes out is made of numbers, texts, bytes, None, tuples, lists, dicts with texts and integers as keys, Global,
    Unread and what the dialect makes. ValueError, LookupError or OverflowError: the file is damaged.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []
    memo: dict[Any, Any] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count == _MAX_OPERATIONS:
            raise WeightsFileError(
                f"takes more than {_MAX_OPERATIONS:,} pickle operations; weights take a few thousand"
            )
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
                stack.append(_find_global(str(argument), dialect))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                if not (isinstance(module, str) and isinstance(attribute, str)):
                    raise ValueError("a global without a name")
                stack.append(_find_global(f"{module} {attribute}", dialect))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(function, arguments, dialect))
            case "NEWOBJ":
                arguments, cls = stack.pop(), stack.pop()
                if not isinstance(cls, Unread):
                    raise wrong_call(cls.name if isinstance(cls, Global) else kind(cls))
                stack.append(Unread())
            case "BINPERSID":
                stack.append(dialect.persistent(stack.pop()))
            case "BUILD":
                state = stack.pop()
                _build(stack[-1], state)
            case name:
                raise WeightsFileError(f"uses the pickle operation {name}, which no weights need: do not trust it")
    raise ValueError("no end")


def _extend(target: Any, items: list) -> None:
    if isinstance(target, Unread):
        return
    if not isinstance(target, list):
        raise ValueError(f"{kind(target)} is no list")
    target.extend(items)


def _update(target: Any, items: list) -> None:
    """Puts key, value, key, value, ... into a dict."""
    keys, values = items[::2], items[1::2]
    if isinstance(target, Unread):
        return
    if not isinstance(target, dict) or len(keys) != len(values):
        raise ValueError("no dict, or no pairs")
    for key in keys:
        if type(key) not in (str, int):  # the hash of a tuple can take for ever: see `shown`
            raise WeightsFileError(f"has {kind(key)} where the name of a parameter should be")
    target.update(zip(keys, values, strict=True))


def _find_global(name: str, dialect: Dialect) -> Global | Unread:
    if name.startswith(dialect.unread):
        return Unread()
    if name not in dialect.names:
        raise WeightsFileError(
            f"asks for {shown(name.replace(' ', '.', 1))}, which no weights need. It was not run. "
            "The file may be made to do harm: do not trust it. If it is your own, save its weights alone, with "
            "torch.save({'state_dict': model.state_dict()}, PATH)"
        )
    return Global(dialect.names[name])


def _call(function: Any, arguments: Any, dialect: Dialect) -> Any:
    if isinstance(function, Unread):
        return Unread()
    if not isinstance(function, Global):
        raise wrong_call(kind(function))
    return dialect.call(function.name, arguments)


def _build(target: Any, state: Any) -> None:
    if isinstance(target, Stateful):
        target.set_state(state)
    elif not isinstance(target, Unread) and not (isinstance(target, OrderedDict) and isinstance(state, dict)):
        raise wrong_state(kind(target))


def wrong_call(name: str) -> WeightsFileError:
    return WeightsFileError(f"calls {name} as no weights need it: do not trust it")


def wrong_state(what: str) -> WeightsFileError:
    return WeightsFileError(f"sets a state of {what} that no weights need: do not trust it")


def kind(value: Any) -> str:
    """What `value` is, for a message."""
    if isinstance(value, dict | list | tuple):
        return f"a {'dict' if isinstance(value, dict) else type(value).__name__} of {len(value)}"
    return "None" if value is None else getattr(value, "called", f"a value of type {type(value).__name__.strip('_')}")


# Pieces of pickles to write, of protocol 2 and later.


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + len(encoded).to_bytes(4, "little") + encoded


def named(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def integer(value: int) -> bytes:
    return pickle.LONG1 + b"\x08" + value.to_bytes(8, "little", signed=True)

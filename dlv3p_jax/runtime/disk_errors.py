"""Telling what is wrong with a disk from other errors, whichever library ran into it, and what passes by itself."""

import errno
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Value = TypeVar("Value")

# What to look for in the text where there is no errno: TensorStore and TensorFlow only quote the system's words.
_REASONS = {
    errno.ENOSPC: "no space is left on the device: make room",
    errno.EDQUOT: "the disk quota is used up: make room",
    errno.EROFS: "the file system is read-only: give a folder that can be written",
}

# What a file system answers while it is away, a server of it starts again, or too much is open at once. Not EAGAIN,
# which is a lock's answer, nor what is wrong until somebody mends it: rights, names, a full disk.
_PASSING = (
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EMFILE,
    errno.ENFILE,
    errno.EREMOTEIO,
    errno.EBUSY,
    errno.ENOLINK,
    errno.ECOMM,
    errno.ENOTCONN,
    errno.ESHUTDOWN,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENETRESET,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
)
_PASSING_WORDS = tuple(os.strerror(number) for number in _PASSING)

# Buckets answer in the words of gRPC, of which TensorFlow makes classes. XLA has the same words for its devices.
_PASSING_STATES = re.compile(r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED)\b")
_PASSING_CLASSES = ("UnavailableError", "DeadlineExceededError", "AbortedError")
_DEVICE_CLASSES = ("JaxRuntimeError", "XlaRuntimeError")

WAITS = (0.5, 1, 2, 4, 8)  # seconds before each further try: a server that starts again takes some


def reason(error: BaseException) -> str | None:
    """What is wrong with the disk, and what to do; None if `error`, and what led to it, is not about that."""
    for link in chain(error):
        for number, text in _REASONS.items():
            if getattr(link, "errno", None) == number or os.strerror(number) in str(link):
                return text
    return None


def passing(error: BaseException) -> str | None:
    """What the file system answers, in its own words, if that passes by itself; None if `error` is something else.

    It is where `error`, or what led to it, has an errno such as EIO, ESTALE or ETIMEDOUT, or quotes one in its text, as
    the errors of TensorStore and TensorFlow do. What was being read is not damaged then, and what was being written can
    be written later.
    """
    links = list(chain(error))
    for link in links:
        if getattr(link, "errno", None) in _PASSING:
            return os.strerror(link.errno)  # type: ignore[attr-defined]
    if any(type(link).__name__ in _DEVICE_CLASSES for link in links):  # whose words others quote
        return None
    for link in links:
        name, text = type(link).__name__, str(link)
        for words in _PASSING_WORDS:
            if words in text:
                return words
        state = _PASSING_STATES.search(text)
        if state or name in _PASSING_CLASSES:
            return state[1] if state else name
    return None


def told(error: OSError, where: object) -> str:
    """An error for people: its file, or `where` if it names none, and what is wrong, with what to do where known."""
    return f"{error.filename or where}: {reason(error) or error.strerror or error}"


def patiently(action: Callable[[], Value], waits: Sequence[float] | None = None) -> Value:
    """What `action` returns, which is tried again after each of `waits` (WAITS) seconds while its error is `passing`.

    Raises:
        Exception: the last error of `action`, or the first that does not pass by itself.
    """
    for seconds in WAITS if waits is None else waits:
        try:
            return action()
        except Exception as error:
            if passing(error) is None:
                raise
        time.sleep(seconds)
    return action()


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it was raised from or while handling."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__

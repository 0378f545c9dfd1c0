"""Telling a full or read-only disk from other errors, whichever library ran into it."""

import errno
import os
from collections.abc import Iterator

# What to look for in the text where there is no errno: TensorStore and TensorFlow only quote the system's words.
_REASONS = {
    errno.ENOSPC: "no space is left on the device: make room",
    errno.EDQUOT: "the disk quota is used up: make room",
    errno.EROFS: "the file system is read-only: give a folder that can be written",
}


def reason(error: BaseException) -> str | None:
    """What is wrong with the disk, and what to do; None if `error`, and what led to it, is not about that."""
    for link in chain(error):
        for number, text in _REASONS.items():
            if getattr(link, "errno", None) == number or os.strerror(number) in str(link):
                return text
    return None


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it was raised from or while handling."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__

"""What reading files of weights answers with when it refuses, and what it allows."""

import reprlib
from collections.abc import Sequence
from typing import Any

from dlv3p_jax.runtime.errors import UserError

# The largest published model takes 183 MB.
MAX_BYTES = 2 * 2**30

_BEGINNINGS = (
    (b"BZh", "is compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "is compressed with xz: unpack it first"),
    (b"\x1f\x8b", "is compressed with gzip: unpack it first"),
    (b"\x89HDF", "is an HDF5 file, and no {}"),
)


class WeightsFileError(UserError):
    """A file cannot be read as weights, or arrays cannot be written as such; the message says why."""


def shown(value: Any) -> str:
    """`value` on one short line, with nothing that a terminal would obey.

    Of what lies in a tuple in a tuple nothing is shown: 400 bytes of a file can make tuples that share each other, and
    that take 2^64 characters to write.
    """
    shortener = reprlib.Repr()
    shortener.maxlevel = 1
    shortener.maxstring = shortener.maxother = 120
    return shortener.repr(value)


def listed(names: Sequence[str]) -> str:
    """At most eight names, and how many more there are."""
    texts = [shown(name) for name in names[:8]] + ([f"{len(names) - 8} more"] if len(names) > 8 else [])
    return ", ".join(texts) or "nothing"


def refuse_others(head: bytes, wanted: str) -> None:
    """Raises WeightsFileError where a file begins as one of another kind than a pickle, of a `wanted` ending."""
    if not head:
        raise WeightsFileError("is empty: fetch it again")
    for beginning, message in _BEGINNINGS:
        if head.startswith(beginning):
            raise WeightsFileError(message.format(wanted))
    if head.lstrip().startswith(b"<"):
        raise WeightsFileError("is an HTML or XML page: the download failed, and this is what the server said instead")
    if all(byte >= 32 or byte in b"\t\n\f\r" for byte in head) and head[0] != 0x80:
        text = head.decode("utf-8", "replace").strip().partition("\n")[0]
        raise WeightsFileError(f"is text, which begins with {shown(text)}, and no {wanted}")

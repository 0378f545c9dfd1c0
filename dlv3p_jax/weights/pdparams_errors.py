"""What reading a `.pdparams` answers with when it refuses, and what it allows."""

import reprlib
from collections.abc import Sequence
from typing import Any

# The largest published model takes 183 MB.
MAX_BYTES = 2 * 2**30


class PdparamsError(ValueError):
    """A file cannot be read as weights, or arrays cannot be written as such; the message names the file and why."""


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

"""Text for people: aligned tables, and errors of libraries in one line."""

import math
from collections.abc import Sequence

_LONGEST = 400  # characters of an error of a library, which may bring its whole input


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of words, the first of them the heads, as aligned columns; all but the first column are set to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(word.ljust(width) if index == 0 else word.rjust(width) for index, (word, width) in enumerate(pairs))
        for pairs in (zip(row, widths, strict=True) for row in rows)
    )
    return "\n".join(line.rstrip() for line in lines)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows of words, the first of them the heads, as a Markdown table whose source is aligned, too."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def percent(fraction: float, unit: str = "") -> str:
    """A fraction of 1 in per cent, with `unit` behind; n/a where it is NaN."""
    return "n/a" if math.isnan(fraction) else f"{100 * fraction:.2f}{unit}"


def count(number: int, what: str) -> str:
    """Like "1 picture" and "2 pictures"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def one_line(error: BaseException) -> str:
    """All that an error says, without its line breaks; its class, where it says nothing."""
    return " ".join(str(error).split())[:_LONGEST] or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of what an error says, as libraries let pages follow; its class, where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:_LONGEST]

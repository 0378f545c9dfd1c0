"""Tables that turn the values or colours of label files into class indices, as `--label_map` gives them."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from dlv3p_jax.data.errors import DatasetError, UnmappedColors

_COLOR = re.compile(r"(\d{1,3})-(\d{1,3})-(\d{1,3})|#([0-9a-fA-F]{6})")
_NUMBER = re.compile(r"-?[0-9]{1,10}")
_SUGGESTED = 40
_MANY = 8  # colours beyond the classes: some of them are smoothed edges
_HELP = (
    'write pairs like "0:0,255:1", "128-64-128:0", "#804080:0", "-1:ignore", "nan:ignore" or "other:ignore", or the '
    "name of a file that holds them"
)


@dataclasses.dataclass(frozen=True)
class LabelMap:
    """Where the values and the colours of label files go.

    Attributes:
        values: (value, index) pairs for labels of one channel, `ignore` already resolved.
        colors: ((red, green, blue), index) pairs for colour labels.
        nan: the index of pixels that are no number; None: there should be none.
        other: the index of all values and colours that are not listed; None: there should be none.
    """

    values: tuple[tuple[int, int], ...] = ()
    colors: tuple[tuple[tuple[int, int, int], int], ...] = ()
    nan: int | None = None
    other: int | None = None

    def targets(self) -> set[int]:
        """The indices that the map writes."""
        named = {index for index in (self.nan, self.other) if index is not None}
        return {index for _, index in (*self.values, *self.colors)} | named

    def apply(self, label: np.ndarray) -> tuple[np.ndarray, bool]:
        """Maps numbers [H, W], or colours uint8 [H, W, 3], to uint8 [H, W] indices.

        Returns:
            The indices, and whether `other` stands for some.

        Raises:
            DatasetError: values that the map does not list; it names them and their pixel counts.
            UnmappedColors: the same of colours.
        """
        if label.ndim == 3:
            codes = _pack(label)
            listed = [(int(_pack(np.array(color))), index) for color, index in self.colors]
        else:
            codes = label if label.dtype.kind == "f" else label.astype(np.int64)
            listed = list(self.values)
        keys, indices = (np.array(column) for column in zip(*sorted(listed), strict=True))
        positions = np.minimum(np.searchsorted(keys, codes), len(keys) - 1)
        mapped, unknown = indices[positions].astype(np.uint8), keys[positions] != codes
        if self.nan is not None and codes.dtype.kind == "f":
            mapped[np.isnan(codes)] = self.nan
            unknown &= ~np.isnan(codes)
        if not unknown.any():
            return mapped, False
        if self.other is not None:
            mapped[unknown] = self.other
            return mapped, True
        found = count_values(codes[unknown])
        message = (
            f"{describe_values(found, label.ndim == 3)} not in the label map; map every value that occurs, "
            f'for example "{show_value(found[0][0], label.ndim == 3)}:ignore", or "other:ignore" for all that are not '
            "listed, such as smoothed edges"
        )
        if label.ndim == 3:
            raise UnmappedColors(message, count_colors(label))
        raise DatasetError(message)


def parse(text: str, ignore_label: int) -> LabelMap:
    """Reads a map given inline or from a file, pairs separated by commas, blanks or line ends.

    Raises:
        DatasetError: a pair that cannot be read, a value outside its range, or two targets for one value.
    """
    entries = text
    if ":" not in text or os.path.isfile(text):  # which takes texts that are too long for names
        try:
            entries = pathlib.Path(text).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"--label_map={text}: neither pairs nor a readable file ({error}); {_HELP}") from error
    values: dict[int, int] = {}
    colors: dict[tuple[int, int, int], int] = {}
    words: dict[str, int] = {}
    for entry in re.split(r"[,;\s]+", entries.strip()):
        key, _, target = entry.partition(":")
        if target == "ignore":
            index = ignore_label
        elif target.isdecimal() and int(target) <= 255:
            index = int(target)
        else:
            mend = "put the index of its class, or the word ignore, in the place of the ?" if target == "?" else _HELP
            raise DatasetError(f'--label_map: cannot read "{entry}"; {mend}')
        color = _COLOR.fullmatch(key)
        if color:
            parts, digits = color.group(1, 2, 3), color.group(4)
            red, green, blue = map(int, parts) if digits is None else bytes.fromhex(digits)
            if max(red, green, blue) > 255:
                raise DatasetError(f'--label_map: a channel above 255 in "{entry}"')
            known = colors.setdefault((red, green, blue), index)
        elif _NUMBER.fullmatch(key) and -(2**31) <= int(key) < 2**32:
            known = values.setdefault(int(key), index)
        elif key in ("nan", "other"):
            known = words.setdefault(key, index)
        else:
            raise DatasetError(f'--label_map: cannot read "{entry}"; {_HELP}')
        if known != index:
            raise DatasetError(f'--label_map: "{entry}" contradicts an earlier pair')
    if not values and not colors:
        raise DatasetError(f"--label_map={text}: it lists no value and no colour beside these words; {_HELP}")
    return LabelMap(tuple(values.items()), tuple(colors.items()), words.get("nan"), words.get("other"))


def count_values(values: np.ndarray) -> list[tuple[Any, int]]:
    """(value, number of times) of an array of numbers, ascending; NaN is the last."""
    if values.dtype == np.uint8:  # far quicker than sorting
        counts = np.bincount(values.ravel(), minlength=256)
        return [(int(value), int(counts[value])) for value in np.flatnonzero(counts)]
    return [(value.item(), int(count)) for value, count in zip(*np.unique(values, return_counts=True), strict=True)]


def count_colors(label: np.ndarray, most: int = 64) -> tuple[tuple[tuple[int, int, int], int], ...]:
    """The most frequent colours of uint8 [H, W, 3], each with the number of its pixels."""
    found = sorted(count_values(_pack(label)), key=lambda pair: -pair[1])[:most]
    return tuple(((code >> 16, code >> 8 & 255, code & 255), count) for code, count in found)


def suggest(label_map: LabelMap | None, counts: Mapping[tuple[int, int, int], int], ignore_label: int) -> str:
    """A `--label_map` of colours: those that are known, and then the others, the most frequent first, with a ?."""
    known = dict(label_map.colors) if label_map else {}
    pairs = [(color, "ignore" if index == ignore_label else str(index)) for color, index in known.items()]
    unknown = sorted((color for color in counts if color not in known), key=lambda color: (-counts[color], color))
    pairs += [(color, "?") for color in unknown[:_SUGGESTED]]
    more = f" and {len(unknown) - _SUGGESTED} more colours" if len(unknown) > _SUGGESTED else ""
    text = ",".join(f"{red}-{green}-{blue}:{index}" for (red, green, blue), index in pairs)
    edges = "; other:ignore stands for all that are not listed, such as smoothed edges" if len(unknown) > _MANY else ""
    return f'--label_map "{text}"{more}, with the index of its class, or the word ignore, in the place of each ?{edges}'


def list_counts(found: list[tuple[str, int]], most: int = 10) -> str:
    """Reads like "value 7 (120 pixels), 9 (3 pixels)", the first `most` only."""
    shown = ", ".join(f"{value} ({count} pixel{'s' if count != 1 else ''})" for value, count in found[:most])
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return f"value{'s' if len(found) > 1 else ''} {shown}{more}"


def describe_values(found: list[tuple[Any, int]], are_colors: bool = False) -> str:
    """What `count_values` gives, in words; of colours, of their 24-bit integers."""
    return list_counts([(show_value(value, are_colors), count) for value, count in found])


def show_value(code: Any, is_color: bool) -> str:
    """A value as `--label_map` writes it."""
    if is_color:
        return f"{code >> 16}-{code >> 8 & 255}-{code & 255}"
    return f"{code:.9g}" if isinstance(code, float) else str(code)


def _pack(rgb: np.ndarray) -> np.ndarray:
    """Colours [..., 3] as 24-bit integers."""
    red, green, blue = np.moveaxis(rgb.astype(np.int64), -1, 0)
    return red << 16 | green << 8 | blue

"""Words in pictures: the font that comes with Matplotlib has Latin, Greek, Cyrillic, Arabic and more, but no CJK."""

import functools
import importlib.util
import pathlib
from collections.abc import Sequence

from absl import logging
from PIL import ImageFont


@functools.cache
def font(size: float) -> ImageFont.FreeTypeFont:
    """DejaVu Sans in a size, in pixels."""
    return ImageFont.truetype(str(_path()), size)


def drawable_names(class_names: Sequence[str]) -> list[str]:
    """The names as pictures can show them: one with a character that the font lacks is called by its number.

    Which these are is logged, once for the same names.
    """
    missing = tuple((index, name) for index, name in enumerate(class_names) if not _is_drawable(name))
    if missing:
        _say(missing)
    return [name if _is_drawable(name) else f"class {index}" for index, name in enumerate(class_names)]


def drawable(text: str) -> str:
    """`text` with "?" for each character that the font lacks."""
    return "".join(character if _is_drawable(character) else "?" for character in text)


def _is_drawable(text: str) -> bool:
    return all(ord(character) in _characters() for character in text)


@functools.cache
def _say(missing: tuple[tuple[int, str], ...]) -> None:
    logging.warning(
        "Pictures have no letters for these names, and show their numbers: %s. Tables and pages have the names",
        ", ".join(f"class {index} for {name!r}" for index, name in missing),
    )


def _path() -> pathlib.Path:
    """Found without importing Matplotlib, which looks for a folder of the user's to write to."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None and spec.submodule_search_locations  # it is one of our requirements
    return pathlib.Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"


@functools.cache
def _characters() -> frozenset[int]:
    from fontTools.ttLib import TTFont  # Matplotlib requires it; only pictures with names do

    with TTFont(_path()) as found:
        return frozenset(found.getBestCmap())

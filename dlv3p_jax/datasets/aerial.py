"""Pictures from the air that are cut into tiles, since they are too large to train on: Potsdam, Vaihingen and iSAID."""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from dlv3p_jax.data import downloads
from dlv3p_jax.data.classes import CLASSES, IGNORED
from dlv3p_jax.data.decoding import naming, open_picture, read_size
from dlv3p_jax.data.errors import DatasetError, UnreadableError
from dlv3p_jax.data.example import Example, Problem, encode_example
from dlv3p_jax.data.label_map import LabelMap
from dlv3p_jax.data.labels import decode
from dlv3p_jax.datasets.builder import PictureBuilder
from dlv3p_jax.datasets.pairs import pictures_below


class Survey(NamedTuple):
    """A data set as it is distributed, and how it is cut.

    Attributes:
        title: for people.
        picture, label: what their paths below the source match, without extension; group 1 is the picture's name.
        val: what the names of the pictures to validate on match.
        label_map: of the colours of labels.
        side, step: of the tiles, and from one to the next, in pixels.
        num_tiles: of each split as published.
    """

    title: str
    picture: str
    label: str
    val: str
    label_map: LabelMap
    side: int
    step: int
    num_tiles: dict[str, int]


def _colors_of(name: str) -> tuple:
    return tuple((color, index) for index, color in enumerate(CLASSES[name].palette))


# Black is the boundary of two classes, which counts nowhere, as do stray colours. Splits are those of MMSegmentation.
_ISPRS = LabelMap(colors=(*_colors_of("potsdam"), ((0, 0, 0), IGNORED)), other=IGNORED)
SURVEYS = {
    "potsdam": Survey(
        "ISPRS Potsdam (6 classes)",
        r"(?:.*/)?top_potsdam_(\d+_\d+)_RGB",
        r"(?:.*/)?top_potsdam_(\d+_\d+)_label_noBoundary",
        r"[23]_1[34]|[4-6]_1[3-5]|7_13",
        _ISPRS,
        side=512,
        step=512,
        num_tiles={"train": 3_456, "val": 2_016},
    ),
    "vaihingen": Survey(
        "ISPRS Vaihingen (6 classes)",
        r"(?!(?:.*/)?gts_)(?:.*/)?top_mosaic_09cm_area(\d+)",  # labels with boundaries, in gts_…, have the same names
        r"(?:.*/)?top_mosaic_09cm_area([1-8]|\d\d)_noBoundary",  # area 9 has a label, but no picture
        "2|4|6|8|10|12|14|16|20|22|24|27|29|31|33|35|38",
        _ISPRS,
        side=512,
        step=512,
        num_tiles={"train": 344, "val": 398},
    ),
    "isaid": Survey(
        "iSAID (16 classes)",
        r"((?:.*/)?(?:train|val)/(?:.*/)?P\d+)",
        r"((?:.*/)?(?:train|val)/(?:.*/)?P\d+)_instance_color_RGB",
        "val/.*",
        LabelMap(colors=_colors_of("isaid")),
        side=896,
        step=512,
        num_tiles={"train": 33_978, "val": 11_644},
    ),
}


@dataclasses.dataclass(frozen=True)
class Tile:
    """A part of a picture and its label: `side` pixels high and wide, from (top, left) on."""

    id: str
    image: str
    label: str
    top: int
    left: int
    side: int


def make_builder(
    data_dir: str | os.PathLike, source: str | os.PathLike, *, name: str, **options: Any
) -> PictureBuilder:
    """The builder of one of `SURVEYS` (see `by_name`), train and val: lists the tiles of its pictures."""
    survey, (names, palette) = SURVEYS[name], CLASSES[name]
    tiles, problems, remarks = find_tiles(source, name)
    return PictureBuilder(
        data_dir,
        tiles,
        functools.partial(read_tile, label_map=survey.label_map, num_classes=len(names)),
        name=name,
        class_names=names,
        palette=palette,
        description=f"{survey.title} of {pathlib.Path(source).expanduser().resolve()}, tiles of {survey.side}",
        problems=problems,
        remarks=remarks,
        as_published=True,
        **options,
    )


def find_tiles(source: str | os.PathLike, name: str) -> tuple[dict[str, list[Tile]], list[Problem], list[str]]:
    """The tiles of all pictures by split; pictures and labels that cannot be used; remarks for the user.

    Raises:
        DatasetError: no such folder, a file is there twice, or a split is empty.
    """
    survey, root = SURVEYS[name], pathlib.Path(source).expanduser()
    if not root.is_dir():
        raise DatasetError(f"--source={source}: no such folder.\n{downloads.HOW_TO[name]}")
    files, _ = pictures_below(root)
    images, labels = (_by_name(files, pattern) for pattern in (survey.picture, survey.label))
    tiles: dict[str, list[Tile]] = {"train": [], "val": []}
    problems = [Problem(key, f"{images[key]} has no label") for key in sorted(images.keys() - labels.keys())]
    problems += [Problem(key, f"{labels[key]} has no picture") for key in sorted(labels.keys() - images.keys())]
    for key in sorted(images.keys() & labels.keys()):
        split = "val" if re.fullmatch(survey.val, key) else "train"
        try:
            height, width = read_size(images[key])
        except UnreadableError:
            raise
        except DatasetError as error:
            problems.append(Problem(key, str(error)))
            continue
        for top in starts(height, survey.side, survey.step):
            for left in starts(width, survey.side, survey.step):
                where = (str(images[key]), str(labels[key]), top, left, survey.side)
                tiles[split].append(Tile(f"{key}_{top}_{left}", *where))
    if empty := [split for split, found in tiles.items() if not found and not problems]:
        raise DatasetError(f"--source={source}: the {empty[0]} split is empty.\n{downloads.HOW_TO[name]}")
    remarks = [
        f"{split}: {len(found)} tiles, where there are {survey.num_tiles[split]:,}"
        for split, found in tiles.items()
        if len(found) != survey.num_tiles[split]
    ]
    return tiles, problems, remarks


def _by_name(files: dict[str, pathlib.Path], pattern: str) -> dict[str, pathlib.Path]:
    """The files whose path matches, by what group 1 has of it: a folder train or val, if any, and the name.

    Raises:
        DatasetError: two files have the same.
    """
    found: dict[str, pathlib.Path] = {}
    for stem, path in files.items():
        if match := re.fullmatch(pattern, stem):
            split = re.search(r"(?:^|/)(train|val)/", match[1])
            key = f"{split[1]}/{match[1].rsplit('/', 1)[-1]}" if split else match[1]
            if key in found:
                raise DatasetError(f"{found[key]} and {path} are the same picture or label: leave one in --source")
            found[key] = path
    return found


def starts(size: int, side: int, step: int) -> Iterator[int]:
    """Where tiles begin along a side of `size` pixels, which they cover; the last ends where it does."""
    return iter(sorted({min(start, max(size - side, 0)) for start in range(0, max(size - side + step, 1), step)}))


def read_tile(tile: Tile, label_map: LabelMap, num_classes: int) -> Example | Problem:
    """The record of a tile; where its picture is smaller, it is black there, and its label counts nowhere."""
    try:
        image, label, notes = _whole(tile.image, tile.label, label_map)
    except UnreadableError:
        raise
    except DatasetError as error:
        return Problem(tile.id, str(error))
    part = slice(tile.top, tile.top + tile.side), slice(tile.left, tile.left + tile.side)
    image, label = image[part], label[part]
    beyond = [(0, tile.side - length) for length in label.shape]
    image, label = np.pad(image, (*beyond, (0, 0))), np.pad(label, beyond, constant_values=IGNORED)
    return encode_example(tile.id, image, label, num_classes, IGNORED, notes)


@functools.lru_cache(maxsize=1)  # the tiles of a picture are read one after the other
def _whole(image: str, label: str, label_map: LabelMap) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """uint8 [H, W, 3] and uint8 [H, W] of a picture and its label, and what was done to the latter."""
    with naming(image):
        pixels = np.asarray(open_picture(image).picture.convert("RGB"))
    read = decode(label, label_map)
    if read.values.shape != pixels.shape[:2]:
        (height, width), (label_height, label_width) = pixels.shape[:2], read.values.shape
        raise DatasetError(f"{image} is {width}x{height} but its label {label} is {label_width}x{label_height}")
    return pixels, read.values, read.notes

"""Data sets as Ultralytics' data.yaml describes them, with masks, or with outlines of objects (YOLO segmentation)."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml

from dlv3p_jax.data import opening, ranges
from dlv3p_jax.data.classes import IGNORED
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.example import Example, Pair, Problem, read_pair
from dlv3p_jax.data.label_map import LabelMap
from dlv3p_jax.datasets import outlines
from dlv3p_jax.datasets.builder import PictureBuilder
from dlv3p_jax.datasets.pairs import EXTENSIONS, ids_of, pictures_below, read_lines

_SPLITS = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}  # our names, and the keys
_OPTIONAL = ("test",)


def make_builder(
    data_dir: str | os.PathLike,
    source: str | os.PathLike,
    *,
    name: str,
    picture_range: ranges.Range | None = None,
    **options: Any,
) -> PictureBuilder:
    """The builder of a data set that a YAML file describes, with the classes that Ultralytics makes of it.

    Masks are where `masks_dir` says, or in `masks`, in place of the folder `images`; 255 counts nowhere. Without masks,
    `labels` has a text file of outlines for each picture, the smaller objects on top: pixels of none are a class
    `background` after the others, or before them where there is one class. A picture without such a file has no object.

    Args:
        data_dir, source, name, options: see `by_name`; `source` is the file, or a folder with data.yaml or one alone.
        picture_range: see `PictureBuilder`.

    Raises:
        DatasetError: the file, or what it names, cannot be used.
    """
    path, described = _read_yaml(pathlib.Path(source).expanduser())
    names = _names(path, described)
    pictures = {}
    for split, keys in _SPLITS.items():
        key = next((key for key in keys if described.get(key)), keys[0])
        if described.get(key) or split not in _OPTIONAL:
            pictures[split] = _pictures(path, described, key)
    first = next(iter(pictures["train"].values()))
    folder = described.get("masks_dir")
    if folder is None and not _beside(first, "labels").parent.is_dir() and _beside(first, "masks").parent.is_dir():
        folder = "masks"
    problems: list[Problem] = []
    remarks, table = [], None
    if folder is not None:
        table = _label_map(path, described)
        items = {split: _with_masks(found, str(folder), problems) for split, found in pictures.items()}
    else:
        outlines.require_pycocotools(str(path))
        labels = {
            split: {each: _beside(each, "labels").with_suffix(".txt") for each in found.values()}
            for split, found in pictures.items()
        }
        items = {
            split: [Pair(each, str(image), str(labels[split][image])) for each, image in found.items()]
            for split, found in pictures.items()
        }
        for split, files in labels.items():
            lacking = [file for file in files.values() if not file.is_file()]
            if len(lacking) == len(files):
                raise DatasetError(
                    f'{path}: no masks of {split} in "masks_dir", and no outlines: {lacking[0]} is missing'
                )
            if lacking:
                remarks.append(
                    f"{split}: {len(lacking)} pictures have no file of outlines, so they are background ({lacking[0]})"
                )
    background = None if folder is not None else 0 if len(names) == 1 else len(names)
    if background is not None:
        names.insert(background, "background")
        remarks.append(f'pixels of no object are class {background}, "background"')
    if len(names) < 2 or len(set(names)) < len(names):
        raise DatasetError(f'{path}: "names" are {", ".join(names)}; give two or more, each once')
    return PictureBuilder(
        data_dir,
        items,
        _Read(len(names), background, table, picture_range),
        name=name,
        class_names=names,
        description=f"Pictures and labels of {path.resolve()}",
        problems=problems,
        remarks=remarks,
        label_map=table,
        picture_range=picture_range,
        **options,
    )


@dataclasses.dataclass(frozen=True)
class _Read:
    """Reads a pair: a mask where there is no class for pixels of no object, else outlines."""

    num_classes: int
    background: int | None
    label_map: LabelMap | None
    picture_range: ranges.Range | None

    def __call__(self, pair: Pair) -> Example | Problem:
        return read_pair(
            pair,
            self.num_classes,
            IGNORED,
            self.label_map,
            advice='say in "label_mapping" of the YAML file what the values of masks mean',
            draw=None if self.background is None else self._draw,
            picture_range=self.picture_range,
        )

    def _draw(self, file: str, size: tuple[int, int]) -> np.ndarray:
        assert self.background is not None
        objects = []
        for number, line in enumerate(read_lines(pathlib.Path(file)) if opening.is_file(file) else [], 1):
            where, words = f"{file}, line {number}", line.split()
            if not words:
                continue
            try:
                number_of_class, *points = map(float, words)
                index = int(number_of_class)
                if index != number_of_class:
                    raise ValueError(f"class {words[0]}")
            except (ValueError, OverflowError) as error:
                raise DatasetError(f"{where}: write a class and x1 y1 x2 y2 …, numbers ({error})") from error
            if len(points) == 4:
                raise DatasetError(f"{where}: a box, of which no outline can be made; label objects by polygons")
            if len(points) < 6 or len(points) % 2:
                raise DatasetError(f"{where}: {len(points)} numbers after the class; x and y of three points or more")
            if not 0 <= index < self.num_classes - 1:
                raise DatasetError(f'{where}: class {index} is not among the {self.num_classes - 1} "names"')
            if outside := [point for point in points if not -0.01 <= point <= 1.01]:  # NaN is, too
                raise DatasetError(f"{where}: {outside[0]:g}; give shares of width and height, 0 to 1")
            scaled = np.reshape(points, (-1, 2)) * (size[1], size[0])
            objects.append((index + (self.background == 0), [scaled.ravel().tolist()]))
        return outlines.draw(objects, size, self.background)


def _read_yaml(source: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]]:
    path = source
    if source.is_dir():
        found = [source / "data.yaml"] if (source / "data.yaml").is_file() else sorted(source.glob("*.y*ml"))
        if len(found) != 1:
            which = ", ".join(each.name for each in found) or "none"
            raise DatasetError(f"--source={source}: give the YAML file of the data set; in this folder: {which}")
        path = found[0]
    try:
        described = yaml.safe_load("\n".join(read_lines(path)))
    except yaml.YAMLError as error:
        raise DatasetError(f"{path}: no YAML ({' '.join(str(error).split())})") from error
    if not isinstance(described, dict) or not described.get("names"):
        raise DatasetError(f'{path}: no key "names", which data sets of Ultralytics have')
    return path, described


def _names(path: pathlib.Path, described: Mapping[str, Any]) -> list[str]:
    names = described["names"]
    if isinstance(names, Mapping):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DatasetError(f'{path}: the keys of "names" are {", ".join(map(str, names))}; they go on from 0')
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or len(names) > 254:
        raise DatasetError(f'{path}: "names" is a list, or 0: a name and so on, of at most 254')
    return list(map(str, names))


def _pictures(path: pathlib.Path, described: Mapping[str, Any], key: str) -> dict[str, pathlib.Path]:
    """The pictures of a split by their names: of folders, of text files that list them, or of several of these."""
    entries = described.get(key)
    if not entries:
        raise DatasetError(f'{path}: no key "{key}", which says where the pictures are')
    root = path.parent / str(described.get("path") or "")
    found: dict[str, pathlib.Path] = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        # Roboflow writes ../train/images for what lies beside the file; Ultralytics takes both.
        candidates = [root / str(entry), path.parent / str(entry), path.parent / str(entry).removeprefix("../")]
        place = next((each for each in candidates if each.exists()), None)
        if place is None:
            raise DatasetError(f'{path}: "{key}" is {entry}, and {candidates[0]} is not there')
        if place.is_dir():
            more = pictures_below(place)[0]
        else:
            lines = [line.strip() for line in read_lines(place) if line.strip()]
            ids = ids_of([line.removeprefix("./") for line in lines], place.parent)
            more = {name: place.parent / line for line, name in ids.items()}
            if absent := [each for each in more.values() if not opening.is_file(each)]:
                raise DatasetError(f"{place}: {absent[0]} is not there")
        if twice := found.keys() & more.keys():
            raise DatasetError(f'{path}: "{key}" has two pictures that are called {min(twice)}')
        found |= more
    if not found:
        raise DatasetError(f'{path}: "{key}" is {entries}, where no pictures are')
    return found


def _beside(image: pathlib.Path, folder: str) -> pathlib.Path:
    """The path with the last folder that is called images replaced."""
    parts = list(image.parts)
    for position in range(len(parts) - 2, -1, -1):
        if parts[position] == "images":
            parts[position] = folder
            break
    return pathlib.Path(*parts)


def _with_masks(pictures: Mapping[str, pathlib.Path], folder: str, problems: list[Problem]) -> list[Pair]:
    pairs = []
    for name, image in pictures.items():
        mask = _beside(image, folder)
        found = [mask.with_suffix(each) for each in (".png", *EXTENSIONS) if opening.is_file(mask.with_suffix(each))]
        found = [each for each in found if each != image]
        if found:
            pairs.append(Pair(name, str(image), str(found[0])))
        else:
            problems.append(Problem(name, f"{image} has no mask (looked for {mask.with_suffix('.*')})"))
    return pairs


def _label_map(path: pathlib.Path, described: Mapping[str, Any]) -> LabelMap | None:
    mapping = described.get("label_mapping")
    if mapping is None:
        return None
    try:
        values = {int(value): IGNORED if index == "ignore_label" else int(index) for value, index in mapping.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise DatasetError(
            f'{path}: "label_mapping" has numbers, each with a class or ignore_label ({error})'
        ) from error
    return LabelMap(values=tuple({IGNORED: IGNORED, **values}.items()))

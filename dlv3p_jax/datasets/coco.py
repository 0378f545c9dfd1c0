"""Outlines of objects in COCO's JSON, as COCO itself and most labelling tools have them, as a data set."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from dlv3p_jax.data import opening, ranges
from dlv3p_jax.data.classes import IGNORED
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.example import Example, Pair, Problem, read_pair
from dlv3p_jax.datasets import outlines
from dlv3p_jax.datasets.builder import PictureBuilder
from dlv3p_jax.datasets.pairs import ids_of

BACKGROUND = "background"
_WORDS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}  # what files and folders begin with
_PATTERNS = ("annotations/instances_{}*.json", "annotations/{}*.json", "{}*.json", "{}*/_annotations.coco.json")
_OPTIONAL = ("test",)


@dataclasses.dataclass(frozen=True)
class Outlined(Pair):
    """A picture, its objects as (class index, outline), and the (height, width) that the file says it has."""

    objects: tuple[tuple[int, outlines.Outline], ...] = ()
    size: tuple[int, int] = (0, 0)


def make_builder(
    data_dir: str | os.PathLike,
    source: str | os.PathLike,
    *,
    name: str,
    splits: Sequence[str] = (),
    picture_range: ranges.Range | None = None,
    **options: Any,
) -> PictureBuilder:
    """The builder of a folder with COCO's annotations: class 0 is `background`, then come its categories, by their ids.

    Where objects overlap, the smaller is on top. A category that is called background itself is class 0, and a crowd
    counts as its category.

    Args:
        data_dir, source, name, options: see `by_name`; `_PATTERNS` has where the JSON files are looked for.
        splits: as NAME=FILE, of JSON files below the source; none: those that are found.
        picture_range: see `PictureBuilder`.

    Raises:
        DatasetError: no such files, or what they hold is not COCO's.
    """
    folder = pathlib.Path(source).expanduser()
    outlines.require_pycocotools(f"--source={source}")
    files = _files(folder, splits)
    read = {split: _read(path) for split, path in files.items()}
    names = _names(files, read)
    problems: list[Problem] = []
    items = {split: _items(folder, split, files[split], read[split], names, problems) for split in files}
    return PictureBuilder(
        data_dir,
        items,
        _Read(len(names), picture_range),
        name=name,
        class_names=names,
        description=f"Pictures and COCO annotations of {folder.resolve()}",
        problems=problems,
        picture_range=picture_range,
        **options,
    )


@dataclasses.dataclass(frozen=True)
class _Read:
    num_classes: int
    picture_range: ranges.Range | None

    def __call__(self, item: Outlined) -> Example | Problem:
        def draw(name, size):
            if size != item.size:
                raise DatasetError(f"{name} says {item.size}, but {item.image} is {size} (height, width)")
            try:
                return outlines.draw(item.objects, size, background=0)
            except DatasetError as error:
                raise DatasetError(f"{name}: {error}") from error

        return read_pair(item, self.num_classes, IGNORED, draw=draw, picture_range=self.picture_range)


def _files(folder: pathlib.Path, splits: Sequence[str]) -> dict[str, pathlib.Path]:
    if not folder.is_dir():
        raise DatasetError(f"--source={folder}: no such folder")
    files = {}
    for word in splits:
        split, equals, name = word.partition("=")
        if not split.isidentifier() or not equals or not (folder / name).is_file():
            raise DatasetError(f"--splits={word}: write NAME=FILE, such as val=annotations/val.json, of {folder}")
        files[split] = folder / name
    if files:
        return files
    for split, words in _WORDS.items():
        patterns = [pattern.format(word) for pattern in _PATTERNS for word in words]
        found: list[pathlib.Path] = next(filter(None, (sorted(folder.glob(pattern)) for pattern in patterns)), [])
        if len(found) > 1:
            raise DatasetError(f"{', '.join(map(str, found))}: say which it is with --splits={split}=FILE,…")
        if found:
            files[split] = found[0]
        elif split not in _OPTIONAL:
            raise DatasetError(
                f"--source={folder}: no {split} split (looked for {', '.join(patterns)}); name its file with "
                f"--splits={split}=FILE,…"
            )
    return files


_SIDES = ("height", "width")
_KINDS = {"file_name": (str, "a path")} | dict.fromkeys(_SIDES, ((int, float), "pixels"))


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise opening.unreadable(path, error) from error
    except ValueError as error:
        raise DatasetError(f"{path}: no JSON ({error})") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DatasetError(f'{path}: no list "{key}", which annotations of COCO have')
    keys = {"images": ("id", "file_name", "height", "width"), "categories": ("id", "name")}
    for group, wanted in (*keys.items(), ("annotations", ("id", "image_id", "category_id"))):
        for number, entry in enumerate(content[group]):
            if not isinstance(entry, dict):
                raise DatasetError(f"{path}: {group}[{number}] is {entry!r}, and no object")
            for key in wanted:
                if key not in entry:
                    raise DatasetError(f'{path}: {group}[{number}] has no "{key}"')
                kind, words = _KINDS.get(key, ((int, str), "a whole number or a name"))
                if not isinstance(entry[key], kind) or (key in _SIDES and not 1 <= entry[key] < 2**31):
                    raise DatasetError(f'{path}: {group}[{number}] has the "{key}" {entry[key]!r}: give {words}')
            if group == "images":  # of Windows
                entry["file_name"] = entry["file_name"].replace("\\", "/")
        ids = [entry["id"] for entry in content[group]]
        if group != "annotations" and (len(set(ids)) < len(ids) or len(set(map(type, ids))) > 1):
            raise DatasetError(f'{path}: "id" of "{group}": each has one of its own, all numbers or all names')
    return content


def _names(files: dict[str, pathlib.Path], read: dict[str, dict[str, Any]]) -> list[str]:
    """Names of classes; raises DatasetError where the splits have other categories, or there are too many."""
    found = {split: {entry["id"]: entry["name"] for entry in content["categories"]} for split, content in read.items()}
    first, *others = found
    for split in others:
        if found[split] != found[first]:
            raise DatasetError(f'{files[split]}: its "categories" are others than those of {files[first]}')
    names = [str(found[first][key]) for key in sorted(found[first])]
    classes = [BACKGROUND, *(name for name in names if name != BACKGROUND)]
    if len(set(names)) < len(names) or not 2 <= len(classes) <= 255:
        raise DatasetError(
            f'{files[first]}: its "categories" are {len(names)}; names come once, and 1 to 254 are possible'
        )
    return classes


def _items(folder, split, path, content, names, problems) -> list[Outlined]:
    where = _pictures(folder, split, path, content)
    categories = {entry["id"]: names.index(str(entry["name"])) for entry in content["categories"]}
    objects: dict[Any, list[tuple[int, outlines.Outline]]] = {entry["id"]: [] for entry in content["images"]}
    for entry in content["annotations"]:
        for key, known in (("image_id", objects), ("category_id", categories)):
            if entry[key] not in known:
                raise DatasetError(f'{path}: annotation {entry["id"]} has the "{key}" {entry[key]}, which is not there')
        if not entry.get("segmentation"):
            problems.append(
                Problem(
                    str(entry["id"]), f'{path}: annotation {entry["id"]} has no "segmentation", only a box or nothing'
                )
            )
            continue
        objects[entry["image_id"]].append((categories[entry["category_id"]], entry["segmentation"]))
    items = []
    ids = ids_of([entry["file_name"] for entry in content["images"]], where)
    for entry in content["images"]:
        picture = where / entry["file_name"]
        if not opening.is_file(picture):
            problems.append(Problem(entry["file_name"], f"{path}: {entry['file_name']} is not in {where}"))
            continue
        label = f"{path}, image {entry['id']}"
        size = (int(entry["height"]), int(entry["width"]))
        items.append(Outlined(ids[entry["file_name"]], str(picture), label, tuple(objects[entry["id"]]), size))
    return items


def _pictures(folder, split, path, content) -> pathlib.Path:
    """The folder that the names of pictures are relative to."""
    begins = _WORDS.get(split, (split,))
    candidates = [path.parent, *(each for word in begins for each in sorted(folder.glob(f"{word}*")))]
    candidates += [each for word in begins for each in sorted((folder / "images").glob(f"{word}*"))]
    candidates += [folder / "images", folder]
    if not content["images"]:
        raise DatasetError(f'{path}: its "images" are none')
    names = [entry["file_name"] for entry in content["images"][:20]]
    for candidate in candidates:
        if any(opening.is_file(candidate / name) for name in names):
            return candidate
    raise DatasetError(f"{path}: {names[0]} is in none of {', '.join(dict.fromkeys(map(str, candidates)))}")

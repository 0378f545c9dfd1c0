"""Data sets that come as parallel folders of pictures and of labels with fixed classes, and need no file of classes."""

import functools
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from dlv3p_jax.data import downloads
from dlv3p_jax.data.classes import CLASSES, IGNORED
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.example import Pair, Problem, read_pair
from dlv3p_jax.data.label_map import count_values, list_counts
from dlv3p_jax.data.labels import read_label
from dlv3p_jax.datasets.builder import PictureBuilder
from dlv3p_jax.datasets.pairs import first_five, pictures_below, read_lines


class Layout(NamedTuple):
    """Where a data set's files are, and what its labels mean.

    Attributes:
        title: for people.
        splits: by split, folders of pictures and of labels, below the source.
        reduce_zero_label: 0 counts nowhere, and class i is stored as i + 1.
        unlabelled: a value, beside 255, that counts nowhere.
        num_pictures: of each split as published.
        lists: by split, a file of names below the source; without, all pictures of the folders are taken.
    """

    title: str
    splits: dict[str, tuple[tuple[str, str], ...]]
    reduce_zero_label: bool
    unlabelled: int | None
    num_pictures: dict[str, int]
    lists: dict[str, str] = {}


_PASCAL_CONTEXT = Layout(
    "Pascal Context (60 classes)",
    dict.fromkeys(("train", "val"), (("JPEGImages", "SegmentationClassContext"),)),
    reduce_zero_label=False,
    unlabelled=None,
    num_pictures={"train": 4_998, "val": 5_105},
    lists={split: f"ImageSets/SegmentationContext/{split}.txt" for split in ("train", "val")},
)
LAYOUTS = {
    "ade20k": Layout(
        "ADE20K (SceneParsing, 150 classes)",
        {
            "train": (("images/training", "annotations/training"),),
            "val": (("images/validation", "annotations/validation"),),
        },
        reduce_zero_label=True,
        unlabelled=None,
        num_pictures={"train": 20_210, "val": 2_000},
    ),
    "loveda": Layout(
        "LoveDA (7 classes)",
        {
            split: tuple((f"{folder}/{area}/images_png", f"{folder}/{area}/masks_png") for area in ("Rural", "Urban"))
            for split, folder in (("train", "Train"), ("val", "Val"))
        },
        reduce_zero_label=True,
        unlabelled=None,
        num_pictures={"train": 2_522, "val": 1_669},
    ),
    "mapillary": Layout(
        "Mapillary Vistas 1.2 (65 classes)",
        {
            split: ((f"{folder}/images", f"{folder}/v1.2/labels"),)
            for split, folder in (("train", "training"), ("val", "validation"))
        },
        reduce_zero_label=False,
        unlabelled=65,
        num_pictures={"train": 18_000, "val": 2_000},
    ),
    "pascal_context": _PASCAL_CONTEXT,
    "pascal_context_59": _PASCAL_CONTEXT._replace(title="Pascal Context (59 classes)", reduce_zero_label=True),
}


def make_builder(
    data_dir: str | os.PathLike, source: str | os.PathLike, *, name: str, **options: Any
) -> PictureBuilder:
    """The builder of one of `LAYOUTS` (see `by_name`), train and val, below `source` or in a folder there."""
    layout, (names, palette) = LAYOUTS[name], CLASSES[name]
    pairs, problems, remarks = find_pictures(source, name)
    return PictureBuilder(
        data_dir,
        pairs,
        functools.partial(
            read_pair,
            num_classes=len(names),
            ignore_label=IGNORED,
            read_values=functools.partial(read_classes, layout=layout, num_classes=len(names)),
            advice=f"take the label files of {layout.title} as distributed",
        ),
        name=name,
        class_names=names,
        palette=palette,
        description=f"{layout.title} of {pathlib.Path(source).expanduser().resolve()}",
        problems=problems,
        remarks=remarks,
        as_published=True,
        **options,
    )


def read_classes(path: str, layout: Layout, num_classes: int) -> np.ndarray:
    """The class indices, uint8 [H, W], of a label file; 255 where nothing counts.

    Raises:
        DatasetError: see `labels.decode`; or a value that stands for no class.
    """
    stored = read_label(path, advice=f"take the label files of {layout.title} as distributed")
    first = 1 if layout.reduce_zero_label else 0
    values = stored.astype(np.int64)
    void = (values == IGNORED) | (values == layout.unlabelled) | (values < first)
    unknown = values[~void & (values >= first + num_classes)]
    if unknown.size:
        found = [(str(value), count) for value, count in count_values(unknown)]
        raise DatasetError(
            f"{path}: {list_counts(found)} outside {first}..{first + num_classes - 1}, the labels of {layout.title}"
        )
    return np.where(void, IGNORED, values - first).astype(np.uint8)


def find_pictures(source: str | os.PathLike, name: str) -> tuple[dict[str, list[Pair]], list[Problem], list[str]]:
    """Lists pictures and labels by split, sorted by name.

    Returns:
        Pairs by split; pictures without labels and labels without pictures; and remarks for the user.

    Raises:
        DatasetError: a folder is missing or empty.
    """
    layout = LAYOUTS[name]
    root = _find_root(pathlib.Path(source).expanduser(), name)
    pairs: dict[str, list[Pair]] = {}
    problems, remarks = [], []
    for split, folders in layout.splits.items():
        pairs[split] = []
        for images, labels in folders:
            for folder in (images, labels):
                if not (root / folder).is_dir():
                    raise DatasetError(f"{root / folder}: no such folder.\n{downloads.HOW_TO[name]}")
            (pictures, others), (found, _) = pictures_below(root / images), pictures_below(root / labels)
            if others:
                remarks.append(f"{root / images}: {len(others)} files are no pictures, left out ({first_five(others)})")
            listed = _listed(root, layout, split, name) or sorted(pictures.keys() | found.keys())
            for stem in listed:
                if stem not in found and stem not in pictures:
                    problems.append(
                        Problem(stem, f"{root / images} and {root / labels} have no {stem}, which is listed")
                    )
                elif stem not in found:
                    problems.append(Problem(stem, f"{pictures[stem]} has no label in {root / labels}"))
                elif stem not in pictures:
                    problems.append(Problem(stem, f"{found[stem]} has no picture in {root / images}"))
                else:
                    # The names of Rural and Urban are numbers that go on, but nothing holds them to that.
                    key = stem if len(folders) == 1 else f"{images.split('/')[1]}/{stem}"
                    pairs[split].append(Pair(key, str(pictures[stem]), str(found[stem])))
        if not pairs[split] and not problems:
            raise DatasetError(
                f"{root / layout.splits[split][0][0]}: the {split} split is empty.\n{downloads.HOW_TO[name]}"
            )
        if len(pairs[split]) != layout.num_pictures[split]:
            remarks.append(f"{split}: {len(pairs[split])} pictures, where there are {layout.num_pictures[split]:,}")
    return pairs, problems, remarks


def _listed(root: pathlib.Path, layout: Layout, split: str, name: str) -> list[str]:
    """The names that a split's list has; none where there is no list."""
    if split not in layout.lists:
        return []
    path = root / layout.lists[split]
    if not path.is_file():
        raise DatasetError(f"{path}: no such file.\n{downloads.HOW_TO[name]}")
    return list(dict.fromkeys(filter(None, map(str.strip, read_lines(path)))))


def _find_root(source: pathlib.Path, name: str) -> pathlib.Path:
    """The source, or the only folder in it that holds the first of the layout's."""
    if not source.is_dir():
        raise DatasetError(f"--source={source}: no such folder.\n{downloads.HOW_TO[name]}")
    first = LAYOUTS[name].splits["train"][0][0]
    for root in (source, *sorted(path for path in source.iterdir() if path.is_dir())):
        if (root / first).is_dir():
            return root
    raise DatasetError(f"--source={source}: no folder {first} in it.\n{downloads.HOW_TO[name]}")

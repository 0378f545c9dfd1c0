"""Cityscapes as a data set of 19 classes, from the folders that its archives hold."""

import collections
import functools
import os
import pathlib
import shlex
from typing import Any

from dlv3p_jax.data import classes, downloads
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.example import Pair, Problem, read_pair
from dlv3p_jax.datasets.builder import PictureBuilder
from dlv3p_jax.datasets.pairs import first_five, pictures_below

# How many pictures of which city are in each split.
CITIES = {
    "train": {
        "aachen": 174,
        "bochum": 96,
        "bremen": 316,
        "cologne": 154,
        "darmstadt": 85,
        "dusseldorf": 221,
        "erfurt": 109,
        "hamburg": 248,
        "hanover": 196,
        "jena": 119,
        "krefeld": 99,
        "monchengladbach": 94,
        "strasbourg": 365,
        "stuttgart": 196,
        "tubingen": 144,
        "ulm": 95,
        "weimar": 142,
        "zurich": 122,
    },
    "val": {"frankfurt": 267, "lindau": 59, "munster": 174},
    "test": {"berlin": 544, "bielefeld": 181, "bonn": 46, "leverkusen": 58, "mainz": 298, "munich": 398},
}
UNLABELLED = "test"  # gtFine/test holds labels in which nothing is labelled

_IMAGE = "_leftImg8bit"
_LABELS = ("_gtFine_labelTrainIds", "_gtFine_labelIds")  # the first that is there counts


def make_builder(
    data_dir: str | os.PathLike, source: str | os.PathLike, *, name: str = "cityscapes", **options: Any
) -> PictureBuilder:
    """The builder of leftImg8bit/ and gtFine/ in `source` as distributed (see `by_name`); test has no labels."""
    pairs, problems, remarks = find_frames(source)
    return PictureBuilder(
        data_dir,
        pairs,
        functools.partial(
            read_pair,
            num_classes=len(classes.CITYSCAPES.names),
            ignore_label=classes.IGNORED,
            read_values=classes.read_train_ids,
            advice=classes.CITYSCAPES_ADVICE,
        ),
        name=name,
        class_names=classes.CITYSCAPES.names,
        palette=classes.CITYSCAPES.palette,
        description=f"Cityscapes (fine labels, 19 train ids) of {pathlib.Path(source).expanduser().resolve()}",
        problems=problems,
        remarks=remarks,
        as_published=True,
        **options,
    )


def find_frames(source: str | os.PathLike) -> tuple[dict[str, list[Pair]], list[Problem], list[str]]:
    """Lists pictures and labels by split, sorted by name; a label is None throughout test.

    Returns:
        Pairs by split; pictures without labels and labels without pictures; and remarks for the user.

    Raises:
        DatasetError: a folder is missing or empty.
    """
    source = pathlib.Path(source).expanduser()
    if not source.is_dir():
        raise DatasetError(f"--source={source}: no such folder.\n{downloads.CITYSCAPES}")
    images, labels = _find_folder(source, "leftImg8bit"), _find_folder(source, "gtFine")
    pairs, problems, remarks = {}, [], []
    for split in CITIES:
        for folder in (images, labels):
            if split != UNLABELLED and not (folder / split).is_dir():
                raise DatasetError(f"{folder / split}: no such folder.\n{downloads.CITYSCAPES}")
        frames, others = _frames_below(images / split, _IMAGE)
        if others:
            remarks.append(f"{split}: {len(others)} files are no {_IMAGE} pictures, left out ({first_five(others)})")
        if split == UNLABELLED:
            pairs[split] = [Pair(frame, str(path), None) for frame, path in frames.items()]
        else:
            pairs[split], unmatched = _match(images, labels, split, frames)
            problems += unmatched
            if not pairs[split] and not unmatched:
                raise DatasetError(f"{images / split}: the {split} split is empty.\n{downloads.CITYSCAPES}")
        remarks += _differences(split, frames)
    if not pairs[UNLABELLED]:
        del pairs[UNLABELLED]
    return pairs, problems, remarks


def _find_folder(source: pathlib.Path, name: str) -> pathlib.Path:
    """SOURCE/NAME, or in a folder of its archive's name, which some programs extract to."""
    archive = f"{name}_trainvaltest"
    for folder in (source / name, source / archive / name):
        if folder.is_dir():
            return folder
    packed = source / f"{archive}.zip"
    hint = f" ({packed} is there, but not extracted)" if packed.is_file() else ""
    if source.name in ("leftImg8bit", "gtFine"):
        hint += f" (perhaps --source={shlex.quote(str(source.parent))}?)"
    raise DatasetError(f"--source={source}: no folder {name}{hint}.\n{downloads.CITYSCAPES}")


def _frames_below(folder: pathlib.Path, ending: str) -> tuple[dict[str, pathlib.Path], list[pathlib.Path]]:
    """Files by CITY/FRAME for those whose stem has the ending, and the other pictures."""
    pictures, _ = pictures_below(folder)
    frames = {stem.removesuffix(ending): path for stem, path in pictures.items() if stem.endswith(ending)}
    return frames, [path for stem, path in pictures.items() if not stem.endswith(ending)]


def _match(
    images: pathlib.Path, labels: pathlib.Path, split: str, frames: dict[str, pathlib.Path]
) -> tuple[list[Pair], list[Problem]]:
    found: dict[str, pathlib.Path] = {}
    for ending in reversed(_LABELS):
        found |= _frames_below(labels / split, ending)[0]
    problems = [
        Problem(frame, f"{path} has no label (looked for {labels / split / frame}{_LABELS[1]}.png or …TrainIds.png)")
        for frame, path in frames.items()
        if frame not in found
    ]
    problems += [
        Problem(frame, f"{path} has no picture (looked for {images / split / frame}{_IMAGE}.png)")
        for frame, path in found.items()
        if frame not in frames
    ]
    return [Pair(frame, str(path), str(found[frame])) for frame, path in frames.items() if frame in found], problems


def _differences(split: str, frames: dict[str, pathlib.Path]) -> list[str]:
    """A remark on which cities lack pictures; a subset of the data is fine, and a copy that broke off is not."""
    counts = collections.Counter(path.parent.name for path in frames.values())
    expected = CITIES[split]
    if counts == expected:
        return []
    lacking = [f"{count - counts[city]} of {city}" for city, count in expected.items() if counts[city] < count]
    beyond = [f"{count} of {city}" for city, count in counts.items() if count > expected.get(city, 0)]
    remark = f"{split}: {sum(counts.values())} pictures, where Cityscapes has {sum(expected.values())}"
    if lacking and expected.keys() & counts.keys():
        remark += f"; missing {', '.join(lacking)}"
    if beyond:
        remark += f"; not in Cityscapes {', '.join(beyond)}"
    return [remark]

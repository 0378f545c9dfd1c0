"""Pascal VOC's folders with classes of one's own, as CVAT and others export them ("Segmentation mask")."""

import os
import pathlib

from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.example import Pair, Problem
from dlv3p_jax.datasets.file_names import explain
from dlv3p_jax.datasets.pairs import EXTENSIONS, REQUIRED, SPLITS, first_five, pictures_below, read_lines

IMAGES, LABELS, LISTS = "JPEGImages", "SegmentationClass", "ImageSets/Segmentation"


def is_one(source: str | os.PathLike) -> bool:
    """Whether a folder has this layout."""
    return (pathlib.Path(source).expanduser() / LABELS).is_dir()


def find_pairs(source: str | os.PathLike) -> tuple[dict[str, list[Pair]], list[Problem], list[str]]:
    """Lists the pairs of a folder by split, as `pairs.find_pairs` does.

    Names in the lists are those of the files without their extension, which may be any; a test split without labels is
    left out.

    Raises:
        DatasetError: no pictures, or no list of the train or val split.
    """
    source = pathlib.Path(source).expanduser()
    if not (source / IMAGES).is_dir():
        raise DatasetError(
            f"--source={source}: {LABELS} is there, but no folder {IMAGES}: export with pictures, or put them there"
        )
    lists = {split: source / LISTS / f"{split}.txt" for split in SPLITS}
    for split in REQUIRED:
        if not lists[split].is_file():
            others = sorted(path.name for path in (source / LISTS).glob("*.txt") if path not in lists.values())
            hint = f"; divide the names of {others[0]} between train.txt and val.txt" if others else ""
            raise DatasetError(f"{lists[split]} is missing, which lists the pictures of the {split} split{hint}")
    images, labels = (pictures_below(source / folder)[0] for folder in (IMAGES, LABELS))
    pairs: dict[str, list[Pair]] = {}
    problems: list[Problem] = []
    remarks: list[str] = []
    for split, path in lists.items():
        if not path.is_file():
            continue
        names = _read_names(path, remarks)
        if split not in REQUIRED and not any(name in labels for name in names):
            remarks.append(f"{path} has no labels, so it is left out: label pictures with predict")
            continue
        lone = [name for name in labels if name not in images]
        if nearly := explain([name for name in names if name not in labels], lone):
            remarks.append(f"{split}: {nearly}")
        for name, number in names.items():
            lacking = [folder for folder, have in ((IMAGES, images), (LABELS, labels)) if name not in have]
            if lacking:
                message = (
                    f"{path}, line {number}: no file {' and no file '.join(f'{each}/{name}.*' for each in lacking)}"
                )
                problems.append(Problem(name, message))
        pairs[split] = [
            Pair(name, str(images[name]), str(labels[name])) for name in names if name in images and name in labels
        ]
    return pairs, problems, remarks


def _read_names(path: pathlib.Path, remarks: list[str]) -> dict[str, int]:
    """The names of a list, in order, with the lines that they are on."""
    names: dict[str, int] = {}
    repeated = []
    for number, line in enumerate(read_lines(path), 1):
        name = line.strip().replace("\\", "/")
        name = name[: -len(pathlib.PurePosixPath(name).suffix)] if name.lower().endswith(EXTENSIONS) else name
        if name in names:
            repeated.append(number)
        elif name:
            names[name] = number
    if not names:
        raise DatasetError(f"{path}: the list is empty")
    if repeated:
        remarks.append(f"{path}: {len(repeated)} repeated rows count once (lines {first_five(repeated)})")
    return names

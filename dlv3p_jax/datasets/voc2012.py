"""Pascal VOC 2012 segmentation as a data set of 21 classes, with the augmented training split."""

import functools
import os
import pathlib
from typing import Any

from dlv3p_jax.data import downloads
from dlv3p_jax.data.classes import IGNORED, VOC2012
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.example import Pair, Problem, read_pair
from dlv3p_jax.datasets import sbd as sbd_files
from dlv3p_jax.datasets.builder import PictureBuilder
from dlv3p_jax.datasets.pairs import first_five, read_lines

NUM_PICTURES = {"train": 1464, "val": 1449, "trainval": 2913, "trainaug": 10582}

_AUGMENTED_LISTS = ("aug.txt", "trainaug.txt", "train_aug.txt")


def make_builder(
    data_dir: str | os.PathLike,
    source: str | os.PathLike,
    *,
    name: str = "voc2012",
    sbd: str | os.PathLike | None = None,
    **options: Any,
) -> PictureBuilder:
    """The builder of VOC2012/ as distributed, and its augmented labels beside it or in SBD's own files (see `by_name`).

    Splits are train, val, trainval, and trainaug: train, and the augmented pictures that are neither in train nor val.

    Args:
        data_dir, source, name, options: `source` is VOC2012, or the folder that holds it or VOCdevkit.
        sbd: SBD's folder, whose .mat files are the augmented part in place of SegmentationClassAug.
    """
    pairs, problems, remarks = find_pictures(source, sbd)
    return PictureBuilder(
        data_dir,
        pairs,
        functools.partial(
            read_pair,
            num_classes=len(VOC2012.names),
            ignore_label=IGNORED,
            read_values=sbd_files.read_values,
            advice=sbd_files.ADVICE,
        ),
        name=name,
        class_names=VOC2012.names,
        palette=VOC2012.palette,
        description=f"Pascal VOC 2012 segmentation of {pathlib.Path(source).expanduser().resolve()}",
        problems=problems,
        remarks=remarks,
        apart=[("train", "val"), ("trainaug", "val")],
        as_published=True,
        **options,
    )


def find_pictures(
    source: str | os.PathLike, sbd_folder: str | os.PathLike | None = None
) -> tuple[dict[str, list[Pair]], list[Problem], list[str]]:
    """Lists pictures and labels by split, in the order of the lists.

    Returns:
        Pairs by split; those that lack a file; and remarks for the user.

    Raises:
        DatasetError: a folder or a list is missing, empty or no list of names.
    """
    root = _find_root(pathlib.Path(source).expanduser())
    lists = root / "ImageSets" / "Segmentation"
    fine = root / "SegmentationClass"
    names: dict[str, dict[str, None]] = {}
    remarks: list[str] = []
    for split in ("train", "val"):
        names[split] = _read_names(lists / f"{split}.txt", remarks)
    trainval = lists / "trainval.txt"
    names["trainval"] = _read_names(trainval, remarks) if trainval.is_file() else {**names["train"], **names["val"]}
    labels = {split: {name: fine / f"{name}.png" for name in listed} for split, listed in names.items()}
    augmented = _find_augmented(root, sbd_folder, names, remarks)
    if augmented is not None:
        labels["trainaug"] = labels["train"] | augmented

    pairs: dict[str, list[Pair]] = {}
    problems = []
    for split, listed in labels.items():
        pairs[split] = []
        for name, label in listed.items():
            image = root / "JPEGImages" / f"{name}.jpg"
            missing = [str(path) for path in (image, label) if not path.is_file()]
            if missing:
                problems.append(Problem(name, f"{name}: {' and '.join(missing)} not found"))
            else:
                pairs[split].append(Pair(name, str(image), str(label)))
        if len(listed) != NUM_PICTURES[split]:
            remarks.append(f"{split}: {len(listed)} pictures, where Pascal VOC 2012 has {NUM_PICTURES[split]}")
    return pairs, problems, remarks


def _find_root(source: pathlib.Path) -> pathlib.Path:
    for root in (source, source / "VOC2012", source / "VOCdevkit" / "VOC2012"):
        if (root / "JPEGImages").is_dir():
            for folder in ("SegmentationClass", "ImageSets/Segmentation"):
                if not (root / folder).is_dir():
                    raise DatasetError(f"{root / folder}: no such folder.\n{downloads.VOC2012}")
            return root
    what = "no folder JPEGImages in it, in VOC2012 or in VOCdevkit/VOC2012" if source.is_dir() else "no such folder"
    raise DatasetError(f"--source={source}: {what}.\n{downloads.VOC2012}")


def _read_names(path: pathlib.Path, remarks: list[str]) -> dict[str, None]:
    """The names of pictures in a list, one a line, in order."""
    names: dict[str, None] = {}
    repeated = []
    for number, line in enumerate(read_lines(path), 1):
        name = line.strip()
        if not name:
            continue
        if len(name.split()) > 1 or "/" in name or "\\" in name or name.endswith((".jpg", ".png")):
            raise DatasetError(
                f'{path}, line {number}: "{name}" is no name of a picture; write names like 2007_000032, one a line, '
                "without folder and extension"
            )
        if name in names:
            repeated.append(number)
        names[name] = None
    if not names:
        raise DatasetError(f"{path}: the list is empty")
    if repeated:
        remarks.append(f"{path}: {len(repeated)} repeated rows count once (lines {first_five(repeated)})")
    return names


def _find_augmented(
    root: pathlib.Path, sbd_folder: str | os.PathLike | None, names: dict[str, dict[str, None]], remarks: list[str]
) -> dict[str, pathlib.Path] | None:
    """Labels of the augmented part by name, without the pictures of train and val; None where there is none."""
    folder, lists = root / "SegmentationClassAug", root / "ImageSets" / "Segmentation"
    if sbd_folder is not None:
        found = sbd_files.find_labels(pathlib.Path(sbd_folder).expanduser())
        if folder.is_dir():
            remarks.append(f"{folder} is left out: --sbd counts")
    elif folder.is_dir():
        path = next((lists / name for name in _AUGMENTED_LISTS if (lists / name).is_file()), None)
        listed = _read_names(path, remarks) if path else sorted(file.stem for file in folder.glob("*.png"))
        found = {name: folder / f"{name}.png" for name in listed}
        if path is None:
            remarks.append(f"{lists / _AUGMENTED_LISTS[0]} is missing: all {len(found)} labels of {folder} count")
        elif held_out := [name for name in found if name in names["val"]]:
            remarks.append(f"{path}: {len(held_out)} pictures of val are left out of trainaug ({first_five(held_out)})")
    else:
        remarks.append(f"no split trainaug, for {folder} is missing. {downloads.VOC2012_AUG}")
        return None
    return {name: path for name, path in found.items() if name not in names["train"] and name not in names["val"]}

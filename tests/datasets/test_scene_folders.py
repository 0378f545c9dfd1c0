"""ADE20K, LoveDA and Mapillary Vistas, from tiny files in the distributed layout to an opened data set."""

import functools
import io
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dlv3p_jax.data.classes import CLASSES
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.datasets import scene_folders
from dlv3p_jax.datasets.preparing import prepare_dataset

# A training picture's folder, its label's, the endings, and what is stored against what is trained on.
LAYOUTS = {
    "ade20k": (
        "images/training",
        "annotations/training",
        "jpg",
        [[0, 1, 150], [2, 255, 3]],
        [[255, 0, 149], [1, 255, 2]],
    ),
    "loveda": (
        "Train/Urban/images_png",
        "Train/Urban/masks_png",
        "png",
        [[0, 1, 7], [2, 2, 255]],
        [[255, 0, 6], [1, 1, 255]],
    ),
    "mapillary": (
        "training/images",
        "training/v1.2/labels",
        "jpg",
        [[0, 64, 65], [2, 2, 2]],
        [[0, 64, 255], [2, 2, 2]],
    ),
    "pascal_context": (
        "JPEGImages",
        "SegmentationClassContext",
        "jpg",
        [[0, 59, 255], [1, 1, 1]],
        [[0, 59, 255], [1, 1, 1]],
    ),
    "pascal_context_59": (
        "JPEGImages",
        "SegmentationClassContext",
        "jpg",
        [[0, 59, 255], [1, 1, 1]],
        [[255, 58, 255], [0, 0, 0]],
    ),
}
MMSEG = {
    "ade20k": "ADE20KDataset",
    "pascal_context": "PascalContextDataset",
    "pascal_context_59": "PascalContextDataset59",
    "loveda": "LoveDADataset",
    "potsdam": "PotsdamDataset",
    "vaihingen": "ISPRSDataset",
    "isaid": "iSAIDDataset",
    "mapillary": "MapillaryDataset_v1",
}


def write(path: pathlib.Path, values) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def make_source(folder: pathlib.Path, name: str) -> pathlib.Path:
    """A picture of every folder of the layout, of random pixels, with the label of LAYOUTS."""
    _, _, suffix, stored, _ = LAYOUTS[name]
    rng = np.random.default_rng(0)
    for pairs in scene_folders.LAYOUTS[name].splits.values():
        for images, labels in pairs:
            write(folder / images / f"one.{suffix}", rng.integers(0, 256, (2, 3, 3)))
            write(folder / labels / "one.png", stored)
    for path in scene_folders.LAYOUTS[name].lists.values():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("one\n")
        write(folder / "JPEGImages" / f"unlisted.{suffix}", np.zeros((2, 3, 3)))
    return folder


def prepare(source, data_dir, name, **options):
    make = functools.partial(scene_folders.make_builder, name=name, source=source, **options)
    return prepare_dataset(name, make, data_dir, False)


@pytest.mark.parametrize("name", LAYOUTS)
def test_labels_become_classes_and_what_counts_nowhere_is_ignored(tmp_path, name):
    make_source(tmp_path / "extracted" / "archive", name)
    dataset, made_by = prepare(tmp_path / "extracted", tmp_path / "data", name)
    assert (list(dataset.splits), dataset.ignore_label) == (["train", "val"], 255)
    assert (tuple(dataset.class_names), dataset.palette) == (
        CLASSES[name].names,
        [list(c) for c in CLASSES[name].palette],
    )
    for split in dataset.splits:
        label = np.asarray(Image.open(io.BytesIO(dataset.source(split)[0]["label"])))
        np.testing.assert_array_equal(label, LAYOUTS[name][4])
    assert any(remark.startswith("train: ") and "where there are" in remark for remark in made_by.remarks)


@pytest.mark.parametrize("name", MMSEG)
def test_classes_are_those_that_the_published_files_go_by(shared, name):
    theirs = json.loads((shared / "parity" / "mmseg" / "classes.json").read_text())[MMSEG[name]]
    count = 65 if name == "mapillary" else len(theirs["classes"])  # its last is "Unlabeled"
    assert CLASSES[name].names == tuple(word.strip() for word in theirs["classes"][:count])
    assert [list(color) for color in CLASSES[name].palette] == theirs["palette"][:count]
    if name in scene_folders.LAYOUTS:
        assert scene_folders.LAYOUTS[name].reduce_zero_label == theirs.get("reduce_zero_label", False)


def test_what_is_missing_or_wrong_is_named(tmp_path):
    with pytest.raises(DatasetError, match="no such folder"):
        prepare(tmp_path / "none", tmp_path / "data", "ade20k")
    with pytest.raises(DatasetError, match="no folder images/training in it.*\nDownload ADEChallengeData2016.zip"):
        prepare(tmp_path, tmp_path / "data", "ade20k")
    source = make_source(tmp_path / "source", "ade20k")
    write(source / "images/training/two.jpg", np.zeros((2, 3, 3)))
    write(source / "annotations/training/three.png", np.zeros((2, 3)))
    with pytest.raises(DatasetError, match="(?s)three.png has no picture.*two.jpg has no label"):
        prepare(source, tmp_path / "data", "ade20k")
    write(source / "annotations/training/one.png", [[151, 151, 1], [0, 0, 0]])
    with pytest.raises(DatasetError, match=r"one.png: value 151 \(2 pixels\) outside 1..150"):
        (source / "images/training/two.jpg").unlink()
        (source / "annotations/training/three.png").unlink()
        prepare(source, tmp_path / "data", "ade20k")


def test_a_listed_name_without_files_is_named(tmp_path):
    source = make_source(tmp_path / "source", "pascal_context")
    (source / "ImageSets/SegmentationContext/val.txt").write_text("one\ntwo\n")
    with pytest.raises(DatasetError, match="have no two, which is listed"):
        prepare(source, tmp_path / "data", "pascal_context")
    (source / "ImageSets/SegmentationContext/val.txt").unlink()
    with pytest.raises(DatasetError, match="(?s)SegmentationContext/val.txt: no such file.*trainval_merged.json"):
        prepare(source, tmp_path / "data", "pascal_context")


def test_the_command_prepares_checks_and_previews(tmp_path):
    make_source(tmp_path / "source", "loveda")
    command = [sys.executable, "-m", "dlv3p_jax.prepare", "--dataset=loveda", f"--data_dir={tmp_path / 'data'}"]
    for flags in (
        [f"--source={tmp_path / 'source'}"],
        ["--check"],
        [f"--preview={tmp_path / 'a.png'}", "--crop_size=32,32"],
    ):
        result = subprocess.run([*command, *flags], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    assert Image.open(tmp_path / "a.png").size[0] > 32

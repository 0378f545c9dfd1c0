"""Names that are no text, and names that nearly match."""

import os

import numpy as np
import pytest
from PIL import Image

from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.datasets.file_names import explain, find_alike
from dlv3p_jax.datasets.image_folder import make_builder
from dlv3p_jax.datasets.preparing import prepare_dataset


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (
            ["a", "b", "sub/c"],
            ["a_segmentation", "b_segmentation", "sub/c_segmentation"],
            ["3 labels", "_segmentation"],
        ),
        (["a.rf.1", "b.rf.1"], ["a.rf.1_mask", "b.rf.1_mask"], ["2 labels", '"_mask"']),
        (["1", "10"], ["mask_1", "mask_10"], ["2 labels", '"mask_"']),
        (["a_leftImg8bit", "b_leftImg8bit"], ["a", "b"], ["2 pictures", "_leftImg8bit"]),
        (["1_sat", "2_sat"], ["1_mask", "2_mask"], ["2 pictures", "_sat", "_mask"]),
        (["DJI_0042", "DJI_0043"], ["dji_0042", "dji_0043"], ["upper and lower case", "dji_0042 for DJI_0042"]),
        (["stra\u00dfe", "m\u00fcll"], ["m\u0075\u0308ll"], ["how letters are coded"]),
        (["STRA\u00dfE_\u00e9"], ["STRA\u00dfE_e\u0301"], ["how letters are coded", "convmv"]),
        (["a", "b"], ["task-1-annotation-2-by-1-tag-road-0", "task-1-annotation-2-by-1-tag-car-0"], ["Label Studio"]),
        (["a", "b"], ["a_road", "a_car", "b_road", "b_car"], ["2 pictures have several labels", "one file a class"]),
        (["cat"], ["dog"], None),
        (["cat", "dog"], [], None),
    ],
)
def test_names_that_nearly_match_are_explained(images, labels, words):
    hint = explain(images, labels)
    assert (hint is None) == (words is None), hint
    assert all(word in (hint or "") for word in words or ())


def test_files_that_are_called_nearly_as_a_list_says(tmp_path):
    for name in ("DJI_0042.JPG", "m\u00fcll.png", "a.jpeg"):
        (tmp_path / name).touch()
    assert find_alike(tmp_path / "dji_0042.jpg") == "DJI_0042.JPG"
    assert find_alike(tmp_path / "mu\u0308ll.png") == "m\u00fcll.png"
    assert find_alike(tmp_path / "a.jpg") == "a.jpeg"
    assert find_alike(tmp_path / "b.jpg") is find_alike(tmp_path / "no" / "a.jpg") is None


@pytest.fixture
def source(tmp_path):
    """A pair to train on and one to validate on."""
    folder = tmp_path / "mine"
    for number, split in enumerate(("train", "val")):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
            values = np.full((2, 4, 3), number) if kind == "images" else np.arange(8).reshape(2, 4) % 2
            Image.fromarray(values.astype(np.uint8)).save(folder / kind / split / "a.png")
    (folder / "classes.txt").write_text("road\ncar\n")
    return folder


def copy(source, kind, name: bytes, number=9) -> None:
    """A second file to train on, of another picture."""
    picture = np.asarray(Image.open(source / kind / "train/a.png")).copy()
    if kind == "images":
        picture[0] = number
    Image.fromarray(picture).save(source / "new.png")
    os.rename(source / "new.png", os.path.join(os.fsencode(source / kind / "train"), name))


def test_names_that_are_not_utf_8_are_a_problem_with_a_mend(source, tmp_path):  # D4, F6
    for kind in ("images", "labels"):
        copy(source, kind, b"M\xfcll.png")  # Latin-1, as a zip file of Windows leaves it
    made_by = make_builder(tmp_path, source, skip_bad=True)  # as --check does
    assert made_by.survey(source).num_pictures("train") == 1
    (problem,) = made_by.problems
    assert r"images/train/M\xfcll.png: the name is not UTF-8" in problem.message and "convmv" in problem.message
    with pytest.raises(DatasetError, match=r"M\\xfcll\.png: the name is not UTF-8"):
        make_builder(tmp_path, source)
    dataset, _ = prepare_dataset(
        "image_folder", lambda d: make_builder(d, source, skip_bad=True), tmp_path / "d", False
    )
    assert dataset.num_pictures("train") == 1
    assert r"M\xfcll.png" in (dataset.folder / "skipped.txt").read_text("utf-8")


def test_a_folder_and_lone_files_with_names_that_are_not_utf_8(source, tmp_path):
    copy(source, "images", b"M\xfcll.png")  # without a label
    latin = tmp_path / os.fsdecode(b"M\xfcller")
    os.rename(source, latin)
    dataset, made_by = prepare_dataset(
        "image_folder", lambda d: make_builder(d, latin, skip_bad=True), tmp_path / "d", False
    )
    assert dataset.metadata["description"].endswith(r"M\xfcller")
    assert r"M\xfcll.png has no label" in (dataset.folder / "skipped.txt").read_text("utf-8")
    assert len(made_by.problems) == 1


def test_a_folder_of_data_sets_whose_name_is_not_utf_8_is_refused(source, tmp_path):
    with pytest.raises(DatasetError, match=r"--data_dir=.*M\\xfcller: the name is not UTF-8"):
        prepare_dataset(
            "image_folder", lambda d: make_builder(d, source), tmp_path / os.fsdecode(b"M\xfcller"), overwrite=False
        )


def test_what_would_help_stands_beside_the_problems(source, tmp_path):
    for split in ("train", "val"):
        os.rename(source / f"labels/{split}/a.png", source / f"labels/{split}/a_segmentation.png")
    with pytest.raises(DatasetError, match=r'4 problems(.|\n)*note: train: 1 labels have "_segmentation"'):
        make_builder(tmp_path, source)
    (source / "train.txt").write_text("images/train/A.png labels/train/a_segmentation.png\n")
    (source / "val.txt").write_text("images/val/a.png labels/val/a_segmentation.png\n")
    with pytest.raises(DatasetError, match=r"train\.txt, line 1: .*A\.png not found in .* \(a\.png is there"):
        make_builder(tmp_path, source)

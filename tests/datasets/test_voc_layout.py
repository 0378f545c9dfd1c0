"""Pascal VOC's folders with classes of one's own, as CVAT exports them."""

import numpy as np
import pytest
from PIL import Image

from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.datasets.image_folder import make_builder

COLORS = np.uint8([[[0, 0, 0], [128, 64, 128], [0, 0, 142], [224, 224, 192]]] * 2)
LISTS = "ImageSets/Segmentation"


@pytest.fixture
def source(tmp_path):
    """Two pictures to train on and one to validate on, with labels in the colours of labelmap.txt."""
    folder = tmp_path / "export"
    for name in ("JPEGImages/cam", "SegmentationClass/cam", LISTS):
        (folder / name).mkdir(parents=True)
    for number, name in enumerate(("a b", "cam/1", "v")):
        Image.fromarray(np.full((2, 4, 3), number, np.uint8)).save(
            folder / f"JPEGImages/{name}.{('jpg', 'png')[number % 2]}"
        )
        Image.fromarray(COLORS).save(folder / f"SegmentationClass/{name}.png")
    (folder / LISTS / "train.txt").write_text("a b\ncam/1\n\ncam/1.png\n")
    (folder / LISTS / "val.txt").write_text("v\n")
    (folder / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:0,0,142::\nignored:224,224,192::\nroad:128,64,128::\n"
    )
    return folder


def test_an_export_is_taken_as_it_is(source, tmp_path):
    made_by = make_builder(tmp_path, source)
    dataset = made_by.survey(source)
    assert dataset.class_names == ["background", "car", "road"]
    assert dataset.palette == [[0, 0, 0], [0, 0, 142], [128, 64, 128]]
    assert dataset.metadata["class_pixels"] == {"train": [4, 4, 4], "val": [2, 2, 2]}
    assert dataset.metadata["ignored_pixels"] == {"train": 4, "val": 2}
    assert not made_by.problems
    assert any("1 repeated rows count once (lines 4)" in remark for remark in made_by.remarks)


def test_one_channel_counts_the_lines_of_labelmap(source, tmp_path):
    for path in (source / "SegmentationClass").rglob("*.png"):
        Image.fromarray(np.uint8([[0, 3, 1, 2]] * 2)).save(path)
    metadata = make_builder(tmp_path, source).survey(source).metadata
    assert metadata["class_pixels"]["val"] == [2, 2, 2] and metadata["ignored_pixels"]["val"] == 2


def test_a_label_map_of_ones_own_counts(source, tmp_path):
    given = "0-0-0:ignore,128-64-128:2,0-0-142:1,224-224-192:0"
    assert make_builder(tmp_path, source, label_map=given).survey(source).metadata["class_pixels"]["val"] == [2, 2, 2]


def test_what_is_missing_is_named(source, tmp_path):
    (source / "SegmentationClass/v.png").rename(source / "SegmentationClass/w.png")
    with pytest.raises(DatasetError, match=r"val\.txt, line 1: no file SegmentationClass/v\.\*"):
        make_builder(tmp_path, source)
    (source / LISTS / "train.txt").rename(source / LISTS / "default.txt")
    with pytest.raises(DatasetError, match=r"train\.txt is missing.*divide the names of default\.txt"):
        make_builder(tmp_path, source)
    (source / "JPEGImages").rename(source / "JPEG")
    with pytest.raises(DatasetError, match="no folder JPEGImages"):
        make_builder(tmp_path, source)

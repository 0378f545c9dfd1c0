"""Potsdam, Vaihingen and iSAID, from tiny files in the distributed layout; tiles are slices of whole pictures."""

import functools
import io
import re

import numpy as np
import pytest
from PIL import Image

from dlv3p_jax.data.classes import CLASSES
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.datasets import aerial
from dlv3p_jax.datasets.preparing import prepare_dataset

# A picture of train, its label, a picture of val, its label: as the archives hold them.
FILES = {
    "potsdam": (
        "2_Ortho_RGB/top_potsdam_2_10_RGB.tif",
        "5_Labels_all_noBoundary/top_potsdam_2_10_label_noBoundary.tif",
        "2_Ortho_RGB/top_potsdam_5_15_RGB.tif",
        "5_Labels_all_noBoundary/top_potsdam_5_15_label_noBoundary.tif",
    ),
    "vaihingen": (
        "top/top_mosaic_09cm_area1.tif",
        "ground_truth_eroded_COMPLETE/top_mosaic_09cm_area1_noBoundary.tif",
        "top/top_mosaic_09cm_area38.tif",
        "ground_truth_eroded_COMPLETE/top_mosaic_09cm_area38_noBoundary.tif",
    ),
    "isaid": (
        "train/images/images/P0003.png",
        "train/Semantic_masks/images/P0003_instance_color_RGB.png",
        "val/images/images/P0003.png",
        "val/Semantic_masks/images/P0003_instance_color_RGB.png",
    ),
}
SIZE = (20, 30)


def make_source(folder, name):
    """Pictures of random pixels; labels of all classes, and of void but for iSAID. Returns both by path."""
    rng, arrays = np.random.default_rng(0), {}
    palette = np.array([*CLASSES[name].palette, (0, 0, 0), (1, 2, 3)][: None if name != "isaid" else -2], np.uint8)
    for index, path in enumerate(FILES[name]):
        is_label = index % 2
        values = rng.integers(0, len(palette) if is_label else 256, SIZE if is_label else (*SIZE, 3))
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(palette[values] if is_label else values.astype(np.uint8)).save(folder / path)
        arrays[path] = np.where(values >= len(CLASSES[name].names), 255, values) if is_label else values
    return arrays


def prepare(source, data_dir, name, **options):
    make = functools.partial(aerial.make_builder, name=name, source=source, **options)
    return prepare_dataset(name, make, data_dir, False)


@pytest.fixture
def small(monkeypatch):
    """Tiles of 16x16, so that small pictures have several."""
    for name, survey in aerial.SURVEYS.items():
        monkeypatch.setitem(aerial.SURVEYS, name, survey._replace(side=16, step=10))


@pytest.mark.parametrize("name", FILES)
def test_tiles_cover_the_pictures_and_labels_are_classes(tmp_path, small, name):
    arrays = make_source(tmp_path / "source", name)
    dataset, made_by = prepare(tmp_path / "source", tmp_path / "data", name)
    assert tuple(dataset.class_names) == CLASSES[name].names
    for split, (image, label) in {"train": FILES[name][:2], "val": FILES[name][2:]}.items():
        corners = [(top, left) for top in (0, 4) for left in (0, 10, 14)]
        source = dataset.source(split)
        assert len(source) == len(corners)
        for record, (top, left) in zip(source, corners, strict=True):
            assert record["id"].decode().endswith(f"_{top}_{left}")
            part = slice(top, top + 16), slice(left, left + 16)
            for key, values in (("image", arrays[image]), ("label", arrays[label])):
                np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(record[key]))), values[part])
    assert any(remark.startswith("train: 6 tiles, where there are") for remark in made_by.remarks)


def test_the_numbers_of_tiles_are_those_that_are_published():
    """6000x6000 and 24 + 14 pictures of Potsdam make 3,456 and 2,016; a picture that is smaller is one tile."""
    survey = aerial.SURVEYS["potsdam"]
    names = [f"{row}_{column}" for row in range(2, 8) for column in range(7, 16)]
    a_side = list(aerial.starts(6000, survey.side, survey.step))
    count = sum(bool(re.fullmatch(survey.val, name)) for name in names)
    assert {"train": 24 * len(a_side) ** 2, "val": count * len(a_side) ** 2} == survey.num_tiles
    assert (a_side[:2], a_side[-1]) == ([0, 512], 6000 - 512)
    assert list(aerial.starts(300, 512, 512)) == list(aerial.starts(512, 512, 512)) == [0]
    assert list(aerial.starts(1500, 896, 512)) == [0, 512, 604]  # patches of 896 that overlap by 384
    train = [area for area in range(1, 39) if not re.fullmatch(aerial.SURVEYS["vaihingen"].val, str(area))]
    assert len(train) == 38 - 17
    assert {1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37} <= set(train)  # of 9, 18, 19, 25, 36 is nothing


def test_vaihingen_as_it_is_distributed(tmp_path, small):
    """Labels with boundaries have the names of pictures, and of area 9 there is a label alone."""
    source = tmp_path / "source"
    arrays = make_source(source, "vaihingen")
    (source / "gts_for_participants").mkdir()
    for index in (1, 3):  # as labels; "top" and "gts_…" may come in any order
        label = source / FILES["vaihingen"][index]
        (source / "gts_for_participants" / label.name.replace("_noBoundary", "")).write_bytes(label.read_bytes())
        (source / "zz/gts_for_participants").mkdir(parents=True, exist_ok=True)
        (source / "zz/gts_for_participants" / label.name.replace("_noBoundary", "")).write_bytes(label.read_bytes())
    (label.parent / "top_mosaic_09cm_area9_noBoundary.tif").write_bytes(label.read_bytes())
    dataset, made_by = prepare(source, tmp_path / "data", "vaihingen")
    for split, path in (("train", FILES["vaihingen"][0]), ("val", FILES["vaihingen"][2])):
        image = np.asarray(Image.open(io.BytesIO(dataset.source(split)[0]["image"])))
        np.testing.assert_array_equal(image, arrays[path][:16, :16])
    assert made_by.problems == []
    (source / "copy").mkdir()
    (source / "copy" / "top_mosaic_09cm_area1.tif").write_bytes((source / FILES["vaihingen"][0]).read_bytes())
    with pytest.raises(DatasetError, match="copy/top_mosaic_09cm_area1.tif and .*top/top_mosaic_09cm_area1.tif"):
        prepare(source, tmp_path / "again", "vaihingen")


def test_pictures_smaller_than_tiles_are_filled_up(tmp_path, monkeypatch):
    """Black, and ignored, so that a test resizes no tile in another way than the others."""
    monkeypatch.setitem(aerial.SURVEYS, "isaid", aerial.SURVEYS["isaid"]._replace(side=26, step=10))
    arrays = make_source(tmp_path / "source", "isaid")
    dataset, _ = prepare(tmp_path / "source", tmp_path / "data", "isaid")
    first, second = dataset.source("train")
    image, label = (np.asarray(Image.open(io.BytesIO(second[key]))) for key in ("image", "label"))
    np.testing.assert_array_equal(image[:20], arrays[FILES["isaid"][0]][:, 4:])
    np.testing.assert_array_equal(label[:20], arrays[FILES["isaid"][1]][:, 4:])
    assert image.shape[:2] == label.shape == (26, 26) and not image[20:].any() and np.all(label[20:] == 255)
    assert np.asarray(Image.open(io.BytesIO(first["label"]))).shape == (26, 26)


def test_what_is_missing_or_wrong_is_named(tmp_path, small):
    with pytest.raises(DatasetError, match="no such folder.\nDownload"):
        prepare(tmp_path / "none", tmp_path / "data", "potsdam")
    source = tmp_path / "source"
    make_source(source, "potsdam")
    (source / FILES["potsdam"][2]).unlink()
    with pytest.raises(DatasetError, match="5_15_label_noBoundary.tif has no picture"):
        prepare(source, tmp_path / "data", "potsdam")
    (source / FILES["potsdam"][3]).unlink()
    with pytest.raises(DatasetError, match="the val split is empty.\nDownload"):
        prepare(source, tmp_path / "data", "potsdam")
    make_source(source, "isaid")
    Image.fromarray(np.full((*SIZE, 3), 9, np.uint8)).save(source / FILES["isaid"][1])
    with pytest.raises(DatasetError, match="6 problems.*\n.*P0003_instance_color_RGB.png: value.* 9-9-9"):
        prepare(source, tmp_path / "data", "isaid")
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(source / FILES["isaid"][1])
    with pytest.raises(DatasetError, match="is 30x20 but its label .* is 5x5"):
        prepare(source, tmp_path / "data", "isaid")
    (source / FILES["isaid"][0]).write_bytes(b"no picture")  # its size is asked for before it is read
    with pytest.raises(DatasetError, match="1 problem.*\n.*train/images/images/P0003.png: not a picture"):
        prepare(source, tmp_path / "data", "isaid")

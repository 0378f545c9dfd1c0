"""Cityscapes' folders, from tiny files in the distributed layout to an opened data set."""

import functools
import io
import pathlib
import subprocess
import sys

import eval_batches
import numpy as np
import pytest
from PIL import Image

from dlv3p_jax.data import augment, classes, pipeline, records
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.datasets import check, cityscapes, summary
from dlv3p_jax.datasets.cityscapes import make_builder
from dlv3p_jax.datasets.preparing import prepare_dataset

# The labelIds of train ids 0 to 18, as in the paper's list of evaluated classes.
EVALUATED = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


def write(path: pathlib.Path, values) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def write_frame(source, split: str, frame: str, label_ids, kind: str = "labelIds") -> None:
    """A picture and its label; the city is what the frame's name begins with."""
    city = frame.split("_")[0]
    label_ids = np.asarray(label_ids)
    image = np.random.default_rng(len(frame)).integers(0, 256, (*label_ids.shape, 3))
    write(source / "leftImg8bit" / split / city / f"{frame}_leftImg8bit.png", image)
    write(source / "gtFine" / split / city / f"{frame}_gtFine_{kind}.png", label_ids)


@pytest.fixture
def source(tmp_path) -> pathlib.Path:
    """Two training pictures, one to validate on, two to test, with the other files that the archives hold."""
    folder = tmp_path / "cs"
    write_frame(folder, "train", "aachen_000000_000019", [[7, 26, 0], [8, 33, 255]])
    write_frame(folder, "train", "ulm_000001_000019", [[7, 7, 7], [11, 3, 23]])
    write_frame(folder, "val", "munster_000000_000019", [[7, 24], [7, 24]])
    for frame in ("berlin_000000_000019", "bonn_000000_000019"):
        write_frame(folder, "test", frame, [[3, 3]])  # labels of test are distributed, with nothing labelled in them
    fine = folder / "gtFine" / "train" / "ulm"
    write(fine / "ulm_000001_000019_gtFine_color.png", np.zeros((2, 3, 3)))
    write(fine / "ulm_000001_000019_gtFine_instanceIds.png", np.zeros((2, 3)))
    (fine / "ulm_000001_000019_gtFine_polygons.json").write_text("{}")
    return folder


def prepare(source, data_dir, **options):
    return prepare_dataset("cityscapes", functools.partial(make_builder, source=source, **options), data_dir, False)


def decode(label: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(label)))


def test_all_label_ids_and_minus_one():  # L32
    expected = dict.fromkeys(range(-1, 34), 255)
    expected.update({label_id: train_id for train_id, label_id in enumerate(EVALUATED)})
    stored = np.arange(-1, 34).astype(np.uint8)[None]  # -1 becomes 255
    np.testing.assert_array_equal(classes.to_train_ids(stored)[0], list(expected.values()))
    assert [label.id for label in classes.CITYSCAPES_LABELS] == [*range(34), -1]
    assert classes.CITYSCAPES_IDS.tolist() == EVALUATED
    np.testing.assert_array_equal(classes.to_train_ids(classes.CITYSCAPES_IDS), np.arange(19))


def test_the_table_is_that_of_the_official_scripts():
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    ours = {(label.name, label.id, label.train_id, label.color) for label in classes.CITYSCAPES_LABELS}
    assert ours == {(label.name, label.id, label.trainId % 256, label.color) for label in labels}


@pytest.mark.parametrize(("dtype", "value"), [(np.uint8, 34), (np.uint8, 254), (np.uint16, 254), (np.uint16, 256)])
def test_a_value_that_is_no_label_id(dtype, value):
    with pytest.raises(DatasetError, match=rf"value {value} \(2 pixels\) outside the labelIds"):
        classes.to_train_ids(np.array([[7, value, value, 255]], dtype))


def test_the_city_counts_are_those_of_the_whole():  # L34
    assert {split: sum(cities.values()) for split, cities in cityscapes.CITIES.items()} == {
        "train": 2975,
        "val": 500,
        "test": 1525,
    }


def test_label_ids_become_train_ids_and_pictures_keep_their_bytes(source, tmp_path):  # L31
    dataset, _ = prepare(source, tmp_path / "data")
    train = dataset.source("train")
    assert [record["id"] for record in train] == [b"aachen/aachen_000000_000019", b"ulm/ulm_000001_000019"]
    np.testing.assert_array_equal(decode(train[0]["label"]), [[0, 13, 255], [1, 18, 255]])
    np.testing.assert_array_equal(decode(train[1]["label"]), [[0, 0, 0], [2, 255, 10]])
    path = source / "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
    assert train[0]["image"] == path.read_bytes()
    assert dataset.class_names[:3] == ["road", "sidewalk", "building"] and len(dataset.class_names) == 19
    assert dataset.palette[0] == [128, 64, 128]
    assert dataset.ignore_label == 255
    assert dataset.metadata["class_pixels"]["val"][:12] == [2] + [0] * 10 + [2]


def test_train_ids_count_where_they_are_there(source, tmp_path):
    fine = source / "gtFine/train/aachen"
    write(fine / "aachen_000000_000019_gtFine_labelTrainIds.png", [[4, 18, 0], [4, 255, 255]])
    dataset, _ = prepare(source, tmp_path / "data")
    np.testing.assert_array_equal(decode(dataset.source("train")[0]["label"]), [[4, 18, 0], [4, 255, 255]])
    np.testing.assert_array_equal(decode(dataset.source("train")[1]["label"]), [[0, 0, 0], [2, 255, 10]])
    (fine / "aachen_000000_000019_gtFine_labelIds.png").unlink()
    assert prepare(source, tmp_path / "again")[0].num_pictures("train") == 2


def test_label_ids_under_the_name_of_train_ids(source, tmp_path):  # L31
    write(source / "gtFine/val/munster/munster_000000_000019_gtFine_labelTrainIds.png", [[7, 24], [7, 24]])
    with pytest.raises(DatasetError, match=r"TrainIds\.png: value 24 \(2 pixels\) outside the 19 classes.*labelIds 0"):
        prepare(source, tmp_path / "data")


def test_colours_are_refused_without_advice_that_does_not_help(source, tmp_path):  # L30
    write(source / "gtFine/val/munster/munster_000000_000019_gtFine_labelIds.png", [[[1, 2, 3], [4, 5, 6]]] * 2)
    with pytest.raises(DatasetError, match="a colour picture .* as distributed") as error:
        prepare(source, tmp_path / "data")
    assert "label_map" not in str(error.value)


def test_pictures_to_test_have_no_label(source, tmp_path):
    dataset, _ = prepare(source, tmp_path / "data", workers=2)
    assert dataset.splits == ("train", "val", "test")
    assert [dataset.has_labels(split) for split in dataset.splits] == [True, True, False]
    assert dataset.num_pictures("test") == 2
    assert dataset.sizes("test") == [(1, 2), (1, 2)]
    assert [record["label"] for record in dataset.source("test")] == [b"", b""]
    assert all(Image.open(io.BytesIO(record["image"])).size == (2, 1) for record in dataset.source("test"))
    lines = summary.table(dataset).splitlines()
    assert lines[2] == "test: 2 pictures without labels; width x height 2x1 (2)"
    assert lines[3].split() == ["class", "train", "val"]
    assert not [warning for warning in summary.warnings(dataset) if warning.startswith("test")]
    assert check.check_records(dataset) == []


def test_a_split_without_labels_is_neither_learnt_from_nor_scored(source, tmp_path):
    dataset, _ = prepare(source, tmp_path / "data")
    message = 'split "test" of cityscapes has no labels.*with labels: train, val'
    with pytest.raises(DatasetError, match=message):
        next(eval_batches.of(dataset, "test", 2))
    crop = augment.Crop((2, 2), min_scale=1.0, max_scale=1.0, scale_step=0.0, flip=False, ignore_label=255)
    with pytest.raises(DatasetError, match=message):
        pipeline.train_batches(dataset, "test", crop, batch_size=2, first_step=0, num_steps=1, seed=0)
    (batch,) = eval_batches.of(dataset, "val", 1)
    np.testing.assert_array_equal(batch["label"], [[[0, 11], [0, 11]]])


def test_what_is_missing_is_named(source, tmp_path):  # L34
    _, made_by = prepare(source, tmp_path / "data")
    train, val, test = made_by.remarks
    assert train.startswith("train: 2 pictures, where Cityscapes has 2975; missing 173 of aachen, 96 of bochum, ")
    assert "94 of ulm" in train
    assert val == "val: 1 pictures, where Cityscapes has 500; missing 267 of frankfurt, 59 of lindau, 173 of munster"
    assert test.startswith("test: 2 pictures, where Cityscapes has 1525; missing 543 of berlin, 181 of bielefeld, 45 ")


def test_another_citys_pictures_and_no_test(source, tmp_path):
    write_frame(source, "val", "camvid_000000_000000", [[7, 7]])
    for path in (source / "leftImg8bit/test").rglob("*.png"):
        path.unlink()
    dataset, made_by = prepare(source, tmp_path / "data")
    assert dataset.splits == ("train", "val")
    assert made_by.remarks[1].endswith("; not in Cityscapes 1 of camvid")
    assert made_by.remarks[2] == "test: 0 pictures, where Cityscapes has 1525"


def test_pictures_and_labels_that_do_not_match(source, tmp_path):  # L34
    (source / "gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png").unlink()
    (source / "leftImg8bit/val/munster/munster_000000_000019_leftImg8bit.png").unlink()
    write_frame(source, "val", "lindau_000000_000019", [[7, 24]])
    with pytest.raises(DatasetError) as error:
        prepare(source, tmp_path / "data")
    first, image, label, *_, last = str(error.value).splitlines()
    assert first == "2 problems with the data:"
    assert "ulm_000001_000019_leftImg8bit.png has no label (looked for " in image
    assert "munster_000000_000019_gtFine_labelIds.png has no picture (looked for " in label
    assert "--skip_bad" in last
    dataset, made_by = prepare(source, tmp_path / "data", skip_bad=True)
    assert dataset.num_pictures("train") == 1
    assert [record["id"] for record in dataset.source("val")] == [b"lindau/lindau_000000_000019"]
    assert len(made_by.problems) == 2


@pytest.mark.parametrize(
    ("missing", "message"),
    [("leftImg8bit", "no folder leftImg8bit"), ("gtFine", "no folder gtFine"), ("gtFine/val", r"gtFine/val: no such")],
)
def test_a_missing_folder_says_what_to_download(source, tmp_path, missing, message):
    (source / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=message) as error:
        prepare(source, tmp_path / "data")
    for part in ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip", "cityscapes-dataset.com", "CITY/"):
        assert part in str(error.value)
    assert not list((tmp_path / "data").glob("*"))


def test_near_misses_of_the_folder(source, tmp_path):
    with pytest.raises(DatasetError, match="perhaps --source="):
        prepare(source / "gtFine", tmp_path / "data")
    (source / "gtFine").rename(tmp_path / "elsewhere")
    (source / "gtFine_trainvaltest.zip").write_bytes(b"PK")
    with pytest.raises(DatasetError, match=r"gtFine_trainvaltest\.zip is there, but not extracted"):
        prepare(source, tmp_path / "data")
    (tmp_path / "elsewhere").rename(source / "gtFine")
    for name in ("leftImg8bit", "gtFine"):  # each archive extracted to a folder of its own name
        (source / f"{name}_trainvaltest").mkdir()
        (source / name).rename(source / f"{name}_trainvaltest" / name)
    assert prepare(source, tmp_path / "data")[0].num_pictures("train") == 2


def test_not_prepared_says_what_to_download_and_what_to_run(tmp_path):
    with pytest.raises(DatasetError) as error:
        records.open_dataset("cityscapes", tmp_path)
    assert f"prepare --dataset=cityscapes --source=FOLDER --data_dir={tmp_path}" in str(error.value)
    assert "leftImg8bit_trainvaltest.zip" in str(error.value)


def test_camvid_laid_out_as_cityscapes(shared, tmp_path):
    layouts = [sys.executable, shared / "camvid/layouts.py", "cityscapes", tmp_path / "cs", "--limit=3"]
    subprocess.run(layouts, check=True)
    dataset, _ = prepare(tmp_path / "cs", tmp_path / "data")
    train_ids = np.uint8([10, 2, 5, 0, 1, 8, 7, 4, 13, 11, 12, 255])  # of CamVid's classes, from its README
    for split in ("train", "val"):
        paths = sorted((shared / "camvid/labels" / split).iterdir())[:3]
        for record, path in zip(dataset.source(split), paths, strict=True):
            np.testing.assert_array_equal(decode(record["label"]), train_ids[np.asarray(Image.open(path))])

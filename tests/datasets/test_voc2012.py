"""Pascal VOC's folders and SBD's files, from tiny files in the distributed layout to an opened data set."""

import functools
import io
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import scipy.io
from PIL import Image

from dlv3p_jax.data import records
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.datasets import check, sbd
from dlv3p_jax.datasets.preparing import prepare_dataset
from dlv3p_jax.datasets.voc2012 import make_builder

LABELS = {  # 255 is the outline that VOC draws around objects
    "2007_000001": [[0, 1, 15, 255], [0, 0, 20, 255]],
    "2007_000002": [[0, 0, 0, 7], [7, 7, 255, 7]],
    "2008_000003": [[0, 2, 2, 255], [0, 0, 0, 0]],
    "2009_000004": [[3, 3, 0, 0], [3, 3, 0, 0]],
    "2010_000005": [[0, 0, 12, 12], [0, 0, 12, 12]],
}
TRAIN, VAL, AUG = ["2007_000002", "2007_000001"], ["2008_000003"], ["2010_000005", "2009_000004"]


def write_label(path: pathlib.Path, label, mode: str) -> None:
    """A palette ("P") PNG, as VOC's, or a grey ("L") one, as the augmented labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(label, np.uint8))
    if mode == "P":
        picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    picture.save(path)
    assert Image.open(path).mode == mode


def write_list(root, name: str, names: list[str]) -> None:
    path = root / "ImageSets/Segmentation" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def write_mat(folder: pathlib.Path, name: str, label) -> None:
    """As SBD's: GTcls is a struct of Boundaries, Segmentation and CategoriesPresent."""
    folder.mkdir(parents=True, exist_ok=True)
    label = np.asarray(label, np.uint8)
    fields = {"Boundaries": np.zeros((20, 1)), "Segmentation": label, "CategoriesPresent": np.unique(label[label > 0])}
    scipy.io.savemat(folder / f"{name}.mat", {"GTcls": fields}, do_compression=True)


@pytest.fixture
def voc(tmp_path) -> pathlib.Path:
    """VOC2012 with two training pictures and one to validate on, and pictures that have no label in it."""
    root = tmp_path / "voc/VOCdevkit/VOC2012"
    (root / "JPEGImages").mkdir(parents=True)
    for index, name in enumerate(LABELS):
        image = np.random.default_rng(index).integers(0, 256, (2, 4, 3)).astype(np.uint8)
        Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg")
    for name in TRAIN + VAL:
        write_label(root / "SegmentationClass" / f"{name}.png", LABELS[name], "P")
    write_list(root, "train.txt", TRAIN)
    write_list(root, "val.txt", VAL)
    return root


@pytest.fixture
def augmented(voc) -> pathlib.Path:
    """The same with SegmentationClassAug, which has labels of train and val too, coarser than VOC's."""
    for name in TRAIN + VAL:
        write_label(voc / "SegmentationClassAug" / f"{name}.png", np.full((2, 4), 9), "L")
    for name in AUG:
        write_label(voc / "SegmentationClassAug" / f"{name}.png", LABELS[name], "L")
    write_list(voc, "aug.txt", AUG)
    return voc


@pytest.fixture
def benchmark(tmp_path) -> pathlib.Path:
    """SBD's folder: the augmented part, a picture of train and one of val, in its own two lists."""
    dataset = tmp_path / "benchmark_RELEASE/dataset"
    for name in AUG:
        write_mat(dataset / "cls", name, LABELS[name])
    for name in (TRAIN[0], VAL[0]):
        write_mat(dataset / "cls", name, np.full((2, 4), 9))
    (dataset / "train.txt").write_text(f"{AUG[0]}\n{VAL[0]}\n")
    (dataset / "val.txt").write_text(f"{TRAIN[0]}\n{AUG[1]}\n")
    return dataset.parent


def prepare(source, data_dir, **options):
    return prepare_dataset("voc2012", functools.partial(make_builder, source=source, **options), data_dir, False)


def decode(label: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(label)))


def check_split(dataset, split: str, names: list[str]) -> None:
    found = dataset.source(split)
    assert [record["id"].decode() for record in found] == names
    for record, name in zip(found, names, strict=True):
        np.testing.assert_array_equal(decode(record["label"]), LABELS[name])


def test_palette_and_grey_labels_both_give_indices(augmented, tmp_path):  # L02, L33
    dataset, _ = prepare(tmp_path / "voc", tmp_path / "data", workers=2)
    assert dataset.splits == ("train", "val", "trainval", "trainaug")
    check_split(dataset, "train", TRAIN)
    check_split(dataset, "val", VAL)
    check_split(dataset, "trainval", TRAIN + VAL)
    check_split(dataset, "trainaug", TRAIN + AUG)
    for record in dataset.source("trainaug"):
        name = record["id"].decode()
        assert record["image"] == (augmented / "JPEGImages" / f"{name}.jpg").read_bytes()
    assert check.check_records(dataset) == []


def test_names_and_colours_are_vocs(augmented, tmp_path):
    dataset, _ = prepare(augmented, tmp_path / "data")
    assert len(dataset.class_names) == 21
    assert [dataset.class_names[index] for index in (0, 1, 15, 20)] == [
        "background",
        "aeroplane",
        "person",
        "tvmonitor",
    ]
    # From the devkit's documentation of its colour map.
    assert [dataset.palette[index] for index in (0, 1, 15, 20)] == [
        [0, 0, 0],
        [128, 0, 0],
        [192, 128, 128],
        [0, 64, 128],
    ]
    assert dataset.ignore_label == 255
    assert dataset.metadata["class_pixels"]["val"] == [5, 0, 2] + [0] * 18
    assert dataset.metadata["ignored_pixels"]["val"] == 1


@pytest.mark.parametrize("folder", ["voc", "voc/VOCdevkit", "voc/VOCdevkit/VOC2012"])
def test_the_folder_or_what_holds_it(voc, tmp_path, folder):
    check_split(prepare(tmp_path / folder, tmp_path / "data")[0], "train", TRAIN)


def test_a_published_picture_with_two_labels_is_told_and_kept(augmented, tmp_path):
    images = augmented / "JPEGImages"
    (images / f"{VAL[0]}.jpg").write_bytes((images / f"{TRAIN[0]}.jpg").read_bytes())
    dataset, made_by = prepare(augmented, tmp_path / "data")
    assert dataset.num_pictures("val") == 1
    told = [remark for remark in made_by.remarks if VAL[0] in remark]
    assert any("all 1 pictures of val are in train too" in remark for remark in told)
    assert any("differ; both are kept" in remark for remark in told)


def test_how_many_pictures_there_should_be(augmented, tmp_path):  # T10
    _, made_by = prepare(augmented, tmp_path / "data")
    assert made_by.remarks == [
        "train: 2 pictures, where Pascal VOC 2012 has 1464",
        "val: 1 pictures, where Pascal VOC 2012 has 1449",
        "trainval: 3 pictures, where Pascal VOC 2012 has 2913",
        "trainaug: 4 pictures, where Pascal VOC 2012 has 10582",
    ]


def test_without_the_augmented_part_train_and_val_are_made(voc, tmp_path):
    dataset, made_by = prepare(voc, tmp_path / "data")
    assert dataset.splits == ("train", "val", "trainval")
    assert "no split trainaug" in made_by.remarks[0]
    assert "benchmark.tgz" in made_by.remarks[0] and "--sbd=" in made_by.remarks[0]
    with pytest.raises(DatasetError, match='no split "trainaug"; it has train, val, trainval'):
        dataset.source("trainaug")


def test_sbds_own_files_are_the_augmented_part(voc, benchmark, tmp_path):
    dataset, _ = prepare(voc, tmp_path / "data", sbd=benchmark, workers=2)
    check_split(dataset, "trainaug", TRAIN + AUG)  # VOC's label where both have one, and nothing of val


@pytest.mark.parametrize("folder", [".", "dataset", ".."])
def test_sbd_without_lists_and_from_other_folders(voc, benchmark, tmp_path, folder):
    for name in ("train.txt", "val.txt"):
        (benchmark / "dataset" / name).unlink()
    dataset, _ = prepare(voc, tmp_path / "data", sbd=benchmark / folder)
    check_split(dataset, "trainaug", TRAIN + sorted(AUG))


def test_sbd_counts_before_the_folder(augmented, benchmark, tmp_path):
    write_mat(benchmark / "dataset/cls", AUG[0], np.full((2, 4), 5))
    dataset, made_by = prepare(augmented, tmp_path / "data", sbd=benchmark)
    np.testing.assert_array_equal(decode(dataset.source("trainaug")[2]["label"]), np.full((2, 4), 5))
    assert "SegmentationClassAug is left out: --sbd counts" in made_by.remarks[0]


def test_files_that_are_not_sbds(voc, benchmark, tmp_path):
    cls = benchmark / "dataset/cls"
    (cls / f"{AUG[0]}.mat").write_bytes((cls / f"{AUG[0]}.mat").read_bytes()[:200])
    scipy.io.savemat(cls / f"{AUG[1]}.mat", {"GTinst": {"Segmentation": np.zeros((2, 4), np.uint8)}})
    with pytest.raises(DatasetError) as error:
        prepare(voc, tmp_path / "data", sbd=benchmark)
    _, damaged, other, *_ = str(error.value).splitlines()
    assert f"{AUG[0]}.mat: damaged, or no MATLAB file of SBD" in damaged
    assert f"{AUG[1]}.mat: holds no GTcls.Segmentation" in other
    with pytest.raises(DatasetError, match=r"--sbd=.*: no folder of SBD"):
        prepare(voc, tmp_path / "data", sbd=voc)


def test_a_mat_file_that_is_not_there_and_one_of_another_size(voc, benchmark, tmp_path):
    write_mat(benchmark / "dataset/cls", AUG[0], np.zeros((3, 4)))
    (benchmark / "dataset/cls" / f"{AUG[1]}.mat").unlink()
    with pytest.raises(DatasetError, match=rf"{AUG[1]}\.mat not found"):
        prepare(voc, tmp_path / "data", sbd=benchmark)
    dataset, made_by = prepare(voc, tmp_path / "data", sbd=benchmark, skip_bad=True)
    check_split(dataset, "trainaug", TRAIN)
    assert f"{AUG[0]}.jpg is 4x2 (width x height) but its label" in made_by.problems[1].message


def test_segmentation_is_read_as_it_is(benchmark):
    np.testing.assert_array_equal(sbd.read_values(str(benchmark / f"dataset/cls/{AUG[0]}.mat")), LABELS[AUG[0]])


def test_validation_pictures_in_the_augmented_list_are_left_out(augmented, tmp_path):
    write_list(augmented, "aug.txt", [*AUG, *VAL, *TRAIN])
    dataset, made_by = prepare(augmented, tmp_path / "data")
    check_split(dataset, "trainaug", TRAIN + AUG)
    assert f"aug.txt: 1 pictures of val are left out of trainaug ({VAL[0]})" in made_by.remarks[0]


def test_trainaug_txt_or_no_list(augmented, tmp_path):
    (augmented / "ImageSets/Segmentation/aug.txt").unlink()
    dataset, made_by = prepare(augmented, tmp_path / "data")
    check_split(dataset, "trainaug", TRAIN + sorted(AUG))
    assert "aug.txt is missing: all 5 labels" in made_by.remarks[0]
    write_list(augmented, "trainaug.txt", [*AUG[:1], *TRAIN])
    check_split(prepare(augmented, tmp_path / "again")[0], "trainaug", TRAIN + AUG[:1])


def test_the_devkits_trainval_list_counts(voc, tmp_path):
    write_list(voc, "trainval.txt", ["2007_000001", "2008_000003", "2007_000002"])
    dataset, _ = prepare(voc, tmp_path / "data")
    check_split(dataset, "trainval", ["2007_000001", "2008_000003", "2007_000002"])


def test_one_damaged_picture_is_told_once(augmented, tmp_path):
    path = augmented / "JPEGImages" / f"{TRAIN[0]}.jpg"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=rf"1 problem with the data:\n.*{TRAIN[0]}\.jpg: damaged"):
        prepare(augmented, tmp_path / "data")
    dataset, _ = prepare(augmented, tmp_path / "data", skip_bad=True)
    check_split(dataset, "trainaug", TRAIN[1:] + AUG)
    assert len((dataset.folder / "skipped.txt").read_text().splitlines()) == 1


def test_missing_files_and_values_outside_the_classes(augmented, tmp_path):
    (augmented / "JPEGImages" / f"{TRAIN[0]}.jpg").unlink()
    with pytest.raises(DatasetError, match=rf"1 problem with the data:\n.*JPEGImages/{TRAIN[0]}\.jpg not found"):
        prepare(augmented, tmp_path / "data")
    write_label(augmented / "SegmentationClassAug" / f"{AUG[0]}.png", [[0, 38, 75, 0]] * 2, "L")
    _, made_by = prepare(augmented, tmp_path / "data", skip_bad=True)
    message = made_by.problems[1].message
    assert f"{AUG[0]}.png: values 38 (2 pixels), 75 (2 pixels) outside the 21 classes" in message
    assert "as distributed" in message and "label_map" not in message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("JPEGImages/2007_000001.jpg SegmentationClass/2007_000001.png", "is no name of a picture"),
        ("2007_000001.jpg", "is no name of a picture"),
        ("", "the list is empty"),
    ],
)
def test_lists_that_hold_something_else(voc, tmp_path, line, message):
    write_list(voc, "train.txt", [line])
    with pytest.raises(DatasetError, match=rf"train\.txt.*{message}"):
        prepare(voc, tmp_path / "data")


def test_lists_of_windows_and_repeated_rows(voc, tmp_path):
    path = voc / "ImageSets/Segmentation/train.txt"
    path.write_bytes(b"\xef\xbb\xbf2007_000002\r\n2007_000001 \r\n2007_000002\r\n\r\n")
    dataset, made_by = prepare(voc, tmp_path / "data")
    check_split(dataset, "train", TRAIN)
    assert "1 repeated rows count once (lines 3)" in made_by.remarks[0]


@pytest.mark.parametrize("missing", ["JPEGImages", "SegmentationClass", "ImageSets/Segmentation"])
def test_a_missing_folder_says_what_to_download(voc, tmp_path, missing):
    (voc / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=r"no (such )?folder(.|\n)*VOCtrainval_11-May-2012\.tar") as error:
        prepare(tmp_path / "voc", tmp_path / "data")
    assert missing in str(error.value)


def test_not_prepared_says_what_to_download_and_what_to_run(tmp_path):
    with pytest.raises(DatasetError) as error:
        records.open_dataset("voc2012", tmp_path)
    for part in ("prepare --dataset=voc2012 --source=FOLDER", "VOCtrainval_11-May-2012.tar", "benchmark.tgz", "--sbd="):
        assert part in str(error.value)


def test_camvid_laid_out_as_voc(shared, tmp_path):
    layouts = [sys.executable, shared / "camvid/layouts.py", "voc", tmp_path / "voc", "--limit=4"]
    subprocess.run(layouts, check=True)
    dataset, _ = prepare(tmp_path / "voc", tmp_path / "data")
    assert [dataset.num_pictures(split) for split in dataset.splits] == [2, 4, 6, 4]
    for record in dataset.source("trainaug"):
        original = np.asarray(Image.open(shared / "camvid/labels/train" / f"{record['id'].decode()}.png"))
        np.testing.assert_array_equal(decode(record["label"]), np.where(original == 11, 255, original))

"""A user's folder, from files on disk to an opened data set."""

import errno
import functools
import hashlib
import io
import os
import pathlib
import shutil
import zlib

import numpy as np
import pytest
from PIL import Image

from dlv3p_jax.data.errors import DatasetError, UnreadableError
from dlv3p_jax.datasets import summary
from dlv3p_jax.datasets.image_folder import make_builder
from dlv3p_jax.datasets.preparing import prepare_dataset
from dlv3p_jax.runtime import disk_errors

NAMES = "background\nweed\ncrop\n"


def write_pair(source: pathlib.Path, split: str, name: str, label, image_format: str = "jpg", size=None) -> None:
    """images/SPLIT/NAME.FORMAT and labels/SPLIT/NAME.png, of these label values."""
    label = np.asarray(label, np.uint8)
    seed = zlib.crc32(f"{split}/{name}".encode())
    image = np.random.default_rng(seed).integers(0, 256, (*(size or label.shape), 3)).astype(np.uint8)
    for kind, picture, suffix in (("images", image, image_format), ("labels", label, "png")):
        path = source / kind / split / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)


@pytest.fixture
def source(tmp_path) -> pathlib.Path:
    """Three training pictures and one to validate on, of three classes."""
    folder = tmp_path / "mine"
    for split, name in (("train", "a"), ("train", "b"), ("train", "sub/a"), ("val", "v")):
        write_pair(folder, split, name, [[0, 1, 2, 255], [0, 1, 2, 0]])
    (folder / "classes.txt").write_text(NAMES)
    return folder


def prepare(source, data_dir, overwrite=False, **options):
    make = functools.partial(make_builder, source=source, **options)
    return prepare_dataset("image_folder", make, data_dir, overwrite)


def nothing_written(data_dir) -> bool:
    return not data_dir.exists() or not list(data_dir.iterdir())


def test_pictures_are_kept_byte_for_byte_and_labels_value_for_value(source, tmp_path):
    dataset, _ = prepare(source, tmp_path / "data")
    train = dataset.source("train")
    assert [record["id"] for record in train] == [b"a", b"b", b"sub/a"]
    for record in train:
        stem = record["id"].decode()
        assert record["image"] == (source / "images/train" / f"{stem}.jpg").read_bytes()
        stored = np.asarray(Image.open(io.BytesIO(record["label"])))
        np.testing.assert_array_equal(stored, np.asarray(Image.open(source / "labels/train" / f"{stem}.png")))
    assert dataset.class_names == ["background", "weed", "crop"]
    assert dataset.metadata["class_pixels"] == {"train": [9, 6, 6], "val": [3, 2, 2]}
    assert dataset.metadata["ignored_pixels"] == {"train": 3, "val": 1}
    assert not dataset.metadata["synthetic"]


def test_digests_are_those_of_ids_pictures_and_labels_in_order(source, tmp_path):
    dataset, _ = prepare(source, tmp_path / "data")
    expected = hashlib.sha256()
    for record in dataset.source("train"):
        expected.update(len(record["id"]).to_bytes(8, "little") + record["id"])
        for key in ("image", "label"):
            expected.update(hashlib.sha256(record[key]).digest())
    digests = dataset.metadata["digests"]
    assert digests["train"] == expected.hexdigest() != digests["val"]
    assert make_builder(tmp_path, source, workers=3).survey(source).metadata["digests"] == digests

    write_pair(source, "train", "b", [[0, 1, 2, 0], [255, 1, 2, 0]])  # as many pixels of each class as before
    again = make_builder(tmp_path, source).survey(source).metadata
    assert again["class_pixels"] == dataset.metadata["class_pixels"]
    assert again["digests"]["train"] != digests["train"]
    assert again["digests"]["val"] == digests["val"]


def test_lists_keep_their_order(source, tmp_path):
    rows = [f"images/train/{stem}.jpg labels/train/{stem}.png" for stem in ("sub/a", "b", "a")]
    (source / "train.txt").write_text("\n".join(rows))
    (source / "val.txt").write_text("images/val/v.jpg labels/val/v.png")
    dataset, made_by = prepare(source, tmp_path / "data")
    assert [record["id"].decode() for record in dataset.source("train")] == [
        "images/train/sub/a",
        "images/train/b",
        "images/train/a",
    ]
    assert "the lists count" in made_by.remarks[0]


def test_conversions_are_counted_in_the_summary(source, tmp_path):
    picture = Image.open(source / "images/train/a.jpg")
    picture.convert("CMYK").save(source / "images/train/a.jpg")  # L36
    picture.convert("L").save(source / "images/train/b.jpg")  # L39
    dataset, _ = prepare(source, tmp_path / "data")
    assert dataset.num_pictures("train") == 3
    assert dataset.metadata["notes"] == {"CMYK JPEG stored as RGB": 1}
    assert "1 of 4: CMYK JPEG stored as RGB" in summary.table(dataset)
    assert dataset.source("train")[1]["image"] == (source / "images/train/b.jpg").read_bytes()


def damage(source) -> None:
    """One of every kind of damage."""
    (source / "labels/train/b.png").unlink()
    data = (source / "images/train/a.jpg").read_bytes()
    (source / "images/train/a.jpg").write_bytes(data[: len(data) // 2])
    write_pair(source, "train", "wide", np.zeros((2, 4)), size=(2, 5))
    write_pair(source, "train", "zero", [[0, 1]])
    (source / "images/train/zero.jpg").write_bytes(b"")
    write_pair(source, "val", "seven", [[0, 7, 7]])


def test_everything_wrong_is_told_at_once_and_nothing_is_left(source, tmp_path):
    damage(source)
    with pytest.raises(DatasetError) as error:
        prepare(source, tmp_path / "data")  # missing pairs are told before anything is read
    assert "1 problem with the data" in str(error.value)
    assert "images/train/b.jpg has no label" in str(error.value)
    (source / "images/train/b.jpg").unlink()
    with pytest.raises(DatasetError) as error:
        prepare(source, tmp_path / "data")
    lines = str(error.value).splitlines()
    assert lines[0] == "4 problems with the data:"
    assert "images/train/a.jpg: damaged or truncated" in lines[1]
    assert "wide.jpg is 5x2 (width x height) but its label" in lines[2]
    assert "images/train/zero.jpg: the file is empty" in lines[3]
    assert "labels/val/seven.png: value 7 (2 pixels) outside the 3 classes" in lines[4]
    assert "--skip_bad" in lines[-1]
    assert nothing_written(tmp_path / "data")


def test_only_the_first_ten_problems_are_shown(source, tmp_path):
    for index in range(12):
        write_pair(source, "train", f"x{index:02}", [[0, 9]])
    with pytest.raises(DatasetError) as error:
        prepare(source, tmp_path / "data")
    lines = str(error.value).splitlines()
    assert (lines[0], lines[11]) == ("12 problems with the data:", "  … and 2 more")
    assert "x09.png" in lines[10]


def test_skip_bad_leaves_out_and_lists(source, tmp_path):
    damage(source)
    dataset, made_by = prepare(source, tmp_path / "data", skip_bad=True)
    assert [record["id"] for record in dataset.source("train")] == [b"sub/a"]
    assert [record["id"] for record in dataset.source("val")] == [b"v"]
    assert dataset.sizes("train") == [(2, 4)]
    listed = (dataset.folder / "skipped.txt").read_text().splitlines()
    assert listed == [problem.message for problem in made_by.problems]
    assert len(listed) == 5


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_picture_that_the_disk_does_not_give_is_tried_again_and_never_skipped(source, tmp_path, monkeypatch, number):
    """What a disk answers while it is away says nothing about the picture."""
    bad, left, read = source / "images/train/b.jpg", [2], pathlib.Path.read_bytes

    def failing(path):
        if path == bad and left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number), str(path))
        return read(path)

    monkeypatch.setattr(pathlib.Path, "read_bytes", failing)
    monkeypatch.setattr(disk_errors, "WAITS", (0, 0))
    dataset, made_by = prepare(source, tmp_path / "data", skip_bad=True)
    assert dataset.num_pictures("train") == 3 and not made_by.problems
    for skip_bad in (False, True):
        left[0] = 3
        with pytest.raises(UnreadableError) as caught:
            prepare(source, tmp_path / "other", skip_bad=skip_bad)
        assert str(caught.value) == f"{bad}: cannot be read ({os.strerror(number)})"
        assert nothing_written(tmp_path / "other")


def test_a_name_of_a_list_that_the_disk_does_not_look_up_is_not_missing(source, tmp_path, monkeypatch):
    for split, names in (("train", "ab"), ("val", "v")):
        lines = (f"images/{split}/{name}.jpg labels/{split}/{name}.png\n" for name in names)
        (source / f"{split}.txt").write_text("".join(lines))
    bad, stat = str(source / "labels/train/b.png"), os.stat

    def failing(path, **options):
        if os.fspath(path) == bad:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), bad)
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", failing)
    with pytest.raises(UnreadableError, match="labels/train/b.png: cannot be read .Stale file handle"):
        make_builder(tmp_path, source, skip_bad=True)


def test_skip_bad_does_not_leave_an_empty_split(source, tmp_path):
    (source / "images/val/v.jpg").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"nothing is left of the val split(.|\n)*v\.jpg: the file is empty"):
        prepare(source, tmp_path / "data", skip_bad=True)
    assert nothing_written(tmp_path / "data")


@pytest.fixture
def mask(tmp_path) -> pathlib.Path:
    """Two classes drawn as 0 and 255."""
    folder = tmp_path / "mask"
    for split in ("train", "val"):
        write_pair(folder, split, "m", [[0, 0, 255, 0]])
    (folder / "classes.txt").write_text("background\nweed\n")
    return folder


def test_a_mask_of_0_and_255_is_not_taken_for_ignored_pixels(mask, tmp_path):  # L01
    with pytest.raises(DatasetError, match=r'class 0 and nothing else, and 255.*25\.0%.*--label_map "0:0,255:1"'):
        prepare(mask, tmp_path / "data")
    assert nothing_written(tmp_path / "data")
    dataset, _ = prepare(mask, tmp_path / "data", label_map="0:0,255:1")
    assert dataset.metadata["class_pixels"]["train"] == [3, 1]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(dataset.source("val")[0]["label"]))), [[0, 0, 1, 0]])


def test_labels_that_are_all_ignored_are_refused(mask, tmp_path):
    for split in ("train", "val"):
        write_pair(mask, split, "m", [[255, 255]])
    with pytest.raises(DatasetError, match="no class at all, and 255"):
        prepare(mask, tmp_path / "data")


def test_mapped_colours_become_the_palette(mask, tmp_path):
    for split in ("train", "val"):
        colors = np.array([[[9, 8, 7], [200, 100, 0], [0, 0, 0]]], np.uint8)
        Image.fromarray(colors).save(mask / "labels" / split / "m.png")
        Image.fromarray(colors).save(mask / "images" / split / "m.jpg")
    dataset, _ = prepare(mask, tmp_path / "data", label_map="9-8-7:0,#c86400:1,0-0-0:ignore")
    assert dataset.palette == [[9, 8, 7], [200, 100, 0]]
    assert dataset.metadata["class_pixels"]["train"] == [1, 1]


def test_colours_of_the_file_of_classes(source, tmp_path):
    plain = make_builder(tmp_path, source).survey(source).metadata["palette"]
    assert plain[0] == [0, 0, 0] and len(set(map(tuple, plain))) == 3

    (source / "classes.txt").write_text("background\ntall weed #00c000\ncrop\n")
    write_palette(source / "labels/train/a.png", [[0, 1, 2, 2]] * 2, [BLUE, RED, (9, 9, 9)])
    metadata = make_builder(tmp_path, source).survey(source).metadata
    assert metadata["class_names"] == ["background", "tall weed", "crop"]
    assert metadata["palette"] == [list(BLUE), [0, 192, 0], [9, 9, 9]]  # which counts over that of the labels

    (source / "classes.txt").write_text("background #0000c8\ntall weed #00c000\ncrop #c80000\n")
    counts = make_builder(tmp_path, source).survey(source).metadata["class_pixels"]  # palette labels go by their values
    assert counts == {"train": [8, 6, 8], "val": [3, 2, 2]}
    for name in ("train/a", "train/b", "train/sub/a", "val/v"):  # colour labels go by their colours
        Image.fromarray(np.uint8([[BLUE, RED, RED, (0, 192, 0)]] * 2)).save(source / f"labels/{name}.png")
    assert prepare(source, tmp_path / "data")[0].metadata["class_pixels"] == {"train": [6, 6, 12], "val": [2, 2, 4]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore_label": 1}, '--ignore_label=1 is the index of class "weed"'),
        ({"ignore_label": 256}, "--ignore_label=256: .*0 to 255"),
        ({"label_map": "0:0,255:3"}, "index 3 is outside the 3 classes"),
        ({"label_map": "0=0"}, "neither pairs nor a readable file"),
        ({"class_names": "/no/such/file"}, "/no/such/file: cannot be read"),
    ],
)
def test_options_that_cannot_be(source, tmp_path, options, message):
    with pytest.raises(DatasetError, match=message):
        prepare(source, tmp_path / "data", **options)
    assert nothing_written(tmp_path / "data")


def test_missing_class_names(source, tmp_path):
    (source / "classes.txt").unlink()
    with pytest.raises(DatasetError, match=r"classes\.txt is missing: write the class names"):
        prepare(source, tmp_path / "data")


def test_warnings_on_absent_and_dominant_classes(source, tmp_path):  # L15, L18, L19
    write_pair(source, "val", "v", np.zeros((10, 10)))
    dataset, _ = prepare(source, tmp_path / "data")
    absent, dominant = summary.warnings(dataset)
    assert absent == "val: class 1 (weed), 2 (crop) never occurs"
    assert dominant.startswith("val: 100.0% of the pixels are class 0 (background)")


def test_the_table_shows_shares_of_all_pixels(source, tmp_path):
    lines = summary.table(prepare(source, tmp_path / "data")[0]).splitlines()
    assert lines[0] == "train: 3 pictures; width x height 4x2 (3)"
    assert lines[3].split() == ["0", "background", "37.50%", "37.50%"]
    assert lines[6].split() == ["255", "ignored", "12.50%", "12.50%"]


def test_the_same_picture_under_another_name_is_noticed(source, tmp_path):  # F4
    for kind, suffix in (("images", "jpg"), ("labels", "png")):
        folder = source / kind
        shutil.copy(folder / f"train/a.{suffix}", folder / f"train/copy.{suffix}")
        shutil.copy(folder / f"train/b.{suffix}", folder / f"val/other.{suffix}")
        (folder / f"val/w.{suffix}").symlink_to(folder / f"train/sub/a.{suffix}")
    for workers in (1, 2):
        made_by = make_builder(tmp_path, source, workers=workers)
        made_by.survey(source)
        within, between = made_by.remarks
        assert within.startswith("train: 1 of 4 pictures repeat others") and "copy = a" in within
        assert between.startswith("2 of 3 pictures of val are in train too") and "b = other, sub/a = w" in between

    Image.fromarray(np.zeros((2, 4), np.uint8)).save(source / "labels/val/other.png")
    with pytest.raises(DatasetError) as error:
        prepare(source, tmp_path / "data")
    named = ("images/val/other.jpg", "images/train/b.jpg", "labels/val/other.png", "labels/train/b.png")
    assert all(str(source / name) in str(error.value) for name in named)
    dataset, made_by = prepare(source, tmp_path / "data", skip_bad=True)
    assert dataset.num_pictures("val") == 2 and len(made_by.problems) == 1


def test_all_of_val_in_train_is_said(source, tmp_path):
    for kind in ("images", "labels"):
        shutil.rmtree(source / kind / "val")
        shutil.copytree(source / kind / "train", source / kind / "val")
    made_by = make_builder(tmp_path, source)
    made_by.survey(source)
    assert [remark.split(" are")[0] for remark in made_by.remarks] == ["all 3 pictures of val"]


def write_palette(path: pathlib.Path, values, colors) -> None:
    """A label of these values, whose palette has these colours."""
    picture = Image.fromarray(np.array(values, np.uint8)).convert("P")
    picture.putpalette(np.array(colors, np.uint8).tobytes())
    picture.save(path)


BLACK, RED, BLUE = (0, 0, 0), (200, 0, 0), (0, 0, 200)


def test_palettes_that_differ_are_refused_and_their_colours_named(source, tmp_path):  # F1
    write_palette(source / "labels/train/a.png", [[0, 1, 2, 2]] * 2, [BLACK, RED, BLUE])
    write_palette(source / "labels/val/v.png", [[0, 0, 1, 1]] * 2, [BLACK, BLUE])  # "optimised"
    with pytest.raises(DatasetError) as error:
        prepare(source, tmp_path / "data", skip_bad=True)
    message = str(error.value)
    assert "value 1 is the colour 200-0-0 in" in message and "but 0-0-200 in" in message
    assert all(str(source / "labels" / name) in message for name in ("train/a.png", "val/v.png"))
    suggestion = message.split('--label_map "')[1].split('"')[0]
    assert sorted(suggestion.split(",")) == ["0-0-0:?", "0-0-200:?", "200-0-0:?"]
    assert nothing_written(tmp_path / "data")

    for name in ("b", "sub/a"):  # from grey, which colours do not fit
        shutil.copy(source / "labels/train/a.png", source / f"labels/train/{name}.png")
    classes = {"0-0-0:?": "0-0-0:0", "200-0-0:?": "200-0-0:1", "0-0-200:?": "0-0-200:2"}
    table = ",".join(classes[pair] for pair in suggestion.split(","))
    dataset, _ = prepare(source, tmp_path / "data", label_map=table)
    assert dataset.metadata["class_pixels"] == {"train": [6, 6, 12], "val": [4, 0, 4]}


def test_palettes_that_agree_are_the_colours_of_the_classes(source, tmp_path):
    write_palette(source / "labels/train/a.png", [[0, 1, 0, 1]] * 2, [RED, BLUE])
    write_palette(source / "labels/val/v.png", [[0, 1, 0, 7]] * 2, [RED, BLUE, *[BLACK] * 5, (9, 9, 9)])
    palette = make_builder(tmp_path, source, ignore_label=7).survey(source).metadata["palette"]
    assert palette[:2] == [list(RED), list(BLUE)] and len({tuple(color) for color in palette}) == 3
    # A map of values moves them, and a grey ramp is no choice of colours.
    moved = {"label_map": "0:1,1:2,2:0,255:ignore,7:ignore"}
    ramp = [(value, value, value) for value in range(256)]
    write_palette(source / "labels/train/b.png", [[0, 1, 2, 0]] * 2, ramp)
    palette = make_builder(tmp_path, source, **moved).survey(source).metadata["palette"]
    assert palette == [[0, 0, 0], list(RED), list(BLUE)]


def test_one_label_map_is_suggested_for_all_colours(source, tmp_path):  # F11
    for name, colors in (("train/a", [[RED, RED, BLUE, BLACK]]), ("train/b", [[BLUE, BLUE, BLUE, BLACK]])):
        Image.fromarray(np.uint8(colors).repeat(2, 0)).save(source / f"labels/{name}.png")
    with pytest.raises(DatasetError, match='--label_map "0-0-200:[?],0-0-0:[?],200-0-0:[?]"'):
        prepare(source, tmp_path / "data")
    with pytest.raises(DatasetError, match='--label_map "0-0-0:0,200-0-0:ignore,0-0-200:[?]"'):
        prepare(source, tmp_path / "data", label_map="0-0-0:0,200-0-0:ignore,0:0,1:1,2:2,255:ignore")
    with pytest.raises(DatasetError, match='"0-0-200:[?]"; put the index of its class'):
        prepare(source, tmp_path / "data", label_map="0-0-0:0,0-0-200:?")


def test_a_split_of_which_nothing_is_left_is_said_so(source, tmp_path):
    write_pair(source, "val", "v", [[9, 9]])
    dataset = make_builder(tmp_path, source, skip_bad=True).survey(source)
    lines = summary.table(dataset).splitlines()
    assert lines[0].startswith("train: 3 pictures;") and lines[1].startswith("val: nothing is left")
    assert lines[2].split() == ["class", "train"]
    assert [warning for warning in summary.warnings(dataset) if warning.startswith("val")] == []


def test_real_pictures_survive(shared, tmp_path):
    camvid = shared / "camvid"
    for split, count in (("train", 4), ("val", 2)):
        for image in sorted((camvid / "images" / split).glob("*.jpg"))[:count]:
            for kind, name in (("images", image.name), ("labels", f"{image.stem}.png")):
                (tmp_path / "mine" / kind / split).mkdir(parents=True, exist_ok=True)
                (tmp_path / "mine" / kind / split / name).symlink_to(camvid / kind / split / name)
    (tmp_path / "mine/classes.txt").write_text("".join(f"class {index}\n" for index in range(11)))
    dataset, _ = prepare(tmp_path / "mine", tmp_path / "data", ignore_label=11, workers=2)
    labels = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "mine/labels/train").iterdir())]
    counts = np.bincount(np.concatenate(labels).ravel(), minlength=12)
    assert dataset.metadata["class_pixels"]["train"] == counts[:11].tolist()
    assert dataset.metadata["ignored_pixels"]["train"] == counts[11]
    assert dataset.sizes("val") == [(360, 480)] * 2


def write_16_bits(source: pathlib.Path, highest: int) -> None:
    """Pictures of so many bits in place of those that are there."""
    for path in list((source / "images").glob("**/*.*")):
        path.unlink()
        values = np.linspace(300, highest, 8).astype(np.uint16).reshape(2, 4)
        Image.fromarray(values).save(path.with_suffix(".png"))


def test_pictures_of_12_bits_in_files_of_16_need_a_range(source, tmp_path):
    write_16_bits(source, 3000)
    with pytest.raises(DatasetError, match=r"300\.\.3000 .*\.png.*--picture_range=0,4095"):
        prepare(source, tmp_path / "data")
    assert nothing_written(tmp_path / "data")
    with pytest.raises(DatasetError, match=r"--picture_range=0,4095"):
        survey = make_builder(tmp_path / "data", source, skip_bad=True)
        survey.survey(source)
        survey.refuse_useless_data()
    write_pair(source, "train", "b", [[0, 1, 2, 9], [0, 1, 2, 0]], "png")
    with pytest.raises(DatasetError, match=r"(?s)value 9 .*--picture_range=0,4095"):  # both at once
        prepare(source, tmp_path / "data")
    write_pair(source, "train", "b", [[0, 1, 2, 255], [0, 1, 2, 0]], "png")
    write_16_bits(source, 3000)
    dataset, _ = prepare(source, tmp_path / "data", picture_range=(0, 4095))
    assert dataset.picture_range == (0, 4095)
    stored = np.asarray(Image.open(io.BytesIO(dataset.source("train")[0]["image"])))
    np.testing.assert_array_equal(stored[..., 1].ravel(), np.rint(np.linspace(300, 3000, 8).astype(int) / 4095 * 255))
    assert "16-bit PNG stored as 8-bit RGB, 0..4095 as 0..255" in summary.table(dataset)


def test_pictures_of_16_bits_need_no_range(source, tmp_path):
    write_16_bits(source, 40_000)
    dataset, _ = prepare(source, tmp_path / "data")
    assert dataset.picture_range is None


def test_turned_pictures_whose_labels_would_fit_both_ways_are_warned_of(source, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # half a turn
    with Image.open(source / "images/train/a.jpg") as picture:
        picture.save(source / "images/train/a.jpg", exif=exif)
    dataset, _ = prepare(source, tmp_path / "data")
    (warning,) = [text for text in summary.warnings(dataset) if "EXIF" in text]
    assert " 1 picture" in warning and "--preview" in warning

"""Data that is damaged, or goes, before a run or while it lasts: one message each, and nothing saved is lost."""

import functools
import os
import shutil

import eval_batches
import numpy as np
import pytest
import tiny
from PIL import Image

from dlv3p_jax import models
from dlv3p_jax.data import augment, pipeline, records
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.example import Example
from dlv3p_jax.datasets import builder, preparing
from dlv3p_jax.datasets.image_folder import make_builder
from dlv3p_jax.training import loop
from dlv3p_jax.weights import checkpoint_reading, checkpoints

SETTINGS = dict(batch_size=2, num_steps=50, seed=0)
CROP = augment.Crop((32, 32), min_scale=1.0, max_scale=1.0, scale_step=0, flip=False, ignore_label=255)
SIZE = (64, 96)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Seven pictures of noise to train on, in shards of three, and three to validate on; each a JPEG of some kB."""
    folder = tmp_path_factory.mktemp("damage")
    rng = np.random.default_rng(0)
    for split, count in (("train", 7), ("val", 3)):
        for kind, shape, highest, suffix in (("images", (*SIZE, 3), 256, "jpg"), ("labels", SIZE, 3, "png")):
            (folder / "source" / kind / split).mkdir(parents=True)
            for index in range(count):
                picture = Image.fromarray(rng.integers(0, highest, shape).astype(np.uint8))
                picture.save(folder / "source" / kind / split / f"{index}.{suffix}")
    (folder / "source" / "classes.txt").write_text("floor\nwall\nlamp\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "_PICTURES_A_SHARD", 3)
        make = functools.partial(make_builder, source=folder / "source")
        preparing.prepare_dataset("image_folder", make, folder / "data", overwrite=False)
    return folder / "data"


@pytest.fixture
def data(prepared, tmp_path):
    """A copy to be damaged."""
    shutil.copytree(prepared, tmp_path / "data")
    return tmp_path / "data"


def shard_of(data, split="train", number=1):
    return sorted(data.glob(f"image_folder/*/*-{split}.array_record*"))[number]


def cut(data):
    os.truncate(shard_of(data), shard_of(data).stat().st_size // 2)


def empty(data, number=1):
    os.truncate(shard_of(data, number=number), 0)


def flip_bytes(data):
    """In the middle of the picture of record 4, which is number 1 of its shard."""
    content = bytearray(shard_of(data).read_bytes())
    start = content.index(b"\xff\xd8\xff", content.index(b"\xff\xd8\xff") + 1)
    content[start + 900 : start + 910] = bytes(value ^ 0x55 for value in content[start + 900 : start + 910])
    shard_of(data).write_bytes(content)


def read_all(data, what, midway=lambda: None):
    dataset = records.open_dataset("image_folder", data)
    if what == "train":
        batches = pipeline.train_batches(dataset, "train", CROP, first_step=0, **SETTINGS)
    else:
        batches = eval_batches.of(dataset, "train", 2)
    next(batches)
    midway()
    return list(batches)


@pytest.mark.parametrize("what", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("damage", "record"), [(cut, "5"), (empty, "5"), (flip_bytes, "4")], ids=["cut", "empty", "flipped"]
)
def test_a_damaged_file_is_named_with_the_record_and_what_to_do(data, damage, record, what):
    damage(data)
    with pytest.raises(DatasetError) as error:
        read_all(data, what)
    message = str(error.value)
    number = int(record) - 3
    assert message.startswith(f"train: record {record} cannot be read: number {number} in {shard_of(data)} is damaged")
    assert message.endswith(
        f"python -m dlv3p_jax.prepare --dataset=image_folder --source=FOLDER --data_dir={data} --overwrite"
    )
    assert message.count("\n") == 1


def test_a_file_that_is_cut_while_it_is_read_is_named(data):
    with pytest.raises(DatasetError, match=rf"train: record \d cannot be read: number \d in {shard_of(data)}"):
        read_all(data, "train", midway=lambda: empty(data))


def test_files_that_are_removed_while_they_are_read_are_read_to_the_end_and_missed_when_next_opened(data):
    dataset = records.open_dataset("image_folder", data)
    assert len(read_all(data, "train", midway=lambda: shutil.rmtree(data))) == 49
    with pytest.raises(DatasetError, match=r"train: record 2 cannot be read: number 2 in .*00000-of-00003"):
        next(eval_batches.of(dataset, "train", 2))


def test_a_disk_that_fails_only_once_is_told(data, monkeypatch):
    read, failed = records._Source.__getitem__, []

    def fails_once(self, index):
        if index == 4 and not failed:
            failed.append(index)
            raise OSError("Stale file handle")
        return read(self, index)

    monkeypatch.setattr(records._Source, "__getitem__", fails_once)
    expected = rf"one of the records 4 of {data}.* could not be read \(OSError: Stale file handle\), but can be now"
    with pytest.raises(DatasetError, match=expected):
        read_all(data, "evaluate")


class Stored(builder.PictureBuilder):
    """Seven records of what `read` gives, as they are."""

    def __init__(self, data_dir, read):
        names, palette = ["floor", "wall", "lamp"], [(0, 0, 0)] * 3
        about = dict(class_names=names, palette=palette, ignore_label=255, description="", synthetic=True)
        super().__init__(data_dir, {"train": range(7)}, read, **about)


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("part", ["image", "label"])
def test_a_picture_that_was_stored_damaged_is_named(tmp_path, prepared, part, cache):
    """The record is whole, so that only its decoder can tell."""
    whole = list(records.open_dataset("image_folder", prepared).source("train"))
    example = functools.partial(Example, size=SIZE, class_pixels=np.array([1, 0, 0]), ignored_pixels=0)

    def read(index):
        parts = {name: whole[index][name] for name in ("image", "label")}
        if index == 4:
            parts[part] = parts[part][: len(parts[part]) // 2]
        return example(f"picture {index}", **parts)

    dataset, _ = preparing.prepare_dataset("stored", lambda folder: Stored(folder, read), tmp_path, overwrite=False)
    expected = (
        r"train: record 4, picture picture 4, cannot be read: number 4 in .*-of-00001 is damaged or gone \([^\n]+\)"
    )
    with pytest.raises(DatasetError, match=expected):
        list(pipeline.train_batches(dataset, "train", CROP, first_step=0, cache=cache, **SETTINGS))
    with pytest.raises(DatasetError, match=expected):
        list(eval_batches.of(dataset, "train", 3))


def test_a_run_whose_data_go_keeps_what_it_saved_and_goes_on_from_there(data, tmp_path, monkeypatch):
    changes = {"num_train_steps": 24, "eval_every_steps": 24, "checkpoint_every_steps": 8}
    whole, save = shutil.copytree(data, tmp_path / "whole"), checkpoints.Checkpoints.save

    def save_and_damage(self, state):
        save(self, state)
        for number in range(3):
            empty(data, number)

    monkeypatch.setattr(models, "build_model", tiny.build_model)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "save", save_and_damage)
        with pytest.raises(DatasetError, match="train: record . cannot be read"):
            loop.train_and_evaluate(tiny.make_config(data, **changes), tmp_path / "run")
    assert 8 <= checkpoint_reading.read_meta(checkpoint_reading.find(tmp_path / "run"))["step"] < 24
    ended = loop.train_and_evaluate(tiny.make_config(whole, **changes), tmp_path / "run")
    undisturbed = loop.train_and_evaluate(tiny.make_config(whole, **changes), tmp_path / "undisturbed")
    np.testing.assert_array_equal(ended["IoU"], undisturbed["IoU"])


def test_the_command_ends_in_one_message(data, tmp_path):
    """The training split is whole, so that the run gets as far as its first evaluation."""
    os.truncate(shard_of(data, "val", 0), 0)
    done = tiny.run_main(tmp_path / "run", data, checkpoint_every_steps=1)
    assert done.returncode == 1
    message = done.stderr[done.stderr.index("main: ") :]
    assert message.startswith("main: val: record 2 cannot be read: number 2 in ")
    assert len(message.splitlines()) == 2 and "Traceback" not in done.stderr
    assert checkpoint_reading.read_meta(checkpoint_reading.find(tmp_path / "run"))["step"] == 2

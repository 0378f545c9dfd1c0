"""Prepared data sets: what comes back out of them, and what is said about those that cannot be opened."""

import concurrent.futures
import io
import json
import pathlib
import shlex
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from dlv3p_jax.data import labels, records
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.example import Example, encode_example
from dlv3p_jax.datasets import builder, preparing
from dlv3p_jax.datasets.toy_streets import builder as toy_streets
from dlv3p_jax.datasets.toy_streets import scenes
from dlv3p_jax.runtime import disk_errors

SIZES = {"train": [(4, 6), (4, 6), (6, 4), (4, 6), (6, 4)], "val": [(3, 5)]}


def picture(item: tuple[str, int]) -> tuple[np.ndarray, np.ndarray]:
    split, index = item
    rng = np.random.default_rng([len(split), index])
    height, width = SIZES[split][index]
    label = rng.integers(0, 4, (height, width)).astype(np.uint8)
    return rng.integers(0, 256, (height, width, 3)).astype(np.uint8), np.where(label == 3, 255, label).astype(np.uint8)


def make_example(item: tuple[str, int]) -> Example:
    return encode_example(f"{item[0]}/{item[1]}", *picture(item), 3, 255, ("odd",) if item[1] % 2 else ())


class Small(builder.PictureBuilder):
    def __init__(self, data_dir, workers=1):
        super().__init__(
            data_dir,
            {split: [(split, index) for index in range(len(sizes))] for split, sizes in SIZES.items()},
            make_example,
            class_names=["a", "b", "c"],
            palette=[(0, 0, 0), (255, 0, 0), (0, 255, 0)],
            ignore_label=255,
            description="six pictures",
            synthetic=True,
            workers=workers,
        )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> pathlib.Path:
    data_dir = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "_PICTURES_A_SHARD", 2)
        preparing.prepare_dataset("small", Small, data_dir, overwrite=False)
    return data_dir


@pytest.fixture
def copy(prepared, tmp_path) -> pathlib.Path:
    """The prepared data set's folder, to be damaged."""
    shutil.copytree(prepared, tmp_path / "data")
    return tmp_path / "data" / "small" / "1.0.0"


def test_records_come_back_in_order_over_several_shards(prepared):
    dataset = records.open_dataset("small", prepared)
    assert len(list(dataset.folder.glob("*train*array_record*"))) == 3
    assert dataset.splits == ("train", "val")
    for split, sizes in SIZES.items():
        source = dataset.source(split)
        assert len(source) == dataset.num_pictures(split) == len(sizes)
        assert dataset.sizes(split) == sizes
        for index in reversed(range(len(sizes))):
            record, (image, label) = source[index], picture((split, index))
            assert record["id"] == f"{split}/{index}".encode()
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(record["image"]))), image)
            np.testing.assert_array_equal(labels.read_label(record["label"]), label)


def test_metadata_counts_every_pixel(prepared):
    dataset = records.open_dataset("small", prepared)
    assert dataset.class_names == ["a", "b", "c"]
    assert dataset.palette == [[0, 0, 0], [255, 0, 0], [0, 255, 0]]
    assert dataset.ignore_label == 255
    assert set(dataset.metadata) == {*records.METADATA, "digests"}
    assert dataset.metadata["notes"] == {"odd": 2}
    assert dataset.metadata["sizes"]["train"] == [[4, 6, 2], [6, 4, 1], [4, 6, 1], [6, 4, 1]]
    for split, sizes in SIZES.items():
        values = np.concatenate([picture((split, index))[1].ravel() for index in range(len(sizes))])
        counts = np.bincount(values, minlength=256)
        assert dataset.metadata["class_pixels"][split] == counts[:3].tolist()
        assert dataset.metadata["ignored_pixels"][split] == counts[255]


def change_sizes(metadata, info):
    metadata["sizes"]["train"] = [[4, 6, 1], [6, 4, 1], [4, 6, 2], [6, 4, 1]]  # the same pictures in another order


def change_labels(metadata, info):
    pixels = metadata["class_pixels"]["train"]
    metadata["class_pixels"]["train"] = [pixels[1], pixels[0], *pixels[2:]]


def ignore_more(metadata, info):
    metadata["ignored_pixels"]["train"] += 1


def cut_files_elsewhere(metadata, info):
    (train,) = [split for split in info["splits"] if split["name"] == "train"]
    assert train["shardLengths"] == ["2", "2", "1"]
    train["shardLengths"] = ["1", "2", "2"]


def add_content(metadata, info):
    metadata.setdefault("digests", {})["train"] = "0123"


@pytest.mark.parametrize(
    ("change", "differ"),
    [
        (lambda metadata, info: metadata.update(description="another"), set()),
        (change_sizes, {"sizes"}),
        (change_labels, {"class_pixels"}),
        (ignore_more, {"class_pixels"}),
        (cut_files_elsewhere, {"lengths"}),
        (add_content, {"content"}),
    ],
)
def test_a_digest_tells_a_split_from_another_of_its_name(prepared, copy, change, differ):
    files = [copy / "metadata.json", copy / "dataset_info.json"]
    contents = [json.loads(file.read_text()) for file in files]
    change(*contents)
    for file, content in zip(files, contents, strict=True):
        file.write_text(json.dumps(content))
    records.write_digests(copy)
    before, after = (records.open_dataset("small", folder) for folder in (prepared, copy.parents[1]))
    assert {name for name, _ in before.digest("train").items() ^ after.digest("train").items()} == differ
    assert before.digest("train").keys() >= {"sizes", "class_pixels", "lengths"}
    assert all(len(bytes.fromhex(digest)) == 32 for digest in before.digest("train").values())
    assert before.digest("val") == after.digest("val")
    with pytest.raises(DatasetError, match='no split "test"'):
        before.digest("test")


def test_records_are_what_tfds_reads(prepared):
    source = tfds.builder_from_directory(prepared / "small" / "1.0.0").as_data_source("train")
    image, label = picture(("train", 2))
    np.testing.assert_array_equal(source[2]["image"], image)
    np.testing.assert_array_equal(source[2]["label"], label[..., None])


def test_threads_may_share_a_source(prepared):
    source = records.open_dataset("small", prepared).source("train")
    positions = np.random.default_rng(0).integers(0, 5, 400).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = [record["id"] for record in pool.map(source.__getitem__, positions)]
    assert found == [f"train/{index}".encode() for index in positions]


def test_workers_write_the_same_records(prepared, tmp_path):
    dataset, _ = preparing.prepare_dataset("small", lambda folder: Small(folder, workers=2), tmp_path, overwrite=False)
    for split in SIZES:
        assert list(dataset.source(split)) == list(records.open_dataset("small", prepared).source(split))


def test_what_is_not_prepared_comes_with_the_command_and_a_list(prepared):
    with pytest.raises(DatasetError) as error:
        records.open_dataset("image_folder", prepared)
    assert f"python -m dlv3p_jax.prepare --dataset=image_folder --source=FOLDER --data_dir={prepared}" in str(
        error.value
    )
    assert "(small is)" in str(error.value)
    with pytest.raises(DatasetError, match=r"nothing is\); run\n.*--dataset=toy_streets --data_dir="):
        records.open_dataset("toy_streets", prepared / "nowhere")


def test_an_unknown_split_is_refused(prepared):
    dataset = records.open_dataset("small", prepared)
    for ask in (dataset.num_pictures, dataset.sizes, dataset.source):
        with pytest.raises(DatasetError, match='no split "trainaug"; it has train, val'):
            ask("trainaug")


def test_what_older_revisions_wrote_can_be_read(copy, tmp_path):
    metadata = json.loads((copy / "metadata.json").read_text())
    (copy / "metadata.json").write_text(json.dumps({key: metadata[key] for key in records.METADATA}))
    (copy / "metadata.sha256").unlink()
    assert "digests" not in records.open_dataset("small", tmp_path / "data").metadata


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "metadata.json", "small-val.*"])
def test_an_incomplete_folder_is_refused(copy, name):
    for path in copy.glob(name):
        path.unlink()
    with pytest.raises(DatasetError, match=r"unfinished, damaged(.|\n)*--overwrite"):
        records.open_dataset("small", copy.parent.parent)


def test_a_data_set_of_another_program_is_refused(copy):
    metadata = json.loads((copy / "metadata.json").read_text())
    del metadata["class_names"]
    (copy / "metadata.json").write_text(json.dumps(metadata))
    (copy / "metadata.sha256").unlink()
    with pytest.raises(DatasetError, match="not of this program .*class_names"):
        records.open_dataset("small", copy.parent.parent)


def test_a_truncated_records_file_is_refused(copy):
    (path,) = copy.glob("small-val.*")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DatasetError, match="damaged"):
        records.open_dataset("small", copy.parent.parent).source("val")


def test_records_that_cannot_be_read_now_are_tried_again_and_not_called_damaged(prepared, monkeypatch):
    """As array_record says it of a file system that is away: the system's words in an error of its own."""
    source = records.open_dataset("small", prepared).source("train")
    error, whole = RuntimeError("UNKNOWN: /x-00000-of-00001: Input/output error"), source[0]
    left, read = [], type(source._records).__getitem__

    def away(self, index):
        if left:
            raise left.pop()
        return read(self, index)

    monkeypatch.setattr(type(source._records), "__getitem__", away)
    monkeypatch.setattr(disk_errors, "WAITS", (0, 0))
    left[:] = [error] * 2
    assert source[0] == whole
    left[:] = [error] * 3
    with pytest.raises(DatasetError, match="record 0 of train in .* cannot be read now: Input/output error"):
        source[0]
    monkeypatch.setattr(records.tfds, "builder_from_directory", lambda folder: (_ for _ in ()).throw(OSError(5, "x")))
    with pytest.raises(DatasetError, match="cannot be read now: Input/output error"):
        records.open_dataset("small", prepared)


def flip_a_colour(text):
    return text.replace(b"[255, 0, 0]", b"[251, 0, 0]")


def flip_a_name(text):
    return text.replace(b'"b"', b'"c"')


def exchange_lengths(text):
    return text.replace(b'"1"\n', b'"2"\n').replace(b'"2",', b'"1",', 1)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("metadata.json", flip_a_colour),
        ("metadata.json", flip_a_name),
        ("dataset_info.json", exchange_lengths),
        ("metadata.sha256", lambda text: text[:-10]),
        ("metadata.sha256", lambda text: b""),
    ],
)
def test_descriptions_that_changed_since_they_were_written_are_refused(copy, name, damage):
    before = (copy / name).read_bytes()
    (copy / name).write_bytes(damage(before))
    assert (copy / name).read_bytes() != before
    with pytest.raises(DatasetError, match=r"\.json: .*remove .*metadata\.sha256"):
        records.open_dataset("small", copy.parent.parent)
    (copy / "metadata.sha256").unlink()  # as the message says
    if name == "metadata.json":
        records.open_dataset("small", copy.parent.parent)


def test_the_digests_of_descriptions_are_those_of_sha256sum(copy):
    assert len((copy / "metadata.sha256").read_text().splitlines()) == 3
    subprocess.run(["sha256sum", "--check", "--strict", "metadata.sha256"], cwd=copy, check=True)


class Failed:
    """A reader of array_record that has failed, which fails ever after."""

    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        raise ValueError("Reading at byte 0 failed: Input/output error")


def test_files_whose_reader_has_failed_are_opened_again(prepared, monkeypatch):
    monkeypatch.setattr(disk_errors, "WAITS", (0,))
    source = records.open_dataset("small", prepared).source("train")
    source._records = Failed(source._records)
    assert source[3]["id"] == b"train/3"


def test_the_newest_version_is_opened(copy):
    shutil.copytree(copy, copy.parent / "0.9.0")
    (copy.parent / "incomplete.ABC_2.0.0").mkdir()
    assert records.open_dataset("small", copy.parent.parent).folder == copy


def test_prepared_data_is_not_replaced_unasked(copy):
    data_dir = copy.parent.parent
    with pytest.raises(DatasetError, match=r"small/1\.0\.0 is prepared already .*add --overwrite"):
        preparing.prepare_dataset("small", Small, data_dir, overwrite=False)
    preparing.prepare_dataset("small", Small, data_dir, overwrite=True)
    assert [path.name for path in copy.parent.iterdir()] == ["1.0.0"]


def test_a_failing_overwrite_leaves_the_old_data(copy):
    data_dir = copy.parent.parent

    def fails(folder):
        raise DatasetError("the source is gone")

    with pytest.raises(DatasetError, match="the source is gone"):
        preparing.prepare_dataset("small", fails, data_dir, overwrite=True)
    assert records.open_dataset("small", data_dir).num_pictures("train") == 5
    assert [path.name for path in copy.parent.iterdir()] == ["1.0.0"]


def test_two_preparations_at_once_are_refused(tmp_path):
    def prepares_again(folder):
        preparing.prepare_dataset("small", Small, tmp_path, overwrite=False)

    with pytest.raises(DatasetError, match="another process is preparing"):
        preparing.prepare_dataset("small", prepares_again, tmp_path, overwrite=False)
    assert not list(tmp_path.iterdir())


def test_toy_streets_holds_the_scenes_as_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(toy_streets, "NUM_PICTURES", {"train": 3, "val": 2})
    dataset, _ = preparing.prepare_dataset("toy_streets", toy_streets.make_builder, tmp_path, overwrite=False)
    assert dataset.class_names == list(scenes.CLASS_NAMES)
    assert dataset.metadata["synthetic"]
    assert dataset.num_pictures("train") == 3
    image, label = scenes.draw_scene("val", 1)
    record = dataset.source("val")[1]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(record["image"]))), image)
    np.testing.assert_array_equal(labels.read_label(record["label"]), label)

    # Other pictures, another version; one that an older revision prepared is read, and stays what its runs read.
    older = dataset.folder.rename(dataset.folder.with_name("1.0.0"))
    assert (dataset.folder.name, records.open_dataset("toy_streets", tmp_path).folder) == ("2.0.0", older)
    with pytest.raises(records.DatasetError, match=r"toy_streets/1\.0\.0 is prepared already"):
        preparing.prepare_dataset("toy_streets", toy_streets.make_builder, tmp_path, overwrite=False)


def test_a_command_to_paste_names_a_folder_as_shells_take_it():
    words = shlex.split(records.prepare_command("toy_streets", "it's my data"))
    assert words[-1] == "--data_dir=it's my data"

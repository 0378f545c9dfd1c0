"""The command, run as a user runs it."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from dlv3p_jax.data import records
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.datasets import preparing

ROOT = pathlib.Path(__file__).resolve().parents[1]


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "dlv3p_jax.prepare", *map(str, arguments)]


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=120)


def make_source(folder: pathlib.Path, pictures: int, size: tuple[int, int]) -> pathlib.Path:
    """A folder of so many training pictures, all links to one file, and one to validate on."""
    folder.mkdir()
    label = np.arange(size[0] * size[1], dtype=np.uint8).reshape(size) % 2
    Image.fromarray(label * 200).convert("RGB").save(folder / "one.jpg")
    Image.fromarray(label).save(folder / "one.png")
    for split, count in (("train", pictures), ("val", 1)):
        for kind, suffix in (("images", "jpg"), ("labels", "png")):
            (folder / kind / split).mkdir(parents=True)
            for index in range(count):
                (folder / kind / split / f"{index}.{suffix}").symlink_to(folder / f"one.{suffix}")
    (folder / "classes.txt").write_text("background\nweed\n")
    return folder


@pytest.fixture
def source(tmp_path):
    return make_source(tmp_path / "source", pictures=3, size=(8, 6))


def test_a_preparation_that_fails_leaves_no_folder(tmp_path):
    def fail(folder):
        raise DatasetError("nothing is right")

    (tmp_path / "mine").mkdir()
    for data_dir in (tmp_path / "new" / "deep", tmp_path / "mine"):
        with pytest.raises(DatasetError, match="nothing is right"):
            preparing.prepare_dataset("image_folder", fail, data_dir, overwrite=False)
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]  # which was there


def test_a_folder_becomes_a_data_set_with_a_summary(source, tmp_path):
    data_dir = tmp_path / "data"
    done = run("--dataset=image_folder", f"--source={source}", f"--data_dir={data_dir}", "--workers=2")
    assert done.returncode == 0, done.stderr
    assert "train: 3 pictures; width x height 6x8 (3)" in done.stdout
    assert "weed" in done.stdout
    assert "50.00%" in done.stdout
    assert str(data_dir / "image_folder" / "1.0.0") in done.stdout
    assert f"python -m dlv3p_jax.main --config=configs/image_folder.py --config.data_dir={data_dir}" in done.stdout
    assert "4/4" in done.stderr  # the progress bar
    assert "warning: train: 2 of 3 pictures repeat others" in done.stderr
    assert "warning: all 1 pictures of val are in train too" in done.stderr
    assert records.open_dataset("image_folder", data_dir).num_pictures("train") == 3

    again = run("--dataset=image_folder", f"--source={source}", f"--data_dir={data_dir}")
    assert again.returncode == 1
    assert again.stderr.startswith("prepare: ")
    assert "add --overwrite" in again.stderr


def test_sets_of_other_names_lie_side_by_side(source, tmp_path):
    data_dir = tmp_path / "data"
    for name in ("camvid", "weeds_2"):
        common = ("--dataset=image_folder", f"--name={name}", f"--data_dir={data_dir}", "--workers=1")
        done = run(*common, f"--source={source}")
        assert done.returncode == 0, done.stderr
        assert f"--config=configs/image_folder.py --config.data_dir={data_dir} --config.dataset={name}\n" in done.stdout
    assert sorted(path.name for path in data_dir.iterdir()) == ["camvid", "weeds_2"]
    dataset = records.open_dataset("camvid", data_dir)
    assert dataset.title == dataset.builder.name == "camvid" and dataset.num_pictures("train") == 3
    done = run(*common, "--check")
    assert done.returncode == 0 and "weeds_2/1.0.0 is whole" in done.stdout
    with pytest.raises(DatasetError, match=r"(?s)other.*\(camvid, weeds_2 is\).*--dataset=image_folder --name=other "):
        records.open_dataset("other", data_dir)


def test_bad_data_is_one_message_and_leaves_nothing(source, tmp_path):
    (source / "one.png").unlink()
    Image.fromarray(np.full((8, 6), 9, np.uint8)).save(source / "one.png")
    done = run("--dataset=image_folder", f"--source={source}", f"--data_dir={tmp_path / 'data'}", "--workers=1")
    assert done.returncode == 1
    message = done.stderr[done.stderr.index("prepare: ") :]
    assert message.startswith("prepare: 4 problems with the data:\n")
    assert "labels/train/0.png: value 9 (48 pixels) outside the 2 classes" in message
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--dataset=: choose one of toy_streets, image_folder, cityscapes, voc2012, ade20k, loveda, mapillary"),
        (["--dataset=voc"], "--dataset=voc: choose one of toy_streets, image_folder"),
        (["--dataset=image_folder"], "--source is missing"),
        (["--dataset=image_folder", "--source=/no/such"], "--source=/no/such: no such folder"),
        (["--dataset=toy_streets", "--source=x"], "--source has no meaning for --dataset=toy_streets"),
        (["--dataset=toy_streets", "--ignore_label=3"], "--ignore_label has no meaning"),
        (
            ["--dataset=cityscapes", "--source=x", "--label_map=0:0"],
            "--label_map has no meaning for --dataset=cityscapes",
        ),
        (["--dataset=image_folder", "--source=x", "--sbd=y"], "--sbd has no meaning for --dataset=image_folder"),
        (["--dataset=cityscapes", "--source=x", "--sbd=y"], "--sbd has no meaning for --dataset=cityscapes"),
        (["--dataset=cityscapes", "--source=/no/such"], "leftImg8bit_trainvaltest.zip"),
        (["--dataset=voc2012", "--source=/no/such"], "VOCtrainval_11-May-2012.tar"),
        (["--dataset=voc2012", "--check"], 'data set "voc2012" is not prepared'),
        (["--dataset=image_folder", "--source=x", "--preview=y.png"], "leave --source out"),
        (["--dataset=toy_streets", "--crop_size=3,4"], "--crop_size is for --preview"),
        (["--dataset", "toy_streets", "extra"], '"extra" is no flag'),
        (["--dataset=image_folder", "--source=x", "--name=my set"], "--name=my set: letters, digits and _"),
        (["--dataset=coco", "--source=x", "--label_map=0:0"], "--label_map has no meaning for --dataset=coco"),
        (["--dataset=hf:/no/such", "--source=x", "--label_key=y"], "--source has no meaning for --dataset=hf:/no/such"),
        (["--dataset=coco", "--source=/no/such"], "--source=/no/such: no such folder"),
        (["--dataset=ultralytics", "--source=/no/such.yaml"], "/no/such.yaml: cannot be read"),
        (["--dataset=image_folder", "--source=x", "--name=voc2012"], "--name=voc2012: "),
        (["--dataset=voc2012", "--source=x", "--name=mine"], "--name has no meaning for --dataset=voc2012"),
        (["--datset=toy_streets"], "Unknown command line flag 'datset'"),
        (["--dataset=toy_streets", "--workers=0"], "--workers=0"),
        (
            ["--dataset=toy_streets", "--data_dir=s3://bucket/data"],
            "s3://bucket/data cannot be read: ",
        ),
    ],
)
def test_bad_flags_are_told_without_a_traceback(tmp_path, arguments, message):
    done = run(*arguments, *([] if "data_dir" in str(arguments) else [f"--data_dir={tmp_path / 'data'}"]))
    assert done.returncode == 1
    assert done.stderr.startswith("prepare: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("data/*"))


def test_flags_are_read_before_the_libraries_are_loaded():
    check = (
        "import sys; sys.argv = ['prepare', '--dataset=voc']; from dlv3p_jax import prepare\n"
        "from dlv3p_jax.runtime import cli\n"
        "try: cli.run(prepare.main, 'prepare')\n"
        "except SystemExit as error: print(error)\n"
        "print([name for name in ('tensorflow', 'tensorflow_datasets', 'jax') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "choose one of" in done.stdout
    assert done.stdout.endswith("[]\n")


def children(process: int) -> list[int]:
    return list(map(int, pathlib.Path(f"/proc/{process}/task/{process}/children").read_text().split()))


def started(tmp_path) -> tuple[subprocess.Popen, pathlib.Path]:
    """A preparation that takes minutes, as soon as it has begun to write, and its data_dir."""
    source = make_source(tmp_path / "long", pictures=2000, size=(1000, 1000))
    data_dir = tmp_path / "data"
    arguments = ("--dataset=image_folder", f"--source={source}", f"--data_dir={data_dir}", "--workers=2")
    process = subprocess.Popen(
        command(*arguments), cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not list(data_dir.rglob("*array_record*")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process, data_dir


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes in /proc")
def test_a_killed_preparation_leaves_nothing_that_looks_finished(source, tmp_path):
    process, data_dir = started(tmp_path)
    deadline = time.monotonic() + 30
    while len(workers := children(process.pid)) < 2:  # they start once the first file is open
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert list(data_dir.rglob("*array_record*"))
    with pytest.raises(DatasetError, match="is not prepared"):
        records.open_dataset("image_folder", data_dir)
    deadline = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{worker}") for worker in workers):
        assert time.monotonic() < deadline, "worker processes outlive the killed preparation"
        time.sleep(0.05)

    done = run("--dataset=image_folder", f"--source={source}", f"--data_dir={data_dir}", "--workers=1")
    assert done.returncode == 0, done.stderr
    assert records.open_dataset("image_folder", data_dir).num_pictures("train") == 3
    assert [path.name for path in (data_dir / "image_folder").iterdir()] == ["1.0.0"]


def test_ctrl_c_ends_cleanly(tmp_path):
    process, data_dir = started(tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the workers too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "prepare: interrupted, nothing was written" in errors
    assert "Traceback" not in errors
    assert not data_dir.exists()


def test_a_source_is_checked_without_writing(source, tmp_path):
    arguments = ("--dataset=image_folder", f"--source={source}", f"--data_dir={tmp_path / 'data'}", "--workers=1")
    done = run(*arguments, "--check")
    assert done.returncode == 0, done.stderr
    assert "train: 3 pictures; width x height 6x8 (3)" in done.stdout
    assert "can be prepared: every file was decoded" in done.stdout
    for index in range(12):
        (source / "images/val" / f"lonely{index:02d}.jpg").symlink_to(source / "one.jpg")
    (source / "images/train/2.jpg").unlink()
    (source / "images/train/2.jpg").write_bytes((source / "one.jpg").read_bytes()[:-30])
    done = run(*arguments, "--check")
    assert done.returncode == 1
    assert "train: 2 pictures" in done.stdout
    assert "prepare: 13 problems with the data:" in done.stderr
    assert all(f"lonely{index:02d}.jpg has no label" in done.stderr for index in range(12))  # all of them, not ten
    assert "images/train/2.jpg: damaged or truncated" in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_prepared_data_set_is_checked_and_drawn(source, tmp_path):
    data_dir, sheet = tmp_path / "data", tmp_path / "sheet.png"
    common = ("--dataset=image_folder", f"--data_dir={data_dir}", "--workers=1")
    assert run(*common, f"--source={source}").returncode == 0
    done = run(*common, "--check", f"--preview={sheet}", "--crop_size=16,24")
    assert done.returncode == 0, done.stderr
    assert "1.0.0 is whole: every record was decoded" in done.stdout
    assert "weed" in done.stdout
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"
    done = run(*common, f"--preview={tmp_path / 'no' / 'sheet.png'}", "--crop_size=16,24")
    assert done.returncode == 1
    assert "sheet.png: cannot be written" in done.stderr

    (records_file,) = data_dir.rglob("*train*array_record*")
    content = bytearray(records_file.read_bytes())
    middle = content.index(b"\xff\xd8\xff") + 40  # in the first picture, a JPEG
    content[middle : middle + 4] = b"oops"
    records_file.write_bytes(content)
    done = run(*common, "--check")
    assert done.returncode == 1
    assert "prepare: 1 problem with the data:\n  train: record 0 cannot be read" in done.stderr
    assert "--overwrite" in done.stderr


def test_cityscapes_and_voc_from_the_command_line(tmp_path):
    grey, label = np.zeros((4, 6, 3), np.uint8), np.tile(np.uint8([0, 7, 8]), (4, 2))
    for split in ("train", "val"):
        stem = f"{split}/ulm/ulm_000000_000019"
        for path, values in (
            (f"cs/leftImg8bit/{stem}_leftImg8bit.png", grey),
            (f"cs/gtFine/{stem}_gtFine_labelIds.png", label),
            (f"VOC2012/JPEGImages/{split}.jpg", grey),
            (f"VOC2012/SegmentationClass/{split}.png", label),
        ):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(tmp_path / path)
        (tmp_path / "VOC2012/ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"VOC2012/ImageSets/Segmentation/{split}.txt").write_text(f"{split}\n")
    for name, source, config in (("cityscapes", "cs", "cityscapes_r50"), ("voc2012", ".", "voc_r50")):
        arguments = (f"--dataset={name}", f"--data_dir={tmp_path / 'data'}", "--workers=1")
        done = run(*arguments, f"--source={tmp_path / source}")
        assert done.returncode == 0, done.stderr
        assert f"--config=configs/{config}.py" in done.stdout
        assert "train: 1 pictures" in done.stdout
        assert "33.33%" in done.stdout
        assert "warning: train: 1 pictures, where" in done.stderr
    assert records.open_dataset("cityscapes", tmp_path / "data").metadata["class_pixels"]["train"][:3] == [8, 8, 0]

"""What preparing needs: memory for a few pictures, however many there are. What it leaves where it is interrupted."""

import functools
import os
import pathlib
import signal
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from dlv3p_jax.data import records
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.example import Example
from dlv3p_jax.datasets import builder, preparing

ROOT = pathlib.Path(__file__).resolve().parents[2]

PICTURE_BYTES = 400_000


def read(item: int) -> Example:
    if item == 10:  # TensorFlow has been loaded by now, which takes long while memory is traced
        tracemalloc.start()
    return Example(str(item), bytes([item]) * PICTURE_BYTES, b"label", (2, 2), np.array([3, 1]), 0)


def read_small(item: int) -> Example:
    return Example(str(item), bytes([item]), b"label", (2, 2), np.array([3, 1]), 0)


class Few(builder.PictureBuilder):
    def __init__(self, data_dir, count, description):
        looks = {"class_names": ["a", "b"], "palette": [[0, 0, 0], [9, 9, 9]], "ignore_label": 255}
        super().__init__(
            data_dir, {"train": range(count)}, read_small, **looks, description=description, synthetic=True
        )


def prepare_few(data_dir, count, overwrite=True):
    make = functools.partial(Few, count=count, description=f"{count} pictures")
    return preparing.prepare_dataset("few", make, data_dir, overwrite)[0]


class Many(builder.PictureBuilder):
    def __init__(self, data_dir):
        looks = {"class_names": ["a", "b"], "palette": [[0, 0, 0], [9, 9, 9]], "ignore_label": 255}
        super().__init__(data_dir, {"train": range(100)}, read, **looks, description="many", synthetic=True)


def test_a_shard_is_not_held_in_memory(tmp_path):
    try:
        dataset, _ = preparing.prepare_dataset("many", Many, tmp_path, overwrite=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(list(dataset.folder.glob("*array_record*"))) == 1  # all in one shard, 40 MB
    assert [record["image"][:1] for record in dataset.source("train")] == [bytes([item]) for item in range(100)]
    assert peak < 20 * PICTURE_BYTES


def test_a_data_set_survives_a_kill_while_it_is_replaced(tmp_path):
    prepare_few(tmp_path, 3)
    script = (
        "import os, pathlib, signal, test_builder\n"
        "rename = pathlib.Path.rename\n"
        "def dying(path, target):\n"
        "    rename(path, target)\n"
        "    if pathlib.Path(target).name == 'replaced':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "pathlib.Path.rename = dying\n"
        f"test_builder.prepare_few({str(tmp_path)!r}, 5)\n"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests/datasets")])
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": paths}, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "few" / records.VERSION).exists()
    with pytest.raises(DatasetError, match=r"prepared already \(3 pictures\)"):
        prepare_few(tmp_path, 5, overwrite=False)
    assert records.open_dataset("few", tmp_path).num_pictures("train") == 3
    assert prepare_few(tmp_path, 5).num_pictures("train") == 5
    assert os.listdir(tmp_path / "few") == [records.VERSION]


def test_a_data_set_survives_an_error_while_it_is_replaced(tmp_path, monkeypatch):
    prepare_few(tmp_path, 3)
    rename = pathlib.Path.rename

    def fail(path, target):
        if pathlib.Path(target).name == records.VERSION and "incomplete" in str(path) and path.name != "replaced":
            raise KeyboardInterrupt
        rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare_few(tmp_path, 5)
    assert records.open_dataset("few", tmp_path).num_pictures("train") == 3


def test_the_advice_for_a_second_data_set_keeps_the_first(tmp_path):
    prepare_few(tmp_path, 3)
    with pytest.raises(DatasetError, match=r"\(3 pictures\); give another --data_dir .*, or add --overwrite"):
        prepare_few(tmp_path, 5, overwrite=False)

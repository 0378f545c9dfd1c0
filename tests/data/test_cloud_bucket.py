"""Data sets in a bucket: TensorFlow's own client talks to a server in this process (`fake_gcs`)."""

import hashlib
import json
import logging
import pathlib
import shutil
import subprocess
import sys
import threading
import time
import types

import eval_batches
import fake_gcs
import numpy as np
import pytest
from PIL import Image

from dlv3p_jax import prepare
from dlv3p_jax.data import cloud_bucket, records
from dlv3p_jax.data.errors import DatasetError

ROOT = pathlib.Path(__file__).resolve().parents[2]
URL = "gs://bucket/data"


@pytest.fixture
def gcs(data_dir, tmp_path, monkeypatch):
    """A bucket with the small data set in gs://bucket/data, as gcloud storage rsync puts it there."""
    with fake_gcs.FakeGcs(tmp_path) as gcs:
        for name, value in (gcs.environment | {"DLV3P_CACHE": str(tmp_path / "cache")}).items():
            monkeypatch.setenv(name, value)
        gcs.upload_folder(data_dir, "data")
        yield gcs


@pytest.fixture
def target(tmp_path, gcs):
    return tmp_path / "cache" / "data" / "gs" / "bucket" / "data" / "image_folder" / "1.0.0"


def make_source(folder):
    for split, count in (("train", 2), ("val", 1)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(count):
            label = np.arange(48, dtype=np.uint8).reshape(8, 6) % 2
            Image.fromarray(label).save(folder / "labels" / split / f"{index}.png")
            Image.fromarray(np.stack([label * 9 + index] * 3, -1)).save(folder / "images" / split / f"{index}.png")
    (folder / "classes.txt").write_text("soil\nweed\n")
    return folder


def downloads(gcs):
    """The names of the files whose contents were asked for since the last time."""
    return sorted({path.rpartition("%2F")[2] for _, path in gcs.take_requests() if path.startswith("/bucket/")})


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_a_data_set_in_a_bucket_is_copied_once_and_is_the_same(gcs, target, data_dir):
    local, copied = records.open_dataset("image_folder", data_dir), records.open_dataset("image_folder", URL)
    assert copied.folder == target and copied.origin == URL and copied.metadata == local.metadata
    assert list(copied.source("train")) == list(local.source("train"))
    assert visible(target.parent) == ["1.0.0"]
    assert downloads(gcs) == visible(local.folder)
    records.open_dataset("image_folder", URL)
    assert downloads(gcs) == []


def test_a_broken_copy_goes_on_with_what_is_missing(gcs, target, data_dir):
    gcs.answer([("GET /bucket/.*val.array_record", 404, 0)])
    with pytest.raises(DatasetError, match="1.0.0 could not be written: .*404.*the same command goes on"):
        records.open_dataset("image_folder", URL)
    assert not target.exists()  # a data set that is not whole has not the name of one
    whole = {name for name in visible(target.with_name("1.0.0.partial")) if not name.endswith(".part")}
    (target.with_name("1.0.0.partial") / "metadata.json").write_text("{}")  # of another size than in the bucket
    gcs.answer([])
    downloads(gcs)
    assert records.open_dataset("image_folder", URL).num_pictures("val") == 5
    everything = set(visible(target))
    assert set(downloads(gcs)) == everything - whole | {"metadata.json"}
    assert visible(target.parent) == ["1.0.0"]


def test_a_killed_copy_goes_on(gcs, target):
    """SIGKILL in the middle of a file."""
    script = "import sys; from dlv3p_jax.data import cloud_bucket; cloud_bucket.fetch(*sys.argv[1:])"
    gcs.answer([("GET /bucket/.*train.array_record", None, 5)])
    process = subprocess.Popen([sys.executable, "-c", script, "image_folder", URL], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not any("train.array_record" in name for name in downloads(gcs)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert not target.exists() and target.with_name("1.0.0.partial").is_dir()
    gcs.answer([])
    assert records.open_dataset("image_folder", URL).num_pictures("train") == 11
    assert visible(target.parent) == ["1.0.0"]


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def test_what_changed_in_the_bucket_is_copied_again_and_nothing_else(gcs, target):
    records.open_dataset("image_folder", URL)
    downloads(gcs)
    name = "data/image_folder/1.0.0/metadata.json"
    before = gcs.get(name)
    changed = json.loads(before) | {"description": "of another day"}
    time.sleep(1.1)  # dates are in seconds
    gcs.put(name, json.dumps(changed).encode())
    digests = gcs.get(f"{name[:-4]}sha256").decode().replace(*(sha256(data) for data in (before, gcs.get(name))))
    gcs.put(f"{name[:-4]}sha256", digests.encode())
    gcs.put("data/image_folder/1.0.0/skipped.txt", b"one\n")
    assert records.open_dataset("image_folder", URL).metadata["description"] == "of another day"
    assert downloads(gcs) == ["metadata.json", "metadata.sha256", "skipped.txt"]
    (target / "skipped.txt").write_text("")  # cut short here
    records.open_dataset("image_folder", URL)
    assert downloads(gcs) == ["skipped.txt"]


def test_processes_of_a_host_copy_once(gcs, target, caplog):
    gcs.answer([("GET /bucket/", None, 0.5)])
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(cloud_bucket.fetch("image_folder", URL))) for _ in range(3)
    ]
    with caplog.at_level(logging.INFO):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [target] * 3
    assert caplog.text.count(f"Copied {URL}/image_folder/1.0.0 to {target}") == 1
    assert caplog.text.count("Another process of this host copies") == 2


def test_space_is_checked_before_anything_is_copied(gcs, target, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=cloud_bucket._RESERVE + 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DatasetError, match="needs 0.0 GB in .*DLV3P_CACHE.*gcsfuse"):
        records.open_dataset("image_folder", URL)
    assert downloads(gcs) == [] and not target.exists()


def test_what_is_missing_or_cannot_be_read_is_told(gcs, target):
    with pytest.raises(DatasetError) as error:
        records.open_dataset("toy_streets", URL)
    assert f"--dataset=toy_streets --data_dir={URL}" in str(error.value) and "(image_folder is)" in str(error.value)
    with pytest.raises(DatasetError, match="s3://bucket/data cannot be read: File system scheme 's3' not impl"):
        records.open_dataset("image_folder", "s3://bucket/data")
    with pytest.raises(DatasetError, match="ftp://bucket/data cannot be read: nothing here knows ftp://"):
        records.open_dataset("image_folder", "ftp://bucket/data")
    gcs.answer([("", 403, 0)])
    with pytest.raises(DatasetError, match=f"{URL} cannot be read: .*403.*logged in") as error:
        records.open_dataset("image_folder", URL)
    assert "\n" not in str(error.value)


def test_a_damaged_copy_comes_again_when_it_is_removed(gcs, target):
    dataset = records.open_dataset("image_folder", URL)
    (shard,) = target.glob("*train*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 4 :] = bytes(len(content) - len(content) // 4)
    shard.write_bytes(content)
    with pytest.raises(DatasetError, match=f"{shard} is damaged .*; remove this copy, .* from {URL}, or prepare"):
        list(eval_batches.of(dataset, "train", 2))
    shutil.rmtree(target)
    assert len(list(records.open_dataset("image_folder", URL).source("train"))) == 11


def test_a_data_set_is_prepared_into_a_bucket(gcs, tmp_path, monkeypatch):
    command = [sys.executable, "-m", "dlv3p_jax.prepare", "--dataset=image_folder", "--data_dir=gs://bucket/other/"]
    arguments = (f"--source={make_source(tmp_path / 'source')}", "--workers=1")
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Wrote gs://bucket/other/image_folder and " in done.stdout
    assert "--config.data_dir=gs://bucket/other" in done.stdout
    assert "Copied" in done.stderr
    files = [name for name in gcs.names() if name.startswith("other/image_folder/1.0.0/") and not name.endswith("/")]
    assert len(files) == 6
    gcs.take_requests()
    assert records.open_dataset("image_folder", "gs://bucket/other").num_pictures("train") == 2
    assert downloads(gcs) == []  # it was made here

    monkeypatch.setattr(prepare, "_DATA_DIR", types.SimpleNamespace(value="gs://bucket/other/"))
    monkeypatch.setattr(prepare, "_OVERWRITE", types.SimpleNamespace(value=False))
    with pytest.raises(DatasetError, match="gs://bucket/other/image_folder is prepared already; .*add --overwr"):
        prepare._prepare("image_folder", "image_folder", "")


def test_an_upload_that_breaks_looks_unfinished_and_the_next_takes_its_place(gcs, data_dir, target):
    records.open_dataset("image_folder", URL)
    gcs.answer([("POST .*val.array_record", 403, 0)])
    with pytest.raises(DatasetError, match="could not be written: "):
        cloud_bucket.upload("image_folder", "1.0.0", URL)
    with pytest.raises(DatasetError, match=f"not prepared in {URL}"):
        records.open_dataset("image_folder", URL)
    gcs.answer([])
    gcs.put("data/image_folder/1.0.0/image_folder-train.array_record-00000-of-00009", b"of before")
    cloud_bucket.upload("image_folder", "1.0.0", URL)
    assert not [name for name in gcs.names() if "00009" in name]
    shutil.rmtree(target)
    assert list(records.open_dataset("image_folder", URL).source("val")) == list(
        records.open_dataset("image_folder", data_dir).source("val")
    )

"""Runs that were killed and go on with other data, another configuration, or without theirs."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from scored import Killed, best

from dlv3p_jax.data import records
from dlv3p_jax.runtime.configuration import ConfigError
from dlv3p_jax.training import loop
from dlv3p_jax.weights import checkpoint_reading
from dlv3p_jax.weights.checkpoint_files import CheckpointError


def change_metadata(data_dir, change):
    """Gives the metadata of a prepared data set to `change`, and writes down what that returns."""
    (file,) = data_dir.glob("image_folder/*/metadata.json")
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    records.write_digests(file.parent)


def prepared_anew(data_dir, folder, split):
    """A copy of the data, of which the pictures of one split are said to be others."""
    shutil.copytree(data_dir, folder)
    change_metadata(folder, lambda metadata: metadata | {"digests": metadata["digests"] | {split: "f" * 64}})
    return folder


@pytest.mark.parametrize("split", ["train", "val"])
def test_data_that_was_prepared_anew_is_noticed(data_dir, killed, tmp_path, scores, caplog, split):
    other = prepared_anew(data_dir, tmp_path / "other", split)
    scores |= {2: 0.3, 4: 0.4, 6: 0.2}
    config = {"allow_changed_data": False}
    if split == "train":
        with pytest.raises(CheckpointError, match="latest/4 was trained on other pictures or labels .*content"):
            loop.train_and_evaluate(tiny.make_config(other), killed)
        assert best(killed) == (2, 0.9)
        config["allow_changed_data"] = True
    with caplog.at_level("INFO"):
        loop.train_and_evaluate(tiny.make_config(other, **config), killed)
    found = "found with other pictures or labels, and this evaluates image_folder val as it is now" in caplog.text
    assert found == (split == "val")
    assert best(killed) == ((4, 0.4) if split == "val" else (2, 0.9))
    loop.train_and_evaluate(tiny.make_config(other), killed)  # what it goes on with, is now its data


def test_balanced_weights_are_those_of_the_counts_that_a_run_began_with(data_dir, tmp_path, scores, caplog):
    scores |= {2: 0.9, 4: None}
    settings = {"loss.class_weights": "balanced", "model.dtype": "auto", "allow_changed_data": True}
    workdir = tmp_path / "run"
    with pytest.raises(Killed):
        loop.train_and_evaluate(tiny.make_config(data_dir, **settings), workdir)
    begun_with = json.loads((workdir / "config.json").read_text())
    assert begun_with["model"]["dtype"] == "float32"  # on these CPUs
    weights = begun_with["loss"]["class_weights"]
    pixels = records.open_dataset("image_folder", data_dir).metadata["class_pixels"]["train"]
    assert len(weights) == len(pixels) and np.dot(weights, pixels) / sum(pixels) == pytest.approx(1, abs=1e-3)

    scores |= {4: 0.4, 6: 0.2}
    other = prepared_anew(data_dir, tmp_path / "other", "train")
    counts = {"train": [pixels[0] + 1000, *pixels[1:]]}
    change_metadata(other, lambda metadata: metadata | {"class_pixels": metadata["class_pixels"] | counts})
    with caplog.at_level("INFO"):
        loop.train_and_evaluate(tiny.make_config(other, **settings), workdir)
    assert json.loads((workdir / "config.json").read_text())["loss"]["class_weights"] == weights
    assert "config.loss.class_weights=balanced is" in caplog.text


def test_data_whose_classes_have_other_names_is_refused(data_dir, tmp_path, scores):
    scores |= {2: 0.1, 4: None}
    workdir, other = tmp_path / "run", tmp_path / "data"
    shutil.copytree(data_dir, other)
    change_metadata(other, lambda metadata: metadata | {"picture_range": [0, 4095]})
    with pytest.raises(Killed):
        loop.train_and_evaluate(tiny.make_config(other), workdir)
    dataset = records.open_dataset("image_folder", other)
    meta = checkpoint_reading.read_meta(workdir / "checkpoints" / "latest" / "4")
    assert meta["step"] == 4 and meta["config"]["seed"] == 0
    assert meta["class_names"] == ["floor", "wall", "lamp"] and meta["palette"] == dataset.palette
    assert meta["data"] == {split: dataset.digest(split) for split in ("train", "val")}
    assert meta["picture_range"] == [0, 4095]
    change_metadata(other, lambda metadata: metadata | {"class_names": ["floor", "dog", "mouse"]})
    with pytest.raises(CheckpointError, match="latest/4 was trained with other classes") as caught:
        loop.train_and_evaluate(tiny.make_config(other), workdir)
    assert str(caught.value).splitlines()[1:-1] == [
        "  class 1: 'wall' then, 'dog' now",
        "  class 2: 'lamp' then, 'mouse' now",
    ]


def as_older_versions_wrote(checkpoint):
    """Takes from a checkpoint what bb8d702 did not write."""
    (checkpoint / "digests.json").unlink()
    for name, known in (
        ("meta/metadata", ("step", "class_names", "palette", "ignore_label")),
        ("metrics/metrics", ("mIoU", "views")),
    ):
        if (checkpoint / name).exists():
            values = json.loads((checkpoint / name).read_text())
            (checkpoint / name).write_text(json.dumps({key: values[key] for key in known}))


def test_without_its_config_a_run_goes_on_with_what_it_was_begun_with_or_not_at_all(
    data_dir, never_killed, killed, tmp_path, scores, caplog
):
    """And a workdir of an older version that was copied elsewhere ends as one that was left alone, to the bit."""
    scores |= {4: 0.95, 6: 0.2}
    run, config = killed, killed / "config.json"
    older = shutil.copytree(run, tmp_path / "older")
    written = config.read_text()
    config.unlink()
    for changes in ({"learning_rate": 0.1}, {"seed": 1}, {"num_train_steps": 8}):
        with pytest.raises(ConfigError, match=f"{next(iter(changes))}: .* then, {next(iter(changes.values()))} now"):
            loop.train_and_evaluate(tiny.make_config(data_dir, **changes), run)
    loop.train_and_evaluate(tiny.make_config(data_dir, pretrained="/nowhere", log_every_steps=1), run)
    assert f"{config} is gone" in caplog.text and "pretrained=/nowhere is not used" in caplog.text
    assert config.read_text() == written  # of which the weights that it began from are a part

    for path in older.glob("checkpoints/*/[0-9]"):
        as_older_versions_wrote(path)
    kept = (older / "config.json").rename(tmp_path / "kept.json")
    with pytest.raises(CheckpointError, match=f"{older}/config.json is gone"):
        loop.train_and_evaluate(tiny.make_config(data_dir), older)
    kept.rename(older / "config.json")
    loop.train_and_evaluate(tiny.make_config(data_dir), older)
    assert best(older) == (4, 0.95)
    for folder in (run, older):
        for kind in ("latest/6", "best/4"):
            trees = [checkpoint_reading.read_variables(path / "checkpoints" / kind) for path in (never_killed, folder)]
            jax.tree.map(np.testing.assert_array_equal, *trees)


def test_a_damaged_config_is_named(data_dir, killed):
    file = killed / "config.json"
    file.write_text(file.read_text()[:40])
    with pytest.raises(ConfigError, match=f"{file} is no configuration that this program wrote"):
        loop.train_and_evaluate(tiny.make_config(data_dir), killed)

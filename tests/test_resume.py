"""Runs that were killed at awkward moments, or go on with something changed; with a tiny network and set scores."""

import contextlib
import dataclasses
import json
import re
import shutil
import signal
import time

import fork_server
import jax
import numpy as np
import pytest
import tiny
from etils import epath

from dlv3p_jax import models
from dlv3p_jax.data import records
from dlv3p_jax.evaluation import files
from dlv3p_jax.runtime import events, preemption
from dlv3p_jax.runtime.configuration import ConfigError
from dlv3p_jax.training import loop
from dlv3p_jax.weights import checkpoint_reading, checkpoints, trained
from dlv3p_jax.weights.checkpoint_files import CheckpointError


class Killed(BaseException):
    """Ends a run as a signal would."""


@pytest.fixture
def scores(monkeypatch):
    """The mIoU of each evaluated step, or of each (step, model), to be filled in; None kills the run in that."""
    return patch_scores(monkeypatch, {})


def patch_scores(monkeypatch, table):
    make = loop.make_evaluator

    def make_evaluator(*arguments, **options):
        run = make(*arguments, **options)

        def scored(variables, step, suffix):
            score = table.get((step, suffix), table.get(step))
            if score is None:
                raise Killed
            result = run(variables, step, suffix)
            return dataclasses.replace(result, summary=result.summary | {"mIoU": score})

        return scored

    monkeypatch.setattr(models, "build_model", tiny.build_model)
    monkeypatch.setattr(loop, "make_evaluator", make_evaluator)
    return table


def test_an_interrupted_run_says_how_to_go_on(data_dir, tmp_path):
    process = tiny.start_main(tmp_path, data_dir, num_train_steps=10**6, eval_every_steps=10**6)
    deadline = time.monotonic() + 100
    while not any((tmp_path / "checkpoints" / "latest").glob("[0-9]")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)  # Ctrl-C, most likely while another checkpoint is being written
    output = tiny.finish(process).stdout
    assert process.returncode == 130, output
    assert output.endswith("\nmain: interrupted; the same command goes on from the newest checkpoint\n")
    assert "Traceback" not in output
    assert checkpoint_reading.read_meta(checkpoint_reading.find(tmp_path))["step"] >= 2


@pytest.fixture(scope="module")
def killed_once(data_dir, tmp_path_factory):
    """The workdir of a run that was killed while it evaluated step 4; step 2 had scored 0.9. Copy it."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch_scores(patch, {2: 0.9, 4: None})
        loop.train_and_evaluate(tiny.make_config(data_dir), workdir := tmp_path_factory.mktemp("killed"))
    return workdir


@pytest.fixture
def killed(killed_once, tmp_path):
    return shutil.copytree(killed_once, tmp_path / "run")


def best(workdir):
    """(step, mIoU) of the best checkpoint."""
    with checkpoints.Checkpoints(workdir) as saved:
        return int(saved.best_path.name), saved.best_metrics["mIoU"]


def test_a_run_killed_before_its_first_checkpoint_begins_anew(data_dir, tmp_path, scores, caplog):
    changes = {"checkpoint_every_steps": 100}
    scores |= {2: 0.9, 4: None}
    with pytest.raises(Killed):
        loop.train_and_evaluate(tiny.make_config(data_dir, **changes), tmp_path)
    assert best(tmp_path) == (2, 0.9)
    with pytest.raises(ConfigError, match="learning_rate: 0.01 then, 0.1 now"):
        loop.train_and_evaluate(tiny.make_config(data_dir, learning_rate=0.1, **changes), tmp_path)
    assert best(tmp_path) == (2, 0.9)
    scores |= {2: 0.1, 4: 0.3, 6: 0.2}
    shutil.rmtree(tmp_path / "checkpoints" / "latest")  # as a version that evaluated before it saved had left it
    with caplog.at_level("INFO"):
        loop.train_and_evaluate(tiny.make_config(data_dir, **changes), tmp_path)
    assert f"begins anew; its first best replaces {tmp_path}/checkpoints/best/2" in caplog.text
    assert best(tmp_path) == (4, 0.3)


def test_a_best_without_the_checkpoints_that_it_came_from_is_not_deleted(data_dir, tmp_path, scores):
    scores |= {2: 0.1, 4: 0.3, 6: 0.2}
    loop.train_and_evaluate(tiny.make_config(data_dir), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "latest")
    with pytest.raises(CheckpointError, match=f"{tmp_path} holds .*best/4, but no checkpoint in checkpoints/latest"):
        loop.train_and_evaluate(tiny.make_config(data_dir), tmp_path)
    assert best(tmp_path) == (4, 0.3)


def test_an_evaluation_that_was_killed_is_made_up_for(data_dir, killed, scores):
    """Step 4 is saved before it is evaluated; the network of this step is the best of the run."""
    assert checkpoint_reading.find(killed / "checkpoints" / "latest").name == "4"
    assert not (killed / "eval" / "4.json").exists()
    scores |= {4: 0.95, 6: 0.5}
    loop.train_and_evaluate(tiny.make_config(data_dir), killed)
    assert (killed / "eval" / "4.json").exists() and best(killed) == (4, 0.95)


def test_the_best_is_measured_again_where_evaluation_changed_and_kept_where_training_is_done(
    data_dir, killed, scores, caplog
):
    """What was the best stays until something is better under one measure."""
    scores |= {2: 0.45, 4: None}
    with caplog.at_level("INFO"), pytest.raises(Killed):
        loop.train_and_evaluate(tiny.make_config(data_dir, **{"eval.flip": True}), killed)
    assert "found with plain, and this evaluates flip: the comparison begins anew" in caplog.text
    assert "checkpoints/best/2, has a mIoU of 0.4500 so" in caplog.text
    assert best(killed) == (2, 0.9)
    scores |= {4: 0.4, 6: 0.5}
    loop.train_and_evaluate(tiny.make_config(data_dir, **{"eval.flip": True}), killed)
    assert best(killed) == (6, 0.5)
    scores[6] = 0.99
    with caplog.at_level("INFO"):
        loop.train_and_evaluate(tiny.make_config(data_dir), killed)
    assert "found with flip, and this evaluates plain: it stays" in caplog.text
    assert best(killed) == (6, 0.5)


def prepared_anew(data_dir, folder, split):
    """A copy of the data, of which the pictures of one split are said to be others."""
    shutil.copytree(data_dir, folder)
    (file,) = folder.glob("image_folder/*/metadata.json")
    metadata = json.loads(file.read_text())
    digests = records.open_dataset("image_folder", data_dir).metadata.get("digests", {"train": "0", "val": "0"})
    file.write_text(json.dumps(metadata | {"digests": digests | {split: "f" * 64}}))
    records.write_digests(file.parent)
    return folder


@pytest.mark.parametrize("split", ["train", "val"])
def test_data_that_was_prepared_anew_is_noticed(data_dir, tmp_path, scores, caplog, split):
    scores |= {2: 0.9, 4: None}
    workdir = tmp_path / "run"
    with pytest.raises(Killed):
        loop.train_and_evaluate(tiny.make_config(prepared_anew(data_dir, tmp_path / "then", "other")), workdir)
    other = prepared_anew(data_dir, tmp_path / "other", split)
    scores |= {2: 0.3, 4: 0.4, 6: 0.2}
    config = {"allow_changed_data": False}
    if split == "train":
        with pytest.raises(CheckpointError, match="latest/4 was trained on other pictures or labels .*content"):
            loop.train_and_evaluate(tiny.make_config(other), workdir)
        assert best(workdir) == (2, 0.9)
        config["allow_changed_data"] = True
    with caplog.at_level("INFO"):
        loop.train_and_evaluate(tiny.make_config(other, **config), workdir)
    found = "found with other pictures or labels, and this evaluates image_folder val as it is now" in caplog.text
    assert found == (split == "val")
    assert best(workdir) == ((4, 0.4) if split == "val" else (2, 0.9))
    loop.train_and_evaluate(tiny.make_config(other), workdir)  # what it goes on with, is now its data


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
    (file,) = other.glob("image_folder/*/metadata.json")
    metadata = json.loads(file.read_text())
    metadata["class_pixels"]["train"] = [pixels[0] + 1000, *pixels[1:]]
    file.write_text(json.dumps(metadata))
    records.write_digests(file.parent)
    with caplog.at_level("INFO"):
        loop.train_and_evaluate(tiny.make_config(other, **settings), workdir)
    assert json.loads((workdir / "config.json").read_text())["loss"]["class_weights"] == weights
    assert "config.loss.class_weights=balanced is" in caplog.text


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
    data_dir, killed, tmp_path, scores, caplog
):
    """And a workdir of an older version that was copied elsewhere ends as one that was left alone, to the bit."""
    scores |= {2: 0.9, 4: 0.95, 6: 0.2}
    loop.train_and_evaluate(tiny.make_config(data_dir), tmp_path / "alone")
    run, config = killed, killed / "config.json"
    older = shutil.copytree(run, tmp_path / "older")
    written = config.read_text()
    config.unlink()
    for changes in ({"learning_rate": 0.1}, {"seed": 1}, {"num_train_steps": 8}):
        with pytest.raises(ConfigError, match=f"{next(iter(changes))}: .* then, {next(iter(changes.values()))} now"):
            loop.train_and_evaluate(tiny.make_config(data_dir, **changes), run)
    loop.train_and_evaluate(tiny.make_config(data_dir, pretrained="/nowhere"), run)
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
            trees = [
                checkpoint_reading.read_variables(path / "checkpoints" / kind) for path in (tmp_path / "alone", folder)
            ]
            jax.tree.map(np.testing.assert_array_equal, *trees)


def test_data_whose_classes_have_other_names_is_refused(data_dir, tmp_path, scores):
    scores |= {2: 0.1, 4: None}
    workdir, other = tmp_path / "run", tmp_path / "data"
    shutil.copytree(data_dir, other)
    (file,) = other.glob("image_folder/*/metadata.json")
    metadata = json.loads(file.read_text()) | {"picture_range": [0, 4095]}
    file.write_text(json.dumps(metadata))
    records.write_digests(file.parent)
    with pytest.raises(Killed):
        loop.train_and_evaluate(tiny.make_config(other), workdir)
    dataset = records.open_dataset("image_folder", other)
    meta = checkpoint_reading.read_meta(workdir / "checkpoints" / "latest" / "4")
    assert meta["step"] == 4 and meta["config"]["seed"] == 0
    assert meta["class_names"] == ["floor", "wall", "lamp"] and meta["palette"] == dataset.palette
    assert meta["data"] == {split: dataset.digest(split) for split in ("train", "val")}
    assert meta["picture_range"] == [0, 4095]
    file.write_text(json.dumps(metadata | {"class_names": ["floor", "dog", "mouse"]}))
    records.write_digests(file.parent)
    with pytest.raises(CheckpointError, match="latest/4 was trained with other classes") as caught:
        loop.train_and_evaluate(tiny.make_config(other), workdir)
    assert str(caught.value).splitlines()[1:-1] == [
        "  class 1: 'wall' then, 'dog' now",
        "  class 2: 'lamp' then, 'mouse' now",
    ]


def test_a_damaged_config_is_named(data_dir, killed):
    file = killed / "config.json"
    file.write_text(file.read_text()[:40])
    with pytest.raises(ConfigError, match=f"{file} is no configuration that this program wrote"):
        loop.train_and_evaluate(tiny.make_config(data_dir), killed)


def test_the_averaged_weights_are_started_from_and_a_wrong_source_is_named(data_dir, tmp_path, scores, caplog):
    scores |= {2: 0.1}
    config = tiny.make_config(data_dir, ema_decay=0.5, num_train_steps=2)
    loop.train_and_evaluate(config, tmp_path)
    path = checkpoint_reading.find(tmp_path)
    averaged = checkpoint_reading.read_variables(path, "ema")
    model = tiny.Tiny(3)
    fresh = jax.tree.map(np.zeros_like, averaged)
    with caplog.at_level("INFO"):
        loaded = trained.fit_pretrained(trained.read_pretrained(str(tmp_path), model), fresh)
    jax.tree.map(np.testing.assert_array_equal, loaded, averaged)
    assert f"arrays from {path}, the averaged ones" in caplog.text
    fresh["params"]["norm"]["scale"] = np.zeros(5, np.float32)
    with pytest.raises(CheckpointError, match=f"^{path} is of another model"):
        trained.fit_pretrained(trained.read_pretrained(str(tmp_path), model), fresh)


def test_the_better_of_the_averaged_and_the_plain_weights_is_the_best(data_dir, tmp_path, scores, caplog):
    scores |= {(2, ""): 0.3, (2, "ema"): 0.2, (4, ""): 0.1, (4, "ema"): 0.25, (6, ""): 0.4, (6, "ema"): 0.5}
    config = tiny.make_config(data_dir, ema_decay=0.5, num_train_steps=4)
    loop.train_and_evaluate(config, tmp_path / "plain")
    path = checkpoint_reading.find(tmp_path / "plain")
    assert path.name == "2" and "Best so far: step 2, mIoU 0.3000\n" in f"{caplog.text}\n"
    variables, averaged = checkpoint_reading.read_model(path)
    assert not averaged
    latest = checkpoint_reading.read_variables(tmp_path / "plain" / "checkpoints" / "latest" / "2")
    jax.tree.map(np.testing.assert_array_equal, variables, latest)
    assert [found.title for found in files.read(epath.Path(tmp_path / "plain"))] == ["plain", "plain (EMA)"]

    loop.train_and_evaluate(tiny.make_config(data_dir, ema_decay=0.5, num_train_steps=6), tmp_path / "averaged")
    path = checkpoint_reading.find(tmp_path / "averaged")
    assert path.name == "6" and "Best so far: step 6, mIoU 0.5000, of the averaged weights" in caplog.text
    assert checkpoint_reading.read_model(path)[1]
    assert [found.title for found in files.read(epath.Path(tmp_path / "averaged"))] == ["plain (EMA)", "plain"]


def test_a_run_goes_on_on_other_devices_with_the_same_pictures(data_dir, tmp_path, monkeypatch, caplog):
    """4x1, then 2x2, then one device, against one device alone: two steps, two, and two, across an epoch's end."""
    monkeypatch.setattr(models, "build_model", tiny.build_model)
    caplog.set_level("DEBUG", logger="absl")

    def run(workdir, data, space, steps=None):
        changes = {"mesh.data": data, "mesh.space": space, "eval_size": (48, 56), "eval.batch_size": 4}
        config = tiny.make_config(data_dir, eval_every_steps=6, checkpoint_every_steps=100, **changes)
        caplog.clear()
        with contextlib.suppress(preemption.Preempted):
            loop.train_and_evaluate(config, workdir, tiny.Told(steps + 1 if steps is not None else None))
        return re.findall(r"Step (\d), read here: (.*)", caplog.text)

    alone = run(tmp_path / "alone", 1, 1)
    moved = [
        read
        for number, (data, space) in enumerate(((4, 1), (2, 2), (1, 1)))
        for read in run(tmp_path / "moved", data, space, 2 if number < 2 else None)
    ]
    assert moved == alone and [int(step) for step, _ in moved] == [1, 2, 3, 4, 5, 6]
    assert len({ids for _, ids in moved}) == 6
    trees = [checkpoint_reading.read_variables(tmp_path / name / "checkpoints/latest/6") for name in ("alone", "moved")]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *trees)
    reports = [json.loads((tmp_path / name / "eval" / "6.json").read_text()) for name in ("alone", "moved")]
    assert reports[0]["num_pictures"] == reports[1]["num_pictures"] == 5


def test_a_run_that_finds_no_new_best_ends_and_stays_ended(data_dir, tmp_path, scores, caplog):
    scores |= {2: 0.5, 4: 0.4, 6: 0.45, 8: None}
    config = tiny.make_config(data_dir, **{"num_train_steps": 10, "early_stopping.patience": 2})
    for _ in range(2):  # started again, it evaluates the last step once more, as every finished run
        caplog.clear()
        with caplog.at_level("INFO"):
            loop.train_and_evaluate(config, tmp_path)
        assert "No new best since step 2: training ends at step 6 of 10" in caplog.text
        assert best(tmp_path) == (2, 0.5)
    assert "step 6/10" not in caplog.text.replace("  ", " ")
    scores |= {6: 0.6, 8: 0.7, 10: 0.65}  # as if it had been killed before it knew the score of step 6
    loop.train_and_evaluate(config, tmp_path)
    assert best(tmp_path) == (8, 0.7) and (tmp_path / "checkpoints/latest/10").exists()


def test_a_copied_workdir_goes_on_with_the_clock_an_hour_back(data_dir, tmp_path, scores):
    """As on another machine: the arrays of a run left alone, and all points of its curves, in the order of steps."""
    if (library := fork_server.compile_faults(tmp_path)) is None:
        pytest.skip("there is no compiler for tests/faults.c")
    scores |= {2: 0.1, 4: 0.3, 6: 0.2}
    loop.train_and_evaluate(tiny.make_config(data_dir, log_every_steps=1), tmp_path / "alone")
    scores[4] = None
    with pytest.raises(Killed):
        loop.train_and_evaluate(tiny.make_config(data_dir, log_every_steps=1), tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "other place")

    late = {"LD_PRELOAD": str(library), "FAULTS_CLOCK": "-3600"}
    done = tiny.run_main(tmp_path / "other place", data_dir, environment=late, log_every_steps=1)
    assert done.returncode == 0, done.stderr
    reports = [json.loads((tmp_path / name / "eval" / "6.json").read_text()) for name in ("alone", "other place")]
    assert reports[1]["date"] < reports[0]["date"]  # the clock is back
    alone, moved = (tmp_path / name for name in ("alone", "other place"))
    trees = [checkpoint_reading.read_variables(folder / "checkpoints" / "latest" / "6") for folder in (alone, moved)]
    jax.tree.map(np.testing.assert_array_equal, *trees)
    points = [events.read_scalars(epath.Path(folder))["train/loss"] for folder in (alone, moved)]
    assert [(point.step, point.value) for point in points[0]] == [(point.step, point.value) for point in points[1]]
    assert [point.step for point in points[0]] == [1, 2, 3, 4, 5, 6]

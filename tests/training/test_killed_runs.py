"""Runs that were killed or interrupted, and go on: at once, elsewhere, by another clock, or not at all."""

import contextlib
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
from scored import Killed, best

from dlv3p_jax import models
from dlv3p_jax.runtime import events, preemption
from dlv3p_jax.runtime.configuration import ConfigError
from dlv3p_jax.training import loop
from dlv3p_jax.weights import checkpoint_reading
from dlv3p_jax.weights.checkpoint_files import CheckpointError


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


def test_a_run_killed_before_its_first_regular_checkpoint_is_not_lost(data_dir, tmp_path, scores):
    changes = {"checkpoint_every_steps": 100}
    scores |= {2: 0.9, 4: None}
    with pytest.raises(Killed):
        loop.train_and_evaluate(tiny.make_config(data_dir, **changes), tmp_path)
    assert best(tmp_path) == (2, 0.9)
    with pytest.raises(ConfigError, match="learning_rate: 0.01 then, 0.1 now"):
        loop.train_and_evaluate(tiny.make_config(data_dir, learning_rate=0.1, **changes), tmp_path)
    assert best(tmp_path) == (2, 0.9)
    shutil.rmtree(tmp_path / "checkpoints" / "latest")  # to save a disk, for one
    with pytest.raises(CheckpointError, match=f"{tmp_path} holds .*best/2, but no checkpoint in checkpoints/latest"):
        loop.train_and_evaluate(tiny.make_config(data_dir, **changes), tmp_path)
    assert best(tmp_path) == (2, 0.9)


def test_an_evaluation_that_was_killed_is_made_up_for(data_dir, killed, scores):
    """Step 4 is saved before it is evaluated; the network of this step is the best of the run."""
    assert checkpoint_reading.find(killed / "checkpoints" / "latest").name == "4"
    assert not (killed / "eval" / "4.json").exists()
    scores |= {4: 0.95, 6: 0.5}
    loop.train_and_evaluate(tiny.make_config(data_dir), killed)
    assert (killed / "eval" / "4.json").exists() and best(killed) == (4, 0.95)


def test_a_copied_workdir_goes_on_with_the_clock_a_day_back(data_dir, never_killed, killed, tmp_path):
    """As on another machine: the arrays of a run left alone, and all points of its curves, in the order of steps."""
    if (library := fork_server.compile_faults(tmp_path)) is None:
        pytest.skip("there is no compiler for tests/faults.c")
    moved = killed.rename(tmp_path / "other place")
    late = {"LD_PRELOAD": str(library), "FAULTS_CLOCK": str(-24 * 3600)}
    done = tiny.run_main(moved, data_dir, environment=late, log_every_steps=1)
    assert done.returncode == 0, done.stderr
    folders = never_killed, moved
    reports = [json.loads((folder / "eval" / "6.json").read_text()) for folder in folders]
    assert reports[1]["date"] < reports[0]["date"]  # the clock is back
    trees = [checkpoint_reading.read_variables(folder / "checkpoints" / "latest" / "6") for folder in folders]
    jax.tree.map(np.testing.assert_array_equal, *trees)
    points = [events.read_scalars(epath.Path(folder))["train/loss"] for folder in folders]
    assert [(point.step, point.value) for point in points[0]] == [(point.step, point.value) for point in points[1]]
    assert [point.step for point in points[0]] == [1, 2, 3, 4, 5, 6]


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

"""Trackers beside a run (dlv3p_jax.main --tracker): what they hold afterwards, and that they cannot end it."""

import importlib.util
import json
import time

import pytest
from etils import epath

from dlv3p_jax.configs import common
from dlv3p_jax.training import trackers


@pytest.fixture
def run(tmp_path):
    config = common.get_config()
    config.learning_rate = 0.5
    return epath.Path(tmp_path), config


def test_mlflow_has_the_curves_and_a_run_goes_on_in_its_own(run, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions ask for it
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setattr(trackers, "_SECONDS_TO_END", 60)
    with trackers.Tracker("mlflow", *run) as tracker:
        tracker.write_scalars(1, {"train/loss": 2.0, "IoU/a (b)": 0.5})
    run_id = json.loads((tmp_path / "tracker.json").read_text())["mlflow"]
    with pytest.raises(KeyError), trackers.Tracker("mlflow", *run) as tracker:
        tracker.write_scalars(2, {"train/loss": 1.0})
        raise KeyError
    client = mlflow.MlflowClient()
    assert [(each.step, each.value) for each in client.get_metric_history(run_id, "train/loss")] == [(1, 2.0), (2, 1.0)]
    found = client.get_run(run_id)
    assert found.data.params["learning_rate"] == "0.5" and found.data.params["eval.scales"] == "(1.0,)"
    assert found.data.metrics["IoU/a _b_"] == 0.5 and found.info.status == "KILLED"


def test_wandb_has_a_run_of_its_own_and_goes_on_in_it(run, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(trackers, "_SECONDS_TO_END", 60)
    ids = []
    for step in (1, 2):
        with trackers.Tracker("wandb", *run) as tracker:
            tracker.write_scalars(step, {"train/loss": 2.0})
        ids.append(json.loads((tmp_path / "tracker.json").read_text())["wandb"])
    assert ids[0] == ids[1] and len(list((tmp_path / "wandb").glob(f"offline-run-*-{ids[0]}"))) >= 1


def test_one_that_fails_or_hangs_ends_no_run(run, monkeypatch, caplog):
    taken = []

    def log(step, scalars):
        if step == 2:
            raise ConnectionError("gone\nfor now")
        taken.append((step, scalars))

    monkeypatch.setattr(trackers, "_open_mlflow", lambda *_: trackers._Opened(log, taken.append))
    with trackers.Tracker("mlflow", *run) as tracker:
        for step in (1, 2, 3):
            tracker.write_scalars(step, {"a": 0.0})
    assert taken == [(1, {"a": 0.0}), (3, {"a": 0.0}), True]
    assert "--tracker=mlflow is lost, and training goes on without it: gone for now" in caplog.text

    monkeypatch.setattr(trackers, "_open_mlflow", lambda *_: time.sleep(60))
    monkeypatch.setattr(trackers, "_SECONDS_TO_END", 0.1)
    monkeypatch.setattr(trackers, "_WAITING", 2)
    start = time.monotonic()
    with trackers.Tracker("mlflow", *run) as tracker:
        for step in range(5):
            tracker.write_scalars(step, {"a": 0.0})
    assert time.monotonic() - start < 30
    assert "misses values" in caplog.text and "has not taken all values" in caplog.text
    with trackers.Tracker(None, *run) as tracker:
        tracker.write_scalars(1, {"a": 0.0})


def test_a_missing_package_is_told(monkeypatch, tmp_path):
    (tmp_path / "no_tracker").mkdir()  # as wandb/ of runs in the folder where one works
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="needs no_tracker"):
        trackers.check("no_tracker")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--tracker=wandb needs wandb: pip install 'dlv3p_jax\[wandb\]'"):
        trackers.check("wandb")

"""Runs whose workdir and data are in a bucket: the real clients, and a local server in place of Google's."""

import json
import re
import sys
import time

import fake_gcs
import pytest
import tiny
from test_checkpoints import assert_equal_trees, make_state

from dlv3p_jax import models
from dlv3p_jax.evaluation import evaluator
from dlv3p_jax.runtime import cli
from dlv3p_jax.training import loop
from dlv3p_jax.weights import checkpoint_reading, checkpoints


@pytest.fixture(scope="module")
def gcs(data_dir, tmp_path_factory):
    with fake_gcs.FakeGcs(tmp_path_factory.mktemp("gcs")) as gcs:
        gcs.upload_folder(data_dir, "data")
        yield gcs


@pytest.fixture(scope="module")
def start(gcs, tmp_path_factory):
    """Starts the command, with a tiny network."""
    cache = tmp_path_factory.mktemp("cache")

    def start(workdir):
        environment = gcs.environment | {"DLV3P_CACHE": str(cache)}
        return tiny.start_main(workdir, "gs://bucket/data", environment=environment, eval_every_steps=6)

    return start


def finish(process):
    done = tiny.finish(process)
    return done.returncode, done.stdout


def test_a_run_in_a_bucket_is_killed_in_a_save_goes_on_and_is_evaluated(gcs, start, data_dir, tmp_path, monkeypatch):
    """SIGKILL when the second checkpoint has begun: it lies there under its name, but is not committed."""
    unfinished = "run/checkpoints/latest/4/"
    gcs.answer([(f"POST .*name={unfinished}commit_success.txt", None, 60)])
    process = start("gs://bucket/run")
    deadline = time.monotonic() + 120
    while not any(name.startswith(f"{unfinished}variables/d/") for name in gcs.names()):
        assert process.poll() is None and time.monotonic() < deadline, finish(process)
        time.sleep(0.1)
    process.kill()
    finish(process)
    gcs.answer([])
    assert f"{unfinished}commit_success.txt" not in gcs.names()

    code, output = finish(start("gs://bucket/run"))
    assert code == 0, output
    assert "Resumed from gs://bucket/run/checkpoints/latest/2" in output
    monkeypatch.setattr(models, "build_model", tiny.build_model)
    loop.train_and_evaluate(tiny.make_config(data_dir, eval_every_steps=6), tmp_path)
    undisturbed = json.loads((tmp_path / "eval" / "6.json").read_text())
    report = json.loads(gcs.get("run/eval/6.json"))
    assert report["confusion_matrix"] == undisturbed["confusion_matrix"] and report["checkpoint"] == "gs://bucket/run"
    names = {name.removeprefix("run/") for name in gcs.names() if name.startswith("run/")}
    assert {"config.json", "checkpoints/latest/6/commit_success.txt", "report.html"} <= names
    assert {f"eval/6.plain.{suffix}" for suffix in ("json", "npz", "png")} <= names
    assert any(name.startswith("events.out.tfevents.") for name in names)
    assert [line.split(b",")[0] for line in gcs.get("run/metrics.csv").splitlines()] == [b"step", b"2", b"4", b"6"]
    assert gcs.get("run/train.log").count(b"step 2/6") == 1 and b"Resumed from" in gcs.get("run/train.log")
    assert not [name for name in names if "unfinished" in name]

    for name, value in gcs.environment.items():
        monkeypatch.setenv(name, value)
    gcs.put("run/checkpoints/best/7/variables/_METADATA", b"")  # as a killed save leaves it: not committed
    evaluator.evaluate_checkpoint(tiny.make_config(data_dir, **{"eval.flip": True}), "gs://bucket/run")
    report = json.loads(gcs.get("run/eval/6.json"))
    assert report["flip"] is True and report["checkpoint"] == "gs://bucket/run/checkpoints/best/6"


def test_what_is_whole_in_a_bucket_stays_and_what_is_damaged_is_set_aside(gcs, tmp_path, monkeypatch, caplog):
    """Step 6 was copied without its mark, 4 has a turned bit, of 8 a killed run wrote a part; as a run opens them."""
    with checkpoints.Checkpoints(tmp_path) as saved:
        for step in (2, 4, 6):
            saved.save(make_state(step))
        saved.save_best(make_state(4), 0.5)
    gcs.upload_folder(tmp_path, "opened")
    latest = "opened/checkpoints/latest"
    gcs.remove(f"{latest}/6/commit_success.txt")
    name = next(name for name in gcs.names() if name.startswith(f"{latest}/4/variables/d/"))
    gcs.put(name, bytes([gcs.get(name)[0] ^ 1]) + gcs.get(name)[1:])
    gcs.put(f"{latest}/8/variables/_METADATA", gcs.get(f"{latest}/6/variables/_METADATA"))
    objects = [name for name in gcs.names() if name.startswith(f"{latest}/6/")]
    for name, value in gcs.environment.items():
        monkeypatch.setenv(name, value)
    with checkpoints.Checkpoints("gs://bucket/opened") as saved:
        assert f"gs://bucket/{latest}/6 is whole, but its commit_success.txt is missing" in caplog.text
        assert_equal_trees(saved.restore(make_state(0)), make_state(2))
        assert f"gs://bucket/{latest}/4 is damaged (variables: variables/d/" in caplog.text
        assert saved.save_best(make_state(4, seed=5), 0.6)  # the same step: one is set aside, the other takes its place
    assert [name for name in gcs.names() if name.startswith(f"{latest}/6/")] == objects and len(objects) > 10
    folders = {name.split("/")[3] for name in gcs.names() if name.startswith(latest)}
    assert folders == {"2", "4.damaged", "6"}
    variables = checkpoint_reading.read_variables(checkpoint_reading.find("gs://bucket/opened"))
    assert_equal_trees(variables, make_state(4, seed=5).variables)
    assert {name.split("/")[3] for name in gcs.names() if name.startswith("opened/checkpoints/best/")} == {"4"}


@pytest.mark.parametrize(
    ("request_refused", "url"),
    [("GET /storage/v1/b/bucket$", "gs://bucket/x"), ("POST", "gs://bucket/x"), ("", "s3://b/x")],
)
def test_a_bucket_that_cannot_be_written_is_told_at_once(gcs, monkeypatch, request_refused, url):
    for name, value in gcs.environment.items():
        monkeypatch.setenv(name, value)
    gcs.answer([(request_refused, 403, 0)])
    with pytest.raises(SystemExit) as error:
        cli.check_folder("main", "workdir", url)
    gcs.answer([])
    assert re.fullmatch(
        rf"main: --workdir={url} cannot be written: .*(403|not implemented).*objectUser.*", str(error.value)
    )


def test_what_orbax_needs_for_buckets_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    with pytest.raises(
        SystemExit, match="--workdir=gs://bucket/x cannot be written: .*pip install google-cloud-storage"
    ):
        cli.check_folder("main", "workdir", "gs://bucket/x")

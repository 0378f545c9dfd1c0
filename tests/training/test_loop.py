"""Whole runs of a tiny network on a small prepared data set: killed and resumed, evaluated, stopped, refused."""

import io
import json
import re
import signal
import subprocess

import drawn
import jax
import numpy as np
import pytest
import tiny
from clu import metric_writers
from etils import epath
from flax.traverse_util import flatten_dict
from PIL import Image

from dlv3p_jax import models
from dlv3p_jax.data import records
from dlv3p_jax.evaluation import evaluator, metrics, picture_scores
from dlv3p_jax.evaluation.views import Views, predict_logits
from dlv3p_jax.models import build_model
from dlv3p_jax.runtime import disk_errors, events, preemption, sharding
from dlv3p_jax.runtime.configuration import ConfigError
from dlv3p_jax.training import loop
from dlv3p_jax.training.run import Run, first_state
from dlv3p_jax.weights import checkpoint_reading, checkpoints, trained

LAST = 16  # steps of 4 pictures: across the ends of epochs of 11
CHANGES = {
    "num_train_steps": LAST,
    "learning_rate": 0.05,
    "log_every_steps": 1,
    "eval_every_steps": LAST,
    "checkpoint_every_steps": 3,
}
# Kills the process while step 6 is being written.
DYING = """
import os, signal
from dlv3p_jax.weights import checkpoints
save = checkpoints.Checkpoints.save
def save_and_die(self, state):
    save(self, state)
    if state.step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoints.Checkpoints.save = save_and_die
"""


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    monkeypatch.setattr(models, "build_model", tiny.build_model)


def make_config(data_dir, **changes):
    return tiny.make_config(data_dir, **(CHANGES | changes))


def run_main(data_dir, workdir, before=""):
    return tiny.run_main(workdir, data_dir, before=before, stderr=subprocess.STDOUT, **CHANGES)


def variables_of(workdir):
    return flatten_dict(
        checkpoint_reading.read_variables(checkpoint_reading.find(workdir / "checkpoints" / "latest")), sep="/"
    )


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """The workdir of a run that was never interrupted, and what it printed."""
    workdir = tmp_path_factory.mktemp("finished")
    done = run_main(data_dir, workdir)
    assert done.returncode == 0, done.stdout
    return workdir, done.stdout


def test_a_run_tells_what_it_does(finished, data_dir):
    workdir, output = finished
    assert "Compiling the training step: resnet50_vd, output stride 8, float32, 4 pictures of 32x32" in output
    assert "11 pictures in train, 5 in val" in output
    assert (
        len(re.findall(r"step +\d+/16  epoch +\d+\.\d\d  loss .*  lr .*  left +\d+:\d\d  .* pictures/s ", output))
        == LAST
    )
    table = output[output.index("\nclass ") : output.index("report:")]
    assert all(name in table for name in ("floor", "wall", "lamp", "mIoU"))
    assert f"pictures: {workdir}/eval/{LAST}.png" in output
    assert f"page: {workdir}/report.html" in output and (workdir / "report.html").read_text().count("<svg") == 4
    assert list(workdir.glob("events.out.tfevents.*"))
    assert json.loads((workdir / "config.json").read_text())["num_classes"] == 3


def test_the_report_of_an_evaluation_is_complete_and_strict_json(finished):
    workdir, _ = finished
    text = (workdir / "eval" / f"{LAST}.json").read_text()
    report = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    assert report["class_names"] == ["floor", "wall", "lamp"] and len(report["IoU"]) == 3
    assert report["num_pictures"] == 5 and report["scales"] == [1.0] and report["flip"] is False
    assert report["average"] == "logits" and report["loss"] > 0
    assert events.read_scalars(epath.Path(workdir))["eval/loss"][-1].value == pytest.approx(report["loss"])
    assert np.isclose(report["mIoU"], np.nanmean(np.array(report["IoU"], float)))
    assert (workdir / "eval" / f"{LAST}.plain.json").read_text() == text
    assert (workdir / "eval" / f"{LAST}.png").read_bytes().startswith(b"\x89PNG")


def test_a_killed_run_ends_as_one_that_was_never_killed(finished, data_dir, tmp_path, caplog):
    killed = run_main(data_dir, tmp_path, DYING)
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "eval").exists(), killed.stdout
    with caplog.at_level("INFO"):
        loop.train_and_evaluate(make_config(data_dir), tmp_path)
    assert f"Resumed from {tmp_path}/checkpoints/latest/" in caplog.text
    assert "step  7/16" in caplog.text and "step  3/16" not in caplog.text  # nothing is done twice
    expected, resumed = variables_of(finished[0]), variables_of(tmp_path)
    assert expected.keys() == resumed.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    reports = [json.loads((workdir / "eval" / f"{LAST}.json").read_text()) for workdir in (finished[0], tmp_path)]
    assert reports[0]["confusion_matrix"] == reports[1]["confusion_matrix"]


def test_another_configuration_is_refused_with_both_values(finished, data_dir):
    with pytest.raises(ConfigError, match=r"learning_rate: 0.05 then, 0.1 now") as caught:
        loop.train_and_evaluate(make_config(data_dir, learning_rate=0.1, log_every_steps=2), finished[0])
    assert "log_every_steps" not in str(caught.value)


def test_evaluating_the_checkpoint_gives_the_score_of_the_run(finished, data_dir):
    workdir, _ = finished
    before = json.loads((workdir / "eval" / f"{LAST}.json").read_text())
    result = evaluator.evaluate_checkpoint(make_config(data_dir), workdir)
    after = json.loads((workdir / "eval" / f"{LAST}.json").read_text())
    assert after["confusion_matrix"] == before["confusion_matrix"] and result.summary["mIoU"] == before["mIoU"]


def test_scores_equal_plain_numpy_on_the_label_files_whatever_the_batch_and_devices(finished, data_dir, tmp_path):
    """Predictions of single pictures, counted pixel by pixel, against evaluations in batches over 1 and 4 devices."""
    workdir, _ = finished
    config = make_config(data_dir, num_classes=3, **{"eval.flip": True})
    model = tiny.build_model(config)
    variables = checkpoint_reading.read_variables(checkpoint_reading.find(workdir))
    predict = jax.jit(lambda images: predict_logits(model, variables, images, Views(flip=True)))
    source = records.open_dataset("image_folder", data_dir).source("val")
    matrices, predictions = np.zeros((len(source), 3, 3), np.int64), []
    for matrix, record in zip(matrices, source, strict=True):
        image = np.asarray(Image.open(io.BytesIO(record["image"])).convert("RGB"), np.float32) / 127.5 - 1
        label = np.asarray(Image.open(io.BytesIO(record["label"])))
        predictions.append(np.asarray(predict(image[None]))[0].argmax(-1))
        for expected in range(3):
            for found in range(3):
                matrix[expected, found] += ((label == expected) & (predictions[-1] == found)).sum()

    for changes in ({"eval.batch_size": 2, "mesh.data": 1}, {"eval.batch_size": 4, "mesh.data": 4}):
        evaluator.evaluate_checkpoint(make_config(data_dir, **{"eval.flip": True}, **changes), tmp_path, workdir)
        report = json.loads((tmp_path / "eval" / f"{LAST}.json").read_text())
        assert report["confusion_matrix"] == matrices.sum(0).tolist()
        assert (tmp_path / "eval" / f"{LAST}.flip.json").exists()
        pictures = picture_scores.read(tmp_path / "eval" / f"{LAST}.flip.npz")
        assert [name.encode() for name in pictures.ids] == [record["id"] for record in source]
        np.testing.assert_array_equal(pictures.counts, metrics.pixel_counts(matrices))
        assert len(pictures.shown) == 5
        for shown in pictures.shown:
            np.testing.assert_array_equal(Image.open(io.BytesIO(shown.prediction)), predictions[shown.index])
            label = Image.open(io.BytesIO(source[shown.index]["label"]))
            np.testing.assert_array_equal(Image.open(io.BytesIO(shown.label)), label)


def test_pretrained_weights_start_a_run_and_a_new_head_is_told(finished, data_dir, tmp_path, caplog):
    config = make_config(data_dir, num_classes=3, pretrained=str(finished[0]))
    dataset, mesh = records.open_dataset("image_folder", data_dir), sharding.make_mesh(1, 1)
    with checkpoints.Checkpoints(tmp_path / "run") as saved, caplog.at_level("INFO"):
        state = first_state(Run(config, dataset, mesh, tiny.Tiny(3), tmp_path / "run"), saved)
    assert "initialised afresh" not in caplog.text
    loaded = checkpoint_reading.read_variables(checkpoint_reading.find(finished[0]))
    jax.tree.map(np.testing.assert_array_equal, state.variables, loaded)

    drawn.save_checkpoint(tmp_path / "real", drawn.make_config())
    config = drawn.make_config(num_classes=5)
    fresh = jax.tree.map(np.zeros_like, drawn.draw_variables(config))
    with caplog.at_level("INFO"):
        params = trained.fit_pretrained(trained.read_pretrained(tmp_path / "real", build_model(config)), fresh)[
            "params"
        ]
    assert "initialised afresh: params/decoder/classifier/bias, params/decoder/classifier/kernel" in caplog.text
    kernel = params["decoder"]["classifier"]["kernel"]
    assert kernel.shape[-1] == 5 and not kernel.any()
    expected = drawn.draw_variables(drawn.make_config())["params"]["backbone"]
    jax.tree.map(np.testing.assert_array_equal, params["backbone"], expected)


def test_a_loss_that_is_not_finite_stops_the_run(data_dir, tmp_path):
    config = make_config(data_dir, learning_rate=1e20, checkpoint_every_steps=1)
    with pytest.raises(loop.TrainingError, match=r"step \d is not finite .*the last good checkpoint is .*latest/\d"):
        loop.train_and_evaluate(config, tmp_path)
    for value in variables_of(tmp_path).values():
        assert np.isfinite(value).all()


def test_ema_is_evaluated_and_saved_beside_the_plain_weights(data_dir, tmp_path):
    config = make_config(data_dir, ema_decay=0.5, num_train_steps=2)
    summary = loop.train_and_evaluate(config, tmp_path)
    plain, averaged = (json.loads((tmp_path / "eval" / name).read_text()) for name in ("2.json", "2.ema.json"))
    assert plain["confusion_matrix"] != averaged["confusion_matrix"] and summary["mIoU"] == averaged["mIoU"]
    path = tmp_path / "checkpoints" / "latest" / "2"
    assert jax.tree.structure(checkpoint_reading.read_variables(path)) == jax.tree.structure(
        checkpoint_reading.read_variables(path, "ema")
    )


def test_curves_that_are_not_in_the_event_file_stop_the_run_before_it_saves(data_dir, tmp_path, monkeypatch):
    """The write of one step fails, of which TensorFlow's writer says nothing; then the same command goes on."""
    config = make_config(data_dir, num_train_steps=6, eval_every_steps=6)
    write = metric_writers.SummaryWriter.write_scalars
    with monkeypatch.context() as patch:
        patch.setattr(
            *(metric_writers.SummaryWriter, "write_scalars"),
            lambda self, step, scalars: None if step == 5 else write(self, step, scalars),
        )
        with pytest.raises(OSError) as stopped:
            loop.train_and_evaluate(config, tmp_path)
    assert "events.out.tfevents" in stopped.value.filename and disk_errors.passing(stopped.value)
    assert checkpoint_reading.find(tmp_path / "checkpoints" / "latest").name == "3"
    loop.train_and_evaluate(config, tmp_path)
    curves = {name: [p.step for p in points] for name, points in events.read_scalars(epath.Path(tmp_path)).items()}
    assert curves["train/loss"] == [1, 2, 3, 4, 5, 6] and curves["eval/mIoU"] == [6]


def test_scales_that_do_not_fit_are_refused_in_one_line_before_anything_is_compiled(data_dir, tmp_path, caplog):
    with pytest.raises(ValueError) as stopped, caplog.at_level("INFO"):
        loop.train_and_evaluate(make_config(data_dir, **{"augment.scale_step": 0.4}), tmp_path)
    assert str(stopped.value).startswith("augment.scale_step=0.4 does not divide the range")
    assert "Compiling" not in caplog.text and "\n" not in str(stopped.value)


def test_a_run_that_has_evaluated_first_may_leave_at_once_while_it_compiles(data_dir, tmp_path, monkeypatch, caplog):
    """As one that was killed while it evaluated: from then on it leaves where it asks, but compiling is long."""

    class Stopped(Exception):
        pass

    def compile_step(*_):
        said.append(told._whole())
        raise Stopped

    def stop(step, scalars, state):
        if "eval/mIoU" in scalars:
            raise Stopped

    config, said, told = make_config(data_dir, eval_every_steps=2), [], preemption.Preemption()
    with pytest.raises(Stopped):
        loop.train_and_evaluate(config, tmp_path, hooks=[stop])
    monkeypatch.setattr(loop, "_compile_step", compile_step)
    config.profile_steps = 1000
    with pytest.raises(Stopped):
        loop.train_and_evaluate(config, tmp_path, told)
    assert re.match("step 2 is saved in .*, and the same command goes on", said[0]), said
    assert "No profile: config.profile_steps=1000 after the first 10 need more" in caplog.text

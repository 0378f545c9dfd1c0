"""Evaluations of checkpoints: where reports go, what they say, and what is refused or warned of."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from dlv3p_jax import models
from dlv3p_jax.data import records, viz
from dlv3p_jax.datasets.image_folder import make_builder
from dlv3p_jax.datasets.preparing import prepare_dataset
from dlv3p_jax.evaluation import evaluator, files
from dlv3p_jax.evaluation.result import EvaluationError
from dlv3p_jax.runtime import configuration, sharding
from dlv3p_jax.runtime.configuration import ConfigError
from dlv3p_jax.training import steps
from dlv3p_jax.weights import checkpoint_reading, checkpoints

STEP = 4


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(models, "build_model", tiny.build_model)


def make_workdir(folder, config, seed, names=("floor", "wall", "lamp")):
    """A run's best checkpoint and config.json."""
    config = configuration.resolve(config, 3, 255)
    model = tiny.build_model(config)
    variables = model.init(jax.random.key(seed), np.zeros((1, 8, 8, 3), np.float32), train=False)
    state = steps.create_train_state(config, variables).replace(step=np.int32(STEP))
    meta = checkpoint_reading.describe_classes(names, viz.palette(3), 255)
    with checkpoints.Checkpoints(folder, meta=meta) as saved:
        saved.save_best(state, 0.5)
    configuration.write(config, folder / "config.json")
    return folder


@pytest.fixture
def workdirs(data_dir, tmp_path):
    return [make_workdir(tmp_path / name, tiny.make_config(data_dir), seed) for seed, name in enumerate("ab")]


def read(workdir, name=f"{STEP}.json"):
    return json.loads((workdir / "eval" / name).read_text())


def change_metadata(data_dir, target, change):
    """A copy of the data set with changed metadata."""
    shutil.copytree(data_dir, target)
    (file,) = target.glob("image_folder/*/metadata.json")
    metadata = json.loads(file.read_text())
    change(metadata)
    file.write_text(json.dumps(metadata))
    records.write_digests(file.parent)
    return target


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "plain"),
        ({"eval_size": (64, 96)}, "plain-padded-64x96"),
        ({"eval.flip": True, "eval_size": (64, 96), "eval_split": "train"}, "flip-padded-64x96-train"),
    ],
)
def test_the_name_of_an_evaluation_says_how_and_on_what(data_dir, changes, name):
    assert files.evaluation_name(tiny.make_config(data_dir, **changes)) == name


def test_reports_go_where_the_checkpoint_belongs_and_say_of_what_they_are(data_dir, workdirs, capsys):
    ours, other = workdirs
    evaluator.evaluate_checkpoint(tiny.make_config(data_dir), None, other)
    assert not (ours / "eval").exists()
    report = read(other)
    path = other / "checkpoints" / "best" / str(STEP)
    assert report["checkpoint"] == str(path) and report["step"] == STEP
    assert report["model"]["backbone"] == "resnet50_vd" and report["version"] == "0.1.0"
    output = capsys.readouterr().out
    assert f"\nimage_folder val, plain: {path}, step {STEP}\nclass " in output
    assert f"report: {other}/eval/{STEP}.json" in output


@pytest.mark.parametrize("mesh", [(1, 1), (2, 2)])
def test_pictures_of_several_sizes_count_the_same_by_one_program(data_dir, workdirs, mesh, caplog):
    views = {"eval.scales": (0.5, 1.0), "eval.flip": True}
    counts = []
    for changes in ({"eval.buckets": 0}, {"eval.buckets": 1, "mesh.data": mesh[0], "mesh.space": mesh[1]}):
        caplog.clear()
        with caplog.at_level("INFO"):
            result = evaluator.evaluate_checkpoint(tiny.make_config(data_dir, **views, **changes), workdirs[0])
        counts.append(json.loads((result.path.parent / f"{result.path.name}.json").read_text())["confusion_matrix"])
    assert "by 1 program," in caplog.text
    assert counts[0] == counts[1]


def test_another_split_of_the_same_step_has_a_report_of_its_own(data_dir, workdirs):
    workdir = workdirs[0]
    evaluator.evaluate_checkpoint(tiny.make_config(data_dir), workdir)
    validated = read(workdir)
    evaluator.evaluate_checkpoint(tiny.make_config(data_dir, eval_split="train"), workdir)
    assert read(workdir)["split"] == read(workdir, f"{STEP}.plain-train.json")["split"] == "train"
    assert read(workdir, f"{STEP}.plain.json") == validated


def test_overwriting_the_report_of_another_run_is_told(data_dir, workdirs, caplog):
    ours, other = workdirs
    evaluator.evaluate_checkpoint(tiny.make_config(data_dir), ours)
    evaluator.evaluate_checkpoint(tiny.make_config(data_dir), ours)
    assert "is now of" not in caplog.text
    evaluator.evaluate_checkpoint(tiny.make_config(data_dir), ours, other)
    assert read(ours)["checkpoint"] == f"{other}/checkpoints/best/{STEP}"
    best = f"checkpoints/best/{STEP}"
    assert f"{ours}/eval/{STEP}.plain.json was of {ours}/{best}, and is now of {other}/{best}" in caplog.text


def test_pixels_that_were_lost_since_the_data_was_prepared_are_an_error(data_dir, workdirs, tmp_path):
    def lose(metadata):
        metadata["class_pixels"]["val"][1] += 1

    data = change_metadata(data_dir, tmp_path / "data", lose)
    dataset = records.open_dataset("image_folder", data_dir)
    expected = sum(dataset.metadata["class_pixels"]["val"])
    message = f"{expected} labelled pixels of image_folder val were counted.*but {expected + 1}.*prepared: is {data}"
    with pytest.raises(EvaluationError, match=message):
        evaluator.evaluate_checkpoint(tiny.make_config(data), workdirs[0])
    assert not list((workdirs[0] / "eval").iterdir())


def test_other_names_of_the_classes_are_told(data_dir, tmp_path, caplog):
    workdir = make_workdir(tmp_path / "a", tiny.make_config(data_dir), 0, names=("floor", "dog", "lamp"))
    evaluator.evaluate_checkpoint(tiny.make_config(data_dir), workdir)
    assert "trained with other classes than image_folder has:\n  class 1: 'dog' then, 'wall' now" in caplog.text
    assert "floor" not in caplog.text[caplog.text.index("other classes") : caplog.text.index("'wall' now")]


def test_another_network_is_refused_unless_its_weights_mean_the_same(data_dir, workdirs, caplog):
    changed = {"model.align_corners": True, "model.aspp_rates": (1, 6, 12, 18)}
    with pytest.raises(ConfigError, match=r"best/4 was trained with another network:") as caught:
        evaluator.evaluate_checkpoint(tiny.make_config(data_dir, **changed), workdirs[0])
    assert str(caught.value).splitlines()[1:] == [
        '  model.align_corners: False then, True now; give --config.model.align_corners="False"',
        "  model.aspp_rates: [1, 12, 24, 36] then, [1, 6, 12, 18] now; "
        'give --config.model.aspp_rates="(1, 12, 24, 36)"',
    ]
    evaluator.evaluate_checkpoint(tiny.make_config(data_dir, **{"model.output_stride": 16}), workdirs[0])
    assert "config.model.output_stride is 16 here, but" in caplog.text


def test_pixels_of_another_ignore_label_are_not_drawn_as_errors(tmp_path):
    """Everything is of class 0 and predicted so, but for a band of the ignore label, 9."""
    label = np.zeros((40, 56), np.uint8)
    label[10:30] = 9
    train_label = np.where(label == 9, 1, 0).astype(np.uint8)
    for split, values in {"train": train_label, "val": label}.items():
        for kind, pixels in (("images", np.full((40, 56, 3), len(split), np.uint8)), ("labels", values)):
            (tmp_path / "source" / kind / split).mkdir(parents=True)
            Image.fromarray(pixels).save(tmp_path / "source" / kind / split / "0.png")
    (tmp_path / "source" / "classes.txt").write_text("floor\nwall\n")
    make = functools.partial(make_builder, source=tmp_path / "source", ignore_label=9)
    prepare_dataset("image_folder", make, tmp_path / "data", overwrite=False)

    config, dataset, mesh = evaluator.prepare_run(tiny.make_config(tmp_path / "data", ignore_label=9))
    model = tiny.build_model(config)
    shapes = jax.eval_shape(lambda: evaluator.init_variables(config, model))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    run = evaluator.make_evaluator(config, dataset, mesh, model, tmp_path)
    sheet = np.asarray(run(jax.device_put(zeros, sharding.replicated(mesh)), 0).sheet)
    swatch = 18 * 18  # of the legend
    assert np.all(sheet == viz.free_colors(dataset.palette, 1), axis=-1).sum() <= swatch

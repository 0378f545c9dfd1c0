"""A published row against what is measured here, end to end on a made row, and what is kept of a stopped run."""

import json
import pathlib
import subprocess
import sys
import types

import drawn
import pytest

from dlv3p_jax import reproduce
from dlv3p_jax.configs import common
from dlv3p_jax.data import records
from dlv3p_jax.evaluation import evaluator
from dlv3p_jax.models import build_model
from dlv3p_jax.runtime import provenance, sealing
from dlv3p_jax.weights import mmseg_models, published
from dlv3p_jax.weights.paddle import revert
from dlv3p_jax.weights.pdparams import save_pdparams

SCALES = (0.5, 1.0)


def make_config(data_dir):
    config = common.get_config()
    settings = {"backbone": "resnet18_vd", "multi_grid": (1, 1), "output_stride": 16, "aspp_rates": (1, 2)}
    config.model.update(settings | {"aspp_channels": 8})
    config.dataset, config.data_dir, config.eval.batch_size = "image_folder", str(data_dir), 2
    config.mesh.data = 1
    return config


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A .pdparams file of three classes, with random weights."""
    config = make_config("")
    config.num_classes = 3
    model = build_model(config)
    variables = drawn.draw_variables_of(model)
    # Sure of itself, or the means of logits and of probabilities would agree everywhere.
    variables["params"]["decoder"]["classifier"]["kernel"] *= 50
    path = tmp_path_factory.mktemp("weights") / "model.pdparams"
    save_pdparams(revert(variables, model), path)
    return path


PUBLISHED = published.PUBLISHED["voc_r50"]._replace(dataset="image_folder", plain=10.0, ms_flip_legacy=20.0)


def test_a_made_row_end_to_end(data_dir, file, tmp_path):
    report = reproduce.reproduce("made", PUBLISHED, make_config(data_dir), file, SCALES, tmp_path)

    assert sealing.unseal(json.loads((tmp_path / "report.json").read_text())) == report
    assert report["num_pictures"] == 5 and report["weights"] == str(file)
    views = {
        "plain": ((1.0,), False, "logits", 10.0, "plain"),
        "flip, legacy": ((1.0,), True, "legacy", PUBLISHED.flip, "flip-legacy"),
        "flip, logits": ((1.0,), True, "logits", None, "flip"),
        "ms + flip, legacy": (SCALES, True, "legacy", 20.0, "scales-0.5-1-flip-legacy"),
        "ms + flip, logits": (SCALES, True, "logits", PUBLISHED.ms_flip_logits, "scales-0.5-1-flip"),
    }
    assert [column["title"] for column in report["columns"]] == list(views)
    for column in report["columns"]:
        scales, flip, average, expected, name = views[column["title"]]
        assert (tuple(column["scales"]), column["flip"], column["average"]) == (scales, flip, average)
        assert column["published"] == expected
        evaluation = json.loads((tmp_path / "eval" / f"0.{name}.json").read_text())
        assert column["measured"] == 100 * evaluation["mIoU"] and evaluation["absent_class"] == "one"
    measured = [column["measured"] for column in report["columns"]]
    assert len(set(measured)) == 5  # no two are of the same views

    lines = (tmp_path / "report.md").read_text().splitlines()
    assert "made: mIoU in percent on 5 pictures of image_folder val" in lines[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:9]]
    assert cells[0] == ["plain", "1", "10.00", f"{measured[0]:.2f}", f"{measured[0] - 10:+.2f}"]
    assert cells[2] == ["flip, logits", "1", "", f"{measured[2]:.2f}", ""]
    assert cells[3][:3] == ["ms + flip, legacy", "0.5 1", "20.00"]


def test_a_stopped_run_goes_on_with_the_next_column_and_other_settings_begin_anew(
    data_dir, file, tmp_path, monkeypatch, caplog
):
    evaluated = []

    def make_evaluator(config, *_, absent_class, checkpoint):
        def run(variables, step):
            if len(evaluated) == 2:
                raise KeyboardInterrupt
            evaluated.append((config.eval.scales, config.eval.flip, config.eval.average))
            return types.SimpleNamespace(summary={"mIoU": len(evaluated) / 100})

        return run

    monkeypatch.setattr(evaluator, "make_evaluator", make_evaluator)
    arguments = ("made", PUBLISHED, make_config(data_dir), file, SCALES, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        reproduce.reproduce(*arguments)
    assert len(json.loads((tmp_path / "report.json").read_text())["columns"]) == 2
    first = list(evaluated)
    evaluated.clear()
    with pytest.raises(KeyboardInterrupt):
        reproduce.reproduce(*arguments)
    assert not set(first) & set(evaluated)
    columns = json.loads((tmp_path / "report.json").read_text())["columns"]
    assert [column["measured"] for column in columns] == [1.0, 2.0, 1.0, 2.0]

    window = {"eval.window": (24, 32)}
    changes_of = {
        "eval_size": {"eval_size": (48, 64)},
        "eval.window": window,
        "eval.stride": window | {"eval.stride": (16, 16)},
    }
    for key in (*changes_of, "data", "version", "damage"):
        evaluated.clear()
        caplog.clear()
        config = make_config(data_dir)
        config.update_from_flattened_dict(changes_of.get(key, {}))
        if key == "data":  # labels were mended, and it was prepared again
            monkeypatch.setattr(records.Dataset, "digest", lambda dataset, split: {"content": "0"})
        if key == "version":
            monkeypatch.setattr(provenance, "describe", lambda: {"version": "0.2", "git_revision": None})
        if key == "damage":
            text = (tmp_path / "report.json").read_text()
            (tmp_path / "report.json").write_text(text.replace('"measured": 1.0', '"measured": 9.0'))
        with pytest.raises(KeyboardInterrupt):
            reproduce.reproduce("made", PUBLISHED, config, file, SCALES, tmp_path)
        assert evaluated == first, key
        assert key.rpartition(".")[2] in caplog.text and "all is measured anew" in caplog.text


def test_a_row_of_mmsegmentation_is_measured_in_its_own_definitions(data_dir, file, tmp_path, monkeypatch):
    seen = []

    def make_evaluator(config, *_, absent_class, checkpoint):
        views = config.eval
        seen.append((views.scales, views.flip, views.average, views.resize, views.align_corners, absent_class))
        return lambda variables, step: types.SimpleNamespace(summary={"mIoU": 0.5})

    monkeypatch.setattr(evaluator, "make_evaluator", make_evaluator)
    row, config = mmseg_models.PUBLISHED["mmseg/r18_loveda_80k"], make_config(data_dir)
    config.eval.update(resize=(48, 64), align_corners=True)
    report = reproduce.reproduce("made", row, config, file, SCALES, tmp_path)
    assert seen == [
        ((1.0,), False, "logits", (48, 64), True, "nan"),
        (SCALES, True, "probabilities", None, True, "nan"),
        (SCALES, True, "probabilities", (48, 64), True, "nan"),
    ]
    assert [column["published"] for column in report["columns"]] == [50.28, 50.47, 50.47]
    seen.clear()
    assert reproduce.reproduce("made", row, config, file, SCALES, tmp_path) == report and not seen  # all is kept


def test_figures_of_other_pictures_are_not_called_comparable():
    report = dict(name="voc_r50", weights="w", sha256="0" * 64, dataset="voc2012", split="val", columns=[])
    report |= dict(num_pictures=5, published_num_pictures=1449)
    assert "**Not comparable**: the published figures are of 1449 pictures." in reproduce.to_markdown(report)
    assert "Not comparable" not in reproduce.to_markdown(report | {"num_pictures": 1449})


ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(*arguments):
    command = [sys.executable, "-m", "dlv3p_jax.reproduce", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_table_is_the_published_one():
    lines = run("--list").stdout.splitlines()
    assert len([line for line in lines if line.startswith(("| cityscapes_", "| voc_", "| mmseg/"))]) == 6 + 43
    words = lines[2].replace("|", " ").split()
    assert words[:5] == ["cityscapes_r50", "cityscapes", "resnet50_vd", "1024x512", "80,000"]
    assert words[5:] == ["80.36", "80.57", "80.81", "81.33"]

"""Comparisons: contestants that take turns, those that cannot, and the command itself at a tiny size."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from benchmarks import compare as compare_command
from benchmarks import rounds
from dlv3p_jax.configs import common

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
KEYS = {
    "model.backbone": "resnet18_vd",
    "model.multi_grid": (1, 1),
    "model.aspp_rates": (1, 2),
    "model.aspp_channels": 8,
    "crop_size": (32, 32),
    "batch_size": 2,
    "eval.batch_size": 2,
}
CONTESTANT = """
import json, pathlib, time
from benchmarks import worker

def setup(specification):
    print("a library says something")
    if "raise" in specification:
        raise RuntimeError(specification["raise"] + "\\nsecond line")
    if "import" in specification:
        __import__(specification["import"])

    def call():
        with open(specification["log"], "a") as file:
            file.write(specification["letter"])
        time.sleep(specification["seconds"])

    def logits():
        import numpy as np
        return np.float32([[0, 2], [0, specification["logit"]]])

    return worker.Contestant(call, lambda result: None, specification.get("platform", "cpu"), "1.0", logits)
"""


@pytest.fixture
def compare(tmp_path, monkeypatch):
    """Lets contestants, given as what is told to each alone, take turns; gives the report and who worked when."""
    (tmp_path / "contestant.py").write_text(CONTESTANT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    common = dict(title="predict", work="predict", batch_size=2, height=8, width=8, num_classes=2, dtype="float32")
    common |= dict(model={}, threads=1, scales=[1.0], flip=False, log=str(tmp_path / "log"), logit=2)

    def compare(contestants: dict, fresh: bool):
        entries = [
            rounds.Entry(
                name,
                "contestant",
                settings.get("python", sys.executable),
                {"letter": name[-1], "seconds": 0.01} | settings,
                "buy it",
            )
            for name, settings in contestants.items()
        ]
        settings = dict(rounds=2, turn_seconds=0.02, fresh=fresh, start_seconds=30, say=lambda text: None)
        return rounds.run(common, entries, folder=tmp_path, **settings)

    return compare


def test_contestants_take_turns_and_the_absent_are_named(compare, tmp_path):
    contestants = {
        "ours": {},
        "torch a": {"seconds": 0.2, "logit": 3},
        "torch b": {"seconds": 0.05},
        "lacking": {"import": "no_such_module"},
        "broken": {"raise": "no compiler"},
        "elsewhere": {"platform": "gpu"},
        "nowhere": {"python": "/no/such"},
    }
    report = compare(contestants, fresh=False)

    results = report["contestants"]
    assert list(results) == ["ours", "torch a", "torch b"] and report["fastest_torch"] == "torch b"
    assert results["torch a"]["ratio"]["median"] > results["torch b"]["ratio"]["median"] > 1
    assert results["ours"]["ratio"]["median"] == 1 and results["ours"]["seconds"]["repeats"] == 2
    assert results["torch a"]["logits_difference"] == pytest.approx(1)  # 1 apart, of a standard deviation of 1
    assert results["torch b"]["logits_difference"] == 0
    assert results["torch a"]["pictures_per_second"] == pytest.approx(2 / results["torch a"]["seconds"]["median"])
    assert report["absent"]["lacking"] == "lacking: No module named 'no_such_module': buy it"
    assert report["absent"]["broken"] == "broken: RuntimeError: no compiler"
    assert report["absent"]["elsewhere"] == "elsewhere: runs on gpu, ours on cpu"
    assert report["absent"]["nowhere"] == "nowhere: /no/such cannot be started (No such file or directory)"
    letters = (tmp_path / "log").read_text()
    turns = "".join(letter for letter, before in zip(letters, " " + letters, strict=False) if letter != before)
    assert turns.endswith("sab")  # after the first round, in which they start
    text = rounds.to_text({**report, "model": {"backbone": "resnet18_vd", "output_stride": 8}})
    assert "torch b (1.0) *" in text and "left out: broken" in text


def test_a_machine_on_which_nothing_else_runs(compare, monkeypatch):
    monkeypatch.setattr(rounds.timing, "share_of_others", lambda before, after, ours: 0.0)
    results = compare({"ours": {}, "torch a": {}}, fresh=False)["contestants"]
    assert results["ours"]["share_of_others"] == results["torch a"]["share_of_others"] == {"median": 0, "max": 0}


def test_fresh_processes_give_the_slower_of_torch_one_turn(compare):
    contestants = {"ours": {}, "torch a": {"seconds": 0.08}, "torch b": {"seconds": 0.01}}
    results = compare(contestants, fresh=True)["contestants"]
    repeats = {name: result["seconds"]["repeats"] for name, result in results.items()}
    assert repeats == {"ours": 2, "torch a": 1, "torch b": 2}


def test_without_others_or_without_ours_there_is_no_comparison(compare):
    with pytest.raises(rounds.ContestantError, match=r"nobody is there to compare with:\n  torch a: No module"):
        compare({"ours": {}, "torch a": {"import": "no_such_module"}}, fresh=False)
    with pytest.raises(rounds.ContestantError, match="ours: RuntimeError: broken"):
        compare({"ours": {"raise": "broken"}, "torch a": {}}, fresh=False)


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks.compare", "--config=configs/common.py"]
    command += [f"--config.{key}={value}" for key, value in KEYS.items()]
    return subprocess.run([*command, *arguments], cwd=REPOSITORY, capture_output=True, text=True)


@pytest.fixture
def torch():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed: pip install torch")
    import torch

    return torch


def test_the_command(torch, tmp_path):
    arguments = ["--work=evaluate-flip", "--rounds=1", "--turn_seconds=0.01", "--threads=1", "--nosmp"]
    result = run(*arguments, "--torch_variants=eager", f"--json={tmp_path / 'report.json'}")
    assert result.returncode == 0, result.stderr
    (report,) = json.loads((tmp_path / "report.json").read_text())
    assert (report["title"], report["flip"], report["absent"]) == ("evaluate-flip", True, {})
    assert list(report["contestants"]) == ["ours", "torch eager"]
    assert report["contestants"]["torch eager"]["ratio"]["median"] > 0
    assert report["contestants"]["torch eager"]["logits_difference"] < 1e-3
    assert "torch eager" in result.stdout


@pytest.mark.parametrize("channels_last", [False, True])
def test_pytorch_learns_its_batch(torch, tmp_path, channels_last):
    from benchmarks import torch_twin

    config = common.get_config()
    config.update_from_flattened_dict(KEYS | {"model.dropout": 0.0})
    specification = compare_command.specification("train", config, (32, 32), 1, tmp_path)
    contestant = torch_twin.setup(specification | {"compiled": False, "channels_last": channels_last})
    losses = [float(contestant.call().detach()) for _ in range(4)]
    assert losses[-1] < losses[0] and contestant.version.startswith("torch ")


def test_a_loss_that_the_others_do_not_have_ends_in_a_message():
    result = run("--config.loss.rmi=0.5")
    assert result.returncode == 1 and "give --config.loss.rmi=0" in result.stderr and "Traceback" not in result.stderr

"""One word for all commands."""

import pathlib
import runpy
import subprocess
import sys

import pytest

import dlv3p_jax
from dlv3p_jax import __main__ as dlv3p

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def called(monkeypatch):
    """Calls dlv3p in this process; returns the (module, arguments) that it would run."""
    ran = []
    monkeypatch.setattr(runpy, "run_module", lambda module, **_: ran.append((module, sys.argv[1:])))

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["dlv3p", *words])
        dlv3p.main()
        return ran.pop() if ran else None

    return call


def test_every_command_has_a_verb(called):
    modules = {path.stem for path in (ROOT / "dlv3p_jax").glob("[a-z]*.py")}
    for name in modules:
        assert called(name, "--flag=1") == (f"dlv3p_jax.{name}", ["--flag=1"])


def test_train_and_eval_are_main(called):
    assert called("train", "--config=quickstart") == ("dlv3p_jax.main", ["--config=quickstart"])
    assert called("eval", "--workdir=run") == ("dlv3p_jax.main", ["--mode=eval", "--workdir=run"])


def test_version_and_verbs_are_told(called, capsys):
    assert called("--version") is None and capsys.readouterr().out == f"dlv3p_jax {dlv3p_jax.__version__}\n"
    assert called() is None and "predict" in capsys.readouterr().out


def test_a_verb_that_is_not_there_is_told_with_the_nearest(called):
    with pytest.raises(SystemExit, match="predict"):
        called("predit")


def test_a_verb_answers_as_its_module_does():
    said = [
        subprocess.run([sys.executable, "-m", *words, "--nope"], cwd=ROOT, capture_output=True, text=True)
        for words in (["dlv3p_jax", "report"], ["dlv3p_jax.report"])
    ]
    assert said[0].returncode == said[1].returncode == 1
    assert said[0].stderr == said[1].stderr != ""

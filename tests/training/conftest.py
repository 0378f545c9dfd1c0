"""Runs that several files go on with."""

import shutil

import pytest
import scored
import tiny

from dlv3p_jax.training import loop


@pytest.fixture
def scores(monkeypatch):
    """The table of `scored.patch_scores`, to be filled in."""
    return scored.patch_scores(monkeypatch, {})


@pytest.fixture(scope="session")
def never_killed(data_dir, tmp_path_factory):
    """The workdir of a run of 6 steps that was left alone; step 4 had scored most. Not to be changed."""
    workdir = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        scored.patch_scores(patch, {2: 0.9, 4: 0.95, 6: 0.2})
        loop.train_and_evaluate(tiny.make_config(data_dir, log_every_steps=1), workdir)
    return workdir


@pytest.fixture(scope="session")
def killed_once(data_dir, tmp_path_factory):
    """The workdir of such a run that was killed while it evaluated step 4; step 2 had scored 0.9. Take `killed`."""
    workdir = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(scored.Killed):
        scored.patch_scores(patch, {2: 0.9, 4: None})
        loop.train_and_evaluate(tiny.make_config(data_dir, log_every_steps=1), workdir)
    return workdir


@pytest.fixture
def killed(killed_once, tmp_path):
    return shutil.copytree(killed_once, tmp_path / "run")

"""One run at a time in a workdir, and none that keeps it from beyond its end."""

import errno
import fcntl
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest
import tiny

from dlv3p_jax import models
from dlv3p_jax.evaluation import evaluator
from dlv3p_jax.runtime import workdir_lock
from dlv3p_jax.training import loop
from dlv3p_jax.weights import checkpoint_reading

HOLDER = """
import sys, time
from dlv3p_jax.runtime import workdir_lock
with workdir_lock.hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_while_the_first_lives_and_a_kill_lets_it_in(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "build_model", tiny.build_model)
    config = tiny.make_config(data_dir, num_train_steps=2)
    loop.train_and_evaluate(config, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    try:
        assert holder.stdout.readline() == "held\n"
        who = f"process {holder.pid} on {socket.gethostname()}"
        with pytest.raises(workdir_lock.WorkdirInUse, match=f"{tmp_path} is in use by another run .{who}.: wait for"):
            loop.train_and_evaluate(config, tmp_path)
        assert sorted(tmp_path.rglob("*")) == before
        evaluator.evaluate_checkpoint(config, tmp_path)  # it may be looked at
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    loop.train_and_evaluate(config, tmp_path)
    assert checkpoint_reading.find(tmp_path).name == "2"


def test_an_error_frees_the_workdir_too(tmp_path):
    with pytest.raises(KeyError), workdir_lock.hold(tmp_path):
        with pytest.raises(workdir_lock.WorkdirInUse, match=f"process {os.getpid()} on"), workdir_lock.hold(tmp_path):
            pass
        raise KeyError
    with workdir_lock.hold(tmp_path):
        pass


def test_where_there_are_no_locks_a_warning_says_so(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    for workdir in (tmp_path, "gs://bucket/run"):
        caplog.clear()
        with workdir_lock.hold(workdir):
            assert f"{workdir} cannot be locked" in caplog.text

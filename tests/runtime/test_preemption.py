"""SIGTERM: runs that are told to leave, save, and end as runs that were left alone."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import several
import tiny
from flax.traverse_util import flatten_dict

from dlv3p_jax import models
from dlv3p_jax.runtime import preemption
from dlv3p_jax.training import loop
from dlv3p_jax.weights import checkpoint_reading

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

BUSY = """
import hashlib
from dlv3p_jax.runtime import ending, preemption
preemption.Preemption().install(ending.leave)
print("ready", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # as a compilation: Python runs no handler until it is over
"""


def test_a_process_that_has_nothing_to_lose_leaves_at_once():
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    try:
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == preemption.EXIT_CODE == 75
    assert errors == "main: SIGTERM: nothing was done yet that could be lost; the same command goes on\n"


def test_a_process_leaves_where_nobody_reads_what_it_says():
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.stdout.close()
    process.stderr.close()  # as where the launcher was killed
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(timeout=20) == 75
    finally:
        process.kill()


def test_a_run_that_is_told_to_leave_saves_its_step_and_exits_with_75(data_dir, tmp_path):
    never = dict.fromkeys(("num_train_steps", "eval_every_steps", "checkpoint_every_steps"), 10**6)
    process = tiny.start_main(tmp_path, data_dir, log_every_steps=1, **never)
    try:
        lines = []
        while " 3/1000000 " not in "".join(lines):
            lines.append(process.stdout.readline())
            assert lines[-1], "".join(lines)
        for _ in range(20):  # more than one is as one
            process.send_signal(signal.SIGTERM)
            time.sleep(0.01)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75, output
    step = int(re.search(r"main: told to leave; step (\d+) is saved in .*latest/\1, and the same command", output)[1])
    assert step >= 3 and checkpoint_reading.read_meta(checkpoint_reading.find(tmp_path))["step"] == step
    assert output.count("SIGTERM") == 1 and "Traceback" not in output


def run(config, workdir, monkeypatch, answers=None):
    """Trains with the tiny network; leaves at the `answers`-th time that it asks whether to."""
    monkeypatch.setattr(models, "build_model", tiny.build_model)
    loop.train_and_evaluate(config, workdir, tiny.Told(answers))


def assert_same_end(workdir, expected):
    for folder in ("latest", "best"):
        trees = [
            flatten_dict(
                checkpoint_reading.read_variables(checkpoint_reading.find(path / "checkpoints" / folder)), sep="/"
            )
            for path in (workdir, expected)
        ]
        jax.tree.map(np.testing.assert_array_equal, *trees)
    reports = [{file.name: json.loads(file.read_text()) for file in (path / "eval").glob("*.json")}
               for path in (workdir, expected)]  # fmt: skip
    for report in (*reports[0].values(), *reports[1].values()):
        del report["seconds"], report["checkpoint"], report["date"], report["git_revision"], report["seal"]
    assert reports[0] == reports[1]


def test_leaving_between_steps_and_in_evaluations_changes_nothing(data_dir, tmp_path, monkeypatch):
    """Every fifth time that it is asked, the run leaves: also in the evaluations, which are of three batches."""
    config = tiny.make_config(data_dir, checkpoint_every_steps=4, eval_every_steps=3, num_train_steps=7)
    run(config, tmp_path / "whole", monkeypatch)
    where = []
    while len(where) < 20:
        try:
            run(config, tmp_path / "parts", monkeypatch, answers=5)
            break
        except preemption.Preempted as told:
            where.append(int(re.search(r"step (\d+) is saved in .*latest/\1, ", str(told))[1]))
    assert where == [3, 4, 6, 7]  # in the evaluation of 3, between 4 and 5, in those of 6 and 7
    assert_same_end(tmp_path / "parts", tmp_path / "whole")


SLOW_EVALUATION = """
import hashlib
from dlv3p_jax.evaluation import step
original = step.make_eval_step
def make_eval_step(*arguments):
    step = original(*arguments)
    def slow(*arguments):
        print("compiling the evaluation", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # Python runs no handler until it is over
        return step(*arguments)
    return slow
step.make_eval_step = make_eval_step
"""


def read_until(process, text):
    """The output of a process, line by line, as far as a line with `text`."""
    lines = []
    while text not in "".join(lines[-1:]):
        lines.append(process.stdout.readline())
        assert lines[-1], "".join(lines)
    return "".join(lines)


def two_arguments(data_dir, workdir, **changes):
    settings = tiny.SETTINGS | {"data_dir": data_dir, "mesh.data": -1, "checkpoint_every_steps": 10**6} | changes
    return [
        ["--config=configs/common.py", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in settings.items())]
    ] * 2


def test_two_processes_leave_at_one_step_whichever_is_told(data_dir, tmp_path):
    arguments = two_arguments(
        data_dir, tmp_path, num_train_steps=10**6, eval_every_steps=10**6, log_every_steps=1, learning_rate=1e-6
    )
    processes = several.start(tiny.MAIN, arguments)
    before = read_until(processes[0], " 5/1000000 ")
    processes[1].send_signal(signal.SIGTERM)
    found = several.end(processes)
    assert [code for code, _ in found] == [75, 75], found
    step = int(re.search(r"main: told to leave; step (\d+) is saved in .*latest/\1, and the same", found[0][1])[1])
    assert step >= 5 and checkpoint_reading.read_meta(checkpoint_reading.find(tmp_path))["step"] == step
    assert "SIGTERM" in found[1][1] and "Traceback" not in before + found[0][1] + found[1][1]


def test_two_processes_leave_at_once_while_they_compile_an_evaluation_and_its_step_is_saved(data_dir, tmp_path):
    processes = several.start(SLOW_EVALUATION + tiny.MAIN, two_arguments(data_dir, tmp_path))
    output = read_until(processes[0], "compiling the evaluation")
    begin = time.monotonic()
    processes[1].send_signal(signal.SIGTERM)
    found = several.end(processes, seconds=60)  # the evaluation takes minutes
    print(f"left {time.monotonic() - begin:.1f} s after SIGTERM")
    assert [code for code, _ in found] == [75, 75], output + str(found)
    assert re.search(r"main: SIGTERM: step 2 is saved in .*latest/2, and the same command goes on", found[1][1])
    assert checkpoint_reading.read_meta(checkpoint_reading.find(tmp_path))["step"] == 2


def test_leaving_before_the_first_step_saves_nothing(data_dir, tmp_path, monkeypatch):
    with pytest.raises(preemption.Preempted, match="before the first step; the same command begins"):
        run(tiny.make_config(data_dir), tmp_path, monkeypatch, answers=1)
    assert not list((tmp_path / "checkpoints" / "latest").iterdir())


def test_a_run_that_begins_with_an_evaluation_has_something_to_lose_after_it():
    """It goes on at an evaluated step, and asks for the first time between two batches of that evaluation."""
    before, left = signal.getsignal(signal.SIGTERM), []
    told = preemption.Preemption()
    told.install(lambda code, line: left.append(line))
    try:
        with told.nothing_to_lose(lambda: "step 2 is saved"):
            assert not told.reached()
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 20
        while not told.reached():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.5)  # the thread that lets it leave at once looks again meanwhile
        assert left == []
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, before)

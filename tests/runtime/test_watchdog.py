"""A process that hangs is ended; one that is slow where it may be is not."""

import json
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import several
import tiny

from dlv3p_jax.runtime import starts

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

SCRIPT = """
import sys, time
from dlv3p_jax.runtime.watchdog import Watchdog
with Watchdog(0.4, compiling=1.5) as watchdog:
    time.sleep(0.8)  # compiling
    for _ in range(6):
        watchdog.feed()
        time.sleep(0.2)
    watchdog.feed(compiling=True)
    time.sleep(0.8)  # compiling once more
    print("works", flush=True)
    watchdog.feed()
    if sys.argv[1] == "hangs":
        time.sleep(30)
time.sleep(1)
print("ends", flush=True)
"""


@pytest.mark.parametrize("how", ["hangs", "ends"])
def test_only_what_hangs_is_ended_and_its_stack_shown(how):
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    if how == "ends":
        assert (found.returncode, found.stdout, found.stderr) == (0, "works\nends\n", "")
        return
    assert found.returncode == 75 and found.stdout == "works\n"
    assert 'File "<string>", line 14 in <module>' in found.stderr  # where it sleeps
    assert found.stderr.endswith(
        "main: no step for 0 s (--hang_timeout); above is where each thread hangs; the same command goes on from the "
        "newest checkpoint\n"
    )


STUCK = """
import time
from dlv3p_jax.data import pipeline
original = pipeline.train_batches
def train_batches(*arguments, **options):
    for number, batch in enumerate(original(*arguments, **options)):
        if number == 6:
            time.sleep(1000)
        yield batch
pipeline.train_batches = train_batches
"""


def test_a_process_that_hangs_ends_the_others_with_its_code(data_dir, tmp_path):
    settings = tiny.SETTINGS | {"data_dir": data_dir, "num_train_steps": 100, "mesh.data": -1}
    same = ["--config=configs/common.py", f"--workdir={tmp_path}", "--hang_timeout=4"]
    same += [f"--config.{key}={value}" for key, value in settings.items()]
    script = f"import sys\nif sys.argv.pop() == 'stuck':{textwrap.indent(STUCK, '    ')}\n{tiny.MAIN}"
    found = several.end(several.start(script, [[*same, "free"], [*same, "stuck"]]))
    assert [code for code, _ in found] == [75, 75], found
    outputs = [output for _, output in found]
    assert sum("main: no step for 4 s (--hang_timeout)" in output for output in outputs) >= 1
    assert "in train_batches" in outputs[1] or "ends with process 0 of 2: no step for 4 s" in outputs[1]
    assert json.loads((tmp_path / starts.NAME).read_text()) == {"newest": -1, "starts": 1, "away": []}


def test_a_run_that_gets_no_more_data_is_ended_though_its_evaluations_may_be_slow(data_dir, tmp_path):
    start = time.monotonic()
    found = tiny.run_main(tmp_path, data_dir, "--hang_timeout=10", before=STUCK, num_train_steps=100)
    assert found.returncode == 75 and time.monotonic() - start < 100
    assert json.loads((tmp_path / starts.NAME).read_text()) == {"newest": -1, "starts": 1, "away": []}
    assert "in train_batches" in found.stderr and "no step for 10 s" in found.stderr
    assert (tmp_path / "checkpoints" / "latest" / "2").is_dir()


SUSPENDED = """
import time
from dlv3p_jax.runtime.watchdog import Watchdog
with Watchdog(3) as watchdog:
    watchdog.feed()
    print("works", flush=True)
    for _ in range(20):
        time.sleep(0.2)
        watchdog.feed()
print("ends", flush=True)
"""


def test_time_in_which_the_process_was_suspended_does_not_count():
    process = subprocess.Popen([sys.executable, "-c", SUSPENDED], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "works\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(5)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "ends\n")


DEAF = """
import os, signal, time
from dlv3p_jax.runtime import ending, preemption, watchdog
watchdog.ANSWER_SECONDS = 1
told = preemption.Preemption()
told.install(ending.leave)
with watchdog.Watchdog(0, told):
    told.reached()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)  # a step that never ends
"""


def test_a_run_that_does_not_hear_sigterm_is_ended_whatever_its_timeout():
    found = subprocess.run([sys.executable, "-c", DEAF], cwd=REPOSITORY, capture_output=True, text=True, timeout=50)
    assert found.returncode == 75
    assert "line 10 in <module>" in found.stderr and "SIGTERM" in found.stderr.splitlines()[-1]


HELD = """
from dlv3p_jax.runtime import watchdog
watchdog.HELD_SECONDS = 2
with watchdog.Watchdog(0.5) as dog:
    print("works", flush=True)
    sum(range(10**12))  # minutes of native code that does not give the lock back
"""


def test_native_code_that_keeps_python_from_running_is_shown_and_ended():
    found = subprocess.run([sys.executable, "-c", HELD], cwd=REPOSITORY, capture_output=True, text=True, timeout=50)
    assert found.returncode == -signal.SIGKILL and found.stdout == "works\n"
    assert "line 6 in <module>" in found.stderr and "native code held Python's lock" in found.stderr

"""A process that hangs is ended; one that is slow where it may be is not."""

import os
import pathlib
import subprocess
import sys
import time

import pytest
import tiny

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

SCRIPT = """
import sys, time
from dlv3p_jax.watchdog import Watchdog
with Watchdog(0.4, slow=1.5) as watchdog:
    time.sleep(0.8)  # compiling
    for _ in range(6):
        watchdog.feed()
        time.sleep(0.2)
    watchdog.feed(slow=True)
    time.sleep(0.8)  # saving
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
        "main: no step for 0 s (--hang_timeout); above is where each thread hangs. The same command goes on from the "
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


def test_a_run_that_gets_no_more_data_is_ended_though_its_evaluations_may_be_slow(data_dir, tmp_path):
    settings = tiny.SETTINGS | {"data_dir": data_dir, "num_train_steps": 100}
    start = time.monotonic()
    found = subprocess.run(
        [
            *(sys.executable, "-c", STUCK + tiny.MAIN, "--config=configs/common.py", f"--workdir={tmp_path}"),
            *("--hang_timeout=2", *(f"--config.{key}={value}" for key, value in settings.items())),
        ],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": f"{REPOSITORY / 'tests'}:{REPOSITORY}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 75 and time.monotonic() - start < 100
    assert "in train_batches" in found.stderr and "no step for 2 s" in found.stderr
    assert (tmp_path / "checkpoints" / "latest" / "2").is_dir()

"""What the commands have in common beside their arguments."""

import os
import pathlib
import subprocess
import sys

import pytest

from dlv3p_jax.runtime import cli

# A run that ends where it begins.
MAIN = """
import os, sys
import jax
from absl import app
from dlv3p_jax.runtime import cli
from dlv3p_jax.training import loop
from dlv3p_jax import main

make_deterministic = cli.make_deterministic

def first_make_deterministic():
    assert not jax._src.xla_bridge.backends_are_initialized()  # which reads XLA_FLAGS
    make_deterministic()

def train_and_evaluate(*_):
    jax.devices()  # would not take a flag that XLA does not know
    print("flags:", os.environ["XLA_FLAGS"])

cli.make_deterministic = first_make_deterministic
loop.train_and_evaluate = train_and_evaluate
app.run(main.main, flags_parser=cli.make_flags_parser("main"))
"""


def test_deterministic_sets_xla_flags_before_the_devices_are_there(tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", MAIN, "--config=configs/quickstart.py", f"--workdir={tmp_path}", "--deterministic"],
        cwd=pathlib.Path(__file__).resolve().parents[2],
        env=os.environ | {"XLA_FLAGS": "--xla_gpu_deterministic_ops=false"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    flags = "--xla_gpu_deterministic_ops=false --xla_gpu_deterministic_ops=true"  # the last one counts
    assert process.stdout == f"flags: {flags}\n"
    assert "Deterministic: XLA_FLAGS has --xla_gpu_deterministic_ops=true" in process.stderr


def test_what_a_failed_save_leaves_behind_is_not_shown():
    """TensorStore tells a loop that was closed, as Orbax's is after an error, that a write has ended."""
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            """
import asyncio
import tensorstore
from dlv3p_jax.runtime import cli

cli.configure_logging()
promise, future = tensorstore.Promise.new()
loop = asyncio.new_event_loop()

async def wait():
    await future

task = loop.create_task(wait())
loop.run_until_complete(asyncio.sleep(0))
loop.close()
promise.set_result(1)

class Other:
    def __del__(self):
        raise RuntimeError("of another kind")

Other()
""",
        ],
        cwd=pathlib.Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Event loop is closed" not in found.stderr and "of another kind" in found.stderr


@pytest.mark.parametrize("words", [["32"], ["32", "0"], ["a", "b"], ["1", "2", "3"]])
def test_sizes_that_are_none_are_refused(words):
    assert cli.parse_size("unit", ["32", "64"]) == (32, 64)
    with pytest.raises(ValueError, match=f"--unit={','.join(words)}: give whole numbers, HEIGHT,WIDTH"):
        cli.parse_size("unit", words)


@pytest.mark.parametrize("words", [[], ["x"], ["0"], ["1", "-1"], ["inf"], ["nan"]])
def test_scales_that_are_none_are_refused(words):
    assert cli.parse_scales(["0.5", "1"]) == (0.5, 1)
    with pytest.raises(ValueError, match=f"--scales={','.join(words)}: give positive numbers"):
        cli.parse_scales(words)


def test_ctrl_c_ends_a_command_in_a_line():
    code = """
import os, signal
from dlv3p_jax.runtime import cli
cli.run(lambda argv: os.kill(os.getpid(), signal.SIGINT), "report")
"""
    options = {"cwd": pathlib.Path(__file__).resolve().parents[2], "capture_output": True, "text": True}
    process = subprocess.run([sys.executable, "-c", code], timeout=60, **options)
    assert (process.returncode, process.stderr) == (130, "\nreport: interrupted\n")

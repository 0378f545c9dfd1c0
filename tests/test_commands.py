"""Flags of the commands that take a --config: None, keys given twice, and wrong ones."""

import os
import pathlib
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from dlv3p_jax import commands


@pytest.fixture
def parse(monkeypatch):
    """Parses a command's arguments; gives the configuration."""
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    config = config_flags.DEFINE_config_file("config", flag_values=values)

    def parse(*arguments):
        argv = ["command", "--config=configs/common.py", *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        commands.make_flags_parser("command")(argv)
        return config.value

    return parse


def test_none_unsets_every_key_that_is_none_by_default(parse):
    config = parse("--config.pretrained=None", "--config.num_classes=None", "--config.eval.window=None")
    assert config.pretrained is None and config.num_classes is None and config.eval.window is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.batch_size=None"], "command: flag --config.batch_size=None"),
        (["--config.batchsize=4"], "command: the config has no key"),
        (["--config.eval.scales=(1.0,)", "--config.eval.scales=(0.5,)"], "--config.eval.scales is given twice"),
        (["--config.eval.scales", "(1.0,)", "--config.eval.scales=(0.5,)"], "--config.eval.scales is given twice"),
    ],
)
def test_wrong_keys_end_in_a_line(parse, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        parse(*arguments)
    assert message in str(stopped.value) and str(stopped.value).count("\n") == 0


# A run that ends where it begins.
MAIN = """
import os, sys
import jax
from absl import app
from dlv3p_jax import commands, main, train

make_deterministic = commands.make_deterministic

def first_make_deterministic():
    assert not jax._src.xla_bridge.backends_are_initialized()  # which reads XLA_FLAGS
    make_deterministic()

def train_and_evaluate(*_):
    jax.devices()  # would not take a flag that XLA does not know
    print("flags:", os.environ["XLA_FLAGS"])

commands.make_deterministic = first_make_deterministic
train.train_and_evaluate = train_and_evaluate
app.run(main.main, flags_parser=commands.make_flags_parser("main"))
"""


def test_deterministic_sets_xla_flags_before_the_devices_are_there(tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", MAIN, "--config=configs/quickstart.py", f"--workdir={tmp_path}", "--deterministic"],
        cwd=pathlib.Path(__file__).resolve().parents[1],
        env=os.environ | {"XLA_FLAGS": "--xla_gpu_deterministic_ops=false"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    flags = "--xla_gpu_deterministic_ops=false --xla_gpu_deterministic_ops=true"  # the last one counts
    assert process.stdout == f"flags: {flags}\n"
    assert "Deterministic: XLA_FLAGS has --xla_gpu_deterministic_ops=true" in process.stderr

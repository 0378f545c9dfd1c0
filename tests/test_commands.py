"""Flags of the commands that take a --config: None, keys given twice, and wrong ones."""

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

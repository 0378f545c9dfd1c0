"""Evaluation of made pictures of many sizes, by a network of two convolutions."""

import pytest
import tiny

from benchmarks import many_sizes
from dlv3p_jax import models
from dlv3p_jax.configs import common


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setattr(models, "build_model", tiny.build_model)
    config = common.get_config()
    config.num_classes, config.eval.buckets = 3, 2
    return config


@pytest.mark.parametrize(
    ("way", "programs", "padding"),
    [("each size its own program", 6, 1.0), ("shared programs", 2, 0.6), ("one size", 1, 0)],
)
def test_every_way_is_measured(config, way, programs, padding):
    found = many_sizes.measure(config, way, 6)
    assert found["programs"] == programs and found["padding"] <= padding
    assert found["cold"] > 0 and found["MiB"] > 0


def test_warm_programs_take_turns(config):
    found = many_sizes.measure_warm(config, 6)
    assert found.keys() == {"shared programs", "one size"} and min(found.values()) > 0

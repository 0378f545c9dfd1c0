"""Names and axes of MMSegmentation's parameters."""

import runpy

import jax
import numpy as np
import pytest

from configs import common
from dlv3p_jax.models import build_model
from dlv3p_jax.weights import mmseg


@pytest.fixture(scope="module")
def make_state(shared):
    """Arrays by MMSegmentation's names, of one of its models: r50-d8_c19 for one."""
    make = runpy.run_path(str(shared / "parity" / "mmseg" / "weights.py"))["make_state"]
    return lambda name: make(shared / "parity" / "mmseg" / f"deeplabv3plus_{name}.json")


def paddle_like():
    config = common.get_config()
    config.num_classes = 19
    return build_model(config)


def flat(variables):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(variables)
    }


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_backbone_alone_is_taken_whole_under_either_name(make_state, prefix):
    state = {name: value for name, value in make_state("r50-d8_c19").items() if name.startswith("backbone.")}
    classifier = {"fc.weight": np.ones((1000, 2048), np.float32), "head.fc.bias": np.ones(1000, np.float32)}
    given = {prefix + name.removeprefix("backbone."): value for name, value in state.items()} | classifier
    variables, dropped = mmseg.convert_backbone(given, paddle_like())
    assert dropped == list(classifier)
    leaves = flat(variables)
    assert len(leaves) == len([name for name in state if not name.endswith("num_batches_tracked")])
    for path, name in {
        "params/backbone/stem_conv2/conv/kernel": "stem.3.weight",
        "params/backbone/stage3_block2/conv2/conv/kernel": "layer3.1.conv2.weight",
        "params/backbone/stage1_block1/shortcut/conv/kernel": "layer1.0.downsample.0.weight",
    }.items():
        np.testing.assert_array_equal(leaves[path], np.einsum("oihw->hwio", state[f"backbone.{name}"]))
    for leaf, name in {
        "params/{}/scale": "weight",
        "params/{}/bias": "bias",
        "batch_stats/{}/mean": "running_mean",
        "batch_stats/{}/var": "running_var",
    }.items():
        ours = leaves[leaf.format("backbone/stage4_block1/shortcut/batch_norm")]
        np.testing.assert_array_equal(ours, state[f"backbone.layer4.0.downsample.1.{name}"])


def test_a_network_that_mmsegmentation_does_not_have_is_refused(make_state):
    with pytest.raises(mmseg.ConversionError, match="no name for .*params/aspp/branch1/conv/bias"):
        mmseg.convert(make_state("r50-d8_c19"), paddle_like())

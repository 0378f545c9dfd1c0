"""The network as MMSegmentation has it, against numbers recorded from it, see ../shared/parity/mmseg/README.md."""

import runpy

import equivalence
import jax
import numpy as np
import pytest

from dlv3p_jax.configs import common
from dlv3p_jax.models import build_model
from dlv3p_jax.models.tiles import Tiled
from dlv3p_jax.weights import mmseg

FAMILY = {
    "avg_down": False,
    "stage1_shortcut": False,
    "contract_dilation": True,
    "multi_grid": (1, 1, 1),
    "dilate_second": False,
    "aspp_pooling_first": True,
    "aspp_projection_size": 3,
    "aspp_channels": 512,
    "decoder_channels": 512,
    "head_bias": False,
    "head_depthwise_relu": True,
}
R18 = {
    "backbone": "resnet18_vd",
    "multi_grid": (1, 1),
    "aspp_channels": 128,
    "decoder_channels": 128,
    "low_level_channels": 12,
}
R101 = {"output_stride": 16, "multi_grid": (1, 2, 4), "multi_grid_kind": "dilations", "aspp_rates": (1, 6, 12, 18)}
FORWARD = {  # recording: names and shapes of its weights, what differs from `FAMILY`
    "r50": ("r50-d8_c19", {}),
    "r18_odd": ("r18-d8_c19", R18),
    "r18b": ("r18b-d8_c19", R18 | {"stem": "plain"}),
    "r101_d16_mg124": ("r101-d16-mg124_c19", R101 | {"backbone": "resnet101_vd"}),
    "r18_align": ("r18-d8_c19", R18 | {"align_corners": True}),
}


def make_model(**changes):
    config = common.get_config()
    config.num_classes = 19
    config.model.update(FAMILY | changes)
    return build_model(config)


@pytest.mark.parametrize("name", FORWARD)
def test_float32_logits(shared, name):
    folder = shared / "parity" / "mmseg"
    weights, changes = FORWARD[name]
    state = runpy.run_path(str(folder / "weights.py"))["make_state"](str(folder / f"deeplabv3plus_{weights}.json"))
    model = make_model(**changes)
    recorded = {
        key: equivalence.last(value) for key, value in equivalence.recorded(shared, f"mmseg/forward_{name}").items()
    }
    expected = recorded["logits"]
    logits = jax.jit(lambda variables, images: model.apply(variables, images, train=False))(
        mmseg.convert(state, model), recorded["x"]
    )
    assert np.abs(logits - expected).max() <= 1e-4 * expected.std()
    assert np.mean(np.argmax(logits, -1) == np.argmax(expected, -1)) >= 0.9999


@pytest.mark.parametrize(
    ("changes", "cuts"),
    [
        ({}, [0, 0, 1, 2]),
        ({"multi_grid_kind": "dilations", "multi_grid": (1, 2, 4)}, [0, 0, 1, 2]),
        (R18, [0, 0, 0, 0]),
        (R18 | {"dilate_second": True}, [0, 0, 1, 2]),
    ],
)
def test_blocks_run_on_as_many_sub_images_as_their_dilations_let_them(changes, cuts):
    backbone = make_model(**changes).backbone
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    features, _ = jax.eval_shape(
        lambda images: backbone.init_with_output(jax.random.key(0), Tiled(images), train=False), images
    )
    assert [x.cuts for x in features] == cuts

"""A small real network with weights that a generator draws: compiling the initialisation of one would take long."""

import jax
import jax.numpy as jnp
import numpy as np

from dlv3p_jax.configs import common
from dlv3p_jax.configs import mmseg as recipes
from dlv3p_jax.models import Variables, build_model, variable_shapes
from dlv3p_jax.models.aspp import ASPP
from dlv3p_jax.models.auxiliary import AuxiliaryHead
from dlv3p_jax.models.decoder import Decoder
from dlv3p_jax.models.deeplabv3plus import DeepLabV3Plus
from dlv3p_jax.models.resnet import ResNet
from dlv3p_jax.runtime import configuration
from dlv3p_jax.training import steps
from dlv3p_jax.weights import checkpoints

NETWORK = {
    "model.backbone": "resnet18_vd",
    "model.output_stride": 16,
    "model.multi_grid": (1, 1),
    "model.aspp_rates": (1, 2),
    "model.aspp_channels": 32,
}
SETTINGS = NETWORK | {
    "dataset": "cityscapes",
    "crop_size": (32, 32),
    "batch_size": 2,
    "eval.batch_size": 2,
    "mesh.data": 1,
}


def make_config(changes=(), num_classes=19):
    config = common.get_config()
    config.update_from_flattened_dict(SETTINGS | {"num_classes": num_classes} | dict(changes))
    return config


def make_network(
    num_classes=3,
    blocks=(1, 1, 1, 1),
    bottleneck=False,
    output_stride=8,
    multi_grid=(2,),
    channels=8,
    rates=(1, 12, 24, 36),
    dropout=0.0,
    align_corners=False,
    dtype=jnp.float32,
    mmseg=None,
) -> DeepLabV3Plus:
    """A real network with fewer blocks and channels than any that has a name.

    `mmseg` is the stem of one of MMSegmentation's family, "deep" or "plain".
    """
    backbone, aspp, decoder, whole = {}, {}, {}, {}
    if mmseg is not None:
        backbone = {"stem": mmseg, "contract_dilation": True}
        backbone |= dict.fromkeys(("avg_down", "dilate_second", "stage1_shortcut"), False)
        decoder = {"use_bias": False, "depthwise_relu": True}
        aspp = decoder | {"pooling_first": True, "projection_size": 3}
        whole = {"mean": recipes.NETWORK["mean"], "std": recipes.NETWORK["std"]}
        whole["auxiliary_head"] = AuxiliaryHead(num_classes, dropout, dtype)
    return DeepLabV3Plus(
        ResNet(blocks, bottleneck, output_stride, multi_grid, dtype=dtype, **backbone),
        ASPP(channels, rates, dropout, dtype=dtype, **aspp),
        Decoder(num_classes, align_corners=align_corners, dtype=dtype, **decoder),
        align_corners=align_corners,
        **whole,
    )


def draw_variables(config) -> Variables:
    return draw_variables_of(build_model(config))


def draw_variables_of(model) -> Variables:
    """Kernels of the scale that keeps activations as they are, normalisations that change nothing."""
    rng = np.random.default_rng(0)

    def value(path, leaf):
        if path[-1].key == "kernel":
            return np.float32(rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape))
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)

    return jax.tree.map_with_path(value, variable_shapes(model))


def save_checkpoint(folder, config, meta=None) -> None:
    """Saves drawn variables as training saves its best, with config.json."""
    state = steps.create_train_state(config, draw_variables(config))
    with checkpoints.Checkpoints(folder, meta=meta) as saved:
        saved.save_best(state, 0.5)
    configuration.write(config, folder / "config.json")


def draw_picture(rng, height, width) -> np.ndarray:
    """Rectangles of colour and noise, uint8 [H, W, 3]."""
    blocks = np.kron(rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3)), np.ones((8, 8, 1)))[:height, :width]
    return np.clip(blocks + rng.normal(0, 20, blocks.shape), 0, 255).astype(np.uint8)

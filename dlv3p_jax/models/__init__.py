"""DeepLabV3+ on dilated ResNet-vd backbones."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dlv3p_jax.models.aspp import ASPP
from dlv3p_jax.models.auxiliary import AuxiliaryHead
from dlv3p_jax.models.decoder import Decoder
from dlv3p_jax.models.deeplabv3plus import DeepLabV3Plus
from dlv3p_jax.models.resnet import BASIC_BLOCKS, BLOCKS, ResNet
from dlv3p_jax.runtime import sharding

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

_CHOICES = {
    "stem": ("deep", "plain"),
    "multi_grid_kind": ("factors", "dilations"),
    "aspp_projection_size": (1, 3),
}

MOST_CLASSES = 256
Variables = dict[str, Any]  # {'params': …, 'batch_stats': …}


def build_model(config) -> DeepLabV3Plus:
    """The network that a configuration describes.

        model = build_model(config)
        variables = model.init(rng, images, train=False)         # {'params': ..., 'batch_stats': ...}
        logits = model.apply(variables, images, train=False)     # float32 [B, H, W, num_classes]

    Args:
        config: an `ml_collections.ConfigDict` like that of `configs/common.py`; `num_classes`, `freeze_backbone` and
            `model` are read.

    Returns:
        A linen module that maps float32 images [B, H, W, 3] (normalised, any size) to logits.

    Raises:
        ValueError: a key has a value that the network cannot have; the message names both.
    """
    model = config.model
    if model.backbone not in BLOCKS:
        raise ValueError(f"model.backbone={model.backbone!r} is unknown: choose from {', '.join(BLOCKS)}")
    if not _is_integer(config.num_classes, 2):
        raise ValueError(f"num_classes={config.num_classes!r}: set the number of classes of the data, 2 or more")
    if config.num_classes > MOST_CLASSES:
        raise ValueError(f"num_classes={config.num_classes}: labels have 8 bits, for {MOST_CLASSES} classes at most")
    if model.output_stride not in (8, 16):
        raise ValueError(f"model.output_stride={model.output_stride!r}: it can be 8 or 16")
    blocks = BLOCKS[model.backbone]
    _check_positive_integers("model.multi_grid", model.multi_grid)
    if len(model.multi_grid) != blocks[-1]:
        raise ValueError(
            f"model.multi_grid={tuple(model.multi_grid)} has {len(model.multi_grid)} entries: {model.backbone} needs "
            f"{blocks[-1]}, one for each block of its last stage"
        )
    _check_positive_integers("model.aspp_rates", model.aspp_rates)
    for key in ("aspp_channels", "decoder_channels", "low_level_channels"):
        if not _is_integer(model[key], 1):
            raise ValueError(f"model.{key}={model[key]!r}: it has to be a positive integer")
    for key, values in _CHOICES.items():
        if model[key] not in values:
            raise ValueError(f"model.{key}={model[key]!r} is unknown: choose from {', '.join(map(str, values))}")
    for key, least in (("mean", 0), ("std", 1e-3)):
        if len(model[key]) != 3 or not all(least <= value <= 255 for value in model[key]):
            raise ValueError(f"model.{key}={model[key]!r}: give one for each of R, G and B, of colours of 0 to 255")
    if not 0 <= model.dropout < 1:
        raise ValueError(f"model.dropout={model.dropout!r}: it has to be at least 0 and less than 1")
    if model.dtype not in ("auto", *_DTYPES):
        raise ValueError(f"model.dtype={model.dtype!r} is unknown: choose from auto, {', '.join(_DTYPES)}")
    dtype = _DTYPES[sharding.dtype(model.dtype)]
    return DeepLabV3Plus(
        ResNet(
            blocks=blocks,
            bottleneck=model.backbone not in BASIC_BLOCKS,
            output_stride=model.output_stride,
            multi_grid=tuple(model.multi_grid),
            multi_grid_kind=model.multi_grid_kind,
            stem=model.stem,
            avg_down=model.avg_down,
            dilate_second=model.dilate_second,
            stage1_shortcut=model.stage1_shortcut,
            contract_dilation=model.contract_dilation,
            remat=model.remat,
            dtype=dtype,
        ),
        ASPP(
            channels=model.aspp_channels,
            rates=tuple(model.aspp_rates),
            dropout=model.dropout,
            pooling_first=model.aspp_pooling_first,
            projection_size=model.aspp_projection_size,
            use_bias=model.head_bias,
            depthwise_relu=model.head_depthwise_relu,
            dtype=dtype,
        ),
        Decoder(
            config.num_classes,
            low_level_channels=model.low_level_channels,
            channels=model.decoder_channels,
            use_bias=model.head_bias,
            depthwise_relu=model.head_depthwise_relu,
            align_corners=model.align_corners,
            dtype=dtype,
        ),
        mean=tuple(model.mean),
        std=tuple(model.std),
        align_corners=model.align_corners,
        freeze_backbone=config.freeze_backbone,
        auxiliary_head=AuxiliaryHead(config.num_classes, model.dropout, dtype) if model.auxiliary_head else None,
    )


def variable_shapes(model: nn.Module) -> Variables:
    """The shapes and types of a module's variables, as `jax.ShapeDtypeStruct`s; the size of pictures changes none."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)


def _is_integer(value, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def _check_positive_integers(key: str, values) -> None:
    if not isinstance(values, (tuple, list)) or not values or not all(_is_integer(value, 1) for value in values):
        raise ValueError(f"{key}={values!r}: it has to be a tuple of positive integers")

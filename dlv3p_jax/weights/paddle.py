"""PaddleSeg's DeepLabV3P parameters and ours: the same numbers under other names, with other axes.

state = revert(variables, model)       # {PaddleSeg's name: float32 NumPy array}, in PaddleSeg's order
variables = convert(state, model)      # the same bits again
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dlv3p_jax.models.deeplabv3plus import DeepLabV3Plus
from dlv3p_jax.models.resnet import BLOCKS
from dlv3p_jax.weights import renamed
from dlv3p_jax.weights.pdparams import NAME_TABLE
from dlv3p_jax.weights.renamed import ConversionError

# Leaves of a convolution with its BatchNorm, in PaddleSeg's order. A layer without one of them skips it.
_CONV_BN_LEAVES = (
    ("params/{}/conv/kernel", "{}._conv.weight"),
    ("params/{}/conv/bias", "{}._conv.bias"),
    ("params/{}/batch_norm/scale", "{}._batch_norm.weight"),
    ("params/{}/batch_norm/bias", "{}._batch_norm.bias"),
    ("batch_stats/{}/batch_norm/mean", "{}._batch_norm._mean"),
    ("batch_stats/{}/batch_norm/var", "{}._batch_norm._variance"),
)
_CLASSIFIER_LEAVES = (
    ("params/decoder/classifier/kernel", "head.decoder.conv.weight"),
    ("params/decoder/classifier/bias", "head.decoder.conv.bias"),
)
# What shows in none of its arrays, as keys of `config.model`.
NETWORK = {"avg_down": True, "aspp_pooling_first": False, "head_depthwise_relu": False}
_BLOCK_LAYERS = (("conv1", "conv0"), ("conv2", "conv1"), ("conv3", "conv2"), ("shortcut", "short"))
_WHAT = "the model; compare model.backbone, num_classes and model.aspp_rates"
_SEPARABLE_LAYERS = (("depthwise", "depthwise_conv"), ("pointwise", "piontwise_conv"))  # spelt like this


def is_backbone(state: Mapping[str, np.ndarray]) -> bool:
    """Whether `state` is a backbone alone, such as ImageNet weights, and no whole DeepLabV3P."""
    return not any(name.startswith(("head.", "backbone.")) for name in state)


def num_classes_of(state: Mapping[str, np.ndarray]) -> int | None:
    """The number of classes of a whole model, None where `state` holds no classifier."""
    bias = state.get("head.decoder.conv.bias")
    return None if bias is None or bias.ndim != 1 else len(bias)


def describe(state: Mapping[str, np.ndarray], path: str | os.PathLike) -> dict[str, Any]:
    """What the arrays of a whole model say of its network, as keys of a configuration.

    That is `num_classes`, `model.backbone` and `model.aspp_channels`. Output stride, dilations and `align_corners`
    leave no trace in them; `model.multi_grid` is (1, 2, 4), as in PaddleSeg's recipes, and (1, 1) for
    ResNet-18, of which there is none.

    Args:
        state: PaddleSeg's names and arrays.
        path: of their file, for messages.

    Raises:
        ConversionError: there is no such backbone here, or no classifier.
    """
    bottleneck = "backbone.bb_0_0.conv2._conv.weight" in state
    backbone, blocks = renamed.backbone_of(state, r"backbone\.bb_(\d+)_\d+\.conv0\._conv\.weight", bottleneck)
    projection = state.get("head.aspp.conv_bn_relu._conv.bias")
    num_classes = num_classes_of(state)
    if backbone is None or projection is None or num_classes is None:
        raise ConversionError(
            f"{path}: its arrays are not those of a DeepLabV3P with a ResNet-vd of {', '.join(BLOCKS)}: it has "
            f"{blocks} blocks and {len(state)} arrays"
        )
    return {
        "num_classes": num_classes,
        "model.backbone": backbone,
        "model.aspp_channels": len(projection),
        "model.multi_grid": (1, 2, 4) if BLOCKS[backbone][-1] == 3 else (1, 1),
    }


def convert(state: Mapping[str, np.ndarray], model: DeepLabV3Plus) -> dict:
    """Turns the parameters of a whole PaddleSeg model into ours.

    Args:
        state: PaddleSeg's names and arrays, as `load_pdparams` gives them; convolutions are
            [out, in / groups, height, width].
        model: what `build_model` returned.

    Returns:
        {'params': ..., 'batch_stats': ...} of float32 arrays, for `model.apply`.

    Raises:
        ConversionError: a name is missing or unexpected, or an array has another shape; all are listed.
    """
    return renamed.to_ours(_without_table(state), _expected(model), _WHAT)


def convert_backbone(state: Mapping[str, np.ndarray], model: DeepLabV3Plus) -> tuple[dict, list[str]]:
    """Turns PaddleSeg's parameters of a backbone alone into those of our backbone.

    Args:
        state: names without `backbone.`. Fully connected layers are the classifier that the backbone was trained with,
            and are left out.
        model: what `build_model` returned.

    Returns:
        {'params': {'backbone': ...}, 'batch_stats': {'backbone': ...}}, and the names that were left out.

    Raises:
        ConversionError: as `convert`.
    """
    dense = {name.removesuffix(".weight") for name, value in state.items() if np.ndim(value) == 2}
    dropped = [name for name in state if name.rpartition(".")[0] in dense]
    expected = renamed.below("backbone.", _expected(model))
    kept = {name: value for name, value in _without_table(state).items() if name not in dropped}
    return renamed.to_ours(kept, expected, _WHAT), dropped


def _without_table(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value for name, value in state.items() if name != NAME_TABLE}


def revert(variables: Mapping, model: DeepLabV3Plus) -> dict[str, np.ndarray]:
    """Turns our parameters into PaddleSeg's.

    Args:
        variables: {'params': ..., 'batch_stats': ...} of `model`.
        model: what `build_model` returned.

    Returns:
        PaddleSeg's names, in the order of its `state_dict`, with float32 arrays.

    Raises:
        ConversionError: PaddleSeg has no such network, or `variables` are not those of `model`; every name is listed.
    """
    if other := renamed.other_function(model, NETWORK):
        raise ConversionError(f"PaddleSeg has no such network: its own has {other}")
    return renamed.to_theirs(variables, _expected(model), _WHAT)


def _expected(model: DeepLabV3Plus) -> renamed.Names:
    """PaddleSeg's names in PaddleSeg's order."""
    pairs = [
        (path.format(ours), name.format(theirs))
        for ours, theirs in _conv_bn_layers(model)
        for path, name in _CONV_BN_LEAVES
    ]
    model = model.clone(auxiliary_head=None)  # which PaddleSeg's has not
    return renamed.names_of(model, [*pairs, *_CLASSIFIER_LEAVES])


def _conv_bn_layers(model: DeepLabV3Plus) -> Iterator[tuple[str, str]]:
    """(our path, PaddleSeg's prefix) of the layers that networks like `model` can have, in PaddleSeg's order."""
    for layer in (1, 2, 3):
        yield f"backbone/stem_conv{layer}", f"backbone.conv1_{layer}"
    for stage, blocks in enumerate(model.backbone.blocks):
        for block in range(blocks):
            for ours, theirs in _BLOCK_LAYERS:
                yield f"backbone/stage{stage + 1}_block{block + 1}/{ours}", f"backbone.bb_{stage}_{block}.{theirs}"
    for branch in range(len(model.aspp.rates)):
        ours, theirs = f"aspp/branch{branch + 1}", f"head.aspp.aspp_blocks.{branch}"
        yield ours, theirs
        for our_layer, their_layer in _SEPARABLE_LAYERS:
            yield f"{ours}/{our_layer}", f"{theirs}.{their_layer}"
    yield "aspp/image_pooling", "head.aspp.global_avg_pool.1"
    yield "aspp/projection", "head.aspp.conv_bn_relu"
    yield "decoder/low_level_projection", "head.decoder.conv_bn_relu1"
    for layer in (1, 2):
        for our_layer, their_layer in _SEPARABLE_LAYERS:
            yield f"decoder/fuse{layer}/{our_layer}", f"head.decoder.conv_bn_relu{layer + 1}.{their_layer}"

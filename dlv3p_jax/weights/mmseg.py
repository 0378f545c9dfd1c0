"""MMSegmentation's DeepLabV3+ parameters and ours: the same numbers under other names, with other axes.

    variables = convert(state, model)       # of a whole model
    variables, dropped = convert_backbone(state, model)   # of ImageNet's, torchvision's ResNets among them
    state = revert(variables, model)        # the same bits again

Its counters of batches serve nothing: they are left out, and zeros on the way back.
"""

import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dlv3p_jax.configs.mmseg import NETWORK
from dlv3p_jax.models.deeplabv3plus import DeepLabV3Plus
from dlv3p_jax.models.resnet import BLOCKS
from dlv3p_jax.weights import renamed
from dlv3p_jax.weights.renamed import ConversionError

__all__ = ["ConversionError", "classes_of", "convert", "convert_backbone", "describe", "is_backbone"]
__all__ += ["num_classes_of", "revert"]

_WHAT = "the model; compare model.backbone, num_classes and the other keys of config.model"

_AUXILIARY = "auxiliary_head."  # how the names of its arrays begin
_CLASSIFIERS = {"decode_head": "decoder", "auxiliary_head": "auxiliary_head"}
# Our layer, and their convolution and BatchNorm.
_DEEP_STEM = (
    ("stem_conv1", "stem.0", "stem.1"),
    ("stem_conv2", "stem.3", "stem.4"),
    ("stem_conv3", "stem.6", "stem.7"),
)
_PLAIN_STEM = (("stem_conv", "conv1", "bn1"),)
_BLOCK_LAYERS = (
    ("conv1", "conv1", "bn1"),
    ("conv2", "conv2", "bn2"),
    ("conv3", "conv3", "bn3"),
    ("shortcut", "downsample.0", "downsample.1"),
)
_SEPARABLE_LAYERS = (("depthwise", "depthwise_conv"), ("pointwise", "pointwise_conv"))


def is_backbone(state: Mapping[str, np.ndarray]) -> bool:
    """Whether `state` is a backbone alone, such as ImageNet weights, and no whole DeepLabV3+."""
    return not any(name.startswith("decode_head.") for name in state)


def num_classes_of(state: Mapping[str, np.ndarray]) -> int | None:
    """The number of classes of a whole model, None where `state` holds no classifier."""
    bias = state.get("decode_head.conv_seg.bias")
    return None if bias is None or bias.ndim != 1 else len(bias)


def classes_of(meta: Mapping[str, Any]) -> tuple[list[str], list[list[int]]] | None:
    """Names and colours of the classes, where a file's `meta` has them and they fit each other."""
    where = meta.get("dataset_meta") or meta  # of version 1 and 0
    if not isinstance(where, Mapping):
        return None
    lowered = {str(key).lower(): value for key, value in where.items()}
    match lowered.get("classes"), lowered.get("palette"):
        case ((list() | tuple() as names), (list() | tuple() as palette)) if len(names) == len(palette):
            if all(isinstance(name, str) for name in names) and all(map(_is_color, palette)):
                return [name.strip() for name in names], [list(color) for color in palette]
    return None


def _is_color(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(type(c) is int and 0 <= c < 256 for c in value)


def describe(state: Mapping[str, np.ndarray], path: str | os.PathLike) -> dict[str, Any]:
    """What the arrays of a whole model say of its network, as keys of a configuration.

    Output stride, dilations and `align_corners` leave no trace in them.

    Args:
        state: MMSegmentation's names and arrays.
        path: of their file, for messages.

    Raises:
        ConversionError: they are not of a DeepLabV3+ with a ResNet.
    """
    bottleneck = "backbone.layer1.0.conv3.weight" in state
    backbone, blocks = renamed.backbone_of(state, r"backbone\.layer(\d+)\.\d+\.conv1\.weight", bottleneck)
    widths = [
        len(value) if (value := state.get(f"decode_head.{layer}.weight")) is not None and value.ndim == 4 else 0
        for layer in ("bottleneck.conv", "sep_bottleneck.0.pointwise_conv.conv", "c1_bottleneck.conv")
    ]
    num_classes = num_classes_of(state)
    if num_classes == 1:
        raise ConversionError(
            f"{path}: its classifier has one output, whose sigmoid tells two classes apart (out_channels=1). Such a "
            "head does not convert: train one with out_channels=2"
        )
    if backbone is None or not all(widths) or num_classes is None:
        raise ConversionError(
            f"{path}: its arrays are not those of MMSegmentation's DeepLabV3+ with a ResNet of 18, 34, 50, 101 or 152 "
            f"layers (DepthwiseSeparableASPPHead): it has {blocks} blocks and {len(state)} arrays"
        )
    return {
        "num_classes": num_classes,
        "model.backbone": backbone,
        "model.stem": "plain" if "backbone.conv1.weight" in state else "deep",
        "model.multi_grid": (1,) * BLOCKS[backbone][-1],
        "model.aspp_channels": widths[0],
        "model.decoder_channels": widths[1],
        "model.low_level_channels": widths[2],
        **{f"model.{key}": value for key, value in NETWORK.items()},
        "model.auxiliary_head": has_auxiliary_head(state),
    }


def has_auxiliary_head(state: Mapping[str, np.ndarray]) -> bool:
    """Whether `state` holds an auxiliary head beside the network."""
    return any(name.startswith(_AUXILIARY) for name in state)


def convert(state: Mapping[str, np.ndarray], model: DeepLabV3Plus) -> dict:
    """Turns the parameters of a whole MMSegmentation model into ours.

    Args:
        state: MMSegmentation's names and arrays; convolutions are [out, in / groups, height, width].
        model: what `build_model` returned; where one of it and `state` has no auxiliary head, there is none.

    Returns:
        {'params': ..., 'batch_stats': ...} of float32 arrays, for `model.apply`.

    Raises:
        ConversionError: a name is missing or unexpected, or an array has another shape; all are listed.
    """
    if model.auxiliary_head is None:
        state = {name: value for name, value in state.items() if not name.startswith(_AUXILIARY)}
    elif not has_auxiliary_head(state):
        model = model.clone(auxiliary_head=None)
    return renamed.to_ours(renamed.without_counters(state), _names(model), _WHAT)


def convert_backbone(state: Mapping[str, np.ndarray], model: DeepLabV3Plus) -> tuple[dict, list[str]]:
    """Turns the parameters of a backbone alone, as mmpretrain and torchvision publish them, into ours.

    Args:
        state: names with `backbone.` (mmpretrain) or without (torchvision, and mmpretrain's older files). The
            classifier, `fc.` or `head.`, is left out.
        model: what `build_model` returned.

    Returns:
        {'params': {'backbone': ...}, 'batch_stats': {'backbone': ...}}, and the names that were left out.

    Raises:
        ConversionError: as `convert`.
    """
    dropped = [name for name in state if name.startswith(("fc.", "head."))]
    names = renamed.below("backbone.", _names(model, part="backbone/"))
    state = {name.removeprefix("backbone."): value for name, value in state.items() if name not in dropped}
    return renamed.to_ours(renamed.without_counters(state), names, _WHAT), dropped


def revert(variables: Mapping, model: DeepLabV3Plus, auxiliary_head: bool = True) -> dict[str, np.ndarray]:
    """Turns our parameters into MMSegmentation's.

    Args:
        variables: {'params': ..., 'batch_stats': ...} of `model`.
        model: what `build_model` returned.
        auxiliary_head: with the head that MMSegmentation's recipes train beside, zeros where `variables` have none.
            Without it, only a model that was built with `auxiliary_head=None` takes them strictly.

    Returns:
        MMSegmentation's names, in the order of its `state_dict`, with float32 arrays; its counters are int64.

    Raises:
        ConversionError: MMSegmentation has no such network, or `variables` are not those of `model`.
    """
    if other := renamed.other_function(model, NETWORK):
        raise ConversionError(f"MMSegmentation has no such network: its own has {other}")
    state: dict[str, np.ndarray] = {}
    trained = auxiliary_head and "auxiliary_head" in variables["params"]
    model = model if trained else model.clone(auxiliary_head=None)
    for name, value in renamed.to_theirs(variables, _names(model), _WHAT).items():
        state[name] = value
        if name.endswith(".running_var"):
            state[f"{name.removesuffix('.running_var')}.num_batches_tracked"] = np.zeros((), np.int64)
    if auxiliary_head and not trained:
        inputs = max(
            np.size(value, 0) for name, value in state.items() if name.startswith("backbone.layer3.") and value.ndim
        )
        channels, num_classes = inputs // 4, model.decoder.num_classes
        state |= {
            "auxiliary_head.conv_seg.weight": np.zeros((num_classes, channels, 1, 1), np.float32),
            "auxiliary_head.conv_seg.bias": np.zeros(num_classes, np.float32),
            "auxiliary_head.convs.0.conv.weight": np.zeros((channels, inputs, 3, 3), np.float32),
            **{
                f"{_AUXILIARY}convs.0.bn.{leaf}": np.zeros(channels, np.float32) for _, leaf in renamed.TORCH_BATCH_NORM
            },
            "auxiliary_head.convs.0.bn.num_batches_tracked": np.zeros((), np.int64),
        }
    return state


@functools.lru_cache(maxsize=4)
def _names(model: DeepLabV3Plus, part: str = "") -> renamed.Names:
    classifiers = [
        (f"params/{ours}/classifier/{leaf}", f"{theirs}.conv_seg.{their_leaf}")
        for theirs, ours in _CLASSIFIERS.items()
        for leaf, their_leaf in (("kernel", "weight"), ("bias", "bias"))
    ]
    layers = [("auxiliary_head/conv", "auxiliary_head.convs.0.conv", "auxiliary_head.convs.0.bn")]
    backbone, head, auxiliary = map(renamed.torch_pairs, (_backbone_layers(model), _head_layers(model), layers))
    return renamed.names_of(model, [*backbone, *classifiers[:2], *head, *classifiers[2:], *auxiliary], part=part)


def _backbone_layers(model: DeepLabV3Plus) -> Iterator[tuple[str, str, str]]:
    """Our path, and their convolution and BatchNorm, of the layers that networks like `model` can have."""
    for ours, conv, batch_norm in (*_DEEP_STEM, *_PLAIN_STEM):
        yield f"backbone/{ours}", f"backbone.{conv}", f"backbone.{batch_norm}"
    for stage, blocks in enumerate(model.backbone.blocks, start=1):
        for block in range(blocks):
            for ours, conv, batch_norm in _BLOCK_LAYERS:
                theirs = f"backbone.layer{stage}.{block}"
                yield f"backbone/stage{stage}_block{block + 1}/{ours}", f"{theirs}.{conv}", f"{theirs}.{batch_norm}"


def _head_layers(model: DeepLabV3Plus) -> Iterator[tuple[str, str, str]]:
    def layers():
        yield "aspp/image_pooling", "image_pool.1"
        for branch in range(len(model.aspp.rates)):
            ours, theirs = f"aspp/branch{branch + 1}", f"aspp_modules.{branch}"
            yield ours, theirs
            for our_layer, their_layer in _SEPARABLE_LAYERS:
                yield f"{ours}/{our_layer}", f"{theirs}.{their_layer}"
        yield "aspp/projection", "bottleneck"
        yield "decoder/low_level_projection", "c1_bottleneck"
        for layer in (0, 1):
            for our_layer, their_layer in _SEPARABLE_LAYERS:
                yield f"decoder/fuse{layer + 1}/{our_layer}", f"sep_bottleneck.{layer}.{their_layer}"

    for ours, theirs in layers():
        yield ours, f"decode_head.{theirs}.conv", f"decode_head.{theirs}.bn"

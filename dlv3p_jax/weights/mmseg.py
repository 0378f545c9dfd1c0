"""MMSegmentation's DeepLabV3+ parameters and ours: the same numbers under other names, with other axes.

    variables = convert(state, model)       # of a whole model
    variables, dropped = convert_backbone(state, model)   # of ImageNet's, torchvision's ResNets among them

Its auxiliary head serves training alone, and its counters of batches nothing: both are left out.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from dlv3p_jax.models.deeplabv3plus import DeepLabV3Plus
from dlv3p_jax.weights import renamed
from dlv3p_jax.weights.renamed import ConversionError

__all__ = ["ConversionError", "convert", "convert_backbone"]

_WHAT = "the model; compare model.backbone, num_classes and the other keys of config.model"

_BATCH_NORM_LEAVES = (
    ("params/{}/batch_norm/scale", "weight"),
    ("params/{}/batch_norm/bias", "bias"),
    ("batch_stats/{}/batch_norm/mean", "running_mean"),
    ("batch_stats/{}/batch_norm/var", "running_var"),
)
_CLASSIFIER_LEAVES = (
    ("params/decoder/classifier/kernel", "decode_head.conv_seg.weight"),
    ("params/decoder/classifier/bias", "decode_head.conv_seg.bias"),
)
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


def convert(state: Mapping[str, np.ndarray], model: DeepLabV3Plus) -> dict:
    """Turns the parameters of a whole MMSegmentation model into ours.

    Args:
        state: MMSegmentation's names and arrays; convolutions are [out, in / groups, height, width].
        model: what `build_model` returned.

    Returns:
        {'params': ..., 'batch_stats': ...} of float32 arrays, for `model.apply`.

    Raises:
        ConversionError: a name is missing or unexpected, or an array has another shape; all are listed.
    """
    state = {name: value for name, value in state.items() if not name.startswith("auxiliary_head.")}
    return renamed.to_ours(_without_counters(state), _names(model), _WHAT)


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
    return renamed.to_ours(_without_counters(state), names, _WHAT), dropped


def _without_counters(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value for name, value in state.items() if not name.endswith(".num_batches_tracked")}


def _names(model: DeepLabV3Plus, part: str = "") -> renamed.Names:
    pairs = [*_leaves(_backbone_layers(model)), *_CLASSIFIER_LEAVES, *_leaves(_head_layers(model))]
    return renamed.names_of(model, pairs, part=part)


def _leaves(layers: Iterable[tuple[str, str, str]]) -> Iterator[tuple[str, str]]:
    for ours, conv, batch_norm in layers:
        yield f"params/{ours}/conv/kernel", f"{conv}.weight"
        for path, leaf in _BATCH_NORM_LEAVES:
            yield path.format(ours), f"{batch_norm}.{leaf}"


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

"""timm's resnet50d, resnet101d and resnet152d, and our ResNet-vd: the same numbers under other names, other axes.

    state = load_safetensors("model.safetensors")
    variables, dropped = convert(state, infer_backbone(state))

timm's `d` networks are the ResNet-D of "Bag of Tricks" (He et al., 2019), as ResNet-vd is: three 3x3 convolutions at
the start, shortcuts through the mean of 2x2 pixels where they stride, BatchNorm with epsilon 1e-5. Two things differ:

- timm's resnet18d and resnet34d have no convolution in the shortcut of their first block, and ours have one: they are
  other networks, and are refused. timm's resnetaa50d and resnetblur50d smooth where they stride, without parameters, so
  their files look like those of resnet50d. They convert too, into a network that computes something else.
- timm's weights were trained on pictures normalised by ImageNet's mean and standard deviation, ours get x / 127.5 - 1.
  For BatchNorm after the first convolution that is little more than another scale and offset of its input, which
  statistics of the batch take out in training; the running statistics of the file do not fit, so a backbone that is
  frozen from the first step would see pictures of a wrong contrast.
"""

import pathlib
import re
import zipfile
from collections.abc import Iterator, Mapping

import numpy as np
import safetensors.numpy

from dlv3p_jax.models.resnet import BASIC_BLOCKS, BLOCKS, ResNet
from dlv3p_jax.weights import renamed
from dlv3p_jax.weights.renamed import ConversionError

BACKBONES = tuple(name for name in BLOCKS if name not in BASIC_BLOCKS)
_WHAT_CONVERTS = "what converts are timm's resnet50d, resnet101d and resnet152d"

# Our layer, and timm's convolution and BatchNorm.
_STEM_LAYERS = (
    ("stem_conv1", "conv1.0", "conv1.1"),
    ("stem_conv2", "conv1.3", "conv1.4"),
    ("stem_conv3", "conv1.6", "bn1"),
)
_BLOCK_LAYERS = (
    ("conv1", "conv1", "bn1"),
    ("conv2", "conv2", "bn2"),
    ("conv3", "conv3", "bn3"),
    ("shortcut", "downsample.1", "downsample.2"),
)


def load_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a .safetensors file; such a file holds nothing but arrays, and nothing in it is run.

    Returns:
        The names of the file with their arrays.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file, or is cut short; the message says what to do.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there, or is no file: give a .safetensors file")
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        if _is_pytorch(path):
            raise ValueError(
                f"{path} is a file of PyTorch's own, a pickle, which is not opened here as it can run code: save the "
                'weights in PyTorch with safetensors.torch.save_file(model.state_dict(), "model.safetensors"), or '
                "download the model.safetensors that the Hugging Face hub has beside it"
            ) from error
        raise ValueError(f"{path} is no safetensors file, or is damaged: {error}") from error
    except (TypeError, AttributeError) as error:  # a type that NumPy does not have
        raise ValueError(f"{path} holds arrays that cannot be read ({error}): save them as float32") from error


def _is_pytorch(path: pathlib.Path) -> bool:
    with path.open("rb") as file:
        is_pickle = file.read(2) == b"\x80\x02"
    return is_pickle or zipfile.is_zipfile(path) or path.suffix in (".pth", ".pt", ".bin")


def infer_backbone(state: Mapping[str, np.ndarray]) -> str:
    """The name of our backbone that timm's parameters are of, by their numbers of blocks.

    Raises:
        ConversionError: it is none of `BACKBONES`.
    """
    found = {match.groups() for name in state if (match := re.match(r"layer([1-4])\.(\d+)\.", name))}
    blocks = tuple(sum(stage == number for number, _ in found) for stage in "1234")
    if found and not any(name.endswith(".conv3.weight") for name in state):
        raise ConversionError(
            "these are weights of basic blocks, such as those of resnet18d and resnet34d, which in timm have no "
            f"convolution in the first shortcut and are other networks than ours: {_WHAT_CONVERTS}"
        )
    for backbone in BACKBONES:
        if BLOCKS[backbone] == blocks:
            return backbone
    what = (
        f"{', '.join(map(str, blocks))} blocks in their four stages" if found else "no names like layer1.0.conv1.weight"
    )
    raise ConversionError(f"these weights have {what}: {_WHAT_CONVERTS}; with --backbone, all differences are listed")


def convert(state: Mapping[str, np.ndarray], backbone: str) -> tuple[dict, list[str]]:
    """Turns timm's parameters into those of our backbone.

    Args:
        state: timm's names and arrays of any floating type, convolutions [out, in, height, width]. The classifier
            `fc` is left out.
        backbone: one of `BACKBONES`.

    Returns:
        {'params': {'backbone': …}, 'batch_stats': {'backbone': …}} of float32 arrays, and the names left out.

    Raises:
        ConversionError: a name is missing or unexpected, or an array has another shape or is not of floating-point
            numbers; all are listed.
    """
    dropped = [name for name in state if name.startswith("fc.")]
    kept = renamed.without_counters({name: value for name, value in state.items() if name not in dropped})
    return renamed.to_ours(kept, _expected(backbone), f"{backbone} ({_WHAT_CONVERTS})"), dropped


def _expected(backbone: str) -> renamed.Names:
    # Neither the output stride nor the dilations change a shape.
    model = ResNet(BLOCKS[backbone], bottleneck=True, output_stride=8, multi_grid=(1,) * BLOCKS[backbone][-1])
    return renamed.names_of(model, renamed.torch_pairs(_layers(BLOCKS[backbone])), scope="backbone/")


def _layers(blocks: tuple[int, ...]) -> Iterator[tuple[str, str, str]]:
    """Our path, and timm's names of the convolution and of the BatchNorm, of every layer."""
    for ours, conv, batch_norm in _STEM_LAYERS:
        yield f"backbone/{ours}", conv, batch_norm
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            for ours, conv, batch_norm in _BLOCK_LAYERS if block == 0 else _BLOCK_LAYERS[:-1]:
                prefix = f"layer{stage}.{block}"
                yield f"backbone/stage{stage}_block{block + 1}/{ours}", f"{prefix}.{conv}", f"{prefix}.{batch_norm}"

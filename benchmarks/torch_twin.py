"""Our network in PyTorch, with our weights: what users would run instead.

    model = DeepLabV3Plus(settings, num_classes)    # settings: config.model as a dict
    load(model, arrays)                             # {'params/backbone/stem_conv1/conv/kernel': array, …}

Modules have the names of ours. Needs nothing but PyTorch and NumPy. One thing differs, and only in training: PyTorch's
running variance is of the unbiased one.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks import torch_work, worker

_BLOCKS = {
    "resnet18_vd": (2, 2, 2, 2),
    "resnet34_vd": (3, 4, 6, 3),
    "resnet50_vd": (3, 4, 6, 3),
    "resnet101_vd": (3, 4, 23, 3),
    "resnet152_vd": (3, 8, 36, 3),
}
_BASIC = ("resnet18_vd", "resnet34_vd")
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


class ConvBN(nn.Module):
    def __init__(self, inputs, outputs, size=1, stride=1, dilation=1, groups=1, bias=False, relu=True):
        super().__init__()
        padding = size // 2 * dilation
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding, dilation, groups, bias)
        self.batch_norm = nn.BatchNorm2d(outputs)
        self.relu = relu

    def forward(self, x):
        x = self.batch_norm(self.conv(x))
        return functional.relu(x, inplace=True) if self.relu else x


class SeparableConvBN(nn.Module):
    def __init__(self, inputs, outputs, dilation=1):
        super().__init__()
        self.depthwise = ConvBN(inputs, inputs, 3, dilation=dilation, groups=inputs, bias=True, relu=False)
        self.pointwise = ConvBN(inputs, outputs, bias=True)

    def forward(self, x):
        return self.pointwise(self.depthwise(x))


class Block(nn.Module):
    def __init__(self, inputs, width, bottleneck, first, stride, dilation):
        super().__init__()
        self.outputs = 4 * width if bottleneck else width
        spatial = dict(size=3, stride=stride, dilation=dilation)
        if bottleneck:
            self.conv1 = ConvBN(inputs, width)
            self.conv2 = ConvBN(width, width, **spatial)
            self.conv3 = ConvBN(width, self.outputs, relu=False)
        else:
            self.conv1 = ConvBN(inputs, width, **spatial)
            self.conv2 = ConvBN(width, width, 3, dilation=dilation, relu=False)
            self.conv3 = nn.Identity()
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if stride == 2 else nn.Identity()
        self.shortcut = ConvBN(inputs, self.outputs, relu=False) if first else nn.Identity()

    def forward(self, x):
        return functional.relu(self.conv3(self.conv2(self.conv1(x))) + self.shortcut(self.pool(x)), inplace=True)


class Backbone(nn.Module):
    def __init__(self, settings):
        super().__init__()
        self.stem_conv1 = ConvBN(3, 32, 3, stride=2)
        self.stem_conv2 = ConvBN(32, 32, 3)
        self.stem_conv3 = ConvBN(32, 64, 3)
        bottleneck = settings["backbone"] not in _BASIC
        strides, dilations = (
            ((1, 2, 1, 1), (1, 1, 2, 4)) if settings["output_stride"] == 8 else ((1, 2, 2, 1), (1, 1, 1, 2))
        )
        channels, self.stages = 64, [[], [], [], []]
        for stage, count in enumerate(_BLOCKS[settings["backbone"]]):
            for index in range(count):
                block = Block(
                    channels,
                    width=64 * 2**stage,
                    bottleneck=bottleneck,
                    first=index == 0,
                    stride=strides[stage] if index == 0 else 1,
                    dilation=dilations[stage] * (settings["multi_grid"][index] if stage == 3 else 1),
                )
                channels = block.outputs
                name = f"stage{stage + 1}_block{index + 1}"
                self.add_module(name, block)
                self.stages[stage].append(name)
        self.fine_channels, self.channels = (256, 2048) if bottleneck else (64, 512)

    def forward(self, x):
        x = self.stem_conv3(self.stem_conv2(self.stem_conv1(x)))
        x = functional.max_pool2d(x, 3, 2, 1)
        fine = None
        for stage in self.stages:
            for name in stage:
                x = getattr(self, name)(x)
            fine = x if fine is None else fine
        return fine, x


class ASPP(nn.Module):
    def __init__(self, inputs, settings):
        super().__init__()
        channels, rates = settings["aspp_channels"], settings["aspp_rates"]
        self.branches = [f"branch{index + 1}" for index in range(len(rates))]
        for name, rate in zip(self.branches, rates, strict=True):
            is_plain = rate == 1
            self.add_module(
                name, ConvBN(inputs, channels, bias=True) if is_plain else SeparableConvBN(inputs, channels, rate)
            )
        self.image_pooling = ConvBN(inputs, channels)
        self.projection = ConvBN((len(rates) + 1) * channels, channels, bias=True)
        self.dropout = nn.Dropout(settings["dropout"])

    def forward(self, x):
        branches = [getattr(self, name)(x) for name in self.branches]
        pooled = self.image_pooling(x.mean((2, 3), keepdim=True))
        branches.append(pooled.expand(-1, -1, *x.shape[2:]))
        return self.dropout(self.projection(torch.cat(branches, 1)))


class Decoder(nn.Module):
    def __init__(self, channels, fine_channels, num_classes, align_corners):
        super().__init__()
        self.align_corners = align_corners
        self.low_level_projection = ConvBN(fine_channels, 48, bias=True)
        self.fuse1 = SeparableConvBN(channels + 48, 256)
        self.fuse2 = SeparableConvBN(256, 256)
        self.classifier = nn.Conv2d(256, num_classes, 1)

    def forward(self, coarse, fine):
        fine = self.low_level_projection(fine)
        coarse = _resize(coarse, fine.shape[2:], self.align_corners)
        return self.classifier(self.fuse2(self.fuse1(torch.cat([coarse, fine], 1))))


class DeepLabV3Plus(nn.Module):
    """[B, 3, H, W] -> logits [B, num_classes, H, W]; `settings` is `config.model` as a dict."""

    def __init__(self, settings: Mapping, num_classes: int):
        super().__init__()
        self.backbone = Backbone(settings)
        self.aspp = ASPP(self.backbone.channels, settings)
        self.align_corners = settings["align_corners"]
        self.decoder = Decoder(
            settings["aspp_channels"], self.backbone.fine_channels, num_classes, settings["align_corners"]
        )

    def forward(self, images):
        fine, coarse = self.backbone(images)
        logits = self.decoder(self.aspp(coarse), fine)
        return _resize(logits, images.shape[2:], self.align_corners)


def _resize(x, size, align_corners):
    return functional.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def load(model: DeepLabV3Plus, arrays: Mapping[str, np.ndarray]) -> None:
    """Gives the model our weights: paths such as 'batch_stats/aspp/projection/batch_norm/mean' and their arrays.

    Raises:
        RuntimeError: from PyTorch, if any is missing, unexpected or of another shape.
    """
    state = {}
    for path, array in arrays.items():
        *modules, leaf = path.split("/")[1:]
        array = np.transpose(array, (3, 2, 0, 1)) if leaf == "kernel" else array
        state[".".join([*modules, _LEAVES[leaf]])] = torch.from_numpy(np.array(array, np.float32))
    counters = {name: value for name, value in model.state_dict().items() if name.endswith(".num_batches_tracked")}
    model.load_state_dict(state | counters)


def setup(specification: dict) -> worker.Contestant:
    """The twin as a contestant of `benchmarks.compare`."""
    model = DeepLabV3Plus(specification["model"], specification["num_classes"])
    with np.load(specification["weights"]) as file:
        load(model, file)
    return torch_work.contestant(specification, model, has_our_weights=True)

"""Dilated ResNet-vd (He et al., 2016; He et al., "Bag of Tricks", 2019), as PaddleSeg has it."""

import functools

import jax.numpy as jnp
from flax import linen as nn

from dlv3p_jax.models import ops
from dlv3p_jax.models.layers import ConvBN
from dlv3p_jax.models.strips import count_strips, from_strips, to_strips

# Blocks of the four stages.
BLOCKS = {
    "resnet18_vd": (2, 2, 2, 2),
    "resnet34_vd": (3, 4, 6, 3),
    "resnet50_vd": (3, 4, 6, 3),
    "resnet101_vd": (3, 4, 23, 3),
    "resnet152_vd": (3, 8, 36, 3),
}
BASIC_BLOCKS = ("resnet18_vd", "resnet34_vd")  # the others have bottlenecks


class Block(nn.Module):
    """A residual block. [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), width (x 4 if `bottleneck`)].

    The shortcut of the first block of a stage is a 1x1 convolution, of the mean of 2x2 pixels where it strides.
    `strips`: see `ops.conv3x3`.
    """

    width: int
    bottleneck: bool
    first: bool
    stride: int = 1
    dilation: int = 1
    strips: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        conv = functools.partial(ConvBN, use_bias=False, strips=self.strips, dtype=self.dtype)
        spatial = functools.partial(conv, size=3, stride=self.stride, dilation=self.dilation)
        if self.bottleneck:
            y = conv(self.width, name="conv1")(x, train)
            y = spatial(self.width, name="conv2")(y, train)
            y = conv(4 * self.width, relu=False, name="conv3")(y, train)
        else:
            y = spatial(self.width, name="conv1")(x, train)
            y = conv(self.width, size=3, dilation=self.dilation, relu=False, name="conv2")(y, train)
        if self.first:
            x = ops.avg_pool2x2(x) if self.stride == 2 else x
            x = conv(y.shape[-1], relu=False, name="shortcut")(x, train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet-vd, whose last stages are dilated instead of strided down to `output_stride`.

    Attributes:
        blocks: number of residual blocks of each of the four stages.
        bottleneck: bottlenecks of three convolutions, or basic blocks of two.
        output_stride: 8 or 16.
        multi_grid: factors on the dilation of the last stage's blocks.
        remat: compute the inside of every block once more for the gradient instead of keeping it.
        dtype: type of the computation.
    """

    blocks: tuple[int, ...]
    bottleneck: bool
    output_stride: int
    multi_grid: tuple[int, ...]
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        """Features of the four stages, at strides 4, 8, then `output_stride` at most.

        Dilated stages run on sub-images as far as their sides divide (`ops.cut`), the others, on a TPU, on strips
        (`models.strips`): the same function.

        Args:
            x: [B, H, W, 3].
            train: see `DeepLabV3Plus`.

        Returns:
            The four features, and how often each of them is cut into sub-images.
        """
        strips = count_strips(x, self.output_stride)
        x = to_strips(x, strips)
        conv = functools.partial(ConvBN, size=3, use_bias=False, strips=strips, dtype=self.dtype)
        x = conv(32, stride=2, name="stem_conv1")(x, train)
        x = conv(32, name="stem_conv2")(x, train)
        x = conv(64, name="stem_conv3")(x, train)
        x = ops.max_pool3x3(x, strips)

        make_block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block  # `train` is no array
        features, features_cuts = [], []
        stride, dilation, cuts = 4, 1, 0
        for stage, blocks in enumerate(self.blocks, start=1):
            stage_stride = 1
            if stage > 1:
                if stride < self.output_stride:
                    stage_stride = 2
                    stride *= 2
                else:
                    x, strips = from_strips(x, strips), 1
                    if ops.can_cut(x, cuts):
                        x, cuts = ops.cut(x, cuts), cuts + 1
                    else:
                        dilation *= 2
            for block in range(blocks):
                x = make_block(
                    width=64 * 2 ** (stage - 1),
                    bottleneck=self.bottleneck,
                    first=block == 0,
                    stride=stage_stride if block == 0 else 1,
                    dilation=dilation * (self.multi_grid[block] if stage == 4 else 1),
                    strips=strips,
                    dtype=self.dtype,
                    name=f"stage{stage}_block{block + 1}",
                )(x, train)
            features.append(from_strips(x, strips))
            features_cuts.append(cuts)
        return tuple(features), tuple(features_cuts)

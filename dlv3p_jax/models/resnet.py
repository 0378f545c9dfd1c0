"""Dilated ResNet-vd (He et al., 2016; He et al., "Bag of Tricks", 2019), as PaddleSeg has it."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from dlv3p_jax.models import ops, tiles
from dlv3p_jax.models.layers import ConvBN
from dlv3p_jax.models.tiles import Pictures, Tiled

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

    Attributes:
        width: channels inside.
        bottleneck: three convolutions, or two 3x3.
        shortcut: it has a convolution, 1x1, instead of `x` itself.
        avg_down: where it strides, it takes the mean of 2x2 pixels, not one of four.
        dilate_second: the second 3x3 of a block without bottleneck is dilated as the first.
    """

    width: int
    bottleneck: bool
    shortcut: bool
    avg_down: bool = True
    dilate_second: bool = True
    stride: int = 1
    dilation: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Pictures, train: bool) -> Pictures:
        conv = functools.partial(ConvBN, use_bias=False, dtype=self.dtype)
        spatial = functools.partial(conv, size=3, stride=self.stride, dilation=self.dilation)
        if self.bottleneck:
            y = conv(self.width, name="conv1")(x, train)
            y = spatial(self.width, name="conv2")(y, train)
            y = conv(4 * self.width, relu=False, name="conv3")(y, train)
        else:
            second = self.dilation if self.dilate_second else 1
            y = spatial(self.width, name="conv1")(x, train)
            y = conv(self.width, size=3, dilation=second, relu=False, name="conv2")(y, train)
        if self.shortcut:
            if self.stride == 2:
                x = ops.avg_pool2x2(x) if self.avg_down else tiles.like(x, tiles.of(x).array[:, ::2, ::2], stride=2)
            x = conv(y.shape[-1], relu=False, name="shortcut")(x, train)
        return tiles.each(lambda x, y: nn.relu(x + y), x, y)


class ResNet(nn.Module):
    """A ResNet, -vd by default, whose last stages are dilated instead of strided down to `output_stride`.

    Attributes:
        blocks: number of residual blocks of each of the four stages.
        bottleneck: bottlenecks of three convolutions, or basic blocks of two.
        output_stride: 8 or 16.
        multi_grid: factors on the dilation of the last stage's blocks, or these dilations themselves.
        multi_grid_kind: which, "factors" or "dilations".
        stem: "deep", three 3x3 convolutions, or "plain", one 7x7.
        avg_down, dilate_second: see `Block`.
        stage1_shortcut: the first stage begins with a convolution in the shortcut even where widths agree.
        contract_dilation: the first block of a dilated stage has half of its dilation.
        remat: compute the inside of every block once more for the gradient instead of keeping it.
        dtype: type of the computation.
    """

    blocks: tuple[int, ...]
    bottleneck: bool
    output_stride: int
    multi_grid: tuple[int, ...]
    multi_grid_kind: str = "factors"
    stem: str = "deep"
    avg_down: bool = True
    dilate_second: bool = True
    stage1_shortcut: bool = True
    contract_dilation: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array | Tiled, train: bool) -> tuple[jax.Array | Tiled, ...]:
        """Features of the four stages, at strides 4, 8, then `output_stride` at most.

        Inside, dilated stages run on sub-images as far as their sides divide, the others, on a TPU, on strips
        (`models.tiles`): the same function.

        Args:
            images: [B, H, W, 3].
            train: see `DeepLabV3Plus`.

        Returns:
            The four features, whole pictures; of `images` that are `Tiled`, in the parts that they were computed in.
        """
        x = tiles.split(tiles.of(images), self.output_stride)
        conv = functools.partial(ConvBN, size=3, use_bias=False, dtype=self.dtype)
        if self.stem == "plain":
            x = conv(64, size=7, stride=2, name="stem_conv")(x, train)
        else:
            x = conv(32, stride=2, name="stem_conv1")(x, train)
            x = conv(32, name="stem_conv2")(x, train)
            x = conv(64, name="stem_conv3")(x, train)
        x = ops.max_pool3x3(x)

        make_block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block  # `train` is no array
        # Blocks that are alike are traced once, and the compiler inlines them: a program starts sooner.
        make_block = nn.jit(make_block, static_argnums=(2,))
        features = []
        total_stride, stage_dilation = 4, 1
        for stage, blocks in enumerate(self.blocks, start=1):
            stride = 2 if stage > 1 and total_stride < self.output_stride else 1
            total_stride *= stride
            stage_dilation *= 2 if stage > 1 and stride == 1 else 1
            for block in range(blocks):
                dilation = self.dilation(stage, block, stage_dilation)
                # Where the second 3x3 is not dilated, it would mix sub-images.
                among = stage_dilation if self.bottleneck or self.dilate_second else 1
                x = make_block(
                    width=64 * 2 ** (stage - 1),
                    bottleneck=self.bottleneck,
                    shortcut=self.has_shortcut(stage, block),
                    avg_down=self.avg_down,
                    dilate_second=self.dilate_second,
                    stride=stride if block == 0 else 1,
                    dilation=dilation,
                    dtype=self.dtype,
                    name=f"stage{stage}_block{block + 1}",
                )(tiles.cut_for(x, dilation, among), train)
            features.append(x)
        return tuple(features) if isinstance(images, Tiled) else tuple(map(tiles.whole, features))

    def has_shortcut(self, stage: int, block: int) -> bool:
        """Whether there is a convolution in the shortcut of a block; stages are counted from 1, blocks from 0."""
        return block == 0 and (stage > 1 or self.bottleneck or self.stage1_shortcut)

    def dilation(self, stage: int, block: int, stage_dilation: int) -> int:
        """That of a block of a stage which dilates by `stage_dilation` for its stride that is left out."""
        grid = self.multi_grid[block] if stage == 4 else 1
        if stage == 4 and self.multi_grid_kind == "dilations":
            return grid
        if block == 0 and self.contract_dilation and stage_dilation > 1:
            return stage_dilation // 2 * grid
        return stage_dilation * grid

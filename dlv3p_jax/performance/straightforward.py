"""DeepLabV3+ written as in the paper: strided, dilated and grouped convolutions, on every backend.

    model = straightforward.build(config)    # takes the variables of `build_model(config)` and gives its logits

It is what the fast network is held against: the compiler counts its operations for `benchmark`, compilers estimate its
time, and tests compare its logits. Nothing trains or predicts with it, and it has no auxiliary head.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dlv3p_jax.models.resnet import BASIC_BLOCKS, BLOCKS


def build(config) -> nn.Module:
    """The plain form of `build_model(config)`, which has checked the configuration; called in the same way."""
    return _Network(config)


class _Network(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """float32 [B, H, W, 3], normalised -> float32 logits [B, H, W, num_classes]."""
        model = self.config.model
        dtype = jnp.dtype(model.dtype)
        frozen = self.config.freeze_backbone
        mean, std = jnp.array(model.mean), jnp.array(model.std)
        images = (images * 127.5 + 127.5 - mean) / std
        fine, coarse = _Backbone(model, dtype, name="backbone")(images.astype(dtype), train and not frozen)
        if frozen:
            fine, coarse = jax.lax.stop_gradient((fine, coarse))
        coarse = _ASPP(model, dtype, name="aspp")(coarse, train)
        logits = _Decoder(self.config.num_classes, model, dtype, name="decoder")(coarse, fine, train)
        return _resize(logits.astype(jnp.promote_types(dtype, jnp.float32)), images.shape[1:3], model.align_corners)


class _ConvBN(nn.Module):
    features: int
    dtype: jnp.dtype
    size: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    use_bias: bool = False
    relu: bool = True

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(
            self.features,
            (self.size, self.size),
            self.stride,
            padding=self.size // 2 * self.dilation,
            kernel_dilation=self.dilation,
            feature_group_count=self.groups,
            use_bias=self.use_bias,
            dtype=self.dtype,
            precision=_precision(self.dtype),
            name="conv",
        )(x)
        x = nn.BatchNorm(
            not train,
            momentum=0.9,
            dtype=self.dtype,
            use_fast_variance=x.shape[1:3] != (1, 1),  # one value a picture, as in the pooled branch, would cancel
            name="batch_norm",
        )(x)
        return nn.relu(x) if self.relu else x


class _SeparableConvBN(nn.Module):
    features: int
    dtype: jnp.dtype
    use_bias: bool
    depthwise_relu: bool
    dilation: int = 1

    @nn.compact
    def __call__(self, x, train):
        channels = x.shape[-1]
        conv = functools.partial(_ConvBN, dtype=self.dtype, use_bias=self.use_bias)
        spatial = functools.partial(conv, size=3, dilation=self.dilation, groups=channels, relu=self.depthwise_relu)
        x = spatial(channels, name="depthwise")(x, train)
        return conv(self.features, name="pointwise")(x, train)


class _Block(nn.Module):
    width: int
    bottleneck: bool
    shortcut: bool
    avg_down: bool
    stride: int
    dilation: int
    second_dilation: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, train):
        spatial = functools.partial(_ConvBN, size=3, stride=self.stride, dilation=self.dilation)
        if self.bottleneck:
            y = _ConvBN(self.width, self.dtype, name="conv1")(x, train)
            y = spatial(self.width, self.dtype, name="conv2")(y, train)
            y = _ConvBN(4 * self.width, self.dtype, relu=False, name="conv3")(y, train)
        else:
            y = spatial(self.width, self.dtype, name="conv1")(x, train)
            y = _ConvBN(self.width, self.dtype, 3, dilation=self.second_dilation, relu=False, name="conv2")(y, train)
        if self.shortcut:
            stride = self.stride
            if stride == 2 and self.avg_down:  # "SAME" pads at the end only, and the padding does not count
                x = nn.avg_pool(x, (2, 2), (2, 2), "SAME", count_include_pad=False)
                stride = 1
            x = _ConvBN(y.shape[-1], self.dtype, stride=stride, relu=False, name="shortcut")(x, train)
        return nn.relu(x + y)


class _Backbone(nn.Module):
    model: Any
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, train):
        if self.model.stem == "plain":
            x = _ConvBN(64, self.dtype, 7, 2, name="stem_conv")(x, train)
        else:
            for index, (features, stride) in enumerate(((32, 2), (32, 1), (64, 1)), start=1):
                x = _ConvBN(features, self.dtype, 3, stride, name=f"stem_conv{index}")(x, train)
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        backbone, output_stride = self.model.backbone, self.model.output_stride
        strides, dilations = ((1, 2, 1, 1), (1, 1, 2, 4)) if output_stride == 8 else ((1, 2, 2, 1), (1, 1, 1, 2))
        fine = None
        for stage, count in enumerate(BLOCKS[backbone], start=1):
            of_blocks = [dilations[stage - 1]] * count
            if self.model.contract_dilation and of_blocks[0] > 1:
                of_blocks[0] //= 2
            if stage == 4:
                factors = of_blocks if self.model.multi_grid_kind == "factors" else [1] * count
                of_blocks = [grid * factor for grid, factor in zip(self.model.multi_grid, factors, strict=True)]
            bottleneck = backbone not in BASIC_BLOCKS
            for index, dilation in enumerate(of_blocks):
                x = _Block(
                    width=32 * 2**stage,
                    bottleneck=bottleneck,
                    shortcut=index == 0 and (stage > 1 or bottleneck or self.model.stage1_shortcut),
                    avg_down=self.model.avg_down,
                    stride=strides[stage - 1] if index == 0 else 1,
                    dilation=dilation,
                    second_dilation=dilation if self.model.dilate_second else 1,
                    dtype=self.dtype,
                    name=f"stage{stage}_block{index + 1}",
                )(x, train)
            fine = x if stage == 1 else fine
        return fine, x


class _ASPP(nn.Module):
    model: Any
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, train):
        channels = self.model.aspp_channels
        branches = []
        for index, rate in enumerate(self.model.aspp_rates, start=1):
            branch: _ConvBN | _SeparableConvBN
            if rate == 1:
                branch = _ConvBN(channels, self.dtype, use_bias=self.model.head_bias, name=f"branch{index}")
            else:
                head = (self.model.head_bias, self.model.head_depthwise_relu)
                branch = _SeparableConvBN(channels, self.dtype, *head, rate, name=f"branch{index}")
            branches.append(branch(x, train))
        pooled = x.mean((1, 2), keepdims=True, dtype=jnp.promote_types(self.dtype, jnp.float32))
        pooled = _ConvBN(channels, self.dtype, name="image_pooling")(pooled, train)
        place = 0 if self.model.aspp_pooling_first else len(branches)
        branches.insert(place, jnp.broadcast_to(pooled, branches[0].shape))
        x, size = jnp.concatenate(branches, -1), self.model.aspp_projection_size
        x = _ConvBN(channels, self.dtype, size, use_bias=self.model.head_bias, name="projection")(x, train)
        return nn.Dropout(self.model.dropout, deterministic=not train)(x)


class _Decoder(nn.Module):
    num_classes: int
    model: Any
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, coarse, fine, train):
        model = self.model
        project = _ConvBN(model.low_level_channels, self.dtype, use_bias=model.head_bias, name="low_level_projection")
        fine = project(fine, train)
        x = jnp.concatenate([_resize(coarse, fine.shape[1:3], model.align_corners), fine], -1)
        head = (model.decoder_channels, self.dtype, model.head_bias, model.head_depthwise_relu)
        x = _SeparableConvBN(*head, name="fuse1")(x, train)
        x = _SeparableConvBN(*head, name="fuse2")(x, train)
        precision = _precision(self.dtype)
        return nn.Conv(self.num_classes, (1, 1), dtype=self.dtype, precision=precision, name="classifier")(x)


def _precision(dtype) -> jax.lax.Precision:
    return jax.lax.Precision.DEFAULT if dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST


def _resize(x, size, align_corners):
    """Bilinear, without antialiasing: half-pixel centres, or corners aligned."""
    scale, translation = [], []
    for source, target in zip(x.shape[1:3], size, strict=True):
        aligned = align_corners and min(source, target) > 1
        scale.append((target - 1) / (source - 1) if aligned else target / source)
        translation.append((1 - scale[-1]) / 2 if aligned else 0.0)
    shape = (x.shape[0], *size, x.shape[3])
    return jax.image.scale_and_translate(
        x, shape, (1, 2), jnp.array(scale), jnp.array(translation), "linear", antialias=False
    )

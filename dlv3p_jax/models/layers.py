"""The layers that all parts of the network are made of; they take an array or `Tiled`, and give the same."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from dlv3p_jax.models import ops, tiles
from dlv3p_jax.models.tiles import Pictures

BATCH_NORM_MOMENTUM = 0.9  # new running statistic = 0.9 old + 0.1 batch
BATCH_NORM_EPSILON = 1e-5


def he_normal(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """N(0, 2 / (height x width x input channels)) for a kernel [height, width, in, out] (He et al., 2015)."""
    return jax.random.normal(key, shape, dtype) * math.sqrt(2 / math.prod(shape[:3]))


def depthwise_he_normal(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """The same for a depthwise kernel [height, width, 1, C], whose C input channels PaddleSeg counts in full."""
    return jax.random.normal(key, shape, dtype) * math.sqrt(2 / math.prod((*shape[:2], shape[3])))


class Conv(nn.Module):
    """A 1x1, 3x3 or 7x7 convolution. [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features] in `dtype`.

    Attributes:
        features: channels of the result.
        size: of the kernel, 1, 3, or 7 with stride 2.
        stride: of both axes.
        dilation: distance of neighbouring taps, in pixels.
        depthwise: 3x3, each channel with its own filter: `features` is C, `stride` 1.
        use_bias: whether it adds a bias.
        dtype: type of the computation.
    """

    features: int
    size: int = 1
    stride: int = 1
    dilation: int = 1
    depthwise: bool = False
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Pictures) -> Pictures:
        inputs = 1 if self.depthwise else x.shape[-1]
        init = depthwise_he_normal if self.depthwise else he_normal
        kernel = self.param("kernel", init, (self.size, self.size, inputs, self.features))
        x = tiles.each(lambda x: x.astype(self.dtype), x)
        if self.depthwise:
            x = ops.depthwise_conv3x3(x, kernel, self.dilation)
        elif self.size == 1:
            x = ops.conv1x1(x, kernel)
        elif self.size == 7:
            x = ops.conv7x7(x, kernel)
        else:
            x = ops.conv3x3(x, kernel, self.stride, self.dilation)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            x = tiles.each(lambda x: x + bias.astype(self.dtype), x)
        return x


class BatchNorm(nn.Module):
    """Batch normalisation over the global batch; statistics are computed and stored in float32 whatever the `dtype`."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Pictures, train: bool) -> Pictures:
        norm = nn.BatchNorm(
            use_running_average=not train,
            momentum=BATCH_NORM_MOMENTUM,
            epsilon=BATCH_NORM_EPSILON,
            dtype=self.dtype,
            # The image-pooling branch normalises one value per picture, where E[x^2] - E[x]^2 would cancel.
            use_fast_variance=x.shape[1:3] != (1, 1),
        )
        nn.share_scope(self, norm)
        return tiles.like(x, norm(tiles.of(x).array))


class ConvBN(nn.Module):
    """A convolution, batch normalisation and, unless `relu` is off, a ReLU: `conv`, `batch_norm`. As `Conv`."""

    features: int
    size: int = 1
    stride: int = 1
    dilation: int = 1
    depthwise: bool = False
    use_bias: bool = True
    relu: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Pictures, train: bool) -> Pictures:
        geometry = (self.size, self.stride, self.dilation, self.depthwise)
        x = Conv(self.features, *geometry, self.use_bias, self.dtype, name="conv")(x)
        x = BatchNorm(self.dtype, name="batch_norm")(x, train)
        return tiles.each(nn.relu, x) if self.relu else x


class SeparableConvBN(nn.Module):
    """A 3x3 separable convolution: `depthwise` (BatchNorm, no ReLU), then `pointwise` (BatchNorm, ReLU).

    Attributes:
        features: channels of the result.
        dilation: of the depthwise convolution.
        use_bias: whether the convolutions add a bias.
        depthwise_relu: whether a ReLU follows the depthwise one, too.
        dtype: type of the computation.
    """

    features: int
    dilation: int = 1
    use_bias: bool = True
    depthwise_relu: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Pictures, train: bool) -> Pictures:
        conv = functools.partial(ConvBN, use_bias=self.use_bias, dtype=self.dtype)
        spatial = functools.partial(conv, size=3, dilation=self.dilation, depthwise=True, relu=self.depthwise_relu)
        x = spatial(x.shape[-1], name="depthwise")(x, train)
        return conv(self.features, name="pointwise")(x, train)

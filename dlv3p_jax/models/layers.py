"""The layers that all parts of the network are made of."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from dlv3p_jax.models import ops
from dlv3p_jax.runtime import sharding

BATCH_NORM_MOMENTUM = 0.9  # new running statistic = 0.9 old + 0.1 batch
BATCH_NORM_EPSILON = 1e-5


def he_normal(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """N(0, 2 / (height x width x input channels)) for a kernel [height, width, in, out] (He et al., 2015)."""
    return jax.random.normal(key, shape, dtype) * math.sqrt(2 / math.prod(shape[:3]))


def depthwise_he_normal(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """The same for a depthwise kernel [height, width, 1, C], whose C input channels PaddleSeg counts in full."""
    return jax.random.normal(key, shape, dtype) * math.sqrt(2 / math.prod((*shape[:2], shape[3])))


class Conv(nn.Module):
    """A 1x1 or 3x3 convolution. [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features] in `dtype`."""

    features: int
    size: int = 1
    stride: int = 1
    dilation: int = 1
    use_bias: bool = True
    strips: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", he_normal, (self.size, self.size, x.shape[-1], self.features))
        x = x.astype(self.dtype)
        if self.size == 1:
            x = ops.conv1x1(x, kernel)
        else:
            x = ops.conv3x3(x, kernel, self.stride, self.dilation, self.strips)
        if self.use_bias:
            x += self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return x


class DepthwiseConv(nn.Module):
    """A 3x3 depthwise convolution with bias, see `ops.depthwise_conv3x3`. [B, H, W, C] -> [B, H, W, C] in `dtype`."""

    dilation: int = 1
    whole: bool = False
    strips: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", depthwise_he_normal, (3, 3, 1, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(self.dtype)
        x = ops.depthwise_conv3x3(x, kernel, self.dilation, self.whole, self.strips)
        return x + bias.astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation over the global batch; statistics are computed and stored in float32 whatever the `dtype`."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        norm = nn.BatchNorm(
            use_running_average=not train,
            momentum=BATCH_NORM_MOMENTUM,
            epsilon=BATCH_NORM_EPSILON,
            dtype=self.dtype,
            # The image-pooling branch normalises one value per picture, where E[x^2] - E[x]^2 would cancel.
            use_fast_variance=x.shape[1:3] != (1, 1),
        )
        nn.share_scope(self, norm)
        return norm(x)


class ConvBN(nn.Module):
    """A convolution, batch normalisation and, unless `relu` is off, a ReLU: `conv`, `batch_norm`."""

    features: int
    size: int = 1
    stride: int = 1
    dilation: int = 1
    use_bias: bool = True
    relu: bool = True
    strips: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        geometry = (self.size, self.stride, self.dilation, self.use_bias, self.strips)
        x = Conv(self.features, *geometry, dtype=self.dtype, name="conv")(x)
        x = BatchNorm(dtype=self.dtype, name="batch_norm")(x, train)
        return nn.relu(x) if self.relu else x


class DepthwiseConvBN(nn.Module):
    """A depthwise convolution and batch normalisation, no ReLU: `conv`, `batch_norm`."""

    dilation: int = 1
    whole: bool = False
    strips: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        x = DepthwiseConv(self.dilation, self.whole, self.strips, dtype=self.dtype, name="conv")(x)
        return BatchNorm(dtype=self.dtype, name="batch_norm")(x, train)


class SeparableConvBN(nn.Module):
    """A 3x3 separable convolution: `depthwise` (BatchNorm, no ReLU), then `pointwise` (BatchNorm, ReLU).

    Attributes:
        features: channels of the result.
        dilation: of the depthwise convolution.
        layout: of the depthwise convolution on a mesh, see `ops.depthwise_layout`.
        strips: see `ops.conv3x3`.
        dtype: type of the computation.
    """

    features: int
    dilation: int = 1
    layout: str = "rows"
    strips: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        by_channels = self.layout == "channels"
        x = sharding.by_channels(sharding.by_height(x)) if by_channels else x
        depthwise = DepthwiseConvBN(self.dilation, self.layout != "rows", self.strips, self.dtype, name="depthwise")
        x = depthwise(x, train)
        x = sharding.by_height(sharding.by_channels(x)) if by_channels else x
        return ConvBN(self.features, dtype=self.dtype, name="pointwise")(x, train)

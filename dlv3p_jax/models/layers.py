"""The layers that all parts of the network are made of; they take an array or `Tiled`, and give the same."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from dlv3p_jax.models import normalising, ops, tiles
from dlv3p_jax.models.normalising import Affine, Moments
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

    def __call__(self, x: Pictures) -> Pictures:
        return self.convolve(x, *self.parameters(x.shape[-1]))

    @nn.compact
    def parameters(self, inputs: int) -> tuple[jax.Array, jax.Array | None]:
        """The kernel [size, size, inputs, or 1 if `depthwise`, features], and the bias [features] if there is one."""
        init = depthwise_he_normal if self.depthwise else he_normal
        shape = (self.size, self.size, 1 if self.depthwise else inputs, self.features)
        kernel = self.param("kernel", init, shape)
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None

    def convolve(self, x: Pictures, kernel: jax.Array, bias: jax.Array | None) -> Pictures:
        """[B, H, W, C] as above, with the module's `parameters` or what normalisation made of them, in float32."""
        x = tiles.each(lambda x: x.astype(self.dtype), x)
        if self.depthwise:
            x = ops.depthwise_conv3x3(x, kernel, self.dilation)
        elif self.size == 1:
            x = ops.conv1x1(x, kernel)
        elif self.size == 7:
            x = ops.conv7x7(x, kernel)
        else:
            x = ops.conv3x3(x, kernel, self.stride, self.dilation)
        # Not in bfloat16: the bias may be a mean that is to be taken away.
        return x if bias is None else tiles.each(lambda x: (x + bias).astype(self.dtype), x)


class BatchNorm(nn.Module):
    """Batch normalisation: running statistics, and parameters for what is left after it; all float32.

    It computes nothing from pictures: it takes their moments and gives an `Affine`.
    """

    @nn.compact
    def __call__(self, channels: int, moments: Moments | None) -> Affine:
        """How pictures of so many channels are to be normalised.

        Args:
            channels: of the pictures.
            moments: of the global batch, or None for the running ones.
        """
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        if moments is None:
            moments = Moments(mean.value, var.value)
        elif not self.is_initializing():
            for running, batch in ((mean, moments.mean), (var, moments.var)):
                running.value = BATCH_NORM_MOMENTUM * running.value + (1 - BATCH_NORM_MOMENTUM) * batch
        return Affine(moments.mean, jax.lax.rsqrt(moments.var + BATCH_NORM_EPSILON) * scale, bias)


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

    def __call__(self, x: Pictures, train: bool, before: Affine | None = None) -> Pictures:
        """`before`: see `convolve`."""
        x, affine = self.convolve(x, train, before)
        if affine is not None:
            x = tiles.each(lambda x: affine(x).astype(self.dtype), x)
        return tiles.each(nn.relu, x) if self.relu else x

    @nn.compact
    def convolve(self, x: Pictures, train: bool, before: Affine | None = None) -> tuple[Pictures, Affine | None]:
        """The convolution alone. [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features].

        Args:
            x: the pictures.
            train: see `DeepLabV3Plus`.
            before: how `x` is still to be normalised; for a 1x1 convolution alone, which takes it into its kernel.

        Returns:
            The convolution of the normalised `x`, and how that is still to be normalised; None: it is.
        """
        geometry = (self.size, self.stride, self.dilation, self.depthwise)
        conv = Conv(self.features, *geometry, self.use_bias, self.dtype, name="conv")
        batch_norm = functools.partial(BatchNorm(name="batch_norm"), self.features)
        kernel, bias = conv.parameters(x.shape[-1])
        if train and bias is not None:
            bias = jax.lax.stop_gradient(bias)  # the mean takes it away again: its gradient would be rounding alone
        if before is not None:
            x = conv.convolve(x, *normalising.fold_before(before, kernel, bias, self.dtype))
            x = tiles.each(normalising.with_rounded_cotangent, x)
        elif train and self.size == 1 and bias is None and normalising.product_pays(kernel.shape, self.dtype):
            array = tiles.of(x).array.astype(self.dtype)
            return conv.convolve(x, *normalising.normalise_product(array, kernel, batch_norm)), None
        else:
            x = conv.convolve(x, kernel, bias)
        return x, batch_norm(normalising.moments(tiles.of(x).array) if train else None)


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
        geometry = (3, 1, self.dilation, True, self.use_bias, self.depthwise_relu)
        depthwise = ConvBN(x.shape[-1], *geometry, dtype=self.dtype, name="depthwise")
        pointwise = ConvBN(self.features, use_bias=self.use_bias, dtype=self.dtype, name="pointwise")
        if self.depthwise_relu:
            return pointwise(depthwise(x, train), train)
        x, affine = depthwise.convolve(x, train)
        return pointwise(x, train, affine)

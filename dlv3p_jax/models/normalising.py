"""Normalisation of channels, and how a 1x1 convolution before or after it takes it into its kernel.

To normalise what is folded, no pass over the pictures is needed, neither forward nor backward: the gradients of its
scale and of sums over the pictures come from that of the kernel, which is small.
"""

import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dlv3p_jax.models import products
from dlv3p_jax.runtime import sharding


class Moments(typing.NamedTuple):
    """Mean and biased variance of each channel, [C] each, float32 at least."""

    mean: jax.Array
    var: jax.Array


class Affine(typing.NamedTuple):
    """What is left of a normalisation: `(x - mean) * scale + bias`, [C] each, float32 at least."""

    mean: jax.Array
    scale: jax.Array
    bias: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., C] -> the same, float32 at least."""
        return (x - self.mean) * self.scale + self.bias


def moments(x: jax.Array) -> Moments:
    """Those of `x`, [B, H, W, C], over all of the global batch."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = x.mean((0, 1, 2))
    if x.shape[1:3] == (1, 1):  # the image-pooling branch has one value a picture: the difference below would cancel
        return Moments(mean, x.var((0, 1, 2)))
    return _from_squares(mean, jnp.square(x).mean((0, 1, 2)))


def product_pays(shape: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Whether moments of the product with a 1x1 kernel of this shape are better taken from the factors.

    On a TPU, where a pass over the product costs more than the products of the fewer channels of `x`. Not in float32,
    whose last digits the differences of such sums lose; pictures in bfloat16 do not have these digits.
    """
    return sharding.platform() == "tpu" and dtype != jnp.float32 and 4 * shape[2] <= shape[3]


def fold_before(
    affine: Affine, kernel: jax.Array, bias: jax.Array | None, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """Kernel [1, 1, C, D] and bias [D] that make of `x` what the given ones make of `affine(x)`.

    `dtype` is what the convolution computes in, and so rounds its kernel to.
    """
    scaled = kernel * affine.scale[:, None]
    # Of the mean as much is taken away as the rounded kernel brings in.
    shift = products.product(affine.bias, kernel[0, 0]) - products.product(affine.mean, _rounded(scaled[0, 0], dtype))
    return scaled, shift if bias is None else shift + bias


def normalise_product(
    x: jax.Array, kernel: jax.Array, batch_norm: Callable[[Moments], Affine]
) -> tuple[jax.Array, jax.Array]:
    """Kernel [1, 1, C, D] and bias [D] of a convolution of `x`, [B, H, W, C], that normalises what the given one gives.

    Its moments come from the means of `x` and of the products of its channels, E[x x^T].
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    weights = _rounded(kernel[0, 0], x.dtype).astype(wide)
    mean = x.astype(wide).mean((0, 1, 2))
    squares = products.product(products.over_pixels(x, x) / (x.size // x.shape[-1]), weights)
    affine = batch_norm(_from_squares(products.product(mean, weights), (squares * weights).sum(0)))
    scaled = kernel * affine.scale
    return scaled, affine.bias - products.product(mean, _rounded(scaled[0, 0], x.dtype).astype(wide))


def _from_squares(mean, squares):
    return Moments(mean, jnp.maximum(squares - jnp.square(mean), 0))


@jax.custom_vjp
def with_rounded_cotangent(x: jax.Array) -> jax.Array:
    """`x`, whose cotangent all see as rounded to its type.

    By itself, XLA sums it for a bias before it is rounded, but rounds it for the kernel's gradient. Of means that the
    kernel sees, these two have to take each other away.
    """
    return x


def _rounded_cotangent(_, cotangent):
    info = jnp.finfo(cotangent.dtype)  # a conversion there and back would be left out
    wide = cotangent.astype(jnp.promote_types(cotangent.dtype, jnp.float32))
    return (jax.lax.reduce_precision(wide, info.nexp, info.nmant).astype(cotangent.dtype),)


with_rounded_cotangent.defvjp(lambda x: (x, None), _rounded_cotangent)


def _rounded(x, dtype):
    """`x` with the values that it has in `dtype`, and with a gradient that is not rounded."""
    return x + jax.lax.stop_gradient(x.astype(dtype).astype(x.dtype) - x)

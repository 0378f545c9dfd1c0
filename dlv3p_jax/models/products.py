"""Convolutions as matrix products, or depthwise ones as multiply-adds: what a CPU is fastest at, gradients included.

Windows skip the padding. Arrays are `[B, H, W, C]`, kernels `[height, width, in, out]`, results in the type of the
array; sums are float32 at least.
"""

import functools
import typing
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dlv3p_jax.runtime import sharding


def precision(dtype) -> lax.Precision:
    """What products and convolutions of `dtype` ask for: float32 means float32, on TPUs and in the face of TF32 too."""
    return lax.Precision.DEFAULT if dtype == jnp.bfloat16 else lax.Precision.HIGHEST


def product(x: jax.Array, y: jax.Array) -> jax.Array:
    """The last axis of `x` contracted with the first of `y`, summed and given in float32 at least."""
    return _contract(x, y, (x.ndim - 1,), (0,))


def over_pixels(x: jax.Array, y: jax.Array) -> jax.Array:
    """The sum over all pixels of the products of channels, [..., C] and [..., D] -> [C, D], as `product` sums.

    It is the gradient of a 1x1 kernel.
    """
    if sharding.platform() == "cpu":
        # XLA takes twice as long for arrays of four axes, and for more channels in `x` than in `y`. The barrier keeps
        # it from exchanging the two.
        if x.shape[-1] > y.shape[-1]:
            return lax.optimization_barrier(over_pixels(y, x)).T
        x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    pixels = tuple(range(x.ndim - 1))
    return _contract(x, y, pixels, pixels)


def _contract(x, y, x_axes, y_axes):
    accumulator = jnp.promote_types(x.dtype, jnp.float32)
    dimensions = ((x_axes, y_axes), ((), ()))
    return lax.dot_general(x, y, dimensions, precision=precision(x.dtype), preferred_element_type=accumulator)


@jax.custom_vjp
def conv1x1(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 1x1 convolution with stride 1. x: [B, H, W, C]; kernel: [1, 1, C, D] -> [B, H, W, D]."""
    return product(x, kernel[0, 0]).astype(x.dtype)


def _conv1x1_forward(x, kernel):
    return conv1x1(x, kernel), (x, kernel)


def _conv1x1_backward(residuals, cotangent):
    x, kernel = residuals
    x_gradient = product(cotangent, kernel[0, 0].T).astype(x.dtype)
    return x_gradient, over_pixels(x, cotangent).reshape(kernel.shape).astype(kernel.dtype)


conv1x1.defvjp(_conv1x1_forward, _conv1x1_backward)


class _Tap(typing.NamedTuple):
    """One position of a 3x3 kernel, with the pixels at which it sees the picture and not the padding."""

    row: int
    column: int
    input: tuple[slice, ...]
    output: tuple[slice, ...]


def _taps(size: Sequence[int], stride: int = 1, dilation: int = 1) -> list[_Tap]:
    """The taps that see any of a picture of (height, width) `size`; first the centre one, which sees all of it."""
    height, width = size

    def window(length, tap):
        offset = (tap - 1) * dilation  # input pixel = stride * output pixel + offset
        first = -(min(offset, 0) // stride)
        last = min((length - 1) // stride, (length - 1 - offset) // stride)
        return slice(first * stride + offset, last * stride + offset + 1, stride), slice(first, last + 1)

    taps = []
    for row, column in sorted(np.ndindex(3, 3), key=lambda tap: tap != (1, 1)):
        rows, columns = window(height, row), window(width, column)
        if rows[1].start < rows[1].stop and columns[1].start < columns[1].stop:
            everything = slice(None)
            taps.append(_Tap(row, column, (everything, rows[0], columns[0]), (everything, rows[1], columns[1])))
    return taps


def count_products(height: int, width: int, dilation: int) -> int:
    """How many products a channel `conv3x3` with stride 1 takes of a picture: its pixels times the taps they see."""
    windows = (tap.output[1:] for tap in _taps((height, width), dilation=dilation))
    return sum((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in windows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv3x3(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """A 3x3 convolution, see `ops.conv3x3`, as at most nine products of windows."""
    centre, *others = _taps(x.shape[1:3], stride, dilation)
    total = product(x[centre.input], kernel[1, 1])
    for tap in others:
        total = total.at[tap.output].add(product(x[tap.input], kernel[tap.row, tap.column]))
    return total.astype(x.dtype)


def _conv3x3_forward(x, kernel, stride, dilation):
    return conv3x3(x, kernel, stride, dilation), (x, kernel)


def _conv3x3_backward(stride, dilation, residuals, cotangent):
    x, kernel = residuals
    gradient = kernel_gradient(x, kernel, cotangent, stride, dilation)
    if stride == 1:  # the transposed convolution is one with the kernel turned round
        turned = kernel[::-1, ::-1].swapaxes(2, 3)
        return conv3x3(cotangent, turned, 1, dilation), gradient
    x_gradient = jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))
    for tap in _taps(x.shape[1:3], stride, dilation):
        products = product(cotangent[tap.output], kernel[tap.row, tap.column].T)
        x_gradient = x_gradient.at[tap.input].add(products)
    return x_gradient.astype(x.dtype), gradient


conv3x3.defvjp(_conv3x3_forward, _conv3x3_backward)


def kernel_gradient(x, kernel, cotangent, stride, dilation):
    """The gradient of the kernel [3, 3, C, D] of a convolution, in its type: nine products, one for each tap."""
    taps = [jnp.zeros(kernel.shape[2:], jnp.promote_types(kernel.dtype, jnp.float32))] * 9
    for tap in _taps(x.shape[1:3], stride, dilation):
        taps[3 * tap.row + tap.column] = over_pixels(x[tap.input], cotangent[tap.output])
    return jnp.stack(taps).reshape(kernel.shape).astype(kernel.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv3x3(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """A 3x3 convolution of each channel with its own filter, see `ops.depthwise_conv3x3`, as nine multiply-adds."""
    accumulator = jnp.promote_types(x.dtype, jnp.float32)
    centre, *others = _taps(x.shape[1:3], dilation=dilation)

    def convolve(x):
        x = x.astype(accumulator)
        total = x * kernel[1, 1, 0]
        for tap in others:
            total = total.at[tap.output].add(x[tap.input] * kernel[tap.row, tap.column, 0])
        return total

    return _by_picture(convolve, x).astype(x.dtype)


def _depthwise_forward(x, kernel, dilation):
    return depthwise_conv3x3(x, kernel, dilation), (x, kernel)


def _depthwise_backward(dilation, residuals, cotangent):
    x, kernel = residuals

    def gradient(x, cotangent):
        return depthwise_kernel_gradient(x, cotangent, dilation)[None]

    total = _by_picture(gradient, x, cotangent).sum(0).astype(kernel.dtype)
    return depthwise_conv3x3(cotangent, kernel[::-1, ::-1], dilation), total


depthwise_conv3x3.defvjp(_depthwise_forward, _depthwise_backward)


def depthwise_kernel_gradient(x, cotangent, dilation):
    """The gradient of the kernel of a depthwise convolution, float32 at least [3, 3, 1, C]: a sum for each tap."""
    accumulator = jnp.promote_types(x.dtype, jnp.float32)
    taps = [jnp.zeros(x.shape[3:], accumulator)] * 9
    for tap in _taps(x.shape[1:3], dilation=dilation):
        products = x[tap.input].astype(accumulator) * cotangent[tap.output].astype(accumulator)
        products = products.reshape(-1, x.shape[3])
        # On a CPU a sum written as a product: plain sums of such windows take 1.4 to 1.6 times as long there.
        on_cpu = sharding.platform() == "cpu"
        total = product(jnp.ones(len(products), accumulator), products) if on_cpu else products.sum(0)
        taps[3 * tap.row + tap.column] = total
    return jnp.stack(taps).reshape(3, 3, 1, -1)


def _by_picture(function, *arrays):
    """`function`, which gives `[B, ...]` or sums `[1, ...]`, of one picture after the other: each stays in the cache.

    Of all at once where they lie on several devices.
    """
    if sharding.num_picture_shards() * sharding.num_row_shards() > 1:
        return function(*arrays)
    return lax.map(lambda pictures: function(*(picture[None] for picture in pictures))[0], arrays)

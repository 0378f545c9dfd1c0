"""3x3 convolutions with 16 products instead of 36 for every 2x2 pixels: Winograd's F(2x2, 3x3) (Lavin and Gray, 2016).

A tile Y of 2x2 pixels comes of the 4x4 pixels X around it and of the kernel K as

    Y = A ((G K G') * (B X B')) A'

with three small matrices of constants. Over all tiles and channels, each of the 16 numbers that are multiplied in the
middle is a matrix product. With a dilation, the pixels of a tile lie that far apart. Rounding is half as large again as
that of a plain convolution.

Here a matrix of arrays, such as the pixels of all tiles, is a list of rows.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np

from dlv3p_jax.models import products

_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])  # G
_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])  # B
_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])  # A


def pays(shape: tuple[int, ...], kernel_shape: tuple[int, ...], dilation: int) -> bool:
    """Whether it is faster on a CPU than a plain convolution or products of windows, by measurement.

    It is if it saves a fifth of the numbers' products at least. The larger the dilation, the more taps see nothing but
    padding, which windows skip. With few channels or few pixels, transforming them takes longer than it saves.
    """
    batch, height, width, _ = shape
    tiles = -(-height // (2 * dilation)) * -(-width // (2 * dilation)) * dilation**2
    count = products.count_products(height, width, dilation)
    *_, inputs, outputs = kernel_shape
    return min(inputs, outputs) >= 64 and batch * count * inputs * outputs >= 10**8 and 16 * tiles < 0.8 * count


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3x3(x: jax.Array, kernel: jax.Array, dilation: int = 1) -> jax.Array:
    """A 3x3 convolution with stride 1, padded by its dilation on every side; computed in float32 at least.

    Args:
        x: [B, H, W, C].
        kernel: [3, 3, C, D].
        dilation: distance of neighbouring taps, in pixels.

    Returns:
        [B, H, W, D] in the type of `x`.
    """
    return _convolve(x, _transform(_KERNEL, _promote(kernel)), dilation)


def _forward(x, kernel, dilation):
    return conv3x3(x, kernel, dilation), (x, kernel)


def _backward(dilation, residuals, cotangent):
    x, kernel = residuals
    inputs = _transform(_INPUT, _input_tiles(x, dilation))
    outputs = _transform(_OUTPUT.T, _output_tiles(cotangent, dilation))
    gradient = _transform(_KERNEL.T, _products(products.over_pixels, inputs, outputs))
    gradient = jnp.stack([jnp.stack(row) for row in gradient]).astype(kernel.dtype)
    # The transposed convolution has the kernel turned round, which only exchanges the first with the last transformed.
    kernels = _transform(_KERNEL, _promote(kernel))
    turned = [[kernels[i][j].T for j in (3, 1, 2, 0)] for i in (3, 1, 2, 0)]
    return _convolve(cotangent, turned, dilation), gradient


conv3x3.defvjp(_forward, _backward)


def _convolve(x, kernels, dilation):
    inputs = _transform(_INPUT, _input_tiles(x, dilation))
    outputs = _transform(_OUTPUT, _products(products.product, inputs, kernels))
    y = jnp.stack([jnp.stack(row, 4) for row in outputs], 2)  # [B, H / 2 d, 2, d, W / 2 d, 2, d, D]
    y = y.reshape(len(x), 2 * dilation * y.shape[1], 2 * dilation * y.shape[4], -1)
    return y[:, : x.shape[1], : x.shape[2]].astype(x.dtype)


def _transform(matrix, arrays):
    """matrix x arrays x its transpose."""
    rows = [[_combine(weights, column) for column in zip(*arrays, strict=True)] for weights in matrix]
    return [[_combine(weights, row) for weights in matrix] for row in rows]


def _combine(weights, arrays):
    """The weighted sum; products by 1 and a sum with 0 would be a third of all that is traced of a training step."""
    terms = ((weight, array) for weight, array in zip(weights, arrays, strict=True) if weight)
    signed = (array if weight == 1 else -array if weight == -1 else float(weight) * array for weight, array in terms)
    return functools.reduce(operator.add, signed)


def _products(function, xs, ys):
    return [[function(x, y) for x, y in zip(*rows, strict=True)] for rows in zip(xs, ys, strict=True)]


def _input_tiles(x, dilation):
    """The 4x4 pixels around each tile; each [B, H / 2 d, d, W / 2 d, d, C]."""
    x = _split(x, dilation, dilation)
    m, n = x.shape[1] - 1, x.shape[4] - 1
    return [[x[:, i // 2 : i // 2 + m, i % 2, :, j // 2 : j // 2 + n, j % 2] for j in range(4)] for i in range(4)]


def _output_tiles(y, dilation):
    """The 2x2 pixels of each tile; each [B, H / 2 d, d, W / 2 d, d, D]."""
    y = _split(y, dilation, 0)
    return [[y[:, :, i, :, :, j] for j in range(2)] for i in range(2)]


def _split(x, dilation, border):
    """`x` [B, H, W, C] in a border of zeros, enlarged to whole tiles: [B, rows / 2 d, 2, d, columns / 2 d, 2, d, C]."""
    batch, height, width, channels = x.shape
    fill = [(border, border + -side % (2 * dilation)) for side in (height, width)]
    x = jnp.pad(_promote(x), ((0, 0), *fill, (0, 0)))
    rows, columns = (side // (2 * dilation) for side in x.shape[1:3])
    return x.reshape(batch, rows, 2, dilation, columns, 2, dilation, channels)


def _promote(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))

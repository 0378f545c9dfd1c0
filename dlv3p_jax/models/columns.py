"""3x3 convolutions and maxima of few channels on a TPU, with neighbouring columns side by side in the channels.

A TPU lays channels into 128 lanes: of 32 channels, three quarters of every product and of every other operation are
empty. Of four columns side by side none are. The same kernel, with zeros where a column has no part in another, then is
one of 128 channels. Between such operations the compiler leaves columns where they are.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from dlv3p_jax.runtime import sharding

_LANES = 128


def count(inputs: int, outputs: int, stride: int, width: int) -> int:
    """How many columns of a convolution's result fill a TPU's lanes, side by side.

    One on all else, where channels fill the lanes, where sides do not divide and where devices hold rows.

    Args:
        inputs: channels.
        outputs: channels of the result.
        stride: of the operation.
        width: of the pictures.
    """
    if width % stride or sharding.platform() != "tpu" or sharding.num_row_shards() > 1:
        return 1
    return math.gcd(max(_LANES // (inputs if stride == 1 else outputs), 1), width // stride)


def widen(kernel: jax.Array, columns: int, stride: int) -> jax.Array:
    """The kernel of the same convolution whose result has `columns` columns side by side.

    Args:
        kernel: [3, 3, C, D].
        columns: of the result.
        stride: of both axes.

    Returns:
        [3, 3 or with stride 2 2, stride columns C, columns D]: the last tap of columns is that of the result's own
        place where it strides, and else the one behind it.
    """
    groups = np.arange(-1, 1 if stride == 2 else 2)
    before = np.arange(stride * columns)
    after = stride * np.arange(columns)
    # Of which tap of the kernel a column before is to a column after: 0, 1 or 2, else none.
    taps = stride * columns * groups[:, None, None] + before[:, None] - after + 1
    height, width, inputs, outputs = kernel.shape
    terms = [
        jnp.asarray(taps == tap, kernel.dtype)[None, :, :, None, :, None] * kernel[:, tap, None, None, :, None, :]
        for tap in range(width)
    ]
    return jnp.stack(terms).sum(0).reshape(height, len(groups), len(before) * inputs, columns * outputs)


def maxima(x: jax.Array, columns: int) -> jax.Array:
    """The largest of each column and its two neighbours, with stride 2 and `columns` of the result side by side.

    Args:
        x: [B, H, W, 2 columns C], of which `2 columns` are side by side.
        columns: of the result.

    Returns:
        [B, H, W, columns C].
    """
    own = jnp.split(x, 2 * columns, -1)
    before = jnp.pad(own[-1][:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)), constant_values=-np.inf)
    own = [before, *own]
    # Of equal ones the first, as of a max pool: `jnp.maximum` would give each half of the gradient. NaN stays.
    larger = lambda x, y: jnp.where((y > x) | jnp.isnan(y), y, x)  # noqa: E731
    of_three = [larger(larger(own[i], own[i + 1]), own[i + 2]) for i in range(0, 2 * columns, 2)]
    return jnp.concatenate(of_three, -1)


def beside(x: jax.Array, columns: int) -> jax.Array:
    """Pictures [B, H, W, C] with so many columns side by side, [B, H, W / columns, columns C]."""
    return x.reshape(*x.shape[:2], x.shape[2] // columns, columns * x.shape[3])


def apart(x: jax.Array, columns: int) -> jax.Array:
    """The inverse of `beside`."""
    return x.reshape(*x.shape[:2], x.shape[2] * columns, x.shape[3] // columns)

"""Pictures as strips of rows, which fill a TPU's vector units where pictures are few.

The compiler lays the batch into the sublanes of the vector units. With one or two pictures a chip most of these stay
empty, and every operation costs several times as much a picture as with eight. Where convolutions are not dilated
(those that are run on the sub-images of `ops.cut`), pictures are split into strips, `[B, H, W, C]` ->
`[B strips, H / strips, W, C]`, and a convolution takes the rows that it needs of the strips above and below. It is the
same function.
"""

import math

import jax
import jax.numpy as jnp

from dlv3p_jax.runtime import sharding

_SUBLANES = 16


def count_strips(x: jax.Array, stride: int) -> int:
    """Into how many strips `x` [B, H, W, C] had best be split: 1 on all but TPUs, and where devices hold rows.

    Strips have a multiple of `stride` rows, for the strides that follow.
    """
    if sharding.platform() != "tpu" or sharding.num_row_shards() > 1:
        return 1
    strips = _SUBLANES // math.gcd(_SUBLANES, len(x) // sharding.num_picture_shards())
    return math.gcd(strips, x.shape[1] // stride) if x.shape[1] % stride == 0 else 1


def to_strips(x: jax.Array, strips: int) -> jax.Array:
    """[B, H, W, C] -> [B strips, H / strips, W, C], those of a picture next to each other, from top to bottom."""
    return x.reshape(len(x) * strips, x.shape[1] // strips, *x.shape[2:])


def from_strips(x: jax.Array, strips: int) -> jax.Array:
    """The inverse of `to_strips`."""
    return x.reshape(len(x) // strips, x.shape[1] * strips, *x.shape[2:])


def add_neighbours(x: jax.Array, strips: int, below: bool = True, padding: float = 0.0) -> jax.Array:
    """Strips `x` [B strips, h, W, C] with the last row of the strip above and, if `below`, the first of that below.

    Returns:
        [B strips, h + 1 (or 2), W, C]; what lies outside of a picture is `padding`.
    """
    height, *rest = x.shape[1:]
    x = x.reshape(-1, strips, height, *rest)

    def shift(rows, by):
        outside = ((0, 0), by, (0, 0), (0, 0), (0, 0))
        return jnp.pad(rows, outside, constant_values=padding)

    parts = [shift(x[:, :-1, -1:], (1, 0)), x]
    if below:
        parts.append(shift(x[:, 1:, :1], (0, 1)))
    x = jnp.concatenate(parts, 2)
    return x.reshape(-1, x.shape[2], *rest)

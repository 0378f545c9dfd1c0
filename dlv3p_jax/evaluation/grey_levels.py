"""Bilinear resizing of 8-bit pictures on the devices, to the very grey level that OpenCV gives."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

_ONE = 2048  # OpenCV's weights are integers of 11 bits


def resize(levels: jax.Array, size: Sequence[int], sizes: tuple[jax.Array, jax.Array] | None = None) -> jax.Array:
    """`cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)` of uint8, in the same integers.

    Args:
      levels: integers `[B, H, W, C]` in 0..255.
      size: (height, width) of the result.
      sizes: where pictures have sizes of their own, two arrays of integers `[B, 2]`: (height, width) that each fills
        from the top left, and what it is resized to.

    Returns:
      int32 `[B, height, width, C]` in 0..255.
    """
    levels = levels.astype(jnp.int32)
    if sizes is not None:
        sides = zip(sizes[0].T, sizes[1].T, size, strict=True)
        return jax.vmap(_combine)(levels, *(_neighbours_of_each(*side) for side in sides))
    if tuple(size) == levels.shape[1:3]:
        return levels
    rows, columns = map(_neighbours, levels.shape[1:3], size)
    return jax.vmap(_combine, (0, None, None))(levels, rows, columns)


def _combine(levels, rows, columns):
    """One picture's `[H, W, C]`."""
    (top, bottom, above, below), (left, right, before, after) = rows, columns
    mixed = levels[:, left] * before[:, None] + levels[:, right] * after[:, None]
    mixed >>= 4  # as OpenCV, whose next product has 32 bits
    above, below = above[:, None, None], below[:, None, None]
    return (((mixed[top] * above) >> 16) + ((mixed[bottom] * below) >> 16) + 2) >> 2


def _neighbours(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each pixel of `target`: the two pixels of `source` that it lies between, and their weights, of sum _ONE."""
    position = ((np.arange(target) + 0.5) * (source / target) - 0.5).astype(np.float32)
    low = np.floor(position)
    weights = [np.rint(part * np.float32(_ONE)).astype(np.int32) for part in (1 - (position - low), position - low)]
    first, second = (np.clip(low.astype(np.int32) + step, 0, source - 1) for step in (0, 1))
    return first, second, *weights


def _neighbours_of_each(source: jax.Array, target: jax.Array, room: int) -> tuple[jax.Array, ...]:
    """The same, `[B, room]`, of sides `[B]`: in integers, since the positions above are float64 before float32."""
    source, target = source[:, None], target[:, None]
    low, rest = jnp.divmod((2 * jnp.arange(room) + 1) * source - target, 2 * target)
    # 24 bits of the fraction, and whether anything is left of it.
    high_bits, rest = jnp.divmod(rest << 12, 2 * target)
    low_bits, rest = jnp.divmod(rest << 12, 2 * target)
    bits = (high_bits << 12) + low_bits
    # A float32 has 24 bits in all. What the whole part takes of them is rounded away, halves to even.
    taken = 32 - jax.lax.clz(jnp.maximum(low, 0))
    unit = 1 << taken
    kept, cut = bits >> taken, bits & (unit - 1)
    half = unit >> 1
    up = (cut > half) | ((cut == half) & (taken > 0) & ((rest > 0) | (kept & 1 == 1)))
    share = ((kept + up) << taken).astype(jnp.float32) / 2**24
    weights = [jnp.rint(part * _ONE).astype(jnp.int32) for part in (1 - share, share)]
    first, second = (jnp.clip(low + step, 0, source - 1) for step in (0, 1))
    return first, second, *weights

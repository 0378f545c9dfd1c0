"""Bilinear resizing of 8-bit pictures on the devices, to the very grey level that OpenCV gives."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

_ONE = 2048  # OpenCV's weights are integers of 11 bits


def resize(levels: jax.Array, size: Sequence[int]) -> jax.Array:
    """`cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)` of uint8, in the same integers.

    Args:
      levels: integers `[B, H, W, C]` in 0..255.
      size: (height, width) of the result.

    Returns:
      int32 `[B, height, width, C]` in 0..255.
    """
    levels = levels.astype(jnp.int32)
    if tuple(size) == levels.shape[1:3]:
        return levels
    (top, bottom, above, below), (left, right, before, after) = map(_neighbours, levels.shape[1:3], size)
    rows = levels[:, :, left] * before[:, None] + levels[:, :, right] * after[:, None]
    rows >>= 4  # as OpenCV, whose next product has 32 bits
    above, below = above[:, None, None], below[:, None, None]
    return (((rows[:, top] * above) >> 16) + ((rows[:, bottom] * below) >> 16) + 2) >> 2


def _neighbours(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each pixel of `target`: the two pixels of `source` that it lies between, and their weights, of sum _ONE."""
    position = ((np.arange(target) + 0.5) * (source / target) - 0.5).astype(np.float32)
    low = np.floor(position)
    weights = [np.rint(part * np.float32(_ONE)).astype(np.int32) for part in (1 - (position - low), position - low)]
    first, second = (np.clip(low.astype(np.int32) + step, 0, source - 1) for step in (0, 1))
    return first, second, *weights

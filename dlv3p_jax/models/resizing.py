"""Bilinear resizing as two products with interpolation matrices, also of pictures that have sizes of their own."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dlv3p_jax.models import tiles
from dlv3p_jax.models.products import precision
from dlv3p_jax.models.tiles import Pictures, Tiled
from dlv3p_jax.runtime import sharding


def resize(
    x: Pictures,
    size: Sequence[int],
    align_corners: bool,
    output_size: tuple[int, int] | None = None,
    sizes: jax.Array | None = None,
    output_sizes: jax.Array | None = None,
) -> Pictures:
    """Bilinear interpolation without antialiasing.

    Args:
        x: [B, H, W, C]; of `Tiled`, in one part each.
        size: (height, width) of the result; of pictures that have sizes of their own, room for all of them.
        align_corners: True maps the centres of the corner pixels onto each other; False has pixel centres at
            i + 1/2 and repeats the border.
        output_size: (height, width) that this is resized to once more, with pixel centres at i + 1/2; in the same
            products, so that nothing of `size` is ever in memory.
        sizes: of `Tiled` pictures with sizes, integers [B, 2]: what each is resized to.
        output_sizes: of these, and with `output_size`: what each is resized to once more.

    Returns:
        [B, height, width, C] in the type and form of `x`.
    """
    parts, last = tiles.of(x), output_size or size
    if parts.sizes is None:
        rows, columns = (_matrix(*sides, align_corners) for sides in zip(x.shape[1:3], size, last, strict=True))
        return tiles.like(x, _product(parts.array, rows, columns, ""))

    if sizes is None:
        raise ValueError("pictures that have sizes of their own need `sizes`, what each is resized to")
    dtype, matrices = jnp.promote_types(parts.array.dtype, jnp.float32), []
    for axis in (0, 1):
        room = x.shape[1 + axis], size[axis]
        matrix = _matrices(parts.sizes[:, axis], sizes[:, axis], room, align_corners, dtype)
        if output_sizes is not None:
            again = _matrices(sizes[:, axis], output_sizes[:, axis], (size[axis], last[axis]), False, dtype)
            matrix = jnp.einsum("bzy,byh->bzh", again, matrix, precision=jax.lax.Precision.HIGHEST)
        matrices.append(matrix)
    resized = _product(tiles.cleared(parts), matrices[0], matrices[1], "b")
    return tiles.given(x, Tiled(resized, sizes=sizes if output_sizes is None else output_sizes))


def _product(x, rows, columns, batch):
    """x [B, H, W, C] with rows and columns combined by matrices [y, H] and [x, W], or for each picture, `batch`="b"."""
    width = x.shape[2]
    dot = functools.partial(jnp.einsum, precision=precision(x.dtype))
    if rows is not None:
        # Over the rows that a mesh holds, the product would need all of them everywhere.
        x = jnp.pad(sharding.by_height(x), ((0, 0), (0, 0), (0, -width % sharding.num_row_shards()), (0, 0)))
        x = sharding.by_columns(dot(f"{batch}yh,bhwc->bywc", jnp.asarray(rows, x.dtype), sharding.by_columns(x)))
        x = sharding.by_height(x)[:, :, :width]
    if columns is not None:
        x = dot(f"{batch}xw,bhwc->bhxc", jnp.asarray(columns, x.dtype), x)
    return x


def _matrix(source: int, target: int, last: int, align_corners: bool) -> np.ndarray | None:
    """[last, source]: the weights of `last` pixels, resized from `source` to `target` before. None: nothing to do."""
    if source == target == last:
        return None
    matrix = _bilinear(source, target, align_corners)
    return matrix if target == last else _bilinear(target, last, align_corners=False) @ matrix


def _bilinear(source: int, target: int, align_corners: bool) -> np.ndarray:
    index = np.arange(target)
    if align_corners:
        position = index * ((source - 1) / (target - 1)) if target > 1 else np.zeros(1)
    else:
        position = np.clip((index + 0.5) * (source / target) - 0.5, 0, source - 1)
    low = np.minimum(np.floor(position).astype(int), source - 1)
    high = np.minimum(low + 1, source - 1)
    matrix = np.zeros((target, source))
    np.add.at(matrix, (index, low), 1 - (position - low))
    np.add.at(matrix, (index, high), position - low)
    return matrix


def _matrices(source, target, room: tuple[int, int], align_corners: bool, dtype) -> jax.Array:
    """[B, room of target, room of source]: the same of sides [B]; positions are fractions of integers, and so exact."""
    source, target, index = source[:, None], target[:, None], jnp.arange(room[1])
    if align_corners:
        numerator, denominator = index * (source - 1), jnp.maximum(target - 1, 1)
    else:
        numerator, denominator = (2 * index + 1) * source - target, 2 * target
    numerator = jnp.clip(numerator, 0, (source - 1) * denominator)
    low, rest = numerator // denominator, numerator % denominator
    above = (rest.astype(dtype) / denominator.astype(dtype))[..., None]
    place, low = jnp.arange(room[0]), low[..., None]
    return jnp.where(place == low, 1 - above, 0) + jnp.where(place == low + 1, above, 0)

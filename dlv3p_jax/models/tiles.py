"""Pictures in parts that lie along the batch axis: sub-images for dilated convolutions, strips of rows for TPUs.

Compilers lay the batch into their vector units. With one or two pictures most of a unit stays empty, and every
operation costs several times as much a picture as with eight. So dilated stages run on sub-images, the others, on a
TPU, on strips. Both are the same function of the same parameters as on whole pictures: `ops` reads from a `Tiled` what
has to be done otherwise.

Pictures of different sizes share a batch, too: each lies at the top left, and `sizes` tells its own. Whatever lies
beyond it is no part of it: `ops` puts there, before it looks at neighbours, what it would meet outside of a picture.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
from flax import struct

from dlv3p_jax.runtime import sharding

_SUBLANES = 16


@struct.dataclass
class Tiled:
    """Pictures [B, H, W, C] in parts; `each` maps them elementwise.

    Attributes:
        array: the parts, in the order of `cut`, and of each its strips from top to bottom,
            [4**cuts strips B, H / 2**cuts / strips, W / 2**cuts, C].
        cuts: how often the pictures were cut into sub-images, see `cut`.
        strips: how many strips of rows a picture or sub-image is split into, see `split`.
        sizes: integers [B, 2], the height and width that each picture has itself; None: all of the array.
    """

    array: jax.Array
    cuts: int = struct.field(pytree_node=False, default=0)
    strips: int = struct.field(pytree_node=False, default=1)
    sizes: jax.Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array of parts."""
        return self.array.shape


Pictures = TypeVar("Pictures", bound=jax.Array | Tiled)  # what layers take and give in the same form


def of(x: jax.Array | Tiled) -> Tiled:
    """`x` as `Tiled`; an array is whole pictures."""
    return x if isinstance(x, Tiled) else Tiled(x)


def like(x: Pictures, array: jax.Array, stride: int = 1) -> Pictures:
    """`array` in the form of `x`, whose parts it was computed from, by an operation with this stride."""
    if not isinstance(x, Tiled):
        return cast(Pictures, array)
    return cast(Pictures, dataclasses.replace(x, array=array, sizes=strided(x.sizes, stride)))


def given(x: Pictures, result: Tiled) -> Pictures:
    """`result`, which was computed from `x`, as `Tiled` if that is, else its array."""
    return cast(Pictures, result if isinstance(x, Tiled) else result.array)


def strided(sizes: jax.Array | None, stride: int) -> jax.Array | None:
    """What an operation with this stride makes of `Tiled.sizes`."""
    return None if sizes is None else -(-sizes // stride)


def each(function: Callable[..., jax.Array], x: Pictures, *others: Pictures) -> Pictures:
    """`function`, which has to be elementwise, of pictures that are in the same parts."""
    return like(x, function(of(x).array, *(of(other).array for other in others)))


def whole(x: jax.Array | Tiled) -> jax.Array:
    """The pictures [B, H, W, C]."""
    return assemble(x).array


def assemble(x: jax.Array | Tiled) -> Tiled:
    """The same pictures in one part each."""
    x = join(of(x))
    while x.cuts:
        x = glue(x)
    return x


def cleared(x: Tiled, padding: float = 0.0, beside: int = 1) -> jax.Array:
    """The array of parts, with `padding` wherever a picture does not reach; `beside` columns are side by side."""
    sizes = x.sizes
    if sizes is None:
        return x.array
    # Of each part by itself: compilers fuse comparing with a counter into whatever reads the result.
    parity = jnp.array([[[(row, column)] for column in (0, 1)] for row in (0, 1)])
    for cuts in range(x.cuts):
        sizes = sizes.reshape(_num_shards(len(sizes), cuts), 1, 1, -1, 2)
        sizes = (-(-(sizes - parity) // 2)).reshape(-1, 2)
    rows = (sizes[:, :1] - x.shape[1] * jnp.arange(x.strips)).reshape(-1, 1, 1, 1)
    columns = jnp.repeat(sizes[:, 1], x.strips).reshape(-1, 1, 1, 1)
    row, column = jnp.arange(x.shape[1])[:, None, None], jnp.arange(x.shape[2])[:, None]
    if beside > 1:
        column = beside * column + jnp.arange(x.shape[3]) // (x.shape[3] // beside)
    return jnp.where((row < rows) & (column < columns), x.array, jnp.asarray(padding, x.array.dtype))


def mean(x: Tiled) -> jax.Array:
    """The mean of each picture's own pixels, [B, 1, 1, C], float32 at least, of parts without strips."""
    dtype = jnp.promote_types(x.array.dtype, jnp.float32)
    means = cleared(x).mean((1, 2), dtype, keepdims=True)
    for cuts in reversed(range(x.cuts)):
        means = _glue(means, _num_shards(len(means) // 4, cuts))
    means = means.mean((1, 2), keepdims=True)
    if x.sizes is None:
        return means
    share = x.sizes.prod(1) / (4**x.cuts * math.prod(x.shape[1:3]))
    return means / share[:, None, None, None].astype(dtype)


def spread(values: jax.Array, x: Tiled) -> Tiled:
    """`values` of each picture, [B, 1, 1, C], at each of its pixels, in the parts of `x`, which have no strips."""
    values = jnp.broadcast_to(values, (len(values), 2**x.cuts, 2**x.cuts, values.shape[-1]))
    for cuts in range(x.cuts):
        values = _cut(values, _num_shards(len(values), cuts))
    return dataclasses.replace(x, array=jnp.broadcast_to(values, (*x.shape[:3], values.shape[-1])))


def split(x: Tiled, stride: int) -> Tiled:
    """Parts as strips of rows, as many as fill a TPU's vector units: one on all else, and where devices hold rows.

    Args:
        x: whole pictures or sub-images.
        stride: of all that follows until `join`: strips have a multiple of so many rows.
    """
    batch, height, *rest = x.shape
    strips = 1
    if sharding.platform() == "tpu" and sharding.num_row_shards() == 1 and height % stride == 0:
        wanted = _SUBLANES // math.gcd(_SUBLANES, batch // sharding.num_picture_shards())
        strips = math.gcd(wanted, height // stride)
    return dataclasses.replace(x, array=x.array.reshape(batch * strips, height // strips, *rest), strips=strips)


def join(x: Tiled) -> Tiled:
    """The inverse of `split`."""
    batch, height, *rest = x.shape
    return dataclasses.replace(x, array=x.array.reshape(batch // x.strips, height * x.strips, *rest), strips=1)


def add_neighbours(x: Tiled, above: int, below: int, padding: float = 0.0) -> jax.Array:
    """Strips `x` [B strips, h, W, C] with the last rows of the strip above and the first of that below.

    Returns:
        [B strips, above + h + below, W, C]; what lies outside of a picture is `padding`.
    """

    # Only what moves is seen as [B, strips, ...]: a TPU would lay out all of it anew, which costs as much as a
    # convolution.
    def shift(rows, by):
        strips = rows.reshape(-1, x.strips, *rows.shape[1:])
        moved = strips[:, :-1] if by[0] else strips[:, 1:]
        outside = ((0, 0), by, (0, 0), (0, 0), (0, 0))
        return jnp.pad(moved, outside, constant_values=padding).reshape(rows.shape)

    height = x.shape[1]
    parts = [shift(x.array[:, height - above :], (1, 0)), x.array]
    if below:
        parts.append(shift(x.array[:, :below], (0, 1)))
    return jnp.concatenate(parts, 1)


def can_cut(x: Tiled) -> bool:
    """Whether `cut` takes `x`: whether both its sides are even, or of several devices' rows those of each device."""
    rows = x.shape[1] if are_on_one_device(x) else x.shape[1] / sharding.num_row_shards()
    return rows % 2 == 0 and x.shape[2] % 2 == 0


def cut(x: Tiled) -> Tiled:
    """The four parity sub-images of every picture: even and odd rows, and of each the even and odd columns.

    A convolution with an even dilation never mixes them, so that it is one with half the dilation on the sub-images,
    and compilers know ordinary convolutions best. On a mesh whose devices hold rows of pictures, sub-images lie on
    different devices if there are enough of them: then no convolution needs its neighbours' rows.

    Args:
        x: that `can_cut`, without strips.

    Returns:
        The parts [4 B, H / 2, W / 2, C] of `x`'s [B, H, W, C]: of the pictures of each device first all that are of
        even rows and columns. So nothing changes places within a TPU's vector units, nor between devices.
    """
    parts = _cut(_lay_out(x).array, _num_shards(len(x.array), x.cuts))
    if not are_on_one_device(x):
        parts = sharding.by_height(parts)  # the compiler finds no way from rows to sub-images while it cuts
    return _lay_out(dataclasses.replace(x, array=parts, cuts=x.cuts + 1))


def glue(x: Tiled) -> Tiled:
    """The inverse of `cut`; there are no strips afterwards."""
    x = join(x)
    batch, cuts = len(x.array) // 4, x.cuts - 1
    parts = _lay_out(x).array
    if not _are_on_one_device(batch, cuts):
        parts = sharding.by_height(parts)
    return _lay_out(dataclasses.replace(x, array=_glue(parts, _num_shards(batch, cuts)), cuts=cuts))


def _cut(x: jax.Array, shards: int) -> jax.Array:
    batch, height, width, channels = x.shape
    x = x.reshape(shards, batch // shards, height // 2, 2, width // 2, 2, channels).transpose(0, 3, 5, 1, 2, 4, 6)
    return x.reshape(4 * batch, height // 2, width // 2, channels)


def _glue(x: jax.Array, shards: int) -> jax.Array:
    parts, height, width, channels = x.shape
    x = x.reshape(shards, 2, 2, parts // 4 // shards, height, width, channels).transpose(0, 3, 4, 1, 5, 2, 6)
    return x.reshape(parts // 4, 2 * height, 2 * width, channels)


def glue_for(x: Tiled, *dilations: int) -> Tiled:
    """`x` with as many of its sub-images glued that convolutions with these dilations mix none."""
    while math.gcd(*dilations) % 2**x.cuts:
        x = glue(x)
    return x


def cut_for(x: Tiled, dilation: int, stage_dilation: int) -> Tiled:
    """`x` in as many sub-images as its sides have and neither dilation mixes.

    On a TPU, sub-images that fill less than half of its vector units are split into strips, where neither dilation
    reaches beyond the next row of a sub-image. Otherwise, there are no strips for a dilation above 1.
    """
    x = join(x) if dilation > 1 else x
    x = glue_for(x, dilation, stage_dilation)
    while math.gcd(dilation, stage_dilation) % 2 ** (x.cuts + 1) == 0 and can_cut(x):
        x = cut(x)
    few = x.shape[0] // sharding.num_picture_shards() < _SUBLANES // 2  # eight are quicker whole than as 16 strips
    return split(x, 1) if few and x.cuts and max(dilation, stage_dilation) == 2**x.cuts else x


def are_on_one_device(x: Tiled) -> bool:
    """Whether a device holds whole parts: pictures, or sub-images where there are enough for all devices."""
    return _are_on_one_device(len(x.array), x.cuts)


def _are_on_one_device(parts: int, cuts: int) -> bool:
    return sharding.num_row_shards() == 1 or (cuts > 0 and sharding.are_enough(parts))


def _num_shards(parts: int, cuts: int) -> int:
    """On how many devices so many parts lie, one after the other."""
    rows = sharding.num_row_shards() if _are_on_one_device(parts, cuts) else 1
    return math.gcd(parts, rows * sharding.num_picture_shards())


def _lay_out(x: Tiled) -> Tiled:
    by = sharding.by_pictures if are_on_one_device(x) else sharding.by_height
    return dataclasses.replace(x, array=by(x.array))

"""Which pictures share a program: few programs for many sizes, with little padding."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

Size = tuple[int, int]  # (height, width)

UNIT = 32  # sides of rooms are multiples of it: then the network runs on sub-images (`models.tiles`)
_PADDING = 0.1  # what padding may add to the pixels where fewer programs than allowed would do
_MANY = 256  # sizes; more are rounded up before each is compared with each


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Pictures whose batches one program takes.

    Attributes:
        indices: their positions in what was given.
        room: the size that holds each.
        view_rooms: the same for each of their views; None where all pictures are as large as `room`, so that the
            program need not know their sizes.
    """

    indices: tuple[int, ...]
    room: Size
    view_rooms: tuple[Size, ...] | None


def choose(sizes: Sequence[Sequence[Size]], batch_size: int, limit: int, row_shards: int = 1) -> list[Bucket]:
    """Buckets for pictures, in the order of their first.

    At the beginning every size has its own. The two that cost the fewest pixels more together become one, until there
    are `limit`, and then as long as padding and rows of batches that stay empty add less than a tenth to the pixels.

    Args:
        sizes: of each picture its own, then those of its views.
        batch_size: of the batches that pictures of a bucket come in.
        limit: of the number of buckets; 0: every size keeps its own.
        row_shards: over how many devices the rows of pictures lie. A size whose height they do not divide gets padding.
    """
    if not sizes:
        return []
    distinct, kind = np.unique(np.array(sizes, np.int64), axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    group = _merge(distinct, np.bincount(kind), batch_size, limit) if limit else np.arange(len(distinct))
    buckets = []
    for number in np.unique(group):
        members = distinct[group == number]
        exact = len(members) == 1 and members[0, 0, 0] % row_shards == 0
        own, *views = map(tuple, (members[0] if exact else _room(members, row_shards)).tolist())
        indices = tuple(np.flatnonzero(group[kind] == number).tolist())
        buckets.append(Bucket(indices, own, None if exact else tuple(views)))
    return sorted(buckets, key=lambda bucket: bucket.indices[0])


def batches(sizes: Sequence[Sequence[Size]], batch_size: int, limit: int, row_shards: int = 1) -> tuple[Bucket, ...]:
    """`choose`'s buckets cut into batches of `batch_size` at most, bucket after bucket."""
    return tuple(
        dataclasses.replace(bucket, indices=bucket.indices[start : start + batch_size])
        for bucket in choose(sizes, batch_size, limit, row_shards)
        for start in range(0, len(bucket.indices), batch_size)
    )


def room(size: Size) -> Size:
    """One of four for each side between a power of two and the next, in which `size` fits; of small ones, of fewer."""
    height, width = size

    def fitting(side: int) -> int:
        step = max(UNIT, 1 << (side - 1).bit_length() >> 3)
        return -(-side // step) * step

    return fitting(height), fitting(width)


def _room(sizes: np.ndarray, row_shards: int) -> np.ndarray:
    """[n, 1 + views, 2] -> [1 + views, 2]."""
    unit = np.array([math.lcm(UNIT, row_shards), UNIT])
    return -(-sizes.max(0) // unit) * unit


def _pixels(room: np.ndarray) -> np.ndarray:
    """[..., 1 + views, 2] -> [...]: of all views."""
    return room[..., 1:, :].prod(-1).sum(-1)


def _merge(sizes: np.ndarray, counts: np.ndarray, batch_size: int, limit: int) -> np.ndarray:
    """[n]: the bucket of each of the different `sizes` [n, 1 + views, 2], of which there are `counts` [n] pictures."""
    group, unit = np.arange(len(sizes)), UNIT
    while group.max() >= _MANY:
        _, group = np.unique(-(-sizes // unit), axis=0, return_inverse=True)
        group, unit = group.reshape(-1), 2 * unit
    numbers = range(group.max() + 1)
    largest = np.stack([sizes[group == number].max(0) for number in numbers])
    count = np.array([counts[group == number].sum() for number in numbers])
    single = np.bincount(group) == 1

    def cost(count, room):
        return -(-count // batch_size) * batch_size * _pixels(room)

    spent = np.where(single, cost(count, largest), cost(count, -(-largest // UNIT) * UNIT)).astype(float)
    allowed = (1 + _PADDING) * (counts * _pixels(sizes)).sum()

    def extra(index):
        """[n]: how many pixels more it costs if the bucket `index` takes in each of the others."""
        together = np.maximum(largest, largest[index])
        more = cost(count + count[index], -(-together // UNIT) * UNIT) - spent - spent[index]
        return np.where((count > 0) & (np.arange(len(count)) != index), more, math.inf)

    costs = np.stack([extra(index) for index in numbers])
    for left in range(len(numbers), 1, -1):
        into, taken = np.unravel_index(costs.argmin(), costs.shape)
        more = costs[into, taken]
        if left <= limit and more > 0 and spent.sum() + more > allowed:
            break
        spent[into] += more + spent[taken]
        largest[into] = np.maximum(largest[into], largest[taken])
        count[into] += count[taken]
        count[taken], spent[taken] = 0, 0
        group[group == taken] = into
        costs[taken] = costs[:, taken] = math.inf
        costs[into] = costs[:, into] = extra(into)
    return group

"""Which pictures share a program."""

import numpy as np
import pytest

from dlv3p_jax.data import size_buckets


def alone(sizes):
    """Pictures that are seen once, as they are."""
    return [[size, size] for size in sizes]


def check_and_count_pixels(found, sizes, batch_size):
    """Every picture is in one bucket that has room for it and its views; returns the pixels of all batches."""
    assert sorted(index for bucket in found for index in bucket.indices) == list(range(len(sizes)))
    pixels = 0
    for bucket in found:
        rooms = [bucket.room, *(bucket.view_rooms or sizes[bucket.indices[0]][1:])]
        for index in bucket.indices:
            if bucket.view_rooms is None:
                assert sizes[index][0] == bucket.room
            assert np.all(np.array(sizes[index]) <= rooms)
        rows = -(-len(bucket.indices) // batch_size) * batch_size
        pixels += rows * sum(height * width for height, width in rooms[1:])
    return pixels


def test_sizes_that_fill_batches_keep_their_own_and_the_order_is_that_of_their_first():
    sizes = alone([(375, 500), (500, 375)] * 40)
    found = size_buckets.choose(sizes, 8, 16)
    assert [bucket.room for bucket in found] == [(375, 500), (500, 375)]
    assert all(bucket.view_rooms is None for bucket in found)
    assert found[0].indices == tuple(range(0, 80, 2))
    assert [batch.indices for batch in size_buckets.batches(sizes, 32, 16)] == [
        *(tuple(range(0, 64, 2)), tuple(range(64, 80, 2))),
        *(tuple(range(1, 65, 2)), tuple(range(65, 80, 2))),
    ]


def test_without_a_limit_of_programs_each_size_has_its_own():
    sizes = alone([(2, 3), (4, 5), (2, 3), (2, 3), (4, 5), (9, 1)])
    assert [bucket.indices for bucket in size_buckets.choose(sizes, 2, 0)] == [(0, 2, 3), (1, 4), (5,)]
    assert [batch.indices for batch in size_buckets.batches(sizes, 2, 0)] == [(0, 2), (3,), (1, 4), (5,)]


@pytest.mark.parametrize("limit", [1, 4, 16])
def test_many_sizes_share_few_programs(limit):
    drawn = np.random.default_rng(0).integers((240, 320), (481, 641), (200, 2))
    sizes = alone([tuple(size) for size in drawn.tolist()])
    found = size_buckets.choose(sizes, 2, limit)
    assert len(found) <= limit
    own = sum(height * width for _, (height, width) in sizes)
    # 16 rooms that part both ranges of sides into 4 leave a sixth for padding, wherever they lie.
    assert check_and_count_pixels(found, sizes, 2) <= own * {1: 2.0, 4: 1.4, 16: 1.2}[limit]
    assert all(side % 32 == 0 for bucket in found for size in (bucket.room, *bucket.view_rooms) for side in size)


def test_no_more_programs_than_a_tenth_of_padding_asks_for():
    sizes = alone([(500, 375)] * 100 + [(375, 500)] * 700 + [(333 + i, 500) for i in range(40) for _ in range(10)])
    found = size_buckets.choose(sizes, 8, 16)
    assert 2 <= len(found) <= 5
    assert check_and_count_pixels(found, sizes, 8) <= 1.1 * sum(height * width for _, (height, width) in sizes)


def test_a_few_pictures_of_several_sizes_are_one_batch():
    """Rather than several of which most rows are empty."""
    (bucket,) = size_buckets.choose(alone([(375, 500), (500, 375), (400, 400)]), 8, 16)
    assert bucket.indices == (0, 1, 2)


def test_no_pictures_have_no_buckets():
    assert size_buckets.choose([], 8, 16) == [] and size_buckets.batches([], 8, 0) == ()


def test_views_have_rooms_of_their_own():
    sizes = [[(100, 200), (150, 300), (50, 100)], [(200, 100), (300, 150), (100, 50)]]
    (bucket,) = size_buckets.choose(sizes, 2, 1)
    assert bucket.room == (224, 224) and bucket.view_rooms == ((320, 320), (128, 128))


def test_more_sizes_than_can_be_compared_with_each_other():
    sizes = alone([(300 + i // 40, 300 + i % 40) for i in range(1600)])
    found = size_buckets.choose(sizes, 8, 4)
    assert len(found) <= 4
    check_and_count_pixels(found, sizes, 8)


def test_a_height_that_devices_cannot_share_is_padded():
    (bucket,) = size_buckets.choose(alone([(375, 500)] * 4), 2, 16, row_shards=2)
    assert bucket.room == (384, 512) and bucket.view_rooms == ((384, 512),)


@pytest.mark.parametrize("limit", [0, 1])
def test_rooms_have_heights_that_any_number_of_devices_shares(limit):
    for bucket in size_buckets.choose(alone([(34, 40), (100, 64)]), 2, limit, row_shards=3):
        assert bucket.room[0] % 96 == 0 and bucket.room[1] % 32 == 0 and bucket.view_rooms == (bucket.room,)

"""Convolutions with neighbouring columns side by side, as TPUs run them: the same function, of the same kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlv3p_jax.models import columns, ops, tiles
from dlv3p_jax.models.tiles import Tiled
from dlv3p_jax.runtime import sharding


@pytest.mark.parametrize(("strips", "own"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize(
    ("inputs", "outputs", "stride", "width", "beside"),
    # The three of the deep stem, then sides and channels that divide by more, by less, or not at all.
    [(3, 32, 2, 32, 4), (32, 32, 1, 16, 4), (32, 64, 1, 16, 4), (16, 48, 1, 16, 8), (5, 7, 2, 12, 6), (8, 9, 1, 7, 1)],
)
def test_value_and_gradients_are_those_of_the_convolution(
    inputs, outputs, stride, width, beside, strips, own, monkeypatch
):
    rng = np.random.default_rng(0)
    # Small integers, of which sums are exact.
    x, kernel, weights = (
        jnp.asarray(rng.integers(-3, 4, shape), jnp.float32)
        for shape in (
            (2, 12, width, inputs),
            (3, 3, inputs, outputs),
            (2, 12 // stride, -(-width // stride), outputs),
        )
    )

    sizes = np.array([(7, width - 1), (12, width)]) if own else None  # of pictures; what lies beyond is noise

    def run(x, kernel, strips):
        parts = Tiled(x.reshape(len(x) * strips, -1, *x.shape[2:]), strips=strips, sizes=sizes)
        result = tiles.whole(ops.conv3x3(parts, kernel, stride))
        return (result * weights).sum(), result

    run = jax.value_and_grad(run, argnums=(0, 1), has_aux=True)
    (_, expected), expected_gradients = jax.jit(run, static_argnums=2)(x, kernel, 1)
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    assert columns.count(inputs, outputs, stride, width) == beside
    (_, result), gradients = jax.jit(lambda x, kernel: run(x, kernel, strips))(x, kernel)
    np.testing.assert_array_equal(result, expected)
    for found, gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_array_equal(found, gradient)


@pytest.mark.parametrize(("strips", "own"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize(("channels", "width", "beside"), [(64, 16, 2), (32, 24, 4), (60, 10, 1)])
def test_maxima_and_their_gradients_are_those_of_the_max_pool(channels, width, beside, strips, own, monkeypatch):
    rng = np.random.default_rng(0)
    x = (
        rng.permutation(2 * 12 * width * channels).reshape(2, 12, width, channels) - 1e5
    )  # no two are equal, all below 0
    weights = rng.integers(1, 9, (2, 6, width // 2, channels)).astype(np.float32)

    sizes = np.array([(7, width - 1), (12, width)]) if own else None

    def run(x, strips):
        parts = Tiled(x.reshape(len(x) * strips, -1, *x.shape[2:]), strips=strips, sizes=sizes)
        result = tiles.whole(ops.max_pool3x3(parts))
        return (result * weights).sum(), result

    run = jax.value_and_grad(run, has_aux=True)
    (_, expected), gradient = jax.jit(run, static_argnums=1)(np.float32(x), 1)
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    assert columns.count(channels, channels, 2, width) == beside
    (_, result), found = jax.jit(lambda x: run(x, strips))(np.float32(x))
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(found, gradient)


def test_of_equal_columns_the_first_gets_the_gradient_and_what_is_no_number_stays():
    x = np.ones((1, 1, 4, 1), np.float32)  # four columns side by side: maxima of the first two and of the last three
    gradient = jax.grad(lambda x: columns.maxima(x, 2).sum())(x.reshape(1, 1, 1, 4))
    np.testing.assert_array_equal(gradient.ravel(), [1, 1, 0, 0])
    for place, reached in enumerate([[0], [0, 1], [1], [1]]):
        x = np.zeros(4, np.float32)
        x[place] = np.nan
        found = columns.maxima(x.reshape(1, 1, 1, 4), 2).ravel()
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(found)), reached)


def test_many_channels_and_rows_on_several_devices_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    assert columns.count(128, 128, 1, 64) == columns.count(256, 48, 1, 64) == 1
    monkeypatch.setattr(sharding, "num_row_shards", lambda: 2)
    assert columns.count(32, 32, 1, 64) == 1

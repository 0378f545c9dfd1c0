"""Convolutions on strips of rows, as TPUs run them: the same function, of the same parameters, as on whole pictures."""

import types

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlv3p_jax.models import ops, tiles
from dlv3p_jax.models.tiles import Tiled
from dlv3p_jax.runtime import sharding


def integers(*shape):
    """Small ones, of which sums are exact."""
    return jnp.asarray(np.random.default_rng(0).integers(-3, 4, shape), jnp.float32)


def in_strips(x, strips):
    """In so many, whatever the platform."""
    return Tiled(x.reshape(len(x) * strips, -1, *x.shape[2:]), strips=strips)


def test_strips_are_neighbouring_rows(monkeypatch):
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    x = integers(4, 16, 5, 3)
    split = tiles.split(Tiled(x), stride=4)
    np.testing.assert_array_equal(split.array, [picture[i : i + 4] for picture in x for i in (0, 4, 8, 12)])
    np.testing.assert_array_equal(tiles.whole(split), x)


@pytest.mark.parametrize("strips", [2, 3, 6])
@pytest.mark.parametrize(
    "operation",
    [
        lambda x: ops.conv3x3(x, integers(3, 3, 4, 5)),
        lambda x: ops.conv3x3(x, integers(3, 3, 4, 5), stride=2),
        lambda x: ops.depthwise_conv3x3(x, integers(3, 3, 1, 4)),
        lambda x: ops.max_pool3x3(jax.tree.map(lambda x: x - 9, x)),
        ops.avg_pool2x2,
    ],
    ids=["conv", "strided", "depthwise", "max_pool", "avg_pool"],
)
def test_operations_see_the_strips_above_and_below(operation, strips):
    x = integers(2, 12, 7, 4)
    np.testing.assert_array_equal(tiles.whole(operation(in_strips(x, strips))), operation(x))


@pytest.mark.parametrize("strips", [2, 3])
def test_a_plain_stem_sees_three_rows_above_and_two_below(strips):
    x, kernel = integers(2, 12, 7, 4), integers(7, 7, 4, 5)
    found = tiles.whole(ops.conv7x7(in_strips(x, strips), kernel))
    np.testing.assert_array_equal(found, ops.conv7x7(x, kernel))


@pytest.mark.parametrize(
    ("batch_size", "height", "stride", "strips"),
    [(1, 512, 8, 16), (2, 512, 8, 8), (3, 512, 8, 16), (16, 512, 8, 1), (1, 320, 8, 8), (1, 769, 8, 1), (2, 6, 1, 2)],
)
def test_strips_fill_sixteen_sublanes_and_keep_whole_rows_through_all_strides(
    batch_size, height, stride, strips, monkeypatch
):
    x = jax.ShapeDtypeStruct((batch_size, height, 8, 3), jnp.float32)
    x = jnp.broadcast_to(jnp.float32(0), x.shape)
    assert tiles.split(Tiled(x), stride).strips == 1  # on this CPU
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    assert tiles.split(Tiled(x), stride).strips == strips


@pytest.mark.parametrize(("mesh", "strips"), [((8, 1), 8), ((2, 1), 2), ((1, 2), 1)])
def test_the_batch_of_a_device_counts(mesh, strips, monkeypatch):
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    mesh, seen = sharding.make_mesh(*mesh), []
    batched = sharding.batched(mesh)
    split = sharding.jit(mesh, lambda x: seen.append(tiles.split(Tiled(x), 8).strips), batched, None)
    split.lower(jnp.zeros((16, 512, 8, 3)))
    assert seen == [strips]


@pytest.mark.parametrize(
    ("settings", "pictures", "strips"),
    [
        # Stem, pooling and two stages; the third, of sub-images; the decoder.
        ({}, 1, 8 * [8] + 2 * [4] + 2 * [16]),
        # Stem, pooling, three stages, of which the third dilates by half of two, the auxiliary head, the decoder.
        ({"mmseg": "plain"}, 2, 11 * [8]),
    ],
    ids=["paddleseg", "mmseg"],
)
def test_logits_gradients_and_statistics_are_those_of_whole_pictures(
    settings, pictures, strips, monkeypatch, in_float64
):
    model = drawn.make_network(dtype=jnp.float64, **settings)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(pictures, 64, 32, 3)))
    variables = jax.tree.map(jnp.float64, drawn.draw_variables_of(model))

    def run(images):
        def loss(params):
            logits, updates = model.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])
            return (logits**2).mean(), (logits, updates)

        return jax.grad(loss, has_aux=True)(variables["params"])

    expected = jax.jit(run)(images)
    split = []
    # Strips as on a TPU, all else in the forms that a CPU is quick with.
    like_a_tpu = types.SimpleNamespace(**vars(sharding) | {"platform": lambda: "tpu"})
    monkeypatch.setattr("dlv3p_jax.models.tiles.sharding", like_a_tpu)
    monkeypatch.setattr("dlv3p_jax.models.columns.sharding", like_a_tpu)
    monkeypatch.setattr(
        "dlv3p_jax.models.ops.add_neighbours",
        lambda x, *rows, add=ops.add_neighbours, **options: split.append(x.strips) or add(x, *rows, **options),
    )
    found = jax.jit(lambda images: run(images))(images)
    assert split == strips
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, expected)

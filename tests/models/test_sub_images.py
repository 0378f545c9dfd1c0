"""Dilated convolutions on sub-images: the same function, of the same parameters, as on whole pictures."""

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlv3p_jax.models import ops, tiles
from dlv3p_jax.models.tiles import Tiled
from dlv3p_jax.runtime import sharding


def test_sub_images_are_the_parities_of_rows_and_columns_and_glue_puts_them_back():
    x = np.arange(2 * 8 * 12 * 3).reshape(2, 8, 12, 3)
    expected = [picture[i::2, j::2] for i in (0, 1) for j in (0, 1) for picture in x]
    np.testing.assert_array_equal(tiles.cut(Tiled(x)).array, expected)
    np.testing.assert_array_equal(tiles.whole(tiles.cut(Tiled(x))), x)
    np.testing.assert_array_equal(tiles.whole(tiles.cut(tiles.cut(Tiled(x)))), x)


@pytest.mark.parametrize(("size", "can"), [((8, 6), True), ((7, 6), False), ((8, 5), False), ((1, 1), False)])
def test_only_even_sides_can_be_cut(size, can):
    assert tiles.can_cut(Tiled(jnp.zeros((1, *size, 1)))) == can


@pytest.mark.parametrize("dilation", [2, 6, 16])
def test_an_even_dilation_mixes_no_sub_images(dilation):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-3, 4, (2, 12, 10, 4)), jnp.float32)  # sums of small integers are exact
    for function, shape in ((ops.conv3x3, (3, 3, 4, 5)), (ops.depthwise_conv3x3, (3, 3, 1, 4))):
        kernel = jnp.asarray(rng.integers(-3, 4, shape), jnp.float32)
        whole = function(x, kernel, dilation=dilation)
        np.testing.assert_array_equal(tiles.whole(function(tiles.cut(Tiled(x)), kernel, dilation=dilation)), whole)


def make_model(output_stride=8, rates=(1, 12, 24, 36), dtype=jnp.float64):
    return drawn.make_network(output_stride=output_stride, rates=rates, dtype=dtype)


def test_what_mixes_sub_images_is_refused():
    x = tiles.cut(Tiled(jnp.zeros((1, 4, 4, 1))))
    for options in ({"dilation": 3}, {"stride": 2}):
        with pytest.raises(ValueError, match="cuts=1"):
            ops.conv3x3(x, jnp.zeros((3, 3, 1, 1)), **options)


# Their features have even sides, once or twice, or an odd one.
EVEN = [(16, 16), (48, 32), (32, 96), (64, 32)]
ODD = [(1, 1), (8, 8), (17, 31), (33, 64), (40, 48), (63, 65), (64, 33), (72, 56)]


@pytest.fixture(scope="module")
def variables():
    return drawn.draw_variables_of(make_model(dtype=jnp.float32))


@pytest.fixture
def cuts(monkeypatch):
    """How often pictures had been cut before, at every cut."""
    seen = []
    monkeypatch.setattr(tiles, "cut", lambda x, cut=tiles.cut: seen.append(x.cuts) or cut(x))
    return seen


@pytest.mark.parametrize("size", EVEN)
def test_the_network_is_the_plain_one(size, variables, cuts, monkeypatch, in_float64):
    model = make_model()
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 3)))
    ours = jax.jit(lambda images: model.apply(variables, images, train=False))(images)
    assert cuts == ([0, 1] if all(-(-side // 8) % 4 == 0 for side in size) else [0])
    monkeypatch.setattr(tiles, "can_cut", lambda x: False)
    expected = jax.jit(lambda images: model.apply(variables, images, train=False))(images)
    assert len(cuts) <= 2
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", ODD)
def test_at_other_sizes_the_program_is_that_of_the_plain_network(size, variables, cuts, monkeypatch):
    images = jnp.zeros((2, *size, 3))
    program = lambda: str(jax.make_jaxpr(lambda x: make_model().apply(variables, x, train=False))(images))  # noqa: E731
    ours = program()
    monkeypatch.setattr(tiles, "can_cut", lambda x: False)
    assert program() == ours
    assert not cuts


@pytest.mark.parametrize(("output_stride", "rates"), [(8, (1, 12, 24, 36)), (16, (1, 3))])
def test_gradients_and_statistics_are_the_plain_ones_and_odd_rates_see_whole_pictures(
    output_stride, rates, monkeypatch, in_float64
):
    model = make_model(output_stride, rates)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)))
    variables = jax.tree.map(jnp.float64, drawn.draw_variables_of(model))

    def gradient(images):
        def loss(params):
            logits, updates = model.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])
            return (logits**2).mean(), updates

        return jax.grad(loss, has_aux=True)(variables["params"])

    ours = jax.jit(gradient)(images)
    monkeypatch.setattr(tiles, "can_cut", lambda x: False)
    expected = jax.jit(lambda images: gradient(images))(images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), ours, expected)


@pytest.mark.parametrize("mesh", [(4, 2), (2, 4), (4, 1)])
def test_on_a_mesh_the_parts_of_a_picture_are_its_own_and_find_together_again(mesh):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 32, 24, 3)).astype(np.float32)
    sizes = np.stack([rng.integers(1, 33, 4), rng.integers(1, 25, 4)], 1)
    values = rng.normal(size=(4, 1, 1, 2)).astype(np.float32)

    def run(images, sizes, values):
        x, results = Tiled(images, sizes=sizes), []
        for _ in range(3):
            cleared = Tiled(tiles.cleared(x, 7.0), cuts=x.cuts)
            results.append((tiles.whole(x), tiles.whole(cleared), tiles.mean(x), tiles.whole(tiles.spread(values, x))))
            x = tiles.cut(x)
        return results

    mesh = sharding.make_mesh(*mesh, devices=jax.devices()[: mesh[0] * mesh[1]])
    layouts = (sharding.batched(mesh), sharding.per_picture(mesh), sharding.per_picture(mesh))
    inside = (np.arange(32) < sizes[:, :1])[:, :, None] & (np.arange(24) < sizes[:, 1:])[:, None]
    means = np.stack([image[kept].mean(0) for image, kept in zip(images, inside, strict=True)])
    for whole, cleared, mean, spread in sharding.jit(mesh, run, layouts, sharding.replicated(mesh))(
        images, sizes, values
    ):
        np.testing.assert_array_equal(whole, images)
        np.testing.assert_array_equal(cleared, np.where(inside[..., None], images, np.float32(7)))
        np.testing.assert_allclose(mean[:, 0, 0], means, atol=1e-5)
        np.testing.assert_array_equal(spread, np.broadcast_to(values, spread.shape))


def test_features_that_leave_the_backbone_are_whole_pictures(variables):
    """Of sub-images, a head of one's own would see four and sixteen times as many pictures."""
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    backbone = make_model(dtype=jnp.float32).backbone
    weights = {kind: tree["backbone"] for kind, tree in variables.items()}

    @jax.jit
    def both(images):
        return backbone.apply(weights, images, train=False), backbone.apply(weights, Tiled(images), train=False)

    features, parts = both(images)
    assert [x.shape for x in features] == [(2, 8, 8, 64), (2, 4, 4, 128), (2, 4, 4, 256), (2, 4, 4, 512)]
    assert [x.cuts for x in parts] == [0, 0, 1, 2]
    np.testing.assert_array_equal(parts[3].array[::8, 0, 0], features[3][0, ::2, ::2].reshape(4, -1))

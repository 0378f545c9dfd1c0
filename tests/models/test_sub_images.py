"""Dilated convolutions on sub-images: the same function, of the same parameters, as on whole pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

from dlv3p_jax.models import ops
from dlv3p_jax.models.deeplabv3plus import DeepLabV3Plus


def test_sub_images_are_the_parities_of_rows_and_columns_and_glue_puts_them_back():
    x = np.arange(2 * 8 * 12 * 3).reshape(2, 8, 12, 3)
    expected = [picture[i::2, j::2] for picture in x for i in (0, 1) for j in (0, 1)]
    np.testing.assert_array_equal(ops.cut(x), expected)
    np.testing.assert_array_equal(ops.glue(ops.cut(x)), x)
    np.testing.assert_array_equal(ops.glue(ops.glue(ops.cut(ops.cut(x), 1), 2), 1), x)


@pytest.mark.parametrize(("size", "can"), [((8, 6), True), ((7, 6), False), ((8, 5), False), ((1, 1), False)])
def test_only_even_sides_can_be_cut(size, can):
    assert ops.can_cut(jnp.zeros((1, *size, 1))) == can


@pytest.mark.parametrize("dilation", [2, 6, 16])
def test_an_even_dilation_is_half_of_it_on_sub_images(dilation):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-3, 4, (2, 12, 10, 4)), jnp.float32)  # sums of small integers are exact
    for function, shape in ((ops.conv3x3, (3, 3, 4, 5)), (ops.depthwise_conv3x3, (3, 3, 1, 4))):
        kernel = jnp.asarray(rng.integers(-3, 4, shape), jnp.float32)
        whole = function(x, kernel, dilation=dilation)
        np.testing.assert_array_equal(ops.glue(function(ops.cut(x), kernel, dilation=dilation // 2)), whole)


@pytest.fixture
def in_float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def make_model(output_stride=8, rates=(1, 12, 24, 36)):
    return DeepLabV3Plus(
        num_classes=3,
        blocks=(1, 1, 1, 1),
        bottleneck=False,
        output_stride=output_stride,
        multi_grid=(2,),
        aspp_channels=8,
        aspp_rates=rates,
        dropout=0.0,
        align_corners=False,
        dtype=jnp.float64,
    )


# Their features have even sides, once or twice, or an odd one.
EVEN = [(16, 16), (48, 32), (32, 96), (64, 32)]
ODD = [(1, 1), (8, 8), (17, 31), (33, 64), (40, 48), (63, 65), (64, 33), (72, 56)]


@pytest.fixture(scope="module")
def variables():
    model = make_model().clone(dtype=jnp.float32)
    return quick.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False))()


@pytest.fixture
def cuts(monkeypatch):
    """How often pictures had been cut before, at every cut."""
    seen = []
    monkeypatch.setattr(ops, "cut", lambda x, n=0, cut=ops.cut: seen.append(n) or cut(x, n))
    return seen


@pytest.mark.parametrize("size", EVEN)
def test_the_network_is_the_plain_one(size, variables, cuts, monkeypatch, in_float64):
    model = make_model()
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 3)))
    ours = quick.jit(lambda images: model.apply(variables, images, train=False))(images)
    assert cuts == ([0, 1] if all(-(-side // 8) % 4 == 0 for side in size) else [0])
    monkeypatch.setattr(ops, "can_cut", lambda x, n=0: False)
    expected = quick.jit(lambda images: model.apply(variables, images, train=False))(images)
    assert len(cuts) <= 2
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", ODD)
def test_at_other_sizes_the_program_is_that_of_the_plain_network(size, variables, cuts, monkeypatch):
    images = jnp.zeros((2, *size, 3))
    program = lambda: str(jax.make_jaxpr(lambda x: make_model().apply(variables, x, train=False))(images))  # noqa: E731
    ours = program()
    monkeypatch.setattr(ops, "can_cut", lambda x, n=0: False)
    assert program() == ours
    assert not cuts


@pytest.mark.parametrize(("output_stride", "rates"), [(8, (1, 12, 24, 36)), (16, (1, 3))])
def test_gradients_and_statistics_are_the_plain_ones_and_odd_rates_see_whole_pictures(
    output_stride, rates, monkeypatch, in_float64
):
    model = make_model(output_stride, rates)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)))
    variables = quick.jit(lambda: model.init(jax.random.key(0), images, train=False))()
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables)

    def gradient(images):
        def loss(params):
            logits, updates = model.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])
            return (logits**2).mean(), updates

        return jax.grad(loss, has_aux=True)(variables["params"])

    ours = quick.jit(gradient)(images)
    monkeypatch.setattr(ops, "can_cut", lambda x, n=0: False)
    expected = quick.jit(lambda images: gradient(images))(images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), ours, expected)

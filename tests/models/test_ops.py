import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlv3p_jax.models import ops, resizing
from dlv3p_jax.models.tiles import Tiled
from dlv3p_jax.runtime import sharding


def integers(shape, dtype, seed=0, limit=1):
    """Small integers: sums of their products are exact, whatever the order, so two forms must agree to the last bit."""
    return jnp.asarray(np.random.default_rng(seed).integers(-limit, limit, shape, endpoint=True), dtype)


def assert_same_value_and_gradients(function, x, kernel, forms=("conv", "products", "taps")):
    results = []
    for form in forms:

        @jax.jit
        def value_and_gradients(x, kernel, form=form):
            y, vjp = jax.vjp(functools.partial(function, form=form), x, kernel)
            return y, *vjp(integers(y.shape, y.dtype, seed=2))

        results.append(value_and_gradients(x, kernel))
        assert results[-1][0].dtype == x.dtype
    for plain, *others in zip(*results, strict=True):
        assert np.any(plain)
        for other in others:
            np.testing.assert_array_equal(plain.astype(np.float32), other.astype(np.float32))
            assert plain.dtype == other.dtype


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("size", "stride", "dilation"),
    [
        ((8, 8), 1, 1),
        ((9, 7), 1, 2),
        ((9, 7), 1, 4),
        ((5, 6), 1, 5),
        ((5, 6), 1, 30),
        ((1, 1), 1, 1),
        ((8, 8), 2, 1),
        ((9, 7), 2, 1),
        ((1, 2), 2, 1),
    ],
)
def test_every_form_of_conv3x3_is_the_convolution(size, stride, dilation, dtype):
    x, kernel = integers((2, *size, 4), dtype), integers((3, 3, 4, 5), dtype, seed=1)
    assert_same_value_and_gradients(functools.partial(ops.conv3x3, stride=stride, dilation=dilation), x, kernel)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("size", "dilation"), [((8, 8), 1), ((9, 7), 3), ((5, 6), 5), ((5, 6), 6), ((5, 6), 36), ((1, 1), 1)]
)
def test_every_form_of_depthwise_conv3x3_is_the_grouped_convolution(size, dilation, dtype):
    x, kernel = integers((2, *size, 6), dtype), integers((3, 3, 1, 6), dtype, seed=1)
    assert_same_value_and_gradients(functools.partial(ops.depthwise_conv3x3, dilation=dilation), x, kernel)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_conv1x1_as_product_is_the_convolution(dtype):
    x, kernel = integers((2, 5, 3, 6), dtype), integers((1, 1, 6, 4), dtype, seed=1)
    assert_same_value_and_gradients(ops.conv1x1, x, kernel, forms=("conv", "products"))


def test_strided_convolution_pads_both_sides_alike():
    # "SAME" would pad an even side only at its end: output i is then centred on 2 i + 1 instead of 2 i.
    x = jnp.arange(8.0).reshape(1, 8, 1, 1)
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1)
    for form in ("conv", "products"):
        np.testing.assert_array_equal(ops.conv3x3(x, kernel, stride=2, form=form).ravel(), [0, 2, 4, 6])


def test_small_and_large_channel_counts_agree_on_every_backend(monkeypatch):
    x, kernel = integers((1, 4, 4, 512), jnp.float32), integers((3, 3, 512, 512), jnp.float32, seed=1)
    here = ops.conv3x3(x, kernel)
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    np.testing.assert_array_equal(here, ops.conv3x3(x, kernel))


@pytest.mark.parametrize("form", ["fourier", "winograd"])
def test_a_form_that_an_operation_does_not_have_is_refused(form):
    with pytest.raises(ValueError, match=f"form='{form}': give one of auto, conv, products$"):
        ops.conv1x1(jnp.zeros((1, 1, 1, 1)), jnp.zeros((1, 1, 1, 1)), form=form)


def test_strips_with_a_dilation_are_refused():
    with pytest.raises(ValueError, match="strips=2 and dilation=2"):
        ops.conv3x3(Tiled(jnp.zeros((2, 4, 4, 1)), strips=2), jnp.zeros((3, 3, 1, 1)), dilation=2)


def test_winograd_with_a_stride_is_refused():
    with pytest.raises(ValueError, match="no stride of 2"):
        ops.conv3x3(jnp.zeros((1, 4, 4, 1)), jnp.zeros((3, 3, 1, 1)), stride=2, form="winograd")


def windows(x, size, padding):
    """The real pixels that each window of stride 2 sees. x: [H, W] -> rows of arrays."""
    starts = [range(-padding, length - padding, 2) for length in x.shape]
    return [[x[max(i, 0) : i + size, max(j, 0) : j + size] for j in starts[1]] for i in starts[0]]


@pytest.mark.parametrize("size", [(1, 1), (4, 6), (5, 4), (7, 9)])
def test_pooling_sees_only_real_pixels(size):
    x = np.random.default_rng(0).normal(size=size).astype(np.float32) - 5  # a maximum of padding zeros would show
    batch = jnp.asarray(x)[None, :, :, None]
    means = [[window.mean() for window in row] for row in windows(x, 2, 0)]
    np.testing.assert_allclose(ops.avg_pool2x2(batch)[0, :, :, 0], means, rtol=1e-6)
    maxima = [[window.max() for window in row] for row in windows(x, 3, 1)]
    np.testing.assert_array_equal(ops.max_pool3x3(batch)[0, :, :, 0], maxima)


def test_max_pool_sends_gradients_to_the_maxima():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)  # the windows' maxima are at 5, 7, 13 and 15
    gradient = jax.jit(jax.grad(lambda x: ops.max_pool3x3(x).sum()))(x)
    np.testing.assert_array_equal(np.flatnonzero(gradient), [5, 7, 13, 15])


SIZES = [((3, 3), (7, 7)), ((8, 8), (3, 3)), ((5, 9), (11, 4)), ((4, 4), (1, 1)), ((1, 1), (3, 2)), ((6, 5), (6, 10))]


@pytest.mark.parametrize(("source", "target"), SIZES)
@pytest.mark.parametrize("align_corners", [False, True])
def test_resize_is_linear_interpolation_along_each_axis(source, target, align_corners):
    x = np.random.default_rng(0).normal(size=(2, *source, 3)).astype(np.float32)
    expected = x.astype(np.float64)
    for axis, (old, new) in enumerate(zip(source, target, strict=True), start=1):
        half_pixel = (np.arange(new) + 0.5) * old / new - 0.5  # np.interp repeats the border
        points = np.linspace(0, old - 1, new) if align_corners else half_pixel
        expected = np.apply_along_axis(
            lambda line, at=points: np.interp(at, np.arange(len(line)), line), axis, expected
        )
    np.testing.assert_allclose(resizing.resize(jnp.asarray(x), target, align_corners), expected, atol=2e-6)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("last", [(9, 4), (3, 5)])
def test_two_resizes_at_once_are_one_after_the_other(last, align_corners):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5, 2)), jnp.float32)
    expected = resizing.resize(resizing.resize(x, (7, 6), align_corners), last, align_corners=False)
    np.testing.assert_allclose(resizing.resize(x, (7, 6), align_corners, output_size=last), expected, atol=2e-6)


def test_resize_does_not_antialias():
    stripes = jnp.tile(jnp.asarray([0.0, 0.0, 0.0, 1.0]), 4)[None, None, :, None]
    shrunk = resizing.resize(
        stripes, (1, 4), align_corners=False
    )  # samples half way between the second and third of four
    np.testing.assert_array_equal(shrunk.ravel(), np.zeros(4))


@pytest.mark.parametrize("depthwise", [False, True])
def test_on_a_gpu_no_gradient_of_a_dilated_kernel_is_a_convolution(depthwise, monkeypatch):
    """XLA would give it a window as large as the picture. It knows its own gradients by their dimension numbers."""
    monkeypatch.setattr(sharding, "platform", lambda: "gpu")
    function = ops.depthwise_conv3x3 if depthwise else ops.conv3x3
    x, kernel = jnp.zeros((2, 16, 12, 4)), jnp.zeros((3, 3, 1 if depthwise else 4, 4))

    def windows(dilation):
        gradient = jax.grad(lambda x, kernel: function(x, kernel, dilation=dilation).sum(), argnums=(0, 1))
        found = re.findall(
            r"stablehlo\.convolution.*?tensor<[^>]*>, tensor<([\dx]+)xf32>",
            jax.jit(gradient).lower(x, kernel).as_text(),
        )
        return sorted(set(found))

    assert not any("16x12" in window for window in windows(dilation=2))
    assert any("16x12" in window for window in windows(dilation=1))  # which cuDNN knows as a gradient


@pytest.mark.parametrize("kernel_shape", [(3, 3, 4, 5), (1, 1, 4, 5), (3, 3, 1, 4)])
def test_on_a_tpu_kernel_gradients_of_bfloat16_are_float32(kernel_shape, monkeypatch):
    """Those of a mesh's chips are summed, in their type."""
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    function = ops.conv1x1 if kernel_shape[0] == 1 else ops.conv3x3
    function = ops.depthwise_conv3x3 if kernel_shape[2] == 1 else function
    x = jax.random.normal(jax.random.key(0), (2, 8, 6, 4)).astype(jnp.bfloat16)
    kernel = jax.random.normal(jax.random.key(1), kernel_shape)

    @jax.jit
    def gradient(x, kernel):
        y, pull_back = jax.vjp(function, x, kernel)
        return pull_back(jnp.ones_like(y))[1]

    found, expected = gradient(x, kernel), gradient(x.astype(jnp.float32), kernel)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    assert jnp.any(found != found.astype(jnp.bfloat16))
    assert function(x, kernel).dtype == jnp.bfloat16

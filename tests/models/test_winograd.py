import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_ops import integers

from dlv3p_jax.models import products, winograd

CASES = [
    ((8, 6), 1, jnp.float32),
    ((7, 9), 1, jnp.float32),
    ((1, 1), 1, jnp.float32),
    ((9, 12), 2, jnp.float32),
    ((3, 10), 4, jnp.bfloat16),
]


def direct(x, kernel, dilation):
    """The definition, in NumPy."""
    height, width = x.shape[1:3]
    x = np.pad(x, ((0, 0), (dilation, dilation), (dilation, dilation), (0, 0)))
    return sum(
        x[:, i * dilation :, j * dilation :][:, :height, :width] @ kernel[i, j] for i in range(3) for j in range(3)
    )


def direct_gradients(x, kernel, cotangent, dilation):
    """Of the sum of the convolution times `cotangent`, which is linear in each pixel and each weight."""
    height, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (dilation, dilation), (dilation, dilation), (0, 0)))
    of_kernel, of_padded = np.zeros_like(kernel), np.zeros_like(padded)
    for i, j in np.ndindex(3, 3):
        window = np.s_[:, i * dilation : i * dilation + height, j * dilation : j * dilation + width]
        of_kernel[i, j] = np.einsum("bhwc,bhwd->cd", padded[window], cotangent)
        of_padded[window] += cotangent @ kernel[i, j].T
    return of_padded[:, dilation : dilation + height, dilation : dilation + width], of_kernel


@pytest.mark.parametrize(("size", "dilation", "dtype"), CASES)
def test_integers_are_exact(size, dilation, dtype):
    """Values and both gradients: all numbers on the way are small multiples of a quarter."""
    x, kernel = integers((2, *size, 3), dtype), integers((3, 3, 3, 5), dtype, seed=1)
    cotangent = integers((2, *size, 5), dtype, seed=2)

    @jax.jit
    def value_and_gradients(x, kernel, cotangent):
        y, vjp = jax.vjp(lambda x, kernel: winograd.conv3x3(x, kernel, dilation), x, kernel)
        return y, *vjp(cotangent)

    results = value_and_gradients(x, kernel, cotangent)
    arrays = [np.asarray(array, np.float64) for array in (x, kernel, cotangent)]
    expected = direct(*arrays[:2], dilation), *direct_gradients(*arrays, dilation)
    for result, wanted in zip(results, expected, strict=True):
        assert result.dtype == dtype
        assert np.any(wanted)
        np.testing.assert_array_equal(np.asarray(result, np.float64), wanted)


def test_rounding_is_nearly_that_of_the_plain_products():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(1, 16, 16, 64)), rng.normal(size=(3, 3, 64, 64))
    expected = direct(x, kernel, 1)
    x, kernel = x.astype(np.float32), kernel.astype(np.float32)
    deviations = [
        np.sqrt(np.mean((np.asarray(form(x, kernel)) - expected) ** 2)) / expected.std()
        for form in (jax.jit(winograd.conv3x3), jax.jit(lambda x, kernel: products.conv3x3(x, kernel, 1, 1)))
    ]
    assert deviations[0] < 5e-7
    assert deviations[0] < 3 * deviations[1]


def test_double_precision_is_kept():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(1, 6, 5, 8)), rng.normal(size=(3, 3, 8, 8))
    with jax.enable_x64(True):
        y = jax.jit(winograd.conv3x3, static_argnums=2)(jnp.asarray(x), jnp.asarray(kernel), 2)
        assert y.dtype == jnp.float64
        np.testing.assert_allclose(y, direct(x, kernel, 2), rtol=1e-12, atol=1e-12)


def test_it_pays_where_there_is_much_to_multiply():
    kernel = (3, 3, 256, 256)
    assert winograd.pays((4, 16, 32, 256), kernel, 1)
    assert winograd.pays((1, 97, 97, 256), kernel, 2)
    assert not winograd.pays((32, 4, 8, 256), kernel, 4)  # most windows are small
    assert not winograd.pays((1, 4, 4, 256), kernel, 1)
    assert not winograd.pays((1, 512, 512, 32), (3, 3, 32, 64), 1)

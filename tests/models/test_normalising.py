"""Normalisation that a 1x1 convolution takes into its kernel: the same function as Flax's layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dlv3p_jax.models import normalising
from dlv3p_jax.models.layers import ConvBN, SeparableConvBN
from dlv3p_jax.runtime import sharding


class Plain(nn.Module):
    """Flax's own convolution and BatchNorm, with our names."""

    features: int
    depthwise: bool = False
    use_bias: bool = True

    @nn.compact
    def __call__(self, x, train):
        groups = self.features if self.depthwise else 1
        size = (3, 3) if self.depthwise else (1, 1)
        conv = functools.partial(nn.Conv, self.features, size, feature_group_count=groups, use_bias=self.use_bias)
        x = conv(param_dtype=x.dtype, name="conv")(x)
        return nn.BatchNorm(not train, momentum=0.9, param_dtype=x.dtype, name="batch_norm")(x)


class PlainSeparable(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = Plain(x.shape[-1], depthwise=True, name="depthwise")(x, train)
        return nn.relu(Plain(6, name="pointwise")(x, train))


@pytest.fixture
def pictures():
    """Channels with means far from zero, which the kernels see before they are taken away."""
    rng = np.random.default_rng(0)
    return rng.normal(rng.normal(0, 3, 5), 1, (8, 4, 6, 5))


def draw_variables(module, pictures):
    """With scales, biases and statistics other than those at the start."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), pictures, False))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape) * rng.choice([-1, 1])), shapes)


@pytest.mark.parametrize("mesh", [(1, 1), (4, 2)], ids=["one device", "a mesh"])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(
    ("layer", "plain"),
    [
        (SeparableConvBN(6, dtype=jnp.float64), PlainSeparable()),
        (ConvBN(20, use_bias=False, relu=False, dtype=jnp.float64), Plain(20, use_bias=False)),
    ],
    ids=["separable", "1x1"],
)
def test_it_is_the_same_function_with_the_same_gradients_and_statistics(
    layer, plain, platform, mesh, pictures, monkeypatch, in_float64
):
    variables = draw_variables(plain, pictures)
    variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])  # of which some are variances

    def run(module, params, x):
        def loss(params, x):
            y, updates = module.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])
            return (y**3).sum(), (y, updates, module.apply(variables | {"params": params}, x, train=False))

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)

    expected = jax.jit(run, static_argnums=0)(plain, variables["params"], pictures)
    mesh = sharding.make_mesh(*mesh, devices=jax.devices()[: mesh[0] * mesh[1]])
    layouts = (sharding.replicated(mesh), sharding.batched(mesh))
    monkeypatch.setattr(sharding, "platform", lambda: platform)
    assert normalising.product_pays((1, 1, 5, 20), jnp.float64) == (platform == "tpu")
    on_mesh = sharding.jit(mesh, lambda params, x: run(layer, params, x), layouts, sharding.replicated(mesh))
    found = on_mesh(variables["params"], pictures)
    # Biases that statistics take away again have gradients of nothing but rounding.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-8), found, expected)


def test_of_a_large_mean_as_much_is_taken_away_as_the_rounded_kernel_brings_in():
    rng = np.random.default_rng(0)
    affine = normalising.Affine(*np.float32([rng.uniform(50, 60, 8), rng.uniform(0.5, 2, 8), rng.normal(size=8)]))
    kernel = rng.normal(size=(1, 1, 8, 5)).astype(np.float32)
    x = rng.normal(size=(200, 8)) + affine.mean
    folded, bias = normalising.fold_before(affine, kernel, None, jnp.bfloat16)
    found = x @ np.float64(folded[0, 0].astype(jnp.bfloat16)) + np.float64(bias)
    difference = found - ((x - affine.mean) * affine.scale + affine.bias) @ kernel[0, 0]
    assert np.abs(difference.mean(0)).max() < 0.005  # bfloat16 knows 55 to 0.1
    assert difference.std() < 0.01


@pytest.mark.parametrize(
    "layer", [SeparableConvBN(6), ConvBN(20, use_bias=False, relu=False)], ids=["separable", "1x1"]
)
def test_in_bfloat16_values_and_gradients_keep_their_digits(layer, pictures, monkeypatch):
    """Where the kernel sees means far from zero, what it brings in and what is taken away are rounded alike."""
    variables = jax.tree.map(lambda leaf: jnp.float32(jnp.abs(leaf)), draw_variables(layer, pictures))
    if "pointwise" in variables["params"]:
        variables["params"]["pointwise"]["batch_norm"]["bias"] += 9  # the ReLU cuts nothing off
    x = np.concatenate([pictures] * 4 + [pictures[:, ::-1]] * 4).astype(jnp.bfloat16)
    weights = np.random.default_rng(2).normal(0.3, 1, (len(x), 4, 6, layer.features)).astype(np.float32)

    def run(layer, x):
        def loss(params):
            y, _ = layer.apply(variables | {"params": params}, x, True, mutable=["batch_stats"])
            return (y * weights).sum(), y

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    (_, expected), expected_gradients = run(layer, x.astype(np.float32))
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    (_, found), gradients = run(layer.clone(dtype=jnp.bfloat16), x)
    assert found.dtype == jnp.bfloat16
    assert np.abs((found - expected).mean((0, 1, 2))).max() < 0.002

    def hold(path, gradient, expected):
        names = [key.key for key in path]
        if names[-1] == "bias" and ("conv" in names or "depthwise" in names):
            return  # a mean takes them away: they are rounding alone
        error = np.linalg.norm(gradient - expected) / np.linalg.norm(expected)
        # Flax's layers: up to 0.006, and what is behind the 1x1 convolution of the separable one up to 0.04.
        assert error < (0.05 if "pointwise" in names else 0.005), names

    jax.tree_util.tree_map_with_path(hold, gradients, expected_gradients)

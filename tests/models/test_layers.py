import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dlv3p_jax.models.aspp import ASPP
from dlv3p_jax.models.layers import BatchNorm, ConvBN
from dlv3p_jax.models.normalising import moments


def test_batch_norm_statistics_over_three_steps():
    """PaddleSeg's running statistics: new = 0.9 old + 0.1 batch, of the biased variance; epsilon 1e-5."""
    batches = np.random.default_rng(0).normal(3, 2, (3, 2, 2, 2, 5)).astype(np.float32)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), 5, None)
    mean, variance = np.zeros(5), np.ones(5)
    for batch in batches:
        affine, updates = norm.apply(variables, 5, moments(batch), mutable=["batch_stats"])
        variables = variables | updates
        batch_mean, batch_variance = batch.mean((0, 1, 2)), batch.var((0, 1, 2), ddof=0)
        np.testing.assert_allclose(affine(batch), (batch - batch_mean) / np.sqrt(batch_variance + 1e-5), atol=1e-5)
        mean = 0.9 * mean + 0.1 * batch_mean
        variance = 0.9 * variance + 0.1 * batch_variance
    np.testing.assert_allclose(variables["batch_stats"]["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(variables["batch_stats"]["var"], variance, rtol=1e-5)
    affine = norm.apply(variables, 5, None)
    np.testing.assert_allclose(affine(batches[0]), (batches[0] - mean) / np.sqrt(variance + 1e-5), atol=1e-5)


def test_batch_norm_statistics_stay_float32_in_bfloat16():
    """A mean far from zero: bfloat16 sums would lose the variance."""
    x = np.random.default_rng(0).normal(20, 0.5, (4, 8, 8, 3)).astype(jnp.bfloat16)
    found = moments(x)
    assert found.mean.dtype == found.var.dtype == jnp.float32
    exact = x.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found.var, exact.var((0, 1, 2)), rtol=1e-3)


def test_batch_norm_is_over_the_global_batch():
    """Sharded over devices by shardings alone, a batch gives the statistics that one device gives."""
    x = np.random.default_rng(0).normal(size=(8, 4, 4, 6)).astype(np.float32)
    x += np.arange(8).reshape(8, 1, 1, 1)  # pictures that differ: statistics of a part would show
    layer = ConvBN(5, size=3)
    variables = layer.init(jax.random.key(0), x, train=False)
    step = jax.jit(lambda variables, x: layer.apply(variables, x, train=True, mutable=["batch_stats"]))
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    sharded = step(variables, jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))))
    assert len(sharded[0].sharding.device_set) == len(jax.devices())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), sharded, step(variables, x))


def test_dropout_drops_and_scales_in_training_only():
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 8))
    aspp, without = ASPP(32, (1, 2), dropout=0.1), ASPP(32, (1, 2), dropout=0.0)
    variables = jax.jit(lambda key: aspp.init(key, x, train=False))(jax.random.key(1))

    def train(module, key):
        return module.apply(variables, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"])[0]

    train = jax.jit(train, static_argnums=0)
    full, dropped, other = (
        train(without, jax.random.key(2)),
        train(aspp, jax.random.key(2)),
        train(aspp, jax.random.key(3)),
    )
    kept = (dropped != 0) & (full > 0)
    np.testing.assert_allclose(dropped[kept], full[kept] / 0.9, rtol=1e-5)
    share = 1 - kept.sum() / (full > 0).sum()
    assert 0.07 < share < 0.13  # some 1,150 values: 0.1 +- 0.009
    assert np.any(dropped != other)
    np.testing.assert_array_equal(aspp.apply(variables, x, train=False), without.apply(variables, x, train=False))

"""The auxiliary head against NumPy, and where it is and is not computed."""

import drawn
import jax
import jax.numpy as jnp
import numpy as np

from dlv3p_jax.models import variable_shapes
from dlv3p_jax.models.auxiliary import AuxiliaryHead


def test_it_is_a_3x3_convolution_batch_normalisation_relu_and_a_classifier():
    rng = np.random.default_rng(0)
    head, features = AuxiliaryHead(5), rng.normal(size=(2, 6, 7, 8))
    shapes = head.init(jax.random.key(0), jnp.zeros((1, 6, 7, 8)), train=False)
    variables = jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape) * rng.choice([-1, 1], leaf.shape), shapes)
    statistics = variables["batch_stats"]["conv"]["batch_norm"]
    statistics["var"] = np.abs(statistics["var"])
    conv, norm = (variables["params"]["conv"][part] for part in ("conv", "batch_norm"))
    padded = np.pad(features, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))  # [B, H, W, C, 3, 3]
    x = np.einsum("bhwcij,ijco->bhwo", windows, conv["kernel"])
    x = (x - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-5) * norm["scale"] + norm["bias"]
    classifier = variables["params"]["classifier"]
    expected = np.maximum(x, 0) @ classifier["kernel"][0, 0] + classifier["bias"]
    actual = head.apply(jax.tree.map(jnp.float32, variables), jnp.float32(features), train=False)
    assert x.shape[-1] == 2  # a quarter
    np.testing.assert_allclose(actual, expected, atol=1e-4 * expected.std())


def test_only_training_computes_it_and_the_rest_is_as_without():
    plain = drawn.make_network(blocks=(1, 1, 1, 1))
    model = plain.clone(auxiliary_head=AuxiliaryHead(3, dropout=0.0))
    images = jax.random.normal(jax.random.key(1), (2, 33, 40, 3))
    shapes = variable_shapes(model)
    keys = iter(jax.random.split(jax.random.key(2), len(jax.tree.leaves(shapes))))
    variables = jax.tree.map(lambda leaf: 1 + 0.1 * jax.random.normal(next(keys), leaf.shape), shapes)
    assert shapes["params"].keys() - variable_shapes(plain)["params"].keys() == {"auxiliary_head"}

    def run(model, train):
        apply = lambda v, x: model.apply(v, x, train=train, mutable=["batch_stats", "intermediates"])  # noqa: E731
        return jax.jit(apply)(variables, images)

    logits, updates = run(model, train=False)
    assert "intermediates" not in updates
    np.testing.assert_array_equal(logits, run(plain, train=False)[0])
    logits, updates = run(model, train=True)
    np.testing.assert_allclose(logits, run(plain, train=True)[0], rtol=1e-5, atol=1e-5)
    (auxiliary,) = updates["intermediates"]["auxiliary_logits"]
    assert (auxiliary.shape, auxiliary.dtype) == ((2, 33, 40, 3), jnp.float32)
    assert not np.allclose(auxiliary, logits)

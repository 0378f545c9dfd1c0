import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlv3p_jax.configs import common
from dlv3p_jax.training import optim


def make_config(**settings):
    config = common.get_config()
    config.update({"num_train_steps": 20} | settings)
    return config


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return {
        "backbone": {"conv": {"kernel": rng.normal(size=(3, 4))}, "bn": {"scale": np.ones(4), "bias": np.zeros(4)}},
        "aspp": {"kernel": rng.normal(size=(4, 2)), "bias": rng.normal(size=2)},
    }


def gradients_of(params, num_steps):
    rng = np.random.default_rng(1)
    return [jax.tree.map(lambda p: rng.normal(size=np.shape(p)), params) for _ in range(num_steps)]


def run(config, params, gradients):
    optimizer = optim.make_optimizer(config)
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        gradient = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), gradient)
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def numpy_run(params, gradients, rates, momentum=0.9, weight_decay=4e-5, clip=None, backbone=1.0):
    """Paddle's Momentum with L2 decay, in float64, over the leaves."""
    leaves, structure = jax.tree.flatten(params)
    factors = [
        backbone if path[0].key == "backbone" else 1.0 for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    velocities = [np.zeros_like(p) for p in leaves]
    for gradient, rate in zip(gradients, rates, strict=True):
        gradient = jax.tree.leaves(gradient)
        if clip is not None:
            norm = np.sqrt(sum(np.sum(g**2) for g in gradient))
            gradient = [g * min(1, clip / norm) for g in gradient]
        velocities = [momentum * v + g + weight_decay * p for v, g, p in zip(velocities, gradient, leaves, strict=True)]
        leaves = [p - rate * f * v for p, f, v in zip(leaves, factors, velocities, strict=True)]
    return jax.tree.unflatten(structure, leaves)


def assert_trees_close(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7), actual, expected)


def test_learning_rates_recorded_from_paddleseg(shared):
    recorded = np.load(shared / "parity" / "train_r18.npz")["lr"]
    schedule = optim.make_schedule(make_config())
    np.testing.assert_allclose([schedule(step) for step in range(5)], recorded, rtol=1e-6)


def test_schedule_ends_at_the_end_learning_rate_and_stays():
    schedule = optim.make_schedule(make_config(num_train_steps=10, end_learning_rate=0.002, poly_power=2.0))
    np.testing.assert_allclose(schedule(5), 0.002 + 0.008 * 0.25, rtol=1e-6)
    np.testing.assert_allclose([schedule(10), schedule(99)], 0.002, rtol=1e-6)


def test_warmup_rises_linearly_then_the_polynomial_spans_the_rest():
    schedule = optim.make_schedule(make_config(num_train_steps=10, warmup_steps=4))
    expected = [0.01 * (s + 1) / 5 for s in range(4)] + [0.01 * (1 - s / 6) ** 0.9 for s in range(7)]
    np.testing.assert_allclose([schedule(step) for step in range(11)], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("warmup_steps", [-1, 10, 11])
def test_a_warmup_that_leaves_no_step_is_refused(warmup_steps):
    with pytest.raises(ValueError, match=f"warmup_steps = {warmup_steps}.*num_train_steps = 10"):
        optim.make_schedule(make_config(num_train_steps=10, warmup_steps=warmup_steps))


def test_a_cosine_falls_from_the_start_to_the_end():
    settings = {"schedule": "cosine", "num_train_steps": 10, "end_learning_rate": 0.002, "warmup_steps": 4}
    schedule = optim.make_schedule(make_config(**settings))
    falling = [0.002 + 0.008 * (1 + np.cos(np.pi * step / 6)) / 2 for step in range(7)]
    np.testing.assert_allclose([schedule(step) for step in range(12)][4:], [*falling, 0.002], rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "numpy_settings"),
    [
        ({}, {}),
        ({"momentum": 0.5, "weight_decay": 0.1}, {"momentum": 0.5, "weight_decay": 0.1}),
        ({"clip_grad_norm": 1.5, "weight_decay": 0.1}, {"clip": 1.5, "weight_decay": 0.1}),
        ({"clip_grad_norm": 1e6}, {}),
        ({"backbone_lr_factor": 0.1}, {"backbone": 0.1}),
    ],
)
def test_steps_against_numpy(params, settings, numpy_settings):
    gradients = gradients_of(params, 3)
    rates = [0.01 * (1 - step / 20) ** 0.9 for step in range(3)]
    actual, _ = run(make_config(**settings), params, gradients)
    assert_trees_close(actual, numpy_run(params, gradients, rates, **numpy_settings))


def numpy_adamw(params, gradients, rates, decay, betas=(0.9, 0.999)):
    """One parameter by `torch.optim.AdamW`'s documentation, in float64."""
    m = v = np.zeros_like(params)
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        m, v = betas[0] * m + (1 - betas[0]) * gradient, betas[1] * v + (1 - betas[1]) * gradient**2
        params = params - rate * decay * params
        change = (m / (1 - betas[0] ** step)) / (np.sqrt(v / (1 - betas[1] ** step)) + 1e-8)
        params = params - rate * change
    return params


@pytest.mark.parametrize(("decay_norm_and_bias", "decay_of_biases"), [(None, 0.0), (True, 0.1)])
def test_adamw_against_numpy(params, decay_norm_and_bias, decay_of_biases):
    settings = {"optimizer": "adamw", "weight_decay": 0.1, "momentum": 0.8, "backbone_lr_factor": 0.5}
    params["backbone"]["bn"]["bias"] += 1
    gradients, rates = gradients_of(params, 3), np.array([0.01 * (1 - step / 20) ** 0.9 for step in range(3)])
    actual, _ = run(make_config(decay_norm_and_bias=decay_norm_and_bias, **settings), params, gradients)

    def expected(path, leaf, *gradients):
        factor = 0.5 if path[0].key == "backbone" else 1.0
        return numpy_adamw(leaf, gradients, factor * rates, 0.1 if leaf.ndim > 1 else decay_of_biases, (0.8, 0.999))

    assert_trees_close(actual, jax.tree_util.tree_map_with_path(expected, params, *gradients))


def test_sgd_may_leave_biases_and_batch_norm_without_decay(params):
    zeros = jax.tree.map(np.zeros_like, params)
    actual, _ = run(make_config(weight_decay=0.1, decay_norm_and_bias=False), params, [zeros])
    assert_trees_close(actual, jax.tree.map(lambda p: p * (1 - 0.01 * 0.1) if p.ndim > 1 else p, params))


def test_decay_reaches_biases_and_batch_norm(params):
    zeros = jax.tree.map(np.zeros_like, params)
    actual, _ = run(make_config(weight_decay=0.1), params, [zeros])
    assert_trees_close(actual, jax.tree.map(lambda p: p * (1 - 0.01 * 0.1), params))


def test_a_frozen_backbone_stays_bit_for_bit_and_has_no_velocity(params):
    config = make_config(freeze_backbone=True, weight_decay=0.1, clip_grad_norm=1.0, backbone_lr_factor=0.5)
    gradients = gradients_of(params, 2)
    actual, state = run(config, params, gradients)
    frozen = jax.tree.map(lambda p: np.asarray(p, np.float32), params["backbone"])
    jax.tree.map(np.testing.assert_array_equal, actual["backbone"], frozen)
    rates = [0.01, 0.01 * (1 - 1 / 20) ** 0.9]
    heads = numpy_run(params["aspp"], [g["aspp"] for g in gradients], rates, weight_decay=0.1, clip=1.0)
    assert_trees_close(actual["aspp"], heads)  # the frozen gradients had no share in the norm either
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert shapes == sorted(p.shape for p in params["aspp"].values())

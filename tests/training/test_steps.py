"""The training step against PaddleSeg's recorded steps, NumPy, and itself on other meshes."""

import functools

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import recordings
from flax import linen as nn

from dlv3p_jax.configs import common
from dlv3p_jax.data import colors
from dlv3p_jax.models import variable_shapes
from dlv3p_jax.models.layers import Conv, ConvBN
from dlv3p_jax.runtime import sharding
from dlv3p_jax.training import steps

SCALARS = {"loss", "cross_entropy", "learning_rate", "grad_norm"}


class TinyNet(nn.Module):
    """The least that has a backbone with statistics, for what does not depend on the network."""

    dropout: float = 0.0
    frozen: bool = False  # the statistics

    @nn.compact
    def __call__(self, images, train):
        x = ConvBN(4, name="backbone")(images, train and not self.frozen)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return Conv(3, name="decoder")(x)


def make_config(changes=()):
    config = common.get_config()
    config.update_from_flattened_dict({"num_classes": 3, "num_train_steps": 20} | dict(changes))
    return config


def make_batch(dtype=np.float32, size=(2, 8, 8)):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3)) if dtype == np.uint8 else rng.normal(size=(*size, 3))
    label = rng.choice([0, 1, 2, 255], size=size, p=[0.5, 0.2, 0.2, 0.1])
    return {"image": image.astype(dtype), "label": label.astype(np.uint8)}


def make_state(config, model):
    images = np.zeros((1, 32, 32, 3), np.float32)
    variables = jax.jit(lambda: model.init(jax.random.key(1), images, train=False))()
    return steps.create_train_state(config, variables)


def take_steps(config, batch, num_steps=1, first_step=0, model=TinyNet()):  # noqa: B008
    """The states before, between and after the steps of a `TinyNet`, and the scalars of each."""
    train_step = jax.jit(steps.make_train_step(config, model))
    states, scalars = [make_state(config, model).replace(step=jnp.int32(first_step))], []
    for _ in range(num_steps):
        state, values = train_step(states[-1], batch, jax.random.key(0))
        states.append(state)
        scalars.append(jax.device_get(values))
    return states, scalars


def assert_close(actual, expected, tolerance=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), actual, expected)


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


# Against PaddleSeg.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("step", [1, 5])
def test_the_steps_of_paddleseg(shared, step, dtype):
    recordings.hold(recordings.training(shared, step, dtype))


# What does not depend on the network.


def test_uint8_pictures_are_distorted_and_normalised():
    ranges = {"brightness": 0.3, "contrast": 0.2, "saturation": 0.1, "hue": 9}
    config = make_config({f"augment.{name}": value for name, value in ranges.items()})
    batch = make_batch(np.uint8)
    (_, after), (scalars,) = take_steps(config, batch, first_step=3)
    key, _ = jax.random.split(jax.random.fold_in(jax.random.key(0), 3))
    distorted = colors.distort(batch["image"], key, **ranges)
    assert not np.array_equal(distorted, batch["image"])
    by_hand = batch | {"image": (np.asarray(distorted, np.float32) / 255 - 0.5) / 0.5}
    (_, expected), (expected_scalars,) = take_steps(config, by_hand, first_step=3)
    assert_close(after, expected)
    assert_close(scalars, expected_scalars)


def test_uint8_pictures_are_only_normalised_where_nothing_is_to_be_distorted():
    config = make_config(dict.fromkeys(("augment.brightness", "augment.contrast", "augment.saturation"), 0.0))
    config.augment.hue = 0
    batch = make_batch(np.uint8)
    (_, after), _ = take_steps(config, batch)
    (_, expected), _ = take_steps(config, batch | {"image": batch["image"].astype(np.float32) / 127.5 - 1})
    assert_close(after, expected)


@pytest.mark.parametrize(
    ("dropout", "dtype", "accumulate_steps"), [(0.5, np.float32, 1), (0.0, np.uint8, 1), (0.5, np.float32, 2)]
)
def test_draws_follow_from_the_key_and_the_number_of_the_step(dropout, dtype, accumulate_steps):
    config, model, batch = make_config({"accumulate_steps": accumulate_steps}), TinyNet(dropout), make_batch(dtype)
    train_step, state = jax.jit(steps.make_train_step(config, model)), make_state(config, model)

    def draw(step, seed):
        return train_step(state.replace(step=jnp.int32(step)), batch, jax.random.key(seed))

    after, scalars = draw(4, 0)
    assert int(after.step) == 5
    assert_equal(draw(4, 0), (after, scalars))
    assert draw(5, 0)[1]["loss"] != scalars["loss"] != draw(4, 1)[1]["loss"]


def test_the_average_follows_its_recurrence_whose_decay_ramps_up():
    states, _ = take_steps(make_config({"ema_decay": 0.2, "learning_rate": 1.0}), make_batch(), num_steps=4)
    expected = states[0].variables
    assert_equal(states[0].ema, expected)
    for decay, state in zip([1 / 10, 2 / 11, 0.2, 0.2], states[1:], strict=True):  # 3 / 12 would be more than 0.2
        average = functools.partial(lambda old, new, d: d * np.array(old) + (1 - d) * np.array(new), d=decay)
        expected = jax.tree.map(average, expected, state.variables)
        assert_close(state.ema, expected)
    assert not np.allclose(states[-1].ema["params"]["decoder"]["kernel"], states[-1].params["decoder"]["kernel"])
    assert take_steps(make_config(), make_batch())[0][-1].ema is None


def test_the_backbone_may_learn_at_another_rate():
    def change(**settings):
        (before, after), _ = take_steps(make_config(settings), make_batch())
        return jax.tree.map(lambda new, old: np.array(new - old), after.params, before.params)

    usual, slow = change(learning_rate=1.0), change(learning_rate=1.0, backbone_lr_factor=0.25)
    assert_equal(slow["decoder"], usual["decoder"])
    assert_close(slow["backbone"], jax.tree.map(lambda x: 0.25 * x, usual["backbone"]))
    assert np.abs(usual["backbone"]["conv"]["kernel"]).max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 1.0),
        ({"loss.class_weights": (1.0, 5.0, 0.5)}, 1.0),
        ({"loss.top_k": 0.25}, 1.0),
        ({"loss.cross_entropy": 3.0}, 3.0),
    ],
)
def test_the_loss_is_the_one_that_is_asked_for(settings, scale):
    batch = make_batch()
    (before, _), (scalars,) = take_steps(make_config(settings), batch)
    logits, _ = TinyNet().apply(before.variables, batch["image"], train=True, mutable=["batch_stats"])
    logits, label = np.asarray(logits, np.float64), batch["label"].ravel()
    losses = np.log(np.exp(logits).sum(-1)).ravel() - logits.reshape(-1, 3)[np.arange(label.size), label % 3]
    losses *= label != 255
    weights = np.array(settings.get("loss.class_weights", (1, 1, 1)))[label % 3] * (label != 255)
    expected = (losses * weights).sum() / weights.sum()
    if "loss.top_k" in settings:
        expected = np.sort(losses)[-label.size // 4 :].mean()
    np.testing.assert_allclose(scalars["cross_entropy"], expected, rtol=1e-5)
    np.testing.assert_allclose(scalars["loss"], scale * expected, rtol=1e-5)


def test_a_loss_and_an_optimiser_of_your_own():
    """Plain gradient descent on the mean of a channel of the logits, by which its bias alone moves, and by 1."""
    config, batch, optimizer = make_config(), make_batch(), optax.sgd(1.0)
    state = make_state(config, TinyNet())
    state = steps.create_train_state(config, state.variables, optimizer)
    train_step = steps.make_train_step(
        config, TinyNet(), loss=lambda logits, labels: logits[..., 1].mean(), optimizer=optimizer
    )
    after, scalars = jax.jit(train_step)(state, batch, jax.random.key(0))
    logits, _ = TinyNet().apply(state.variables, batch["image"], train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(scalars["loss"], np.asarray(logits)[..., 1].mean(), rtol=1e-5)
    assert scalars.keys() == SCALARS - {"cross_entropy"}
    moved = after.params["decoder"]["bias"] - state.params["decoder"]["bias"]
    np.testing.assert_allclose(moved, [0, -1, 0], atol=1e-5)


def test_scalars_are_named_and_mean_what_they_say():
    config = make_config({"momentum": 0.0, "weight_decay": 0.0, "warmup_steps": 3, "learning_rate": 0.4})
    (before, after), (scalars,) = take_steps(config, make_batch())
    assert scalars.keys() == SCALARS
    assert {value.dtype for value in scalars.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(scalars["learning_rate"], 0.1, rtol=1e-6)
    gradients = jax.tree.map(lambda new, old: np.array(old - new, np.float64) / 0.1, after.params, before.params)
    norm = np.sqrt(sum((gradient**2).sum() for gradient in jax.tree.leaves(gradients)))
    np.testing.assert_allclose(scalars["grad_norm"], norm, rtol=1e-4)


def test_the_state_can_be_donated():
    config, batch = make_config({"ema_decay": 0.9}), make_batch()
    (before, expected), _ = take_steps(config, batch)
    train_step = jax.jit(steps.make_train_step(config, TinyNet()), donate_argnums=0)
    after, _ = train_step(before, batch, jax.random.key(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.variables, before.ema)))
    assert_equal(after, expected)


# What does: the real network, as small as it gets, cut off after the second stage.

SMALL = drawn.make_network(blocks=(1, 1), multi_grid=(1,), rates=(1, 2), dropout=0.1)


def test_a_state_is_made_by_two_programs(caplog):
    """Rather than by one for the zeros, and one for the copy, of each shape."""
    params = {f"kernel{size}": np.full((size, 3), 0.5, np.float32) for size in range(1, 6)}
    with jax.log_compiles():
        state = steps.create_train_state(make_config({"ema_decay": 0.9}), {"params": params, "batch_stats": {}})
    assert caplog.text.count("Finished XLA compilation") <= 3  # and one for the number of the step
    jax.tree.map(np.testing.assert_array_equal, state.ema, {"params": params, "batch_stats": {}})
    trace = optax.tree_utils.tree_get(state.opt_state, "trace")
    jax.tree.map(np.testing.assert_array_equal, trace, jax.tree.map(np.zeros_like, params))


@pytest.fixture(scope="module")
def small_variables():
    """Made by NumPy: compiling the initialisation takes longer than everything else here."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key == "kernel":
            return jnp.asarray(rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:3])), leaf.shape), jnp.float32)
        return jnp.full(leaf.shape, path[-1].key in ("scale", "var"), jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, variable_shapes(SMALL))


def test_a_frozen_backbone_stays_bit_for_bit_and_the_rest_learns(small_variables):
    config = make_config({"freeze_backbone": True, "weight_decay": 0.1})
    model = SMALL.clone(freeze_backbone=True)
    before = steps.create_train_state(config, small_variables)
    after, _ = jax.jit(steps.make_train_step(config, model))(before, make_batch(size=(2, 32, 32)), jax.random.key(0))
    for old, new in ((before.params, after.params), (before.batch_stats, after.batch_stats)):
        assert_equal(new["backbone"], old["backbone"])
        for part in ("aspp", "decoder"):
            for a, b in zip(jax.tree.leaves(old[part]), jax.tree.leaves(new[part]), strict=True):
                assert not np.array_equal(a, b) or not np.any(a)  # a bias before a BatchNorm may stay 0


def test_losses_and_statistics_are_over_the_global_batch():
    """And not over each device's part of it. Ignored pixels are spread unevenly: one picture has no others."""
    config = make_config({"learning_rate": 1.0, "loss.cross_entropy": 0.5, "loss.rmi": 0.5})
    batch = make_batch(size=(8, 32, 32))
    batch["label"][3] = 255
    batch["label"][4, :20] = 255
    (before, expected), (expected_scalars,) = take_steps(config, batch)

    mesh = sharding.make_mesh(2, 2)
    replicated, batched = sharding.replicated(mesh), sharding.batched(mesh)
    train_step = sharding.jit(
        mesh,
        steps.make_train_step(config, TinyNet()),
        in_shardings=(replicated, batched, replicated),
        out_shardings=(replicated, replicated),
    )
    rng = jax.device_put(jax.random.key(0), replicated)
    after, scalars = train_step(jax.device_put(before, replicated), sharding.put_batch(mesh, batch), rng)
    assert scalars.keys() == SCALARS | {"rmi"} and np.isfinite(list(expected_scalars.values())).all()
    for name in ("loss", "cross_entropy", "rmi", "grad_norm"):
        np.testing.assert_allclose(scalars[name], expected_scalars[name], rtol=1e-5)
    assert_close(after.batch_stats, expected.batch_stats, 1e-5)
    assert_close(after.params, expected.params, 1e-5)


class TwoHeads(TinyNet):
    """A `TinyNet` with a second classifier, sown as `DeepLabV3Plus` does."""

    @nn.compact
    def __call__(self, images, train):
        x = ConvBN(4, name="backbone")(images, train)
        self.sow("intermediates", "auxiliary_logits", Conv(3, name="auxiliary_head")(x))
        return Conv(3, name="decoder")(x)


@pytest.mark.parametrize("count", [1, 2])
def test_the_auxiliary_loss_is_added_with_its_weight(count):
    """Its gradient is the difference of two trainings; with weight 0, its head stays as it is."""
    changes = {"model.auxiliary_head": True, "weight_decay": 0.0, "accumulate_steps": count}
    batch, model = make_batch(size=(4, 8, 8)), TwoHeads()
    config = make_config(changes)
    (before, after), (scalars,) = take_steps(config, batch, model=model)
    np.testing.assert_allclose(scalars["loss"], scalars["cross_entropy"] + 0.4 * scalars["auxiliary"], rtol=1e-6)
    off = make_config(changes | {"loss.auxiliary": 0.0})
    (_, without), (plain,) = take_steps(off, batch, model=model)
    assert "auxiliary" not in plain
    assert_equal(without.params["auxiliary_head"], before.params["auxiliary_head"])
    assert_close(without.params["decoder"], after.params["decoder"])  # which the second loss does not reach
    if count > 1:
        return

    def auxiliary(params):
        variables = {"params": params, "batch_stats": before.batch_stats}
        _, updates = model.apply(variables, batch["image"], train=True, mutable=["batch_stats", "intermediates"])
        logits, label = updates["intermediates"]["auxiliary_logits"][0], batch["label"].astype(int)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), np.where(label == 255, 0, label)[..., None], -1)
        return -jnp.sum(jnp.where(label == 255, 0, picked[..., 0])) / np.sum(label != 255)

    np.testing.assert_allclose(scalars["auxiliary"], auxiliary(before.params), rtol=1e-5)
    gradient = jax.grad(auxiliary)(before.params)
    for name in ("auxiliary_head", "backbone"):
        step = jax.tree.map(lambda new, old: (old - new) / 0.01, after.params[name], without.params[name])
        expected = jax.tree.map(lambda leaf: 0.4 * leaf, gradient[name])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), step, expected)

"""A step in micro-batches: the gradient of the whole batch, by hand, over a mesh, and what does not divide.

Labels are ignored unevenly: a micro-batch of four has no valid pixel.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_steps import TinyNet, assert_close, assert_equal, make_batch, make_config, make_state, take_steps

from dlv3p_jax.data import colors
from dlv3p_jax.runtime import sharding
from dlv3p_jax.training import loop, steps


def make_uneven_batch(dtype=np.float32, size=(8, 16, 16)):
    batch = make_batch(dtype, size)
    batch["label"][2] = batch["label"][6] = 255
    batch["label"][1, 3:] = 255
    return batch


@pytest.mark.parametrize(
    ("settings", "counts"),
    [({}, (2, 8)), ({"loss.class_weights": (1.0, 5.0, 0.5), "loss.rmi": 0.5, "loss.dice": 0.5}, (4,))],
)
def test_micro_batches_give_the_gradient_of_the_whole_batch_where_statistics_are_frozen(settings, counts):
    model, batch = TinyNet(frozen=True), make_uneven_batch()
    settings = settings | {"momentum": 0.0, "weight_decay": 0.0, "learning_rate": 1.0}
    (before, whole), (scalars,) = take_steps(make_config(settings), batch, model=model)
    assert np.abs(whole.params["decoder"]["kernel"] - before.params["decoder"]["kernel"]).max() > 1e-2
    for count in counts:
        config = make_config(settings | {"accumulate_steps": count})
        (_, after), (accumulated,) = take_steps(config, batch, model=model)
        assert accumulated.keys() == scalars.keys()
        assert_close(accumulated, scalars, 2e-6)
        assert_close(after.params, whole.params, 2e-6)
        assert_equal(after.batch_stats, before.batch_stats)


def test_two_micro_batches_by_hand():
    """Colours of the whole batch; then each half in turn, by its own statistics and with its own dropout."""
    settings = {"momentum": 0.0, "weight_decay": 0.0, "learning_rate": 1.0, "accumulate_steps": 2}
    config, model, batch = make_config(settings), TinyNet(dropout=0.5), make_uneven_batch(np.uint8)
    (before, after), (scalars,) = take_steps(config, batch, model=model)

    color_key, dropout = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))
    images = np.asarray(jax.jit(colors.distort)(batch["image"], color_key), np.float32) / 127.5 - 1

    def loss(params):
        total, batch_stats = 0.0, before.batch_stats
        for half in (0, 1):
            logits, updates = model.apply(
                {"params": params, "batch_stats": batch_stats},
                images[half::2],
                train=True,
                rngs={"dropout": jax.random.fold_in(dropout, half)},
                mutable=["batch_stats"],
            )
            batch_stats, label = updates["batch_stats"], batch["label"][half::2].astype(np.int32)
            picked = jnp.take_along_axis(jax.nn.log_softmax(logits), label[..., None] % 3, axis=-1)[..., 0]
            total -= jnp.sum(jnp.where(label == 255, 0.0, picked))
        return total / np.sum(batch["label"] != 255), batch_stats

    (value, batch_stats), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(before.params)
    np.testing.assert_allclose(scalars["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(scalars["cross_entropy"], value, rtol=1e-6)
    assert_close(after.params, jax.tree.map(jnp.subtract, before.params, gradients))
    assert_close(after.batch_stats, batch_stats)
    assert int(after.step) == 1


def test_micro_batches_lie_over_the_mesh_as_the_batch_does_and_take_its_memory_apart():
    batch = make_uneven_batch(np.uint8, (8, 64, 64))
    mesh = sharding.make_mesh(4, 2)
    replicated, batched = sharding.replicated(mesh), sharding.batched(mesh)
    arguments = [jax.device_put(make_state(make_config(), TinyNet()), replicated), sharding.put_batch(mesh, batch)]
    arguments.append(jax.device_put(jax.random.key(0), replicated))

    def compile_step(count):
        train_step = sharding.jit(
            mesh,
            steps.make_train_step(make_config({"accumulate_steps": count}), TinyNet()),
            in_shardings=(replicated, batched, replicated),
            out_shardings=(replicated, replicated),
        )
        return train_step.lower(*arguments).compile()

    whole, halves = compile_step(1), compile_step(2)
    moves = re.findall(r"all-gather|all-to-all|collective-permute", halves.as_text())
    assert moves == re.findall(r"all-gather|all-to-all|collective-permute", whole.as_text()) == []
    assert halves.memory_analysis().temp_size_in_bytes < 0.7 * whole.memory_analysis().temp_size_in_bytes
    (_, expected), (expected_scalars,) = take_steps(make_config({"accumulate_steps": 2}), batch)
    after, scalars = halves(*arguments)
    assert_close(after, expected, 1e-5)
    assert_close(scalars, expected_scalars, 1e-5)


def test_a_batch_that_does_not_divide_is_told():
    with pytest.raises(ValueError, match="a batch of 8 pictures does not divide into config.accumulate_steps=3"):
        take_steps(make_config({"accumulate_steps": 3}), make_uneven_batch())


def test_micro_batches_that_do_not_divide_over_the_devices_are_told_before_anything_is_compiled(data_dir, tmp_path):
    config = tiny.make_config(data_dir, batch_size=8, accumulate_steps=2, **{"mesh.data": 8})
    with pytest.raises(
        ValueError, match=r"\(config.batch_size / config.accumulate_steps\)=4 .* over mesh.data=8 devices"
    ):
        loop.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()

"""The whole network on meshes of eight virtual devices: one function, and rows that stay where they are.

In float64, where layouts can be told from rounding: with batch statistics of few pictures, float32 gradients of one
device and of another differ by more than many mistakes would.
"""

import functools
import re

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

from dlv3p_jax.configs import common
from dlv3p_jax.evaluation import metrics
from dlv3p_jax.evaluation.step import make_eval_step
from dlv3p_jax.evaluation.views import predict_logits
from dlv3p_jax.models import variable_shapes
from dlv3p_jax.runtime import sharding
from dlv3p_jax.training import steps

# Features of 8 x 4: sub-images, but on 1x8. Of 9 x 3: dilations up to 36, on rows that do not divide; there, whole
# pictures on each device are nothing new.
MESHES = {(64, 32): [(8, 1), (2, 4), (1, 8)], (72, 24): [(2, 4)]}
# MMSegmentation's family with all that its recipes have: on sub-images with bottlenecks, on none with basic blocks.
OHEM = {"loss.ohem_min_kept": 300, "loss.average_over": "all", "model.auxiliary_head": True}
FAMILIES = {
    "paddleseg": ({}, {}),
    "deep stem": ({"mmseg": "deep", "bottleneck": True}, OHEM),
    "plain stem": ({"mmseg": "plain", "multi_grid": (1,)}, OHEM | {"loss.ohem_threshold": 0.3}),
}


def make_config(**changes):
    config = common.get_config()
    settings = {"num_classes": 5, "num_train_steps": 5, "learning_rate": 0.01}
    config.update_from_flattened_dict(settings | changes)
    return config


def make_model(dtype=jnp.float64, **settings):
    return drawn.make_network(num_classes=5, channels=16, dropout=0.1, dtype=dtype, **settings)


@pytest.fixture(scope="module", autouse=True)
def in_float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@functools.cache
def variables_of(family):
    model = make_model(**FAMILIES[family][0])
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), drawn.draw_variables_of(model))


def make_batch(size, batch_size=8):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 6, (batch_size, *size)).astype(np.uint8)
    return {
        "image": rng.normal(size=(batch_size, *size, 3)),
        "label": np.where(label == 5, 255, label).astype(np.uint8),
    }


def train(mesh, family, size):
    """Three steps of training, and the logits and counts of the network that comes out."""
    network, settings = FAMILIES[family]
    config, model, variables = make_config(**settings), make_model(**network), variables_of(family)
    replicated, batched = sharding.replicated(mesh), sharding.batched(mesh)
    step = sharding.jit(
        mesh,
        steps.make_train_step(config, model),
        (replicated, batched, replicated),
        (replicated, replicated),
        compiler_options=quick.COMPILER_OPTIONS_OF_LONG_RUNS,
    )
    batch = sharding.put_batch(mesh, make_batch(size))
    state = sharding.replicate(mesh, steps.create_train_state(config, variables))
    rng = jax.device_put(jax.random.key(0), replicated)
    for _ in range(3):
        state, scalars = step(state, batch, rng)

    def predict(variables, batch):
        logits = predict_logits(model, variables, batch["image"])
        counts = metrics.confusion_matrix(batch["label"], jnp.argmax(logits, -1), 5, 255)
        return logits, counts

    predict = sharding.jit(
        mesh,
        predict,
        (replicated, batched),
        (batched, replicated),
        compiler_options=quick.COMPILER_OPTIONS_OF_LONG_RUNS,
    )
    logits, counts = predict(state.variables, batch)
    return jax.device_get((state.variables, scalars, logits, counts))


@functools.cache
def alone(family, size):
    """What comes out on one device."""
    return train(sharding.make_mesh(1, 1), family, size)


@pytest.mark.parametrize(
    ("family", "size", "shape"),
    [
        *(("paddleseg", size, shape) for size, shapes in MESHES.items() for shape in shapes),
        *((family, (64, 32), (2, 4)) for family in ("deep stem", "plain stem")),
    ],
)
def test_training_and_evaluation_are_those_of_one_device(family, size, shape):
    expected, expected_scalars, expected_logits, expected_counts = alone(family, size)
    trained, scalars, logits, counts = train(sharding.make_mesh(*shape), family, size)
    np.testing.assert_array_equal(counts, expected_counts)
    np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=1e-8 * expected_logits.std())
    assert scalars.keys() == expected_scalars.keys()
    for name, value in scalars.items():
        np.testing.assert_allclose(value, expected_scalars[name], rtol=1e-6)  # losses are float32 whatever comes
    for kind in ("params", "batch_stats"):
        moved = jax.tree.map(lambda new, old: new - old, expected[kind], variables_of(family)[kind])
        for found, wanted, change in zip(*map(jax.tree.leaves, (trained[kind], expected[kind], moved)), strict=True):
            assert np.abs(found - wanted).max() <= 1e-6 * max(np.abs(change).max(), 1e-6)


def gathers(compiled) -> list[tuple[int, ...]]:
    """Shapes of all that a compiled program gathers of several devices."""
    found = re.findall(r"= \(?(\w+)\[([\d,]*)\][^=]*? all-gather(?:-start)?\(", compiled.as_text())
    return [tuple(map(int, shape.split(","))) for _, shape in found]


def compile_evaluation(shape, size, **changes):
    mesh = sharding.make_mesh(*shape)
    config = make_config(**{"eval.flip": True, "eval.scales": (0.75, 1.0)} | changes)
    model = make_model(jnp.float32)
    batch_size = max(mesh.shape["data"], 1)
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, *size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch_size, *size), jnp.uint8),
    }
    abstract = variable_shapes(model)
    replicated, batched = sharding.replicated(mesh), sharding.batched(mesh)
    step = make_eval_step(config, model)
    return sharding.jit(mesh, step, (replicated, batched), (replicated, batched)).lower(abstract, batch).compile()


@pytest.mark.parametrize("size", [(512, 64), (512, 72)])
def test_an_evaluation_gathers_nothing_and_needs_a_part_of_the_memory(size, monkeypatch):
    """512 rows are 8 of stage 4 on each of 8 devices, where the largest ASPP rate is 36."""
    jax.config.update("jax_enable_x64", False)
    compiled = compile_evaluation((1, 8), size)
    assert not gathers(compiled)
    assert "all-to-all" in compiled.as_text()
    alone = compile_evaluation((1, 1), size)
    memory = [program.memory_analysis().temp_size_in_bytes for program in (compiled, alone)]
    assert memory[0] <= memory[1] / 3, memory


@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_a_training_step_gathers_no_activations(shape):
    jax.config.update("jax_enable_x64", False)
    mesh, model, config = sharding.make_mesh(*shape), make_model(jnp.float32), make_config()
    batch = {
        "image": jax.ShapeDtypeStruct((8, 512, 72, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((8, 512, 72), jnp.uint8),
    }
    abstract = variable_shapes(model)
    state = jax.eval_shape(lambda: steps.create_train_state(config, jax.tree.map(jnp.zeros_like, abstract)))
    replicated, batched = sharding.replicated(mesh), sharding.batched(mesh)
    step = sharding.jit(
        mesh, steps.make_train_step(config, model), (replicated, batched, replicated), (replicated, replicated)
    )
    compiled = step.lower(state, batch, jax.eval_shape(lambda: jax.random.key(0))).compile()
    # Of depthwise kernels, whose channels lie on different devices on purpose, the new values are gathered.
    assert not [shape for shape in gathers(compiled) if len(shape) == 4 and shape[:2] != (3, 3)]

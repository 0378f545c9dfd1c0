import re

import jax
import jax.numpy as jnp
import pytest

from dlv3p_jax.configs import common
from dlv3p_jax.models import build_model, variable_shapes
from dlv3p_jax.runtime import sharding
from dlv3p_jax.training import steps


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_float32_products_and_convolutions_ask_for_float32(platform, monkeypatch):
    """Forward and gradient: otherwise a TPU multiplies in bfloat16 and a GPU in TF32."""
    monkeypatch.setattr(sharding, "platform", lambda: platform)  # chooses the form of the operations
    config = common.get_config()
    config.num_classes = 3
    config.model.update({"backbone": "resnet50_vd", "output_stride": 8})
    model = build_model(config)

    def gradients(variables, images, rng):
        def loss(params):
            logits, _ = model.apply(
                variables | {"params": params}, images, train=True, rngs={"dropout": rng}, mutable=["batch_stats"]
            )
            return logits.sum()

        return jax.grad(loss)(variables["params"])

    rng, images = jax.random.key(0), jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    variables = variable_shapes(model)
    lowered = jax.jit(gradients).trace(variables, images, rng).lower(lowering_platforms=(platform,))
    operations = re.findall(r"= stablehlo\.(convolution|dot_general)(.*)", lowered.as_text())

    kinds = [kind for kind, _ in operations]
    assert kinds.count("convolution") > 0
    assert kinds.count("dot_general") > 0
    for _, line in operations:
        assert len(re.findall("HIGHEST", line)) == 2, line
        assert "DEFAULT" not in line, line


def test_a_whole_training_step_asks_for_float32():
    """With the loss whose products are its own, RMI."""
    config = common.get_config()
    config.update_from_flattened_dict({"num_classes": 3, "loss.cross_entropy": 0.5, "loss.rmi": 0.5})
    model = build_model(config)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    variables = variable_shapes(model)
    state = jax.eval_shape(lambda variables: steps.create_train_state(config, variables), variables)
    batch = {"image": images, "label": jax.ShapeDtypeStruct((2, 64, 64), jnp.uint8)}
    step = jax.jit(steps.make_train_step(config, model)).trace(state, batch, jax.random.key(0))
    text = step.lower(lowering_platforms=("tpu",)).as_text()
    operations = re.findall(r"= stablehlo\.(?:convolution|dot_general)(.*)", text)
    assert len([line for line in operations if re.search("x18x18xf32", line)]) >= 3
    for line in operations:
        assert len(re.findall("HIGHEST", line)) == 2, line

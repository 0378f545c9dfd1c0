import functools
import math

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from dlv3p_jax.configs import common
from dlv3p_jax.models import build_model, variable_shapes


def make_config(**settings):
    config = common.get_config()
    config.num_classes = 3
    config.model.update({"backbone": "resnet18_vd", "multi_grid": (1, 1)} | settings)
    return config


@pytest.fixture(scope="module")
def model():
    return build_model(make_config())


@pytest.fixture(scope="module")
def variables(model):
    return jax.jit(lambda rng: model.init(rng, jnp.zeros((1, 32, 32, 3)), train=False))(jax.random.key(0))


@pytest.mark.parametrize("size", [(1, 1), (17, 31)])
def test_any_picture_size(model, variables, size):
    images = jax.random.normal(jax.random.key(1), (2, *size, 3))
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    assert logits.shape == (2, *size, 3)
    assert logits.dtype == jnp.float32
    assert np.all(np.isfinite(logits))


@pytest.mark.parametrize("backbone", ["resnet34_vd", "resnet152_vd"])
@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("size", [(497, 500), (1025, 2049)])
def test_shapes_of_large_odd_pictures(backbone, output_stride, size):
    model = build_model(make_config(backbone=backbone, multi_grid=(1, 2, 4), output_stride=output_stride))
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    logits, variables = jax.eval_shape(
        lambda rng, images: model.init_with_output(rng, images, train=False), jax.random.key(0), images
    )
    assert logits.shape == (1, *size, 3)
    assert variables.keys() == {"params", "batch_stats"}
    assert variables["params"].keys() == {"backbone", "aspp", "decoder"}


def test_the_output_stride_is_that_of_the_last_stages():
    for output_stride in (8, 16):
        model = build_model(make_config(output_stride=output_stride))
        images = jax.ShapeDtypeStruct((1, 65, 96, 3), jnp.float32)
        _, state = jax.eval_shape(
            lambda rng, images, model=model: model.init_with_output(
                rng, images, train=False, capture_intermediates=lambda module, _: module.name == "backbone"
            ),
            jax.random.key(0),
            images,
        )
        stages = state["intermediates"]["backbone"]["__call__"][0]
        strides = (4, 8, output_stride, output_stride)
        expected = [(math.ceil(65 / stride), math.ceil(96 / stride)) for stride in strides]
        assert [stage.shape[1:3] for stage in stages] == expected


def test_initialisation_is_he_normal_over_all_input_channels(variables):
    for path, value in traverse_util.flatten_dict(variables["params"]).items():
        if path[-1] == "kernel":
            height, width, inputs, outputs = value.shape
            depthwise = "depthwise" in path
            expected = math.sqrt(2 / (height * width * (outputs if depthwise else inputs)))
            tolerance = 5 / math.sqrt(2 * value.size)  # five standard errors of a standard deviation
            np.testing.assert_allclose(value.std(), expected, rtol=tolerance, err_msg=str(path))
            assert abs(value.mean()) < 5 * expected / math.sqrt(value.size), path
        else:
            np.testing.assert_array_equal(value, 1.0 if path[-1] == "scale" else 0.0, err_msg=str(path))
    for path, value in traverse_util.flatten_dict(variables["batch_stats"]).items():
        np.testing.assert_array_equal(value, 1.0 if path[-1] == "var" else 0.0, err_msg=str(path))


def test_biases_are_in_the_head_only_and_not_in_image_pooling(variables):
    convolutions = {path[:-1] for path in traverse_util.flatten_dict(variables["params"]) if path[-1] == "kernel"}
    biases = {path[:-1] for path in traverse_util.flatten_dict(variables["params"]) if path[-1] == "bias"}
    without = convolutions - biases
    assert without == {path for path in convolutions if path[0] == "backbone"} | {("aspp", "image_pooling", "conv")}


def test_bfloat16_keeps_float32_parameters_statistics_and_logits():
    model = build_model(make_config(dtype="bfloat16"))

    def train_step(rng, images):
        variables = model.init(rng, images, train=False)
        return variables, model.apply(variables, images, train=True, rngs={"dropout": rng}, mutable=["batch_stats"])

    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    everything = jax.eval_shape(train_step, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(everything)} == {jnp.dtype(jnp.float32)}
    text = jax.jit(train_step).lower(jax.random.key(0), images).as_text()
    assert "convolution" in text
    assert all("bf16" in line for line in text.splitlines() if "stablehlo.convolution" in line)


def test_frozen_backbone_takes_no_gradient_and_keeps_its_statistics(variables):
    config = make_config()
    config.freeze_backbone = True
    model = build_model(config)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradients_and_statistics(params, images, rng):
        logits, updates = model.apply(
            variables | {"params": params}, images, train=True, rngs={"dropout": rng}, mutable=["batch_stats"]
        )
        return (logits**2).mean(), updates["batch_stats"]

    rng = jax.random.key(0)
    gradients, statistics = gradients_and_statistics(variables["params"], jax.random.normal(rng, (2, 32, 32, 3)), rng)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients["backbone"]))
    assert np.any(gradients["aspp"]["branch1"]["conv"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, statistics["backbone"], variables["batch_stats"]["backbone"])
    assert np.any(statistics["aspp"]["projection"]["batch_norm"]["mean"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("backbone", "resnet50", "model.backbone='resnet50'.*resnet18_vd, resnet34_vd, resnet50_vd"),
        ("output_stride", 32, "model.output_stride=32.*8 or 16"),
        ("multi_grid", (1, 2, 4), "model.multi_grid=.*3 entries.*resnet18_vd needs 2"),
        ("multi_grid", (1, 0), "model.multi_grid=.*positive integers"),
        ("aspp_rates", (), "model.aspp_rates=.*positive integers"),
        ("aspp_rates", (1, 6, -12), "model.aspp_rates=.*positive integers"),
        ("aspp_channels", 0, "model.aspp_channels=0"),
        ("dropout", 1.0, "model.dropout=1.0"),
        ("dtype", "float16", "model.dtype='float16'.*float32, bfloat16"),
    ],
)
def test_impossible_settings_name_the_key_and_the_value(key, value, message):
    with pytest.raises(ValueError, match=message):
        build_model(make_config(**{key: value}))


@pytest.mark.parametrize("num_classes", [None, 1, 0, 257])
def test_number_of_classes_has_to_be_given(num_classes):
    config = make_config()
    config.num_classes = num_classes
    with pytest.raises(ValueError, match=f"num_classes={num_classes}"):
        build_model(config)


def test_remat_changes_no_parameter_and_no_gradient():
    assert build_model(make_config(remat=True)).backbone.remat
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    plain = drawn.make_network(output_stride=16)
    again = plain.clone(backbone=plain.backbone.clone(remat=True))
    assert variable_shapes(again) == variable_shapes(plain)
    variables = drawn.draw_variables_of(plain)
    found, barriers = [], []
    for model in (plain, again):

        def loss(params, model=model):
            logits, updates = model.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])
            return (logits**2).mean(), updates

        lowered = jax.jit(jax.grad(loss, has_aux=True)).lower(variables["params"])
        barriers.append(lowered.as_text().count("optimization_barrier"))
        found.append(lowered.compile()(variables["params"]))
    assert barriers[1] > barriers[0]
    for expected, actual in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-3 * max(np.abs(expected).max(), 1e-3))

"""The network against numbers recorded from PaddleSeg, see ../shared/parity/README.md."""

import runpy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from dlv3p_jax.convert_paddle import convert
from dlv3p_jax.models import build_model

CASES = {
    "r18_os8": {"backbone": "resnet18_vd", "multi_grid": (1, 1)},
    "r50_os8": {},
    "r50_os16": {"output_stride": 16, "aspp_rates": (1, 6, 12, 18)},
    "r50_c21_odd": {},
    "r101_align": {"backbone": "resnet101_vd", "align_corners": True},
}


def make_model(num_classes, **settings):
    config = common.get_config()
    config.num_classes = num_classes
    config.model.update(settings)
    return build_model(config)


def load_weights(shared, model, backbone, num_classes):
    make_state = runpy.run_path(shared / "parity" / "weights.py")["make_state"]
    return convert(make_state(shared / "parity" / f"deeplabv3p_{backbone}_c{num_classes}.json"), model)


def load_case(shared, name, dtype="float32"):
    with np.load(shared / "parity" / f"forward_{name}.npz") as file:
        recorded = {key: value.transpose(0, 2, 3, 1) for key, value in file.items()}
    settings = {"backbone": "resnet50_vd", "dtype": dtype} | CASES[name]
    num_classes = recorded["logits"].shape[-1]
    model = make_model(num_classes, **settings)
    return model, load_weights(shared, model, settings["backbone"], num_classes), recorded


def assert_close(ours, recorded, tolerance=1e-4):
    assert ours.shape == recorded.shape
    assert np.abs(ours - recorded).max() <= tolerance * recorded.std()


@pytest.mark.parametrize("name", CASES)
def test_float32_logits(shared, name):
    model, variables, recorded = load_case(shared, name)

    def is_stage(module, method):
        return (module.name or "").startswith(("backbone", "aspp", "branch", "decoder"))

    @jax.jit
    def forward(variables, images):
        return model.apply(variables, images, train=False, capture_intermediates=is_stage)

    logits, state = forward(variables, recorded["x"])
    assert logits.dtype == np.float32
    assert_close(logits, recorded["logits"])
    agreement = np.mean(np.argmax(logits, -1) == np.argmax(recorded["logits"], -1))
    assert agreement >= 0.9999

    if "stage1" not in recorded:
        return
    stages = state["intermediates"]
    features = {f"stage{i + 1}": value for i, value in enumerate(stages["backbone"]["__call__"][0])}
    features |= {f"aspp_block{i}": stages["aspp"][f"branch{i + 1}"]["__call__"][0] for i in range(4)}
    features |= {name: stages[name]["__call__"][0] for name in ("aspp", "decoder")}
    assert features.keys() == recorded.keys() - {"x", "logits"}
    for stage, value in features.items():
        assert_close(np.asarray(value[..., : recorded[stage].shape[-1]]), recorded[stage])


@pytest.mark.parametrize("name", ["r18_os8", "r50_os8", "r50_os16"])
def test_bfloat16_gives_nearly_the_same_labels(shared, name):
    model, variables, recorded = load_case(shared, name, dtype="bfloat16")
    logits = jax.jit(lambda variables, images: model.apply(variables, images, train=False))(variables, recorded["x"])
    assert logits.dtype == np.float32
    agreement = np.mean(np.argmax(logits, -1) == np.argmax(recorded["logits"], -1))
    assert agreement >= 0.975
    assert np.any(logits != recorded["logits"])


def test_first_training_step(shared):
    """Loss and running statistics in training mode, with dropout off."""
    with np.load(shared / "parity" / "train_r18.npz") as file:
        recorded = dict(file)
    model = make_model(2, backbone="resnet18_vd", multi_grid=(1, 1), dropout=0.0)
    variables = load_weights(shared, model, "resnet18_vd", 2)

    @jax.jit
    def loss_and_statistics(variables, images, labels):
        logits, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
        valid = labels != 255
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(valid, labels, 0))
        return losses.mean(where=valid), updates["batch_stats"]

    images = recorded["x"].transpose(0, 2, 3, 1)
    loss, statistics = loss_and_statistics(variables, images, recorded["labels"])
    np.testing.assert_allclose(loss, recorded["loss"][0], rtol=1e-5)

    stem = statistics["backbone"]["stem_conv1"]["batch_norm"]
    last = statistics["backbone"]["stage4_block2"]["conv2"]["batch_norm"]
    pooling = statistics["aspp"]["image_pooling"]["batch_norm"]
    assert_close(stem["mean"], recorded["step1/backbone.conv1_1._batch_norm._mean"])
    assert_close(stem["var"], recorded["step1/backbone.conv1_1._batch_norm._variance"])
    assert_close(last["mean"], recorded["step1/backbone.bb_3_1.conv1._batch_norm._mean"])
    assert_close(last["var"], recorded["step1/backbone.bb_3_1.conv1._batch_norm._variance"])
    assert_close(pooling["var"], recorded["step1/head.aspp.global_avg_pool.1._batch_norm._variance"])

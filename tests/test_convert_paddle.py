import json
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import common
from dlv3p_jax.convert_paddle import ConversionError, convert, revert
from dlv3p_jax.models import build_model


def make_model(backbone="resnet18_vd", num_classes=2):
    config = common.get_config()
    config.num_classes = num_classes
    config.model.backbone = backbone
    if backbone == "resnet18_vd":
        config.model.multi_grid = (1, 1)
    return build_model(config)


@pytest.fixture
def state(shared):
    make_state = runpy.run_path(shared / "parity" / "weights.py")["make_state"]
    return make_state(shared / "parity" / "deeplabv3p_resnet18_vd_c2.json")


@pytest.mark.parametrize(
    ("backbone", "num_classes"),
    [("resnet18_vd", 2), ("resnet50_vd", 19), ("resnet50_vd", 21), ("resnet101_vd", 19), ("resnet101_vd", 21)],
)
def test_round_trip_gives_the_same_names_order_and_bits(shared, backbone, num_classes):
    names = json.loads((shared / "parity" / f"deeplabv3p_{backbone}_c{num_classes}.json").read_text())
    rng = np.random.default_rng(0)
    state = {name: rng.random(shape, np.float32) for name, shape in names.items()}
    model = make_model(backbone, num_classes)
    back = revert(convert(state, model), model)
    assert list(back) == list(names)
    for name, value in back.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value.view(np.uint32), state[name].view(np.uint32), err_msg=name)


def test_variables_have_the_tree_and_shapes_of_the_model(state):
    model = make_model()
    expected = jax.eval_shape(
        lambda rng: model.init(rng, np.zeros((1, 8, 8, 3), np.float32), train=False), jax.random.key(0)
    )
    variables = convert(state, model)
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(variables), jax.tree.leaves(expected), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


def test_paddles_own_entry_is_ignored(state):
    state["StructuredToParameterName@@"] = {"backbone.conv1_1._conv.weight": "param_0"}
    convert(state, make_model())


def test_every_wrong_name_is_listed_at_once(state):
    del state["backbone.bb_1_0.conv0._conv.weight"]
    del state["head.decoder.conv.bias"]
    state["head.aspp.pointwise_conv.weight"] = np.zeros((4, 5), np.float32)
    state["backbone.conv1_1._conv.weight"] = np.zeros((32, 4, 3, 3), np.float32)
    with pytest.raises(ConversionError) as error:
        convert(state, make_model())
    message = str(error.value)
    missing, rest = message.split("1 unexpected")
    unexpected, misshaped = rest.split("1 mis-shaped")
    assert "2 missing" in missing
    assert "backbone.bb_1_0.conv0._conv.weight (128, 64, 3, 3)" in missing
    assert "head.decoder.conv.bias (2,)" in missing
    assert "head.aspp.pointwise_conv.weight (4, 5)" in unexpected
    assert "backbone.conv1_1._conv.weight has (32, 4, 3, 3), the model (32, 3, 3, 3)" in misshaped
    assert issubclass(ConversionError, ValueError)


def test_weights_of_another_network_are_refused(state):
    with pytest.raises(ConversionError, match="head.decoder.conv.weight has"):
        convert(state, make_model(num_classes=19))
    with pytest.raises(ConversionError, match="backbone.bb_0_0.conv2._conv.weight"):
        convert(state, make_model("resnet50_vd", 2))
    variables = convert(state, make_model())
    with pytest.raises(ConversionError, match="mis-shaped"):
        revert(variables, make_model(num_classes=19))


def test_works_without_tensorflow():
    code = (
        "import sys\n"
        "for name in ('tensorflow', 'tensorflow_datasets', 'clu'): sys.modules[name] = None\n"
        "import dlv3p_jax.models, dlv3p_jax.convert_paddle"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

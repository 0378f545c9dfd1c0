"""The network as MMSegmentation has it, against numbers recorded from it, see ../shared/parity/mmseg/README.md."""

import runpy

import jax
import numpy as np
import pytest
import recordings

from dlv3p_jax.configs import common
from dlv3p_jax.configs import mmseg as recipes
from dlv3p_jax.data import colors
from dlv3p_jax.evaluation.views import Views
from dlv3p_jax.models import build_model
from dlv3p_jax.models.tiles import Tiled
from dlv3p_jax.weights import mmseg

R101 = {"output_stride": 16, "multi_grid": (1, 2, 4), "multi_grid_kind": "dilations", "aspp_rates": (1, 6, 12, 18)}
FORWARD = {  # recording: names and shapes of its weights, its backbone, and what differs from that one's network
    "r50": ("r50-d8_c19", "r50", {}),
    "r18_odd": ("r18-d8_c19", "r18", {}),
    "r18b": ("r18b-d8_c19", "r18b", {}),
    "r101_d16_mg124": ("r101-d16-mg124_c19", "r101", R101),
    "r18_align": ("r18-d8_c19", "r18", {"align_corners": True}),
}
SLIDING = {"window": (65, 65), "stride": (43, 43), "align_corners": True}
PREDICT = {  # recording: its weights, backbone and classes, and how it is tested
    "r18": ("r18-d8_c19", "r18", 19, {}),
    "r18_align_slide": ("r18-d8_c19", "r18", 19, SLIDING),
    "r50_ade20k_resized": ("r50-d8_c150", "r50", 150, {"resize": (128, 512)}),
}
AS_RECORDED = {"mean": (127.5,) * 3, "std": (127.5,) * 3}  # `forward_*` begin behind the normalisation


def make_model(backbone="r50", num_classes=19, **changes):
    config = common.get_config()
    config.num_classes = num_classes
    config.model.update(recipes.network(backbone) | changes)
    return build_model(config)


def make_variables(shared, weights, model):
    folder = shared / "parity" / "mmseg"
    state = runpy.run_path(str(folder / "weights.py"))["make_state"](str(folder / f"deeplabv3plus_{weights}.json"))
    return mmseg.convert(state, model)


@pytest.mark.parametrize(("name", "beside"), [(name, name == "r18_odd") for name in FORWARD])
def test_float32_logits(shared, name, beside):
    weights, backbone, changes = FORWARD[name]
    model = make_model(backbone, **AS_RECORDED, **changes)
    recorded = {
        key: recordings.last(value) for key, value in recordings.recorded(shared, f"mmseg/forward_{name}").items()
    }
    expected = recorded["logits"]
    run = jax.jit(lambda variables, images, sizes: model.apply(variables, images, train=False, sizes=sizes))
    variables, images = make_variables(shared, weights, model), recorded["x"]
    logits = run(variables, *(recordings.beside_another(images) if beside else (images, None)))
    logits = logits[tuple(map(slice, expected.shape))]
    assert np.abs(logits - expected).max() <= 1e-4 * expected.std()
    assert np.mean(np.argmax(logits, -1) == np.argmax(expected, -1)) >= 0.9999


@pytest.mark.parametrize(("name", "beside"), [("r18", False), ("r18_align_slide", True), ("r50_ade20k_resized", True)])
def test_a_picture_through_the_whole_test(shared, name, beside):
    """Resized, cut into windows, at several scales and mirrored, as MMSegmentation's own test did it."""
    weights, backbone, num_classes, settings = PREDICT[name]
    model = make_model(backbone, num_classes, align_corners=settings.get("align_corners", False))
    variables = make_variables(shared, weights, model)
    recorded = np.load(shared / "parity" / "mmseg" / f"predict_{name}.npz")
    images = colors.normalize(recorded["image"][None])

    def predict(**more):
        return recordings.predict(model, variables, images, Views(**settings, **more), beside)[0]

    expected = np.moveaxis(recorded["logits"], 0, -1)
    logits = predict()
    assert np.abs(logits - expected).max() <= 1e-4 * expected.std()
    assert np.mean(np.argmax(logits, -1) == recorded["pred"]) >= 0.9999
    if "scales" in recorded:
        found = predict(scales=recorded["scales"].tolist(), flip=True, average="probabilities")
        np.testing.assert_allclose(found, np.moveaxis(recorded["tta_probabilities"], 0, -1), rtol=0, atol=1e-5)
        assert np.mean(np.argmax(found, -1) == recorded["tta_pred"]) >= 0.9999


@pytest.mark.parametrize(
    ("backbone", "changes", "cuts"),
    [
        ("r50", {}, [0, 0, 1, 2]),
        ("r50", {"multi_grid_kind": "dilations", "multi_grid": (1, 2, 4)}, [0, 0, 1, 2]),
        ("r18", {}, [0, 0, 0, 0]),
        ("r18", {"dilate_second": True}, [0, 0, 1, 2]),
    ],
)
def test_blocks_run_on_as_many_sub_images_as_their_dilations_let_them(backbone, changes, cuts):
    backbone = make_model(backbone, **changes).backbone
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    features, _ = jax.eval_shape(
        lambda images: backbone.init_with_output(jax.random.key(0), Tiled(images), train=False), images
    )
    assert [x.cuts for x in features] == cuts

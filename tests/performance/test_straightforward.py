"""The plain form of the network against the fast one, and the operations that the compiler counts in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from dlv3p_jax.configs import common, mmseg
from dlv3p_jax.models import build_model, variable_shapes
from dlv3p_jax.performance import straightforward, timing, workloads


def make_config(**settings):
    config = common.get_config()
    config.num_classes = 5
    config.model.update({"backbone": "resnet18_vd", "multi_grid": (1, 2), "aspp_rates": (1, 2, 5)} | settings)
    return config


@pytest.mark.parametrize(
    ("settings", "size"),
    [({}, (64, 96)), ({"align_corners": True, "output_stride": 16, "aspp_channels": 24}, (33, 50))],
)
def test_logits_are_those_of_the_fast_network(settings, size):
    config = make_config(**settings)
    model, plain = build_model(config), straightforward.build(config)
    images = jax.random.normal(jax.random.key(1), (2, *size, 3))
    variables = workloads.init_variables(config)
    expected = jax.jit(lambda v, x: plain.apply(v, x, train=False))(variables, images)
    actual = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * float(expected.std()))


@pytest.mark.parametrize(
    ("backbone", "size", "settings"),
    [
        ("r18", (41, 58), {"align_corners": True}),
        ("r18b", (64, 96), {}),
        ("r50", (64, 64), {}),  # whose sides divide, so that dilated stages run on sub-images
        ("r50", (50, 67), {"output_stride": 16, "multi_grid": (1, 2, 4), "multi_grid_kind": "dilations"}),
    ],
)
def test_in_float64_mmsegmentations_networks_differ_by_rounding_alone(backbone, size, settings):
    with jax.enable_x64(True):
        config = make_config(**(mmseg.network(backbone) | settings | {"aspp_channels": 16, "decoder_channels": 16}))
        parts = build_model(config)
        model = parts.clone(
            **{part: getattr(parts, part).clone(dtype=jnp.float64) for part in ("backbone", "aspp", "decoder")}
        )
        config.model.dtype = "float64"
        plain = straightforward.build(config)
        rng = np.random.default_rng(0)
        variables = jax.tree.map(
            lambda leaf: rng.uniform(0.5, 1.5, leaf.shape) if leaf.ndim == 1 else he_normal(rng, leaf.shape),
            variable_shapes(parts),
        )
        images = rng.uniform(-1, 1, (2, *size, 3))
        expected = jax.jit(lambda v, x: plain.apply(v, x, train=False))(variables, images)
        actual = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    assert actual.dtype == expected.dtype == np.float64
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9 * float(expected.std()))


def he_normal(rng, shape):
    return rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:3]))


def taps_inside(side: int, stride: int, dilation: int) -> int:
    """How many (output pixel, tap) of three taps along a side see a real pixel."""
    outputs = range(0, side, stride)
    return sum(0 <= output + tap * dilation < side for output in outputs for tap in (-1, 0, 1))


def counted_by_hand(config, height: int, width: int) -> int:
    """Twice the multiply-adds of all convolutions for one picture, at output stride 8, without those of padding."""
    total = 0
    for path, kernel in traverse_util.flatten_dict(workloads.init_variables(config)["params"], sep="/").items():
        if not path.endswith("kernel"):
            continue
        part, layer = path.split("/")[:2]
        stride = dilation = 1  # of the layer; `at` is its input's stride
        if part == "backbone" and layer.startswith("stem"):
            at, stride = (1, 2) if layer == "stem_conv1" else (2, 1)
        elif part == "backbone":
            stage, block = int(layer[5]), int(layer[-1])
            at = {1: 4, 2: 8, 3: 8, 4: 8}[stage]
            dilation = {1: 1, 2: 1, 3: 2, 4: 4}[stage] * (config.model.multi_grid[block - 1] if stage == 4 else 1)
            if (stage, block) == (2, 1) and "/conv1/" in path:
                at, stride = 4, 2
        elif part == "aspp":
            at = 8
            dilation = config.model.aspp_rates[int(layer[-1]) - 1] if layer.startswith("branch") else 1
        else:
            at = 4
        rows, columns = height // at, width // at
        if layer == "image_pooling":
            positions = 1
        elif kernel.shape[0] == 3:
            positions = taps_inside(rows, stride, dilation) * taps_inside(columns, stride, dilation)
        else:
            positions = rows * columns
        total += 2 * positions * kernel.shape[2] * kernel.shape[3]
    return total


@pytest.mark.parametrize("backbone", ["resnet18_vd", "resnet34_vd"])
def test_operations_are_those_counted_by_hand(backbone):
    multi_grid = (1, 2) if backbone == "resnet18_vd" else (1, 2, 4)
    config = make_config(backbone=backbone, multi_grid=multi_grid, aspp_rates=(1, 12, 24, 36))
    model = straightforward.build(config)
    variables = workloads.init_variables(config)
    images = jax.ShapeDtypeStruct((2, 64, 128, 3), jnp.float32)
    counted = timing.count_operations(lambda v, x: model.apply(v, x, train=False), variables, images)
    by_hand = 2 * counted_by_hand(config, 64, 128)
    # The rest is BatchNorm, ReLU, means, sums and resizing.
    assert by_hand < counted < 1.05 * by_hand

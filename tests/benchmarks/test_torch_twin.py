"""The PyTorch twin gives our logits with our weights, so that comparing its speed with ours makes sense."""

import importlib.util

import jax
import numpy as np
import pytest
from flax import traverse_util

from dlv3p_jax.configs import common
from dlv3p_jax.models import build_model
from dlv3p_jax.performance import workloads


@pytest.fixture(scope="module")
def torch():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed: pip install torch")
    import torch

    torch.set_num_threads(1)
    return torch


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        # Shortcuts that pool an odd side, multi-grid, and features of 6x8 that are resized to 12x16 and 45x61.
        ({"backbone": "resnet50_vd", "multi_grid": (1, 2, 4), "align_corners": True}, (45, 61)),
        ({"backbone": "resnet18_vd", "multi_grid": (1, 2), "output_stride": 16, "aspp_rates": (1, 6)}, (33, 50)),
    ],
)
def test_logits_are_ours(torch, settings, size):
    from benchmarks import torch_twin

    config = common.get_config()
    config.num_classes = 5
    config.model.update(settings)
    rng = np.random.default_rng(0)
    arrays = traverse_util.flatten_dict(workloads.init_variables(config), sep="/")
    for path, array in arrays.items():  # biases, scales and statistics that make a difference
        if not path.endswith("kernel"):
            arrays[path] = array + rng.uniform(-0.3, 0.3, array.shape).astype(np.float32)
    images = rng.standard_normal((2, *size, 3), np.float32)

    twin = torch_twin.DeepLabV3Plus(config.model.to_dict(), config.num_classes).eval()
    torch_twin.load(twin, arrays)
    with torch.inference_mode():
        actual = twin(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()

    variables = traverse_util.unflatten_dict(arrays, sep="/")
    model = build_model(config)
    expected = np.asarray(jax.jit(lambda *given: model.apply(*given, train=False))(variables, images))
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-3 * expected.std())


def test_weights_that_lack_or_exceed_are_refused(torch):
    from benchmarks import torch_twin

    config = common.get_config()
    config.num_classes = 5
    config.model.update(backbone="resnet18_vd", multi_grid=(1, 1))
    arrays = traverse_util.flatten_dict(workloads.init_variables(config), sep="/")
    twin = torch_twin.DeepLabV3Plus(config.model.to_dict(), config.num_classes)
    lacking = {path: array for path, array in arrays.items() if not path.endswith("classifier/bias")}
    with pytest.raises(RuntimeError, match=r"Missing key.*decoder\.classifier\.bias"):
        torch_twin.load(twin, lacking)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        torch_twin.load(twin, arrays | {"params/decoder/more/kernel": arrays["params/decoder/classifier/kernel"]})

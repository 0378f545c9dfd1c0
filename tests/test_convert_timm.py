"""timm's backbones: the same names and features as timm itself, and one clear error for everything else.

The comparison with timm needs the extra `timm` (PyTorch) and skips without it; the weights are drawn at random.
"""

import functools
import importlib.util
import json
import pathlib
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from safetensors.numpy import save_file

from dlv3p_jax.configs import common
from dlv3p_jax.models import build_model, variable_shapes
from dlv3p_jax.models.resnet import BLOCKS, ResNet
from dlv3p_jax.weights import checkpoint_reading
from dlv3p_jax.weights.timm import ConversionError, convert, infer_backbone, load_safetensors

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
TIMM_NAMES = {"resnet50_vd": "resnet50d", "resnet101_vd": "resnet101d", "resnet152_vd": "resnet152d"}


@pytest.fixture(scope="module")
def timm():
    if importlib.util.find_spec("timm") is None or importlib.util.find_spec("torch") is None:
        pytest.skip("timm and PyTorch are not installed: pip install '.[timm]'")
    import torch

    library = None
    try:
        import torchvision  # noqa: F401  timm imports it
    except RuntimeError:
        # torchvision from PyPI cannot load its operators beside a PyTorch of another build, and then misses these two,
        # of which nothing here makes use.
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    yield timm
    del library  # what it defines lives as long as it does


def resnet_d_shapes(blocks) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a ResNet-D of bottlenecks as timm has it, with its classifier and counters."""
    shapes = {}

    def add(conv, batch_norm, outputs, inputs, size):
        shapes[f"{conv}.weight"] = (outputs, inputs, size, size)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{batch_norm}.{leaf}"] = (outputs,)
        shapes[f"{batch_norm}.num_batches_tracked"] = ()

    add("conv1.0", "conv1.1", 32, 3, 3)
    add("conv1.3", "conv1.4", 32, 32, 3)
    add("conv1.6", "bn1", 64, 32, 3)
    inputs = 64
    for stage, (width, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True), start=1):
        for block in range(count):
            prefix = f"layer{stage}.{block}"
            add(f"{prefix}.conv1", f"{prefix}.bn1", width, inputs, 1)
            add(f"{prefix}.conv2", f"{prefix}.bn2", width, width, 3)
            add(f"{prefix}.conv3", f"{prefix}.bn3", 4 * width, width, 1)
            if block == 0:
                add(f"{prefix}.downsample.1", f"{prefix}.downsample.2", 4 * width, inputs, 1)
            inputs = 4 * width
    return shapes | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: np.int64(7) if shape == () else rng.random(shape, np.float32)
        for name, shape in resnet_d_shapes((3, 4, 6, 3)).items()
    }


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file({name: np.asarray(value) for name, value in state.items()}, path)
    return path


def run(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "dlv3p_jax.convert_timm", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


@pytest.mark.parametrize("backbone", TIMM_NAMES)
def test_names_and_shapes_are_timms(timm, backbone):
    import torch

    with torch.device("meta"):
        model = timm.create_model(TIMM_NAMES[backbone])
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes == resnet_d_shapes(BLOCKS[backbone])
    state = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    assert infer_backbone(state) == backbone
    convert(state, backbone)


def test_features_are_those_of_timm(timm, tmp_path):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model("resnet50d", pretrained=False).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as new, the last of a block is zero and all statistics are equal
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2.0)
    save_file(model.state_dict(), tmp_path / "model.safetensors")

    # timm strides down to 32, and dilates by another rule if asked for less (its first block keeps the dilation of the
    # stage before, its shortcut pools with stride 1). So its last stage gets our stride and dilations, by hand.
    for block, dilation in zip(model.layer4, (2, 4, 8), strict=True):
        block.conv2.stride, block.conv2.padding, block.conv2.dilation = (1, 1), (dilation,) * 2, (dilation,) * 2
    model.layer4[0].downsample[0] = torch.nn.Identity()
    images = np.float32(np.random.default_rng(0).normal(size=(2, 75, 97, 3)))  # odd in every stage, which tests borders
    with torch.no_grad():
        x = torch.from_numpy(images.transpose(0, 3, 1, 2))
        expected = model.forward_intermediates(x, indices=[1, 2, 3, 4], intermediates_only=True)

    variables, dropped = convert(load_safetensors(tmp_path / "model.safetensors"), "resnet50_vd")
    assert dropped == ["fc.bias", "fc.weight"]
    backbone = ResNet(BLOCKS["resnet50_vd"], bottleneck=True, output_stride=16, multi_grid=(1, 2, 4))
    apply = jax.jit(functools.partial(backbone.apply, train=False))
    features = apply({kind: tree["backbone"] for kind, tree in variables.items()}, images)
    assert [x.shape[1:3] for x in features] == [(19, 25), (10, 13), (5, 7), (5, 7)]
    for ours, theirs in zip(features, expected, strict=True):
        theirs = theirs.numpy().transpose(0, 2, 3, 1)
        assert np.abs(ours - theirs).max() <= 1e-4 * theirs.std()


def test_the_command_writes_a_backbone_to_train_from(weights, state, tmp_path):
    process = run(f"--weights={weights}", f"--output={tmp_path / 'timm'}")
    assert process.returncode == 0, process.stderr
    assert "resnet50_vd: 23.6 million numbers" in process.stdout
    assert "left out: fc.bias, fc.weight" in process.stdout
    assert f"--config.pretrained={tmp_path / 'timm'} --config.model.backbone=resnet50_vd" in process.stdout
    assert "ImageNet's mean and standard deviation" in process.stdout
    assert json.loads((tmp_path / "timm" / "config.json").read_text())["model"]["backbone"] == "resnet50_vd"

    config = common.get_config()
    config.num_classes = 3
    model = build_model(ml_collections.FrozenConfigDict(config))
    fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variable_shapes(model))
    loaded = checkpoint_reading.read_variables(checkpoint_reading.find(tmp_path / "timm"))
    variables, new = checkpoint_reading.fit_variables(loaded, fresh, allow_new_head=True)
    assert {name.split("/")[1] for name in new} == {"aspp", "decoder"}
    block = variables["params"]["backbone"]["stage2_block1"]
    np.testing.assert_array_equal(
        block["shortcut"]["conv"]["kernel"][0, 0], state["layer2.0.downsample.1.weight"][..., 0, 0].T
    )
    statistics = variables["batch_stats"]["backbone"]["stem_conv3"]["batch_norm"]
    np.testing.assert_array_equal(statistics["var"], state["bn1.running_var"])


def test_every_wrong_name_is_listed_at_once(state):
    wrong = dict(state)
    del wrong["layer1.0.bn2.running_var"]
    del wrong["conv1.3.weight"]
    wrong["layer1.0.se.fc1.weight"] = np.zeros((4, 5), np.float32)
    wrong["conv1.0.weight"] = np.zeros((24, 3, 3, 3), np.float32)
    wrong["layer3.5.conv3.weight"] = np.zeros((1024, 256, 1, 1), np.int8)
    assert infer_backbone(wrong) == "resnet50_vd"
    with pytest.raises(ConversionError) as error:
        convert(wrong, "resnet50_vd")
    assert str(error.value).splitlines()[1:] == [
        "2 missing:",
        "  conv1.3.weight (32, 32, 3, 3)",
        "  layer1.0.bn2.running_var (64,)",
        "1 unexpected:",
        "  layer1.0.se.fc1.weight (4, 5)",
        "1 mis-shaped:",
        "  conv1.0.weight has (24, 3, 3, 3), the model (32, 3, 3, 3)",
        "1 not of floating-point numbers:",
        "  layer3.5.conv3.weight int8",
    ]


def test_the_backbone_is_told_by_its_blocks(state):
    names = [name for name in state if not name.startswith("layer3.5.")]
    with pytest.raises(ConversionError, match="3, 4, 5, 3 blocks.*resnet50d, resnet101d and resnet152d"):
        infer_backbone(dict.fromkeys(names))
    with pytest.raises(ConversionError, match="no names like layer1.0.conv1.weight"):
        infer_backbone({"stem.conv.weight": np.zeros((8, 3, 3, 3), np.float32)})
    # As in timm's resnet18d, whose first block has no convolution in its shortcut.
    names = [
        f"layer{stage}.{block}.conv{layer}.weight" for stage in (1, 2, 3, 4) for block in (0, 1) for layer in (1, 2)
    ]
    with pytest.raises(ConversionError, match="resnet18d and resnet34d.*other networks"):
        infer_backbone(dict.fromkeys(names))


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_other_floating_types_become_float32(state, tmp_path, dtype):
    cast = {name: value.astype(dtype) for name, value in state.items() if value.ndim}
    save_file(cast, tmp_path / "model.safetensors")
    variables, _ = convert(load_safetensors(tmp_path / "model.safetensors"), "resnet50_vd")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(
        variables["params"]["backbone"]["stem_conv1"]["conv"]["kernel"],
        cast["conv1.0.weight"].astype(np.float32).transpose(2, 3, 1, 0),
    )


def test_other_files_end_in_a_clear_error(weights, tmp_path):
    def write(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    with zipfile.ZipFile(tmp_path / "model.pth", "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02}.")
    advice = r"file of PyTorch's own, a pickle.*safetensors\.torch\.save_file"
    for path in (tmp_path / "model.pth", write("pytorch_model.bin", b"\x80\x02}."), write("a.pt", b"")):
        with pytest.raises(ValueError, match=f"{path} is a {advice}"):
            load_safetensors(path)
    content = weights.read_bytes()
    for path in (
        write("text.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        write("empty.safetensors", b""),
        write("cut.safetensors", content[:-1]),
        write("longer.safetensors", content + b"\0"),
        write("header.safetensors", content[:1000]),
    ):
        with pytest.raises(ValueError, match=f"{path} is no safetensors file, or is damaged"):
            load_safetensors(path)
    for path in (tmp_path, tmp_path / "none.safetensors"):
        with pytest.raises(FileNotFoundError, match=f"{path} is not there, or is no file"):
            load_safetensors(path)

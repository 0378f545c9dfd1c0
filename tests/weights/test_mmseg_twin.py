"""MMSegmentation's ResNet-18 model in plain PyTorch, by its names: its files are ours, and ours are its, strictly.

The recordings of `parity/mmseg` are of the program itself; this holds what they do not: training mode, the auxiliary
head, and `torch.load` and `torch.save`.
"""

import jax
import numpy as np
import pytest

from dlv3p_jax.configs import common
from dlv3p_jax.configs import mmseg as recipes
from dlv3p_jax.models import build_model
from dlv3p_jax.weights import foreign, mmseg, pth

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional
NUM_CLASSES = 4


class ConvModule(nn.Sequential):
    """`conv`, `bn` and a ReLU."""

    def __init__(self, inputs, outputs, size=1, dilation=1, groups=1):
        super().__init__()
        padding = size // 2 * dilation
        self.conv = nn.Conv2d(inputs, outputs, size, 1, padding, dilation, groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()


class Separable(nn.Sequential):
    def __init__(self, inputs, outputs, dilation=1):
        super().__init__()
        self.depthwise_conv = ConvModule(inputs, inputs, 3, dilation, inputs)
        self.pointwise_conv = ConvModule(inputs, outputs)


class Block(nn.Module):
    """A basic block, whose second convolution is not dilated."""

    def __init__(self, inputs, width, stride, dilation):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, dilation, dilation, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        if inputs != width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + (self.downsample(x) if hasattr(self, "downsample") else x)).relu()


class Twin(nn.Module):
    """ResNetV1c-18 at output stride 8, DepthwiseSeparableASPPHead, and an FCNHead on stage 3."""

    def __init__(self):
        super().__init__()
        self.backbone, self.decode_head, self.auxiliary_head = nn.Module(), nn.Module(), nn.Module()
        stem = [(3, 32, 2), (32, 32, 1), (32, 64, 1)]
        convs = [(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()) for i, o, stride in stem]
        self.backbone.stem = nn.Sequential(*(layer for layers in convs for layer in layers))
        stages = [(64, 64, 1, 1, 1), (64, 128, 2, 1, 1), (128, 256, 1, 1, 2), (256, 512, 1, 2, 4)]
        for index, (inputs, width, stride, first, dilation) in enumerate(stages, start=1):
            blocks = nn.Sequential(Block(inputs, width, stride, first), Block(width, width, 1, dilation))
            self.backbone.add_module(f"layer{index}", blocks)
        head = self.decode_head
        head.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvModule(512, 128))
        head.aspp_modules = nn.ModuleList([ConvModule(512, 128), *(Separable(512, 128, rate) for rate in (12, 24, 36))])
        head.bottleneck, head.c1_bottleneck = ConvModule(640, 128, 3), ConvModule(64, 12)
        head.sep_bottleneck = nn.Sequential(Separable(140, 128), Separable(128, 128))
        head.conv_seg = nn.Conv2d(128, NUM_CLASSES, 1)
        self.auxiliary_head.convs = nn.Sequential(ConvModule(256, 64, 3))
        self.auxiliary_head.conv_seg = nn.Conv2d(64, NUM_CLASSES, 1)

    def forward(self, images):
        """[B, 3, H, W], normalised -> the logits of both heads, [B, C, H, W]."""

        def resize(x, like):
            return functional.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)

        x, features = functional.max_pool2d(self.backbone.stem(images), 3, 2, 1), []
        for index in range(1, 5):
            x = getattr(self.backbone, f"layer{index}")(x)
            features.append(x)
        head = self.decode_head
        pooled = resize(head.image_pool(x), x)
        x = head.bottleneck(torch.cat([pooled, *(branch(x) for branch in head.aspp_modules)], 1))
        x = torch.cat([resize(x, features[0]), head.c1_bottleneck(features[0])], 1)
        logits = head.conv_seg(head.sep_bottleneck(x))
        second = self.auxiliary_head.conv_seg(self.auxiliary_head.convs(features[2]))
        return resize(logits, images), resize(second, images)


@pytest.fixture(scope="module")
def twin():
    torch.manual_seed(0)
    model = Twin()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.ndim == 1 and value.dtype == torch.float32:
                value.uniform_(0.5, 1.5) if name.endswith(("weight", "var")) else value.uniform_(-0.3, 0.3)
    return model


@pytest.mark.parametrize("zip_format", [True, False])
def test_what_pytorch_writes_is_read_and_what_is_written_loads_strictly(twin, tmp_path, zip_format):
    torch.save(
        {"meta": {}, "state_dict": twin.state_dict()}, tmp_path / "a.pth", _use_new_zipfile_serialization=zip_format
    )
    file = foreign.read(tmp_path / "a.pth")
    config = common.get_config()
    config.update_from_flattened_dict(mmseg.describe(file.state, file.path))
    model = build_model(config)
    variables = foreign.convert(file, model, allow_new_head=False)
    pth.save_pth(mmseg.revert(variables, model), tmp_path / "b.pth", {})
    back = Twin()
    back.load_state_dict(torch.load(tmp_path / "b.pth", weights_only=True)["state_dict"], strict=True)
    for (name, ours), theirs in zip(back.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("train", [False, True])
def test_both_heads_give_its_logits(twin, train):
    config = common.get_config()
    config.num_classes = NUM_CLASSES
    config.model.update(recipes.network("r18"), dropout=0.0)
    model = build_model(config)
    state = {name: value.numpy().copy() for name, value in twin.state_dict().items()}
    variables = mmseg.convert(state, model)
    colors = np.random.default_rng(0).uniform(0, 255, (2, 41, 57, 3))
    apply = lambda v, x: model.apply(v, x, train=train, mutable=["batch_stats", "intermediates"])  # noqa: E731
    logits, updates = jax.jit(apply)(variables, (colors / 127.5 - 1).astype(np.float32))
    images = (colors - np.array(config.model.mean)) / np.array(config.model.std)
    with torch.no_grad():
        expected = [
            x.permute(0, 2, 3, 1).numpy() for x in twin.train(train)(torch.tensor(images.transpose(0, 3, 1, 2)).float())
        ]
    twin.load_state_dict({name: torch.tensor(value) for name, value in state.items()})  # training moved the statistics
    found = [logits, *jax.tree.leaves(updates.get("intermediates", {}))]
    for ours, theirs in zip(found, expected, strict=False):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4 * theirs.std())
    assert len(found) == 1 + train

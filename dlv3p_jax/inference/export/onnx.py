"""ONNX: the network written in ONNX's own operations, for pictures of any size and number.

No converter is used, for none takes this network. jax2onnx 0.17, which reads JAX's programs, writes a file that ONNX
Runtime refuses (a pooling window over four axes, sizes of 0 that mean "as before" in ONNX), for one size, and asks for
an older Orbax than ours. tf2onnx 1.17 stops at the one form of SavedModel that JAX still writes. What is written here
are the few operations that every runtime is fast with, and every file is compared with the network before it is there.
"""

import pathlib
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
from flax import traverse_util
from onnx import TensorProto, helper, numpy_helper

from dlv3p_jax.models.layers import BATCH_NORM_EPSILON

FILE = "model.onnx"
_OPSET, _IR_VERSION = 17, 8  # of 2022: what runtimes that are still in use read


def write(model, variables, folder: pathlib.Path, height: int | None, width: int | None) -> None:
    """Writes the network for any number of pictures; None: of any height, or width.

    Input is `image`, uint8 `[B, H, W, 3]`, RGB; outputs are `labels`, uint8 `[B, H, W]`, and `logits`, float32
    `[B, H, W, num_classes]`. Batch normalisation is part of the convolutions before it.
    """
    graph = _Graph(_fold(variables))
    sizes = ["batch", height or "height", width or "width"]
    _write_network(graph, model)
    value = helper.make_tensor_value_info
    proto = helper.make_graph(
        graph.nodes,
        "deeplabv3plus",
        inputs=[value("image", TensorProto.UINT8, [*sizes, 3])],
        outputs=[
            value("labels", TensorProto.UINT8, sizes),
            value("logits", TensorProto.FLOAT, [*sizes, model.decoder.num_classes]),
        ],
        initializer=graph.constants,
    )
    opset = helper.make_opsetid("", _OPSET)
    proto = helper.make_model(proto, opset_imports=[opset], ir_version=_IR_VERSION, producer_name="dlv3p_jax")
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, folder / FILE)


def load(folder: pathlib.Path) -> Callable:
    """uint8 `[B, H, W, 3]` -> `labels` and `logits`, as `programs.predict` returns them; on the CPU."""
    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])

    def predict(images: np.ndarray) -> dict[str, np.ndarray]:
        labels, logits = session.run(["labels", "logits"], {"image": images})
        return {"labels": labels, "logits": logits}

    return predict


class _Graph:
    """A graph under construction. Values are known by their names; pictures in it are `[B, C, H, W]`."""

    def __init__(self, layers: dict[str, tuple[np.ndarray, np.ndarray]]):
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._layers = layers

    def add(self, operation: str, *inputs: str, output: str | None = None, **attributes) -> str:
        """Adds a node with one output and returns the output's name."""
        output = output or f"{operation}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, inputs, [output], output, **attributes))
        return output

    def constant(self, array: np.ndarray, name: str | None = None) -> str:
        name = name or f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def conv(self, x: str, layer: str, stride: int = 1, dilation: int = 1, relu: bool = True) -> str:
        """The convolution called `layer`, padded by its dilation, with its batch normalisation."""
        kernel, bias = self._layers[layer]
        size = kernel.shape[2]
        weights = self.constant(kernel, f"{layer}/kernel"), self.constant(bias, f"{layer}/bias")
        x = self.add(
            *("Conv", x, *weights),
            kernel_shape=[size] * 2,
            strides=[stride] * 2,
            dilations=[dilation] * 2,
            pads=[(size // 2) * dilation] * 4,
            group=len(kernel) if layer.endswith("depthwise") else 1,
        )
        return self.add("Relu", x) if relu else x

    def separable_conv(self, x: str, layer: str, depthwise_relu: bool, dilation: int = 1) -> str:
        x = self.conv(x, f"{layer}/depthwise", dilation=dilation, relu=depthwise_relu)
        return self.conv(x, f"{layer}/pointwise")

    def resize(self, x: str, like: str, align_corners: bool) -> str:
        """Bilinear, to the height and width of `like`."""
        size = self.add("Concat", self.add("Shape", x, end=2), self.add("Shape", like, start=2), axis=0)
        mode = "align_corners" if align_corners else "half_pixel"
        return self.add("Resize", x, "", "", size, mode="linear", coordinate_transformation_mode=mode)


def _fold(variables) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Kernel `[out, in, height, width]` and bias of every convolution, batch normalisation included, by its name."""
    params = traverse_util.flatten_dict(variables["params"], sep="/")
    statistics = traverse_util.flatten_dict(variables["batch_stats"], sep="/")
    layers = {}
    for name in [name.removesuffix("/kernel") for name in params if name.endswith("/kernel")]:
        kernel = np.asarray(params[f"{name}/kernel"], np.float64).transpose(3, 2, 0, 1)
        bias = np.asarray(params.get(f"{name}/bias", np.zeros(len(kernel))), np.float64)
        layer = name.removesuffix("/conv")
        norm = f"{layer}/batch_norm"
        if f"{norm}/scale" in params:
            factor = params[f"{norm}/scale"] / np.sqrt(np.float64(statistics[f"{norm}/var"]) + BATCH_NORM_EPSILON)
            kernel = kernel * factor[:, None, None, None]
            bias = (bias - statistics[f"{norm}/mean"]) * factor + params[f"{norm}/bias"]
        layers[layer] = kernel.astype(np.float32), bias.astype(np.float32)
    return layers


def _write_network(graph: _Graph, model) -> None:
    """From `image` to `labels` and `logits`, as `models.deeplabv3plus` and what it is made of have it."""
    x = graph.add("Cast", "image", to=TensorProto.FLOAT)
    mean, std = (graph.constant(np.array(values, np.float32) / 255) for values in (model.mean, model.std))
    x = graph.add("Div", x, graph.constant(np.array(255, np.float32)))
    image = graph.add("Transpose", graph.add("Div", graph.add("Sub", x, mean), std), perm=[0, 3, 1, 2])

    fine, coarse = _backbone(graph, image, model.backbone)
    coarse = graph.resize(_aspp(graph, coarse, model.aspp), fine, model.align_corners)
    fine = graph.conv(fine, "decoder/low_level_projection")
    x = graph.add("Concat", coarse, fine, axis=1)
    for name in ("decoder/fuse1", "decoder/fuse2"):
        x = graph.separable_conv(x, name, model.decoder.depthwise_relu)
    logits = graph.resize(graph.conv(x, "decoder/classifier", relu=False), image, model.align_corners)

    labels = graph.add("ArgMax", logits, axis=1, keepdims=0)
    graph.add("Cast", labels, output="labels", to=TensorProto.UINT8)
    graph.add("Transpose", logits, output="logits", perm=[0, 2, 3, 1])


def _backbone(graph: _Graph, x: str, backbone) -> tuple[str, str]:
    """The features of the first and of the last stage."""
    if backbone.stem == "plain":
        x = graph.conv(x, "backbone/stem_conv", stride=2)
    else:
        x = graph.conv(x, "backbone/stem_conv1", stride=2)
        x = graph.conv(graph.conv(x, "backbone/stem_conv2"), "backbone/stem_conv3")
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    features, stride, dilation = [], 4, 1
    for stage, blocks in enumerate(backbone.blocks, start=1):
        strides = stage > 1 and stride < backbone.output_stride
        if stage > 1:
            stride, dilation = (2 * stride, dilation) if strides else (stride, 2 * dilation)
        for block in range(blocks):
            name = f"backbone/stage{stage}_block{block + 1}"
            first_stride = 2 if strides and block == 0 else 1
            shortcut = backbone.has_shortcut(stage, block)
            x = _block(graph, x, name, backbone, shortcut, first_stride, backbone.dilation(stage, block, dilation))
        features.append(x)
    return features[0], features[-1]


def _block(graph: _Graph, x: str, name: str, backbone, shortcut: bool, stride: int, dilation: int) -> str:
    if backbone.bottleneck:
        y = graph.conv(graph.conv(x, f"{name}/conv1"), f"{name}/conv2", stride, dilation)
        y = graph.conv(y, f"{name}/conv3", relu=False)
    else:
        y = graph.conv(x, f"{name}/conv1", stride, dilation)
        y = graph.conv(y, f"{name}/conv2", dilation=dilation if backbone.dilate_second else 1, relu=False)
    if shortcut:
        if stride == 2 and backbone.avg_down:
            x, stride = graph.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), 1
        x = graph.conv(x, f"{name}/shortcut", stride, relu=False)
    return graph.add("Relu", graph.add("Add", x, y))


def _aspp(graph: _Graph, x: str, aspp) -> str:
    branches = [
        graph.conv(x, f"aspp/branch{i}")
        if rate == 1
        else graph.separable_conv(x, f"aspp/branch{i}", aspp.depthwise_relu, rate)
        for i, rate in enumerate(aspp.rates, start=1)
    ]
    pooled = graph.conv(graph.add("GlobalAveragePool", x), "aspp/image_pooling")
    pooled = graph.add("Expand", pooled, graph.add("Shape", x, start=2))
    branches.insert(0 if aspp.pooling_first else len(branches), pooled)
    return graph.conv(graph.add("Concat", *branches, axis=1), "aspp/projection")

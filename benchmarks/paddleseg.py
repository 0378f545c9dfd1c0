"""PaddleSeg's DeepLabV3P as a contestant of `benchmarks.compare`, in an installation of the user's own.

Runs in the Python that --paddleseg_python names and needs Paddle and PaddleSeg there; tried with paddlepaddle 3.3.1 and
paddleseg 2.8.0. It is the same network as ours, and gets the same weights.
"""

import contextlib

import numpy as np
import paddle
from paddleseg.models import DeepLabV3P, backbones

from benchmarks import worker


def setup(specification: dict) -> worker.Contestant:
    """PaddleSeg's own network and loss."""
    settings = specification["model"]
    if paddle.device.is_compiled_with_cuda():
        paddle.set_flags({"FLAGS_cudnn_exhaustive_search": True})
    make_backbone = getattr(backbones, settings["backbone"].replace("resnet", "ResNet"))  # such as ResNet50_vd
    model = DeepLabV3P(
        num_classes=specification["num_classes"],
        backbone=make_backbone(output_stride=settings["output_stride"], multi_grid=tuple(settings["multi_grid"])),
        backbone_indices=(0, 3),
        aspp_ratios=tuple(settings["aspp_rates"]),
        aspp_out_channels=settings["aspp_channels"],
        align_corners=settings["align_corners"],
    )
    with np.load(specification["paddle_weights"]) as file:
        model.set_state_dict({name: paddle.to_tensor(file[name]) for name in file})
    with np.load(specification["batch"]) as file:
        images = paddle.to_tensor(file["image"].transpose(0, 3, 1, 2))
        labels = paddle.to_tensor(file["label"].astype(np.int64))

    def autocast():
        if specification["dtype"] == "float32":
            return contextlib.nullcontext()
        return paddle.amp.auto_cast(level="O1", dtype=specification["dtype"])

    make = {"train": _train, "predict": _predict}.get(specification["work"])
    if make is None:
        raise ValueError("evaluation is not measured: PaddleSeg evaluates one picture at a time, on the host")
    call = make(specification, model, images, labels, autocast)

    def logits():
        model.eval()
        with paddle.no_grad(), autocast():
            return model(images)[0].astype("float32").numpy().transpose(0, 2, 3, 1)

    on_gpu = paddle.device.get_device().startswith("gpu")

    def wait(result):
        if on_gpu:
            paddle.device.synchronize()

    def peak_bytes():
        return paddle.device.cuda.max_memory_allocated() if on_gpu else None

    platform, version = "gpu" if on_gpu else "cpu", f"paddle {paddle.__version__}"
    return worker.Contestant(call, wait, platform, version, logits, peak_bytes)


def _train(specification, model, images, labels, autocast):
    model.train()
    loss_function = paddle.nn.CrossEntropyLoss(ignore_index=specification["ignore_label"], axis=1)
    optimizer = paddle.optimizer.Momentum(
        specification["learning_rate"],
        specification["momentum"],
        parameters=model.parameters(),
        weight_decay=specification["weight_decay"],
    )

    def step():
        with autocast():
            logits = model(images)[0]
        loss = loss_function(logits.astype("float32"), labels)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
        return loss

    return step


def _predict(specification, model, images, labels, autocast):
    model.eval()

    def predict():
        with paddle.no_grad(), autocast():
            return model(images)[0].astype("float32")

    return predict

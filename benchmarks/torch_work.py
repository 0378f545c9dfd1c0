"""Training, prediction and evaluation in PyTorch, of any model [B, 3, H, W] -> logits [B, classes, H, W]."""

import contextlib

import numpy as np
import torch
from torch.nn import functional

from benchmarks import worker


def contestant(specification: dict, model: torch.nn.Module, has_our_weights: bool) -> worker.Contestant:
    """The work that is asked for, as fast as PyTorch's own means do it.

    Args:
        specification: see `compare.specification`; 'compiled' and 'channels_last' choose the variant.
        model: on the CPU.
        has_our_weights: whether its logits can be compared with ours.
    """
    threads = specification["threads"]
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    # float32 is float32 for us too; bfloat16 is autocast's.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    layout = torch.channels_last if specification["channels_last"] else torch.contiguous_format
    model = model.to(device=device, memory_format=layout)
    images, labels = _batch(specification)
    images = images.to(device).contiguous(memory_format=layout)
    labels = labels.to(device)

    def autocast():
        if specification["dtype"] == "float32":
            return contextlib.nullcontext()
        return torch.autocast(device.type, getattr(torch, specification["dtype"]))

    def compiled(function):
        return torch.compile(function, dynamic=False) if specification["compiled"] else function

    make = {"train": _train, "predict": _predict, "evaluate": _evaluate}[specification["work"]]
    call = make(specification, model, compiled, images, labels, autocast)

    def logits():
        model.eval()
        with torch.inference_mode(), autocast():
            return model(images).float().permute(0, 2, 3, 1).cpu().numpy()

    def wait(result):
        if device.type == "cuda":
            torch.cuda.synchronize()

    def peak_bytes():
        return torch.cuda.max_memory_allocated() if device.type == "cuda" else None

    platform = "gpu" if device.type == "cuda" else "cpu"
    version = f"torch {torch.__version__}"
    return worker.Contestant(call, wait, platform, version, logits if has_our_weights else None, peak_bytes)


def _batch(specification: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """The made batch: float32 [B, 3, H, W] and int64 [B, H, W]."""
    with np.load(specification["batch"]) as file:
        images, labels = torch.from_numpy(file["image"]), torch.from_numpy(file["label"])
    return images.permute(0, 3, 1, 2), labels.long()


def _train(specification, model, compiled, images, labels, autocast):
    model.train()
    settings = {name: specification[name] for name in ("momentum", "weight_decay")}
    optimizer = torch.optim.SGD(model.parameters(), specification["learning_rate"], fused=True, **settings)
    ignored = specification["ignore_label"]

    @compiled
    def loss_of(images, labels):
        return functional.cross_entropy(model(images).float(), labels, ignore_index=ignored)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = loss_of(images, labels)
        loss.backward()
        optimizer.step()
        return loss

    return step


def _predict(specification, model, compiled, images, labels, autocast):
    model.eval()
    forward = compiled(model)

    def predict():
        with torch.inference_mode(), autocast():
            return forward(images).float()

    return predict


def _evaluate(specification, model, compiled, images, labels, autocast):
    model.eval()
    forward = compiled(model)
    size, classes = images.shape[2:], specification["num_classes"]
    flips = (False, True) if specification["flip"] else (False,)

    def resize(x, size):
        return functional.interpolate(x, size, mode="bilinear", align_corners=False) if x.shape[2:] != size else x

    def evaluate():
        total = 0
        with torch.inference_mode(), autocast():
            for scale in specification["scales"]:
                view = resize(images, tuple(int(side * scale + 0.5) for side in size))
                for flip in flips:
                    logits = forward(view.flip(3) if flip else view).float()
                    total = total + resize(logits.flip(3) if flip else logits, size)
            predictions = total.argmax(1)
            valid = labels != specification["ignore_label"]
            return torch.bincount(labels[valid] * classes + predictions[valid], minlength=classes * classes)

    return evaluate

"""Prediction and evaluation on the devices: flips, scales, sliding windows and counts; only counts leave the devices.

PaddleSeg has had two definitions of test-time augmentation, and both are here. `average="logits"` (its own since
February 2023): every scale is made from the original picture and the views' logits are averaged. `average="legacy"`:
the views' probabilities are averaged, and each scale's picture is made from the previous scale's.
"""

import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlv3p_jax.data import colors
from dlv3p_jax.evaluation import metrics
from dlv3p_jax.models import ops

AVERAGES = ("logits", "legacy")
STEP_INPUTS = ("image", "label", "size")  # what an evaluation step takes of a batch


def predict_logits(
    model,
    variables,
    images: jax.Array,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    average: str = "logits",
) -> jax.Array:
    """The mean over all views of a picture; pure and jittable (everything but variables and images is static).

    Args:
      model: what `build_model` gave, or whose `apply` takes the same, `output_size` included.
      variables: {'params': …, 'batch_stats': …}.
      images: float32 `[B, H, W, 3]`, normalised.
      scales: sizes of the views, relative to the picture; a side becomes floor(side * scale + 0.5), 1 at least.
      flip: also predict every view mirrored left to right.
      window: (height, width) of a sliding window over each view, None to see each view at once. Where windows overlap,
        their logits are averaged; a view smaller than the window is seen at once.
      stride: (height, width) between windows; None: two thirds of the window.
      average: 'logits' or 'legacy', see above.

    Returns:
      float32 `[B, H, W, num_classes]`: mean logits, or mean probabilities for 'legacy'.

    Raises:
      ValueError: an unknown `average`, no scales or one that is not positive, a stride larger than the window.
    """
    check_views(scales, window, stride, average)
    size = images.shape[1:3]

    def forward(view: jax.Array) -> jax.Array:
        if window is None:
            return model.apply(variables, view, train=False, output_size=size)
        logits = _slide(lambda patch: model.apply(variables, patch, train=False), view, window, stride)
        return ops.resize(logits, size, align_corners=False)

    def scores_of(view: jax.Array, mirrored: jax.Array | bool) -> jax.Array:
        logits = _mirror(forward(_mirror(view, mirrored)), mirrored)
        return jax.nn.softmax(logits) if average == "legacy" else logits

    def scaled(picture: jax.Array, scale: float) -> jax.Array:
        scaled_size = tuple(max(math.floor(side * scale + 0.5), 1) for side in size)
        return ops.resize(picture, scaled_size, align_corners=False)

    if len(scales) == 1 and not flip:
        return scores_of(scaled(images, scales[0]), False)
    # A loop for each scale: both mirror images run through one compiled network, and since the sum goes from loop to
    # loop, the scales run one after the other, so that memory does not grow with their number (but by pictures). XLA
    # must not know how often a loop of one turn runs: it would unroll it, and then run several networks at once.
    turns = jax.lax.optimization_barrier(jnp.int32(2 if flip else 1))
    total = jnp.zeros(jax.eval_shape(partial(scores_of, mirrored=False), images).shape, jnp.float32)
    view = images
    for scale in scales:
        view = scaled(view if average == "legacy" else images, scale)
        total = jax.lax.fori_loop(0, turns, lambda i, total, view=view: total + scores_of(view, i == 1), total)
    return total / (len(scales) * (2 if flip else 1))


def _mirror(x: jax.Array, mirrored: jax.Array | bool) -> jax.Array:
    return x if mirrored is False else jnp.where(mirrored, x[:, :, ::-1], x)


def views_of(config) -> dict[str, Any]:
    """The arguments of `predict_logits` that a configuration asks for; raises what `check_views` raises."""
    views = dict(
        scales=tuple(config.eval.scales),
        flip=config.eval.flip,
        window=config.eval.window,
        stride=config.eval.stride,
        average=config.eval.average,
    )
    check_views(views["scales"], views["window"], views["stride"], views["average"])
    return views


def check_views(scales, window, stride, average) -> None:
    """Raises ValueError where these settings of `predict_logits` make no sense, before anything is compiled."""
    if average not in AVERAGES:
        raise ValueError(f"eval.average={average!r} is not one of {', '.join(AVERAGES)}")
    if not scales or not all(isinstance(scale, numbers.Real) and 0 < float(scale) < math.inf for scale in scales):
        raise ValueError(f"eval.scales={scales!r}: give at least one scale, all of them positive numbers")
    if window is not None and not _is_size(window):
        raise ValueError(f"eval.window={window!r}: give (height, width) in pixels")
    if stride is not None:
        if window is None:
            raise ValueError(f"eval.stride={stride!r} needs eval.window too")
        if not _is_size(stride) or stride[0] > window[0] or stride[1] > window[1]:
            raise ValueError(
                f"eval.stride={stride!r} must be (height, width), at least 1 and at most eval.window={window!r}"
            )


def _is_size(size) -> bool:
    return len(size) == 2 and all(isinstance(side, numbers.Integral) and int(side) >= 1 for side in size)


def _starts(side: int, window: int, stride: int) -> list[int]:
    """Where the windows along one side start: the last one is moved back inside the picture."""
    count = max(math.ceil((side - window) / stride), 0) + 1
    return [max(min(i * stride, side - window), 0) for i in range(count)]


def _slide(apply: Callable, view: jax.Array, window: tuple[int, int], stride: tuple[int, int] | None) -> jax.Array:
    """Logits of `view` as the mean of those of overlapping windows, one window at a time."""
    height, width = view.shape[1:3]
    if stride is None:
        stride = max(window[0] * 2 // 3, 1), max(window[1] * 2 // 3, 1)
    window = (min(window[0], height), min(window[1], width))
    starts = [(y, x) for y in _starts(height, window[0], stride[0]) for x in _starts(width, window[1], stride[1])]
    if len(starts) == 1:
        return apply(view)
    visits = np.zeros((height, width, 1), np.float32)
    for y, x in starts:
        visits[y : y + window[0], x : x + window[1]] += 1

    def add_window(total, start):
        y, x = start
        patch = jax.lax.dynamic_slice(view, (0, y, x, 0), (view.shape[0], *window, view.shape[3]))
        logits = apply(patch)
        before = jax.lax.dynamic_slice(total, (0, y, x, 0), logits.shape)
        return jax.lax.dynamic_update_slice(total, before + logits, (0, y, x, 0)), None

    patch_shape = jax.ShapeDtypeStruct((view.shape[0], *window, view.shape[3]), view.dtype)
    num_classes = jax.eval_shape(apply, patch_shape).shape[-1]
    total = jnp.zeros((view.shape[0], height, width, num_classes), jnp.float32)
    total, _ = jax.lax.scan(add_window, total, np.array(starts, np.int32))
    return total / visits


def make_eval_step(config, model) -> Callable:
    """A pure function that predicts a batch and counts: `eval_step(variables, batch) -> (matrices, predictions)`.

    `batch` is {'image': uint8 `[B, H, W, 3]`, 'label': uint8 `[B, H, W]`}; pictures are normalised and padded at the
    bottom and right to `eval_size` with 0 (which is 127.5 before normalisation), and the padding is cut off the logits.
    Where pictures of several sizes were padded on the host, to share a batch and a program, 'size' int32 `[B, 2]` tells
    their own (height, width); the padding's label is the ignore label.
    `matrices` are the pictures' int32 `[B, num_classes, num_classes]` confusion matrices [label, prediction] without
    ignored pixels; `predictions` is uint8 `[B, H, W]`, which stays on the devices unless somebody asks for it.
    """
    views = views_of(config)
    eval_size, num_classes, ignore_label = config.eval_size, config.num_classes, config.ignore_label

    def eval_step(variables, batch):
        images = colors.normalize(batch["image"])
        if "size" in batch:
            images = clear_padding(images, batch["size"])
        height, width = images.shape[1:3]
        if eval_size is not None:
            bottom, right = max(eval_size[0] - height, 0), max(eval_size[1] - width, 0)
            images = jnp.pad(images, ((0, 0), (0, bottom), (0, right), (0, 0)))
        logits = predict_logits(model, variables, images, **views)[:, :height, :width]
        predictions = jnp.argmax(logits, axis=-1).astype(jnp.uint8)
        return metrics.confusion_matrices(batch["label"], predictions, num_classes, ignore_label), predictions

    return eval_step


def clear_padding(images: jax.Array, sizes: jax.Array) -> jax.Array:
    """`[B, H, W, C]` with 0 wherever a picture, of (height, width) `[B, 2]` from the top left, does not reach."""
    height, width = images.shape[1:3]
    rows = jnp.arange(height)[:, None] < sizes[:, 0, None, None]
    columns = jnp.arange(width) < sizes[:, 1, None, None]
    return jnp.where((rows & columns)[..., None], images, 0)


def evaluate(
    eval_step: Callable,
    variables,
    batches: Iterable,
    num_classes: int,
    on_batch: Callable[[dict, np.ndarray, jax.Array], None] = lambda batch, matrices, predictions: None,
) -> np.ndarray:
    """Runs a jitted `eval_step` over all batches and adds up the counts.

    Args:
      eval_step: what `make_eval_step` gave, jitted.
      variables: on the devices.
      batches: {'image', 'label'} and perhaps 'size' on the devices, and whatever `on_batch` wants to see. Pictures that
        only fill up a batch carry the ignore label everywhere and so count nothing.
      num_classes: the number of classes C.
      on_batch: is called with every batch, its int32 `[B, C, C]` matrices on the host and its predictions on the
        devices, for example to save some of them.

    Returns:
      int64 `[C, C]` confusion matrix [label, prediction] on the host: over a data set, int32 would overflow.
    """
    total = np.zeros((num_classes, num_classes), np.int64)

    def finish(batch, matrices, predictions):
        matrices = jax.device_get(matrices)
        np.add(total, matrices.sum(0, dtype=np.int64), out=total)
        on_batch(batch, matrices, predictions)

    pending = None
    for batch in batches:
        outputs = eval_step(variables, {name: batch[name] for name in STEP_INPUTS if name in batch})
        if pending is not None:  # one behind, so that the devices never wait for the host
            finish(*pending)
        pending = (batch, *outputs)
    if pending is not None:
        finish(*pending)
    return total

"""An evaluation's step on the devices, batch by batch: pictures in, counts out; nothing else leaves the devices."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dlv3p_jax.data import colors
from dlv3p_jax.evaluation import calibration, metrics
from dlv3p_jax.evaluation.views import Views, predict_logits
from dlv3p_jax.models import tiles
from dlv3p_jax.runtime import sharding

INPUTS = ("image", "label", "size", "view_sizes")  # what a step takes of a batch


def make_eval_step(config, model, view_rooms: Sequence[tuple[int, int]] | None = None) -> Callable:
    """A pure function that predicts a batch and counts: `eval_step(variables, batch) -> (counts, predictions)`.

    `batch` is {'image': uint8 `[B, H, W, 3]`, 'label': uint8 `[B, H, W]`}; pictures are normalised and padded at the
    bottom and right to `eval_size` with 0 (which is 127.5 before normalisation), and the padding is cut off the logits.
    Where pictures of several sizes were padded on the host, to share a batch and a program, 'size' int32 `[B, 2]` tells
    their own (height, width); the padding's label is the ignore label. The network takes that padding for a part of the
    picture, unless there are `view_rooms`: then 'view_sizes' is `sizes` of `predict_logits`, and these its `rooms`.
    `counts` has 'matrices', the pictures' int32 `[B, num_classes, num_classes]` confusion matrices [label, prediction]
    without ignored pixels, 'losses', see `sum_losses`, and those of `calibration.sum_probabilities`; `predictions` is
    uint8 `[B, H, W]`, which stays on the devices unless somebody asks for it.
    """
    views, class_weights = Views.of(config.eval), config.loss.class_weights
    eval_size, num_classes, ignore_label = config.eval_size, config.num_classes, config.ignore_label

    def eval_step(variables, batch):
        images = colors.normalize(batch["image"])
        if "size" in batch:
            images = tiles.cleared(tiles.Tiled(images, sizes=batch["size"]))
        height, width = images.shape[1:3]
        if eval_size is not None:
            bottom, right = max(eval_size[0] - height, 0), max(eval_size[1] - width, 0)
            images = jnp.pad(images, ((0, 0), (0, bottom), (0, right), (0, 0)))
        each = () if view_rooms is None else (batch["view_sizes"], view_rooms)
        logits = predict_logits(model, variables, images, views, *each)[:, :height, :width]
        predictions = jnp.argmax(logits, axis=-1).astype(jnp.uint8)
        labels = batch["label"]
        if views.gives_probabilities:
            logits = jnp.log(jnp.maximum(logits, jnp.finfo(jnp.float32).tiny))
        counts = {
            "matrices": metrics.confusion_matrices(labels, predictions, num_classes, ignore_label),
            "losses": sum_losses(logits, labels, ignore_label, class_weights),
        }
        counts |= calibration.sum_probabilities(logits, labels, predictions, ignore_label)
        return counts, predictions

    return eval_step


def sum_losses(
    logits: jax.Array, labels: jax.Array, ignore_label: int, class_weights: Sequence[float] | None = None
) -> jax.Array:
    """The cross-entropy of each picture in parts that add up over a data set.

    Args:
      logits: float32 `[B, H, W, C]`.
      labels: integers `[B, H, W]`; `ignore_label` and all else outside the classes counts nothing.
      class_weights: `[C]`; None: all 1.

    Returns:
      float32 `[B, 2]`: the sum over the pixels of the weight of their class times their cross-entropy, and the sum of
      these weights.
    """
    classes = jnp.arange(logits.shape[-1])
    is_class = (labels[..., None] == classes) & (labels != ignore_label)[..., None]
    weights = jnp.ones(len(classes)) if class_weights is None else jnp.asarray(class_weights, jnp.float32)
    weights = jnp.sum(jnp.where(is_class, weights, 0), axis=-1)
    # Not by a gather, which does not shard on a TPU.
    losses = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(is_class, logits, 0), axis=-1)
    return jnp.stack([jnp.sum(jnp.where(weights > 0, weights * losses, 0), (1, 2)), jnp.sum(weights, (1, 2))], axis=-1)


def jit_eval_step(config, mesh: Mesh, model, view_rooms: Sequence[tuple[int, int]] | None = None) -> jax.stages.Wrapped:
    """`make_eval_step`'s function for batches on `mesh`, with 'size', and with `view_rooms` also 'view_sizes'."""
    replicated, batched, each = sharding.replicated(mesh), sharding.batched(mesh), sharding.per_picture(mesh)
    inputs = {"image": batched, "label": batched, "size": each}
    if view_rooms is not None:
        inputs["view_sizes"] = each
    return sharding.jit(
        mesh,
        make_eval_step(config, model, view_rooms),
        in_shardings=(replicated, inputs),
        out_shardings=(replicated, batched),
    )


def run_step(
    eval_step: Callable, variables, batches: Iterable[dict]
) -> Iterator[tuple[dict, dict[str, np.ndarray], jax.Array]]:
    """Runs a jitted `eval_step` over all batches.

    Args:
      eval_step: what `make_eval_step` gave, jitted, or what finds that for a batch.
      variables: on the devices.
      batches: what `eval_step` takes, on the devices. Pictures that only fill up a batch carry the ignore label
        everywhere and so count nothing.

    Yields:
      Each batch, its counts on the host, and its predictions on the devices.
    """
    pending = None
    for batch in batches:
        outputs = eval_step(variables, batch)
        if pending is not None:  # one behind, so that the devices never wait for the host
            before, counts, predictions = pending
            yield before, jax.device_get(counts), predictions
        pending = (batch, *outputs)
    if pending is not None:
        before, counts, predictions = pending
        yield before, jax.device_get(counts), predictions

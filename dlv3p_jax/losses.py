"""Losses of semantic segmentation, over the pixels of the global batch."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array

EPSILON = 1e-8  # in every denominator, so that a batch without a valid pixel gives 0


def cross_entropy(
    logits: Array,
    labels: Array,
    class_weights: Sequence[float] | Array | None = None,
    top_k: float = 1.0,
    ignore_label: int = 255,
) -> Array:
    """Cross-entropy of a softmax, as PaddleSeg's `CrossEntropyLoss` computes it.

    With l_p = w[y_p] (logsumexp(x_p) - x_p[y_p]) at a valid pixel p (w = 1 without class weights) and 0 elsewhere, the
    loss is sum l_p / sum w[y_p], both over the valid pixels. With `top_k` below 1 the sums run over the
    int(top_k x pixels) pixels of largest l_p; without class weights the denominator is then that number of pixels,
    ignored ones included, should fewer be valid. Pixels that tie for the last places share them equally.

    The mean is over the global batch, however it is sharded. PaddleSeg averages over each card's pixels and then over
    the cards, so that there a card with few valid pixels weighs more: on one card the two are equal.

    Args:
        logits: `[B, H, W, C]`, float32 or bfloat16; computed in float32.
        labels: integers `[B, H, W]` in `0..C-1`; `ignore_label` and everything else outside the classes is left out.
        class_weights: `[C]`, or None for equal weights.
        top_k: the share of all pixels to keep, in (0, 1].
        ignore_label: the label that is left out.

    Returns:
        A float32 scalar; 0, with gradients of 0, if no pixel is valid.

    Raises:
        ValueError: on shapes that do not fit, or `top_k` outside (0, 1].
    """
    num_classes = logits.shape[-1]
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} differ in their leading dimensions")
    _check(num_classes, class_weights, top_k)

    labels = labels.astype(jnp.int32)
    valid = (labels != ignore_label) & (labels >= 0) & (labels < num_classes)
    if class_weights is None:
        weights = valid.astype(jnp.float32)
    else:
        weights = jnp.where(valid, _select(jnp.asarray(class_weights, jnp.float32), labels), 0)
    pixel_losses = jnp.where(valid, _softmax_cross_entropy(logits, labels) * weights, 0)

    if top_k < 1:
        count = max(int(top_k * labels.size), 1)
        share = _share_of_largest(jax.lax.stop_gradient(pixel_losses), count)
        numerator = jnp.sum(pixel_losses * share) / count
        denominator = jnp.sum(weights * share) / count if class_weights is not None else 1.0
        return numerator / (denominator + EPSILON)
    return jnp.mean(pixel_losses) / (jnp.mean(weights) + EPSILON)


def weighted(config) -> Callable[[Array, Array], tuple[Array, dict[str, Array]]]:
    """The mix of losses that a configuration asks for.

    Reads `num_classes`, `ignore_label` and, under `loss`, the weight of each part (`cross_entropy`; 0 leaves it out),
    `class_weights` and `top_k`.

    Returns:
        A function of logits `[B, H, W, C]` and labels `[B, H, W]` that gives the float32 sum of weight x part, and the
        parts by name, before their weights.

    Raises:
        ValueError: if every weight is 0 or one is negative, the class weights are not `num_classes` numbers of at least
            0, or `top_k` is outside (0, 1].
    """
    settings = config.loss
    class_weights = None if settings.class_weights is None else tuple(settings.class_weights)
    top_k, ignore_label = settings.top_k, config.ignore_label
    _check(config.num_classes, class_weights, top_k)

    def cross_entropy_part(logits, labels):
        return cross_entropy(logits, labels, class_weights, top_k, ignore_label)

    parts = {"cross_entropy": (settings.cross_entropy, cross_entropy_part)}
    for name, (weight, _) in parts.items():
        if weight < 0:
            raise ValueError(f"config.loss.{name} = {weight}: the weight of a loss is at least 0")
    parts = {name: part for name, part in parts.items() if part[0] > 0}
    if not parts:
        raise ValueError("every weight under config.loss is 0: nothing would be trained; set loss.cross_entropy=1.0")

    def loss(logits, labels):
        values = {name: function(logits, labels) for name, (_, function) in parts.items()}
        return sum(weight * values[name] for name, (weight, _) in parts.items()), values

    return loss


def _select(values, labels):
    """values[..., label], 0 for a label outside the classes; fuses and shards, as a gather does not on a TPU."""
    return jnp.sum(jnp.where(labels[..., None] == jnp.arange(values.shape[-1]), values, 0), axis=-1)


# Differentiated by hand: one pass over the logits; automatic differentiation keeps a second, float32 copy of them.
@jax.custom_vjp
def _softmax_cross_entropy(logits, labels):
    return _softmax_cross_entropy_forward(logits, labels)[0]


def _softmax_cross_entropy_forward(logits, labels):
    logits32 = logits.astype(jnp.float32)
    log_normalizer = jax.nn.logsumexp(logits32, axis=-1)
    return log_normalizer - _select(logits32, labels), (logits, labels, log_normalizer)


def _softmax_cross_entropy_backward(residuals, cotangent):
    logits, labels, log_normalizer = residuals
    softmax = jnp.exp(logits.astype(jnp.float32) - log_normalizer[..., None])
    one_hot = labels[..., None] == jnp.arange(logits.shape[-1])
    return (cotangent[..., None] * (softmax - one_hot)).astype(logits.dtype), None


_softmax_cross_entropy.defvjp(_softmax_cross_entropy_forward, _softmax_cross_entropy_backward)


def _check(num_classes, class_weights, top_k):
    if class_weights is not None and len(class_weights) != num_classes:
        raise ValueError(f"{len(class_weights)} class_weights for {num_classes} classes: give one for each")
    if isinstance(class_weights, tuple) and (min(class_weights) < 0 or max(class_weights) == 0):
        raise ValueError(f"class_weights = {class_weights}: they are at least 0, and one is above it")
    if not 0 < top_k <= 1:
        raise ValueError(f"top_k = {top_k}: the share of pixels to keep is above 0 and at most 1")


def _share_of_largest(values, count):
    """1 at the `count` largest of the non-negative float32 `values`, 0 elsewhere, a fraction where the last ones tie.

    Bisects the count-th largest value over the bit patterns, which are ordered as non-negative floats are: 31 counts,
    each of which shards, instead of sorting the pixels of all devices together.
    """
    bits = jax.lax.bitcast_convert_type(jnp.maximum(values, 0), jnp.int32)

    def halve(i, threshold):  # the largest threshold that at least `count` values reach, from its highest bit down
        raised = threshold | (1 << (30 - i))
        return jnp.where(jnp.sum(bits >= raised) >= count, raised, threshold)

    threshold = jax.lax.fori_loop(0, 31, halve, jnp.int32(0))
    above, tied = bits > threshold, bits == threshold
    left = (count - jnp.sum(above)) / jnp.sum(tied)
    return jnp.where(above, 1.0, jnp.where(tied, left, 0.0))

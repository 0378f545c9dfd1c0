"""Losses of semantic segmentation, over the pixels of the global batch."""

import functools
import numbers
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from dlv3p_jax.training import hard_pixels
from dlv3p_jax.training.rmi import rmi

PARTS = ("cross_entropy", "rmi", "dice", "lovasz")  # whose weights are under `config.loss`
_AVERAGES = ("valid", "all")
_HARD = ("ohem_min_kept", "ohem_threshold")
_EPSILON = 1e-8  # of the dice loss, as in PaddleSeg


def cross_entropy(
    logits: Array,
    labels: Array,
    class_weights: Sequence[float] | Array | None = None,
    top_k: float = 1.0,
    ignore_label: int = 255,
    normalizer: Array | None = None,
    *,
    average_over: str = "valid",
    ohem_min_kept: int | None = None,
    ohem_threshold: float | None = None,
) -> Array:
    """Cross-entropy of a softmax, as PaddleSeg's `CrossEntropyLoss` computes it, but for one case.

    With l_p = w[y_p] (logsumexp(x_p) - x_p[y_p]) at a valid pixel p (w = 1 without class weights) and 0 elsewhere, the
    loss is sum l_p / sum w[y_p], both over the valid pixels. With `top_k` below 1 the sums run over the
    int(top_k x pixels) pixels of largest l_p; without class weights the denominator is then that number of pixels,
    ignored ones included, should fewer be valid. Pixels that tie for the last places share them equally.

    The case: with class weights **and** `top_k`, and fewer valid pixels than are kept, PaddleSeg's denominator counts
    the ignored pixels that fill the places up with the weight of class 0. Here they weigh nothing, as without `top_k`.

    The mean is over the global batch, however it is sharded. PaddleSeg averages over each card's pixels and then over
    the cards, so that there a card with few valid pixels weighs more: on one card the two are equal.

    Args:
        logits: `[B, H, W, C]`, float32 or bfloat16; computed in float32.
        labels: integers `[B, H, W]` in `0..C-1`; `ignore_label` and everything else outside the classes is left out.
        class_weights: `[C]`, or None for equal weights.
        top_k: the share of all pixels to keep, in (0, 1].
        ignore_label: the label that is left out.
        normalizer: the `mean_weight` of a larger batch of which this is one of several parts of equal size; the mean of
            their losses is then the loss of the larger batch, however its valid pixels are spread. None: this batch is
            the whole. `top_k` below 1 and OHEM choose, and divide, within each part: then it is not read.
        average_over: "valid", as above; "all", as MMSegmentation has it by default: the sum of l_p over the pixels that
            count is divided by the number of all pixels.
        ohem_min_kept: with it only hard pixels count, at least so many times B, see `hard_pixels.online`.
        ohem_threshold: there the threshold; hard is then what is hard without class weights.

    Returns:
        A float32 scalar; 0, with gradients of 0, if no pixel is valid.

    Raises:
        ValueError: on shapes that do not fit, or options that `_check` refuses.
    """
    num_classes = logits.shape[-1]
    _check_shapes(logits, labels)
    _check(num_classes, class_weights, top_k, average_over, ohem_min_kept, ohem_threshold)

    labels = labels.astype(jnp.int32)
    valid, weights = _pixel_weights(labels, num_classes, class_weights, ignore_label)
    unweighted = _softmax_cross_entropy(logits, labels)
    pixel_losses = jnp.where(valid, unweighted * weights, 0)

    if ohem_min_kept is not None:
        hardness = pixel_losses if ohem_threshold is None else jnp.where(valid, unweighted, 0)
        hardness, count = jax.lax.stop_gradient(hardness), ohem_min_kept * labels.shape[0]
        kept = hard_pixels.online(hardness, valid, count, ohem_threshold)
        pixel_losses, weights, normalizer = pixel_losses * kept, weights * kept, None
    if average_over == "all":
        return jnp.mean(pixel_losses)
    if top_k < 1:
        count = max(int(top_k * labels.size), 1)
        share = hard_pixels.share_of_largest(jax.lax.stop_gradient(pixel_losses), count)
        numerator = jnp.sum(pixel_losses * share) / count
        return _over(numerator, jnp.sum(weights * share) / count if class_weights is not None else jnp.float32(1))
    return _over(jnp.mean(pixel_losses), jnp.mean(weights) if normalizer is None else normalizer)


def _over(numerator: Array, denominator: Array) -> Array:
    """Their quotient, or 0 where there is nothing to divide by; PaddleSeg adds 1e-8, which small weights would feel."""
    return numerator / jnp.where(denominator > 0, denominator, 1)


def mean_weight(
    labels: Array, num_classes: int, class_weights: Sequence[float] | Array | None = None, ignore_label: int = 255
) -> Array:
    """The mean over all pixels of w[y_p], 0 where one is not valid: what `cross_entropy` divides the mean of l_p by.

    Args:
        labels: integers `[B, H, W]`.
        num_classes, class_weights, ignore_label: see `cross_entropy`.

    Returns:
        A float32 scalar; without class weights, the share of pixels that are valid.
    """
    return jnp.mean(_pixel_weights(labels.astype(jnp.int32), num_classes, class_weights, ignore_label)[1])


def dice(logits: Array, labels: Array, ignore_label: int = 255) -> Array:
    """Dice loss of a softmax, as PaddleSeg's `DiceLoss` has computed it with its defaults since April 2022.

    With the softmax p and the one-hot label y, both 0 at pixels that are not valid, and the sums over the pixels of one
    picture: the mean over pictures and classes of 1 - (2 sum(p y) + 1) / (sum(p + y) + 1 + 1e-8). A class that is in
    no label of a picture adds 1 - 1 / (sum(p) + 1) for it, whose gradient lowers p; a picture without a valid pixel
    adds 0. Before April 2022, PaddleSeg's default smoothing was 0 and not 1, and its sums were over the batch.

    As a mean over pictures, it is the same however the batch is cut: over devices, cards or micro-batches of one size.

    Args:
        logits: `[B, H, W, C]`, float32 or bfloat16; computed in float32.
        labels: integers `[B, H, W]` in `0..C-1`; `ignore_label` and everything else outside the classes is left out.
        ignore_label: the label that is left out.

    Returns:
        A float32 scalar in 0..1; 0, with gradients of 0, if no pixel is valid.

    Raises:
        ValueError: on shapes that do not fit.
    """
    valid, one_hot, probabilities = _softmax_and_labels(logits, labels, ignore_label)
    probabilities = jnp.where(valid[..., None], probabilities, 0)
    pixels = tuple(range(1, labels.ndim))
    overlap = jnp.sum(jnp.where(one_hot, probabilities, 0), axis=pixels)
    size = jnp.sum(probabilities, axis=pixels) + jnp.sum(one_hot, axis=pixels)
    return 1 - jnp.mean((2 * overlap + 1) / (size + 1 + _EPSILON))


def lovasz(logits: Array, labels: Array, ignore_label: int = 255) -> Array:
    """Lovász-softmax loss (Berman, Rannen Triki and Blaschko, CVPR 2018), as PaddleSeg's `LovaszSoftmaxLoss`.

    The errors of class c are m_p = 1 - softmax_c at the valid pixels of c and softmax_c at the other valid ones. Sorted
    from the largest down, each is weighted by how much the Jaccard loss 1 - |intersection| / |union| of class c grows
    when its pixel joins those that are wrong; the sum is the Lovász extension of that loss. The mean is over the
    classes that are in the labels of the global batch (`classes="present"`); the others give neither loss nor gradient.

    All pixels are sorted once for each class, one class after the other. This needs them in one place: over a mesh,
    every device gathers and sorts the errors of all of them, so unlike the other losses it does not get faster with
    more devices. PaddleSeg sorts each card's pixels alone: on one card the two are equal.

    Args:
        logits: `[B, H, W, C]`, float32 or bfloat16; computed in float32.
        labels: integers `[B, H, W]` in `0..C-1`; `ignore_label` and everything else outside the classes is left out.
        ignore_label: the label that is left out.

    Returns:
        A float32 scalar in 0..1; 0, with gradients of 0, if no pixel is valid.

    Raises:
        ValueError: on shapes that do not fit.
    """
    valid, one_hot, probabilities = _softmax_and_labels(logits, labels, ignore_label)
    errors = jnp.where(valid[..., None], jnp.where(one_hot, 1 - probabilities, probabilities), 0)
    errors = jnp.moveaxis(errors, -1, 0).reshape(errors.shape[-1], -1)
    one_hot = jnp.moveaxis(one_hot, -1, 0).reshape(errors.shape)
    weights = jax.lax.map(lambda row: _jaccard_growth(*row), (jax.lax.stop_gradient(errors), one_hot))
    present = jnp.any(one_hot, axis=1)
    return jnp.sum(errors * weights) / jnp.maximum(jnp.sum(present), 1)


class Loss(Protocol):
    """What `weighted` returns."""

    def __call__(
        self, logits: Array, labels: Array, normalizer: Array | None = None
    ) -> tuple[Array, dict[str, Array]]: ...


def weighted(config) -> Loss:
    """The mix of losses that a configuration asks for.

    Reads `num_classes`, `ignore_label` and, under `loss`, the weight of each part (0 leaves it out), and the options of
    the cross-entropy.

    Returns:
        A function of logits `[B, H, W, C]` and labels `[B, H, W]` that gives the float32 sum of weight x part, and the
        parts by name, before their weights. RMI, and with it the sum, may be negative. A third argument is the
        `normalizer` of the cross-entropy.

    Raises:
        ValueError: see `check_weights`; or the class weights are not `num_classes` numbers of at least 0, or another
            option of the cross-entropy is wrong.
    """
    check(config)
    settings, ignore_label, options = config.loss, config.ignore_label, _options(config.loss)
    functions: dict[str, Callable[..., Array]] = {
        "cross_entropy": functools.partial(cross_entropy, **options),
        "rmi": rmi,
        "dice": dice,
        "lovasz": lovasz,
    }
    weights = {name: settings[name] for name in functions if settings[name] > 0}

    def loss(logits, labels, normalizer=None):
        values = {}
        for name in weights:
            options = {"normalizer": normalizer} if name == "cross_entropy" else {}
            values[name] = functions[name](logits, labels, ignore_label=ignore_label, **options)
        return sum(weight * values[name] for name, weight in weights.items()), values

    return loss


def auxiliary(config) -> Callable[..., Array]:
    """The cross-entropy of the auxiliary head: as in `weighted`, but of all pixels, hard or not; with its arguments."""
    weights = None if config.loss.class_weights is None else tuple(config.loss.class_weights)
    return functools.partial(
        cross_entropy,
        class_weights=weights,
        ignore_label=config.ignore_label,
        average_over=config.loss.average_over,
    )


def _options(settings) -> dict[str, Any]:
    """What `config.loss` says of the cross-entropy, as its keyword arguments."""
    options = {key: settings[key] for key in ("class_weights", "average_over", "top_k", *_HARD)}
    options["class_weights"] = None if settings.class_weights is None else tuple(settings.class_weights)
    return options


def check(config) -> None:
    """Raises ValueError, which names the key, where `weighted` can make nothing of a configuration."""
    check_weights(config.loss)
    try:
        _check(config.num_classes, **_options(config.loss))
    except ValueError as error:
        raise ValueError(f"config.loss: {error}") from error


def check_weights(settings) -> None:
    """Raises ValueError if the weights of `config.loss` make no mix: one is negative, or all are 0."""
    for name in (*PARTS, "auxiliary"):
        if settings[name] < 0:
            raise ValueError(f"config.loss.{name} = {settings[name]}: the weight of a loss is at least 0")
    if all(settings[name] == 0 for name in PARTS):
        raise ValueError("every weight under config.loss is 0: nothing would be trained; set loss.cross_entropy=1.0")


def _pixel_weights(labels, num_classes, class_weights, ignore_label):
    """Which pixels are valid, and the weights of their classes as float32, 0 where they are not: `[B, H, W]`."""
    valid = (labels != ignore_label) & (labels >= 0) & (labels < num_classes)
    if class_weights is None:
        return valid, valid.astype(jnp.float32)
    return valid, jnp.where(valid, _select(jnp.asarray(class_weights, jnp.float32), labels), 0)


def _softmax_and_labels(logits, labels, ignore_label):
    """Which pixels are valid `[B, H, W]`; labels as booleans and softmax as float32, `[B, H, W, C]`."""
    _check_shapes(logits, labels)
    classes = jnp.arange(logits.shape[-1])
    labels = labels.astype(jnp.int32)
    one_hot = (labels[..., None] == classes) & (labels != ignore_label)[..., None]
    return jnp.any(one_hot, axis=-1), one_hot, jax.nn.softmax(logits.astype(jnp.float32))


def _jaccard_growth(errors, is_class):
    """The weights of one class's errors, both `[pixels]`: the gradient of the Lovász extension of the Jaccard loss.

    Where g pixels are of the class, and the i largest errors contain f_i pixels of it, the Jaccard loss of these i is
    1 - (g - f_i) / (g + i - f_i). Its growth from i - 1 to i, taken directly and not as a difference of numbers near
    each other, is 1 / u with u = g + i - f_i if the i-th is of the class, else (g - f_i) / (u (u - 1)).
    """
    # One number tells pixel and class: sorting moves two arrays, and sorting again by it needs no scatter.
    tags = 2 * jnp.arange(errors.size, dtype=jnp.uint32) + is_class
    _, tags = jax.lax.sort((-errors, tags), num_keys=1)
    is_class = tags % 2 == 1
    found = jnp.cumsum(is_class, dtype=jnp.int32)
    total, count = found[-1], jnp.arange(1, errors.size + 1)
    left = (total - found).astype(jnp.float32)
    union = (total + count - found).astype(jnp.float32)
    growth = jnp.where(is_class, 1 / union, left / (union * jnp.maximum(union - 1, 1)))
    return jax.lax.sort((tags, growth), num_keys=1)[1]


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


def _check_shapes(logits, labels):
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} differ in their leading dimensions")


def _check(num_classes, class_weights, top_k, average_over, ohem_min_kept, ohem_threshold):
    if class_weights is not None and len(class_weights) != num_classes:
        raise ValueError(f"{len(class_weights)} class_weights for {num_classes} classes: give one for each")
    if isinstance(class_weights, tuple) and not all(isinstance(weight, numbers.Real) for weight in class_weights):
        raise ValueError(f"class_weights = {class_weights}: they are numbers")
    if isinstance(class_weights, tuple) and (min(class_weights) < 0 or max(class_weights) == 0):
        raise ValueError(f"class_weights = {class_weights}: they are at least 0, and one is above it")
    if not 0 < top_k <= 1:
        raise ValueError(f"top_k = {top_k}: the share of pixels to keep is above 0 and at most 1")
    if average_over not in _AVERAGES:
        raise ValueError(f"average_over = {average_over!r}: choose from {', '.join(_AVERAGES)}")
    if top_k < 1 and (ohem_min_kept is not None or average_over != "valid"):
        raise ValueError(f"top_k = {top_k} goes with average_over = 'valid' and without ohem_min_kept")
    if ohem_min_kept is not None and (not isinstance(ohem_min_kept, int) or ohem_min_kept < 1):
        raise ValueError(f"ohem_min_kept = {ohem_min_kept}: a number of pixels of each picture, at least 1, or None")
    if ohem_threshold is not None and (ohem_min_kept is None or not 0 < ohem_threshold < 1):
        raise ValueError(f"ohem_threshold = {ohem_threshold}: between 0 and 1, and with ohem_min_kept; or None")

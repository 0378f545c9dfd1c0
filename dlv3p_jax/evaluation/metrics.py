"""Confusion matrices on the device, and the scores that follow from them on the host."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dlv3p_jax.runtime import text


def confusion_matrix(labels: Array, predictions: Array, num_classes: int, ignore_label: int = 255) -> Array:
    """Counts the pixels of a batch by label and prediction; exact, jittable, for any sharding of batch and height.

    A batch of fewer than 2^31 pixels cannot overflow; add the matrices of several batches up as int64 on the host.

    Args:
        labels: integers `[B, H, W]`; `ignore_label` and whatever lies outside `0..num_classes-1` is not counted.
        predictions: integers `[B, H, W]` in `0..num_classes-1`; others are not counted.
        num_classes: C.
        ignore_label: the label that is not counted.

    Returns:
        int32 `[C, C]`; entry `[i, j]` is the number of pixels of label i predicted as j.
    """
    if labels.shape != predictions.shape:
        raise ValueError(f"labels {labels.shape} and predictions {predictions.shape} differ in shape")
    labels, predictions = labels.astype(jnp.int32), predictions.astype(jnp.int32)
    labels = jnp.where(labels == ignore_label, -1, labels)
    return jax.lax.platform_dependent(
        labels,
        predictions,
        tpu=functools.partial(_count_by_product, num_classes=num_classes),
        default=functools.partial(_count_by_scatter, num_classes=num_classes),
    )


def confusion_matrices(labels: Array, predictions: Array, num_classes: int, ignore_label: int = 255) -> Array:
    """`confusion_matrix` of each picture of a batch: int32 `[B, C, C]`; the rest is the same."""
    count = functools.partial(confusion_matrix, num_classes=num_classes, ignore_label=ignore_label)
    return jax.vmap(count)(labels, predictions)


def pixel_counts(matrices: np.ndarray) -> np.ndarray:
    """What IoU and accuracy follow from: confusion matrices `[..., C, C]` to counts of pixels `[..., 3, C]`.

    The three are, for each class, those labelled and predicted so (hits), those labelled so, those predicted so.
    """
    return np.stack([np.diagonal(matrices, axis1=-2, axis2=-1), matrices.sum(-1), matrices.sum(-2)], -2)


def scores(counts: np.ndarray, absent_class: str = "nan") -> dict[str, np.ndarray]:
    """IoU and accuracy, as `summarize` defines them, of many data sets at once, from `pixel_counts` `[..., 3, C]`.

    Returns:
        float64 `mIoU`, `accuracy` and `mean_accuracy` `[...]`, `IoU` and `class_accuracy` `[..., C]`.
    """
    if absent_class not in ("nan", "one"):
        raise ValueError(f"absent_class = {absent_class!r}: it is 'nan' or 'one'")
    hits, label, predicted = np.moveaxis(counts, -2, 0)
    iou = _divide(hits, label + predicted - hits)
    if absent_class == "one":
        iou = np.nan_to_num(iou, nan=1.0)
    class_accuracy = _divide(hits, label)
    return {
        "mIoU": _mean(iou),
        "IoU": iou,
        "accuracy": _divide(hits.sum(-1), label.sum(-1)),
        "mean_accuracy": _mean(class_accuracy),
        "class_accuracy": class_accuracy,
    }


def summarize(matrix: np.ndarray, absent_class: str = "nan") -> dict[str, float | np.ndarray]:
    """The usual scores of a whole data set, from its confusion matrix.

    With n_ij the pixels of label i predicted as j, for class i: IoU = n_ii / (label + predicted - n_ii), class accuracy
    (recall) = n_ii / label, class precision = n_ii / predicted, Dice = 2 n_ii / (label + predicted). The means are over
    the classes.

    Args:
        matrix: integers `[C, C]`, `[label, prediction]`.
        absent_class: what a class counts that is in neither labels nor predictions: "nan" leaves it out of the means;
            "one" is PaddleSeg's convention, IoU 1 (and Dice 0).

    Returns:
        Fractions of 1: floats `mIoU`, `accuracy` (of pixels), `mean_accuracy` (of classes), `kappa` (Cohen's) and
        `dice`; float64 `[C]` `IoU`, `class_accuracy`, `class_precision`, `class_dice`; and int64 `[C]` `label_pixels`.
        NaN where nothing defines the value.
    """
    matrix = np.asarray(matrix, np.int64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"a confusion matrix is [C, C], not {list(matrix.shape)}")
    hits, label, predicted = pixel_counts(matrix)
    values = scores(pixel_counts(matrix), absent_class)
    class_dice = _divide(2 * hits, label + predicted)
    if absent_class == "one":
        class_dice = np.nan_to_num(class_dice, nan=0.0)
    accuracy = float(values["accuracy"])
    chance = float(_divide((label.astype(np.float64) * predicted).sum(), float(matrix.sum()) ** 2))
    return {
        "mIoU": float(values["mIoU"]),
        "IoU": values["IoU"],
        "accuracy": accuracy,
        "mean_accuracy": float(values["mean_accuracy"]),
        "class_accuracy": values["class_accuracy"],
        "class_precision": _divide(hits, predicted),
        "kappa": float(_divide(accuracy - chance, 1 - chance)),
        "dice": float(_mean(class_dice)),
        "class_dice": class_dice,
        "label_pixels": label,
    }


def table(summary: dict, class_names: Sequence[str]) -> str:
    """An aligned table in per cent, a line for each class and one for the whole; "n/a" where a score is NaN."""
    if len(class_names) != len(summary["IoU"]):
        raise ValueError(f"{len(class_names)} class names for {len(summary['IoU'])} classes")
    share = _divide(summary["label_pixels"], summary["label_pixels"].sum())
    rows: list[tuple[str, ...]] = [("class", "IoU %", "Acc %", "labels %")]
    columns = (summary["IoU"], summary["class_accuracy"], share)
    rows += [(name, *map(text.percent, scores)) for name, *scores in zip(class_names, *columns, strict=True)]
    lines = text.table(rows).splitlines()
    lines.insert(1, "-" * len(lines[0]))
    means = {"aAcc": "accuracy", "mIoU": "mIoU", "mAcc": "mean_accuracy", "kappa": "kappa"}
    lines += [lines[1], "  ".join(f"{name} {text.percent(summary[key])}" for name, key in means.items())]
    return "\n".join(lines)


def to_json(summary: dict) -> dict:
    """The summary as plain floats and lists, NaN as None, so that `json.dumps(..., allow_nan=False)` takes it."""

    def plain(value):
        if isinstance(value, np.ndarray):
            return [plain(v) for v in value.tolist()]
        return None if isinstance(value, float) and np.isnan(value) else value

    return {name: plain(value) for name, value in summary.items()}


def _count_by_scatter(labels, predictions, num_classes):
    # Pixels are not flattened: that would gather a batch whose height is sharded, too.
    counted = (labels >= 0) & (labels < num_classes) & (predictions >= 0) & (predictions < num_classes)
    cell = jnp.where(counted, labels * num_classes + predictions, num_classes**2)
    counts = jnp.zeros(num_classes**2, jnp.int32).at[cell].add(1, mode="drop")
    return counts.reshape(num_classes, num_classes)


def _count_by_product(labels, predictions, num_classes):
    # One-hot vectors, for a TPU: its matrix unit multiplies int8 into int32, and a scatter there goes pixel by pixel.
    classes = jnp.arange(num_classes)
    one_hot_labels, one_hot_predictions = ((x[..., None] == classes).astype(jnp.int8) for x in (labels, predictions))
    pixels = tuple(range(labels.ndim))
    contract_pixels = ((pixels, pixels), ((), ()))
    return jax.lax.dot_general(one_hot_labels, one_hot_predictions, contract_pixels, preferred_element_type=jnp.int32)


def _divide(numerator, denominator):
    """The quotient in float64, NaN where the denominator is 0, without a warning."""
    numerator, denominator = np.broadcast_arrays(np.float64(numerator), np.float64(denominator))
    return np.divide(numerator, denominator, out=np.full(denominator.shape, np.nan), where=denominator != 0)


def _mean(values):
    """The mean over the last axis of what is not NaN; NaN if nothing is."""
    return _divide(np.nansum(values, -1), np.count_nonzero(~np.isnan(values), -1))

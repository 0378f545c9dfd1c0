"""How sure a score is, and a difference of two: intervals and a paired test over the pictures of an evaluation.

Both take `counts` `[N, 3, C]` of the pictures (`metrics.pixel_counts`), and always score the data set as a whole, never
the mean over pictures. They treat pictures as independent draws, and know nothing of what another training would give.

A draw that lacks a class of the whole would have means over fewer classes, another definition: it is left out of the
intervals of the means and of that class. There is no interval where more than half of the draws are left out, nor of a
single picture.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from dlv3p_jax.evaluation import metrics

RESAMPLES = 2000
PERMUTATIONS = 10_000
LEVEL = 0.95
_CHUNK = 500  # draws at once: memory is chunk x (pictures + 3 classes) numbers


@dataclasses.dataclass(frozen=True)
class Comparison:
    """B's score minus A's, its interval or None, and how often chance alone gives a difference as large (two-sided)."""

    difference: float
    interval: tuple[float, float] | None
    p: float


def intervals(counts: np.ndarray, absent_class: str = "nan", seed: int = 0) -> dict[str, np.ndarray]:
    """Percentile intervals of what `metrics.scores` gives, when as many pictures are drawn anew, with replacement.

    Returns:
        For each score (lower, upper) in the last axis: `[2]`, or `[C, 2]`; NaN where there is no interval.
    """
    observed = counts.sum(0)
    draws = [_scores(totals, observed, absent_class) for totals in _resampled(counts, seed)]
    return {name: _interval(np.concatenate([draw[name] for draw in draws]), len(counts)) for name in draws[0]}


def compare(a: np.ndarray, b: np.ndarray, absent_class: str = "nan", seed: int = 0) -> Comparison:
    """Compares the mIoU of two models on the same pictures, in the same order.

    The interval is from drawing pictures with replacement, the same for both. The test swaps the two models' results in
    each picture with probability 1/2, which changes nothing but by chance if the models are alike:
    p = (1 + swaps at least as different as what was measured) / (1 + swaps).

    Raises:
        ValueError: the shapes differ, or a score is NaN, since no pixel is labelled.
    """
    if a.shape != b.shape:
        raise ValueError(f"the counts of two models on the same pictures have one shape, not {a.shape} and {b.shape}")

    def mean_iou(totals):
        return metrics.scores(totals, absent_class)["mIoU"]

    a, b = a.astype(np.float64), b.astype(np.float64)
    both = np.stack([a, b], 1)
    observed = both.sum(0)
    a_total, b_total = observed
    measured = float(mean_iou(b_total) - mean_iou(a_total))
    if np.isnan(measured):
        raise ValueError("no pixel of the pictures is labelled, so that they have no mIoU")
    drawn = [_scores(totals, observed, absent_class)["mIoU"] for totals in _resampled(both, seed)]
    interval = _interval(np.diff(np.concatenate(drawn))[:, 0], len(a))
    swapped = [mean_iou(b_total - moved) - mean_iou(a_total + moved) for moved in _swapped(b - a, seed)]
    larger = np.count_nonzero(np.abs(np.concatenate(swapped)) >= abs(measured) - 1e-12)  # equal but for rounding too
    return Comparison(
        difference=measured,
        interval=None if np.isnan(interval).any() else tuple(interval.tolist()),
        p=(1 + int(larger)) / (1 + PERMUTATIONS),
    )


def _scores(totals: np.ndarray, observed: np.ndarray, absent_class: str) -> dict[str, np.ndarray]:
    """`metrics.scores` of draws `[chunk, …, 3, C]`; NaN where a class of `observed` `[…, 3, C]` is missing."""
    scores = metrics.scores(totals, absent_class)
    for each, mean, rows in (("IoU", "mIoU", [1, 2]), ("class_accuracy", "mean_accuracy", [1])):
        lacking = (observed[..., rows, :].sum(-2) > 0) & (totals[..., rows, :].sum(-2) == 0)
        scores[each] = np.where(lacking, np.nan, scores[each])
        scores[mean] = np.where(lacking.any(-1), np.nan, scores[mean])
    return scores


def _resampled(counts: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Totals float64 `[chunk, …]` of RESAMPLES times as many pictures, drawn from `counts` `[N, …]`."""
    rng, number = np.random.default_rng(seed), len(counts)
    for _ in range(RESAMPLES // _CHUNK):
        times = rng.multinomial(number, np.full(number, 1 / number), size=_CHUNK)
        yield _weighted(times, counts)


def _swapped(change: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Sums float64 `[chunk, …]` of PERMUTATIONS random halves of `change` `[N, …]`."""
    rng = np.random.default_rng(seed)
    for _ in range(PERMUTATIONS // _CHUNK):
        yield _weighted(rng.integers(0, 2, (_CHUNK, len(change))), change)


def _weighted(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums over the first axis; exact, since counts of pixels stay far below 2^53."""
    return np.tensordot(weights.astype(np.float64), counts.astype(np.float64), 1)


def _interval(draws: np.ndarray, num_pictures: int) -> np.ndarray:
    """The middle LEVEL of the first axis, in the last, without NaN; NaN of a single picture and where most are NaN."""
    tail = 50 * (1 - LEVEL)
    none = (np.isnan(draws).mean(0) > 0.5) | (num_pictures < 2)
    known = np.where(none, 0, draws)  # a slice of NaN alone would warn
    bounds = np.moveaxis(np.nanpercentile(known, [tail, 100 - tail], axis=0), 0, -1)
    return np.where(none[..., None], np.nan, bounds)

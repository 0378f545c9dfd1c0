"""Intervals and the paired test, against SciPy's and against what has to follow."""

import warnings

import numpy as np
import pytest
from scipy import stats

from dlv3p_jax.evaluation import bootstrap, metrics


def make_counts(number, quality, seed=0, num_classes=3):
    """Pictures of 1,000 pixels, of which a share of `quality`, more or less, is predicted rightly."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(num_classes), number)
    hit = np.clip(quality + rng.normal(0, 0.1, (number, 1)), 0, 1)
    cells = shares[:, :, None] * (hit[..., None] * np.eye(num_classes) + (1 - hit[..., None]) / num_classes)
    return metrics.pixel_counts(np.stack([rng.multinomial(1000, p.ravel()).reshape(p.shape) for p in cells]))


def mean_iou(totals):
    """Written down once more."""
    hits, labelled, predicted = totals[..., 0, :], totals[..., 1, :], totals[..., 2, :]
    return (hits / (labelled + predicted - hits)).mean(-1)


def test_intervals_are_scipy_s():
    counts = make_counts(40, 0.7)
    expected = stats.bootstrap(
        (np.arange(len(counts)),),
        lambda indices, axis: mean_iou(counts[indices].sum(indices.ndim - 1)),
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    ours = bootstrap.intervals(counts)
    width = expected.high - expected.low
    np.testing.assert_allclose(ours["mIoU"], [expected.low, expected.high], atol=0.1 * width)
    assert ours["IoU"].shape == ours["class_accuracy"].shape == (3, 2)
    measured = metrics.scores(counts.sum(0))
    for name, bounds in ours.items():
        assert np.all(bounds[..., 0] < measured[name]) and np.all(measured[name] < bounds[..., 1])


def test_intervals_of_pictures_that_are_all_alike_have_no_width():
    for bounds in bootstrap.intervals(np.repeat(make_counts(1, 0.7), 20, axis=0)).values():
        np.testing.assert_allclose(bounds[..., 0], bounds[..., 1])


def test_a_class_that_occurs_nowhere_has_no_interval_and_nothing_warns():
    counts = np.pad(make_counts(10, 0.7), ((0, 0), (0, 0), (0, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours, one = (bootstrap.intervals(counts, absent_class) for absent_class in ("nan", "one"))
    assert np.isnan(ours["IoU"][3]).all() and not np.isnan(ours["IoU"][:3]).any()
    np.testing.assert_array_equal(one["IoU"][3], [1, 1])
    np.testing.assert_allclose(one["mIoU"], (3 * ours["mIoU"] + 1) / 4)


def with_rare_classes(counts, number, found):
    """Each of the first `number` pictures shows one more class in ten pixels, all of them found or none."""
    counts = np.pad(counts, ((0, 0), (0, 0), (0, number)))
    counts[range(number), :, range(-number, 0)] = [10 * found, 10, 10 * found]
    counts[:number, 2, 0] += 10 * (not found)
    return counts


@pytest.mark.parametrize("absent_class", ["nan", "one"])
def test_draws_without_a_class_do_not_widen_the_intervals_of_the_means(absent_class):
    counts = make_counts(12, 0.9, num_classes=2)
    missed, hit = (with_rare_classes(counts, 1, found) for found in (False, True))
    ours = bootstrap.intervals(missed, absent_class)
    for name in ("mIoU", "mean_accuracy"):  # one of three classes is 0, in whatever is drawn
        assert ours[name][0] < metrics.scores(missed.sum(0))[name] < ours[name][1] < 2 / 3
    np.testing.assert_array_equal(ours["IoU"][2], [0, 0])
    compared = bootstrap.compare(missed, hit, absent_class)  # the one of three is 1 then
    assert 1 / 3 <= compared.interval[0] < compared.interval[1] < 0.4


def test_there_is_no_interval_where_most_draws_lack_a_class():
    """Two given pictures of twelve are both drawn in 4 of 10 cases, one of them in 6."""
    counts = make_counts(12, 0.9, num_classes=2)
    missed, hit = (with_rare_classes(counts, 2, found) for found in (False, True))
    ours = bootstrap.intervals(missed)
    assert np.isnan(ours["mIoU"]).all() and np.isnan(ours["mean_accuracy"]).all()
    assert not np.isnan(ours["accuracy"]).any() and not np.isnan(ours["IoU"]).any()
    assert bootstrap.compare(missed, hit).interval is None


def test_a_single_picture_has_no_interval():
    a, b = make_counts(1, 0.7), make_counts(1, 0.9, seed=1)
    assert all(np.isnan(bounds).all() for bounds in bootstrap.intervals(a).values())
    compared = bootstrap.compare(a, b)
    assert compared.interval is None and compared.p == 1


def test_pictures_without_a_labelled_pixel_are_refused():
    nothing = np.zeros((5, 3, 2), np.int64)
    with pytest.raises(ValueError, match="no pixel of the pictures is labelled"):
        bootstrap.compare(nothing, nothing)


@pytest.mark.parametrize(("quality", "seed"), [(0.7, 1), (0.72, 2)])
def test_the_paired_test_is_scipy_s(quality, seed):
    a, b = make_counts(10, 0.7), make_counts(10, quality, seed)
    indices = np.arange(10)

    def difference(first, second, axis):
        """`first` and `second` hold which model's (0: A, 1: B) result of each picture counts as whose."""
        both = np.stack([a, b])
        totals = [both[np.round(choice).astype(int), indices].sum(-3) for choice in (first, second)]
        return mean_iou(totals[1]) - mean_iou(totals[0])

    expected = stats.permutation_test(
        (np.zeros(10), np.ones(10)), difference, permutation_type="samples", vectorized=True, n_resamples=np.inf
    )  # all 2^10 ways to swap
    ours = bootstrap.compare(a, b)
    assert np.isclose(ours.difference, expected.statistic)
    assert abs(ours.p - expected.pvalue) < 4 * np.sqrt(expected.pvalue * (1 - expected.pvalue) / 10_000) + 2e-3
    assert ours.interval[0] < ours.difference < ours.interval[1]


def test_a_better_model_is_found_better_and_the_same_model_is_not():
    a = make_counts(60, 0.6)
    better = bootstrap.compare(a, make_counts(60, 0.8, seed=1))
    assert better.p < 0.001 and better.interval[0] > 0
    same = bootstrap.compare(a, a)
    assert same == bootstrap.Comparison(0.0, (0.0, 0.0), 1.0)
    worse = bootstrap.compare(make_counts(60, 0.8, seed=1), a)
    np.testing.assert_allclose(
        [worse.difference, *worse.interval], [-better.difference, *np.negative(better.interval)[::-1]]
    )


def test_models_that_are_alike_seldom_differ():
    """Both are of one quality: p is below 0.05 about once in twenty."""
    pairs = [bootstrap.compare(make_counts(20, 0.7, seed), make_counts(20, 0.7, seed + 1000)) for seed in range(40)]
    assert sum(pair.p < 0.05 for pair in pairs) <= 6


def test_other_pictures_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        bootstrap.compare(make_counts(3, 0.7), make_counts(4, 0.7))

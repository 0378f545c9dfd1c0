"""Which pictures of an evaluation are kept to be looked at."""

import numpy as np

from dlv3p_jax.evaluation import calibration, metrics, picture_scores


def counts_of(matrices):
    """What an evaluation step counts, of a model that is half sure of everything."""
    nothing = np.zeros((len(matrices), 2, calibration.BINS), np.int32)
    return {
        "matrices": matrices,
        "label_probability": (matrices.sum(-1) / 2).astype(np.float32),
        "confident": nothing,
        "confidence": nothing[:, 0].astype(np.float32),
    }


def collect(qualities, batch_size=8, samples=()):
    """The collector, and how many batches it asked predictions of; picture i has `qualities[i]` right of 100 pixels."""
    matrices = np.zeros((len(qualities), 2, 2), np.int32)
    matrices[:, 0, 0], matrices[:, 0, 1] = qualities, 100 - np.array(qualities)
    collector = picture_scores.Collector([(2, 3)] * len(qualities), 2, samples)
    asked = []
    for start in range(0, len(qualities), batch_size):
        indices = range(len(qualities))[start : start + batch_size]
        filled = np.zeros((batch_size, 2, 2), np.int32)
        filled[: len(indices)] = matrices[start : start + batch_size]

        def read(start=start):
            asked.append(start)
            return (np.arange(batch_size * 12) // 12 + start).reshape(batch_size, 4, 3).astype(np.uint8)

        collector.add(indices, counts_of(filled), read)
    return collector, matrices, asked


def test_the_worst_the_median_and_the_best_are_kept_of_many():
    qualities = np.random.default_rng(0).permutation(np.linspace(0, 100, 1000).astype(int))
    collector, matrices, asked = collect(qualities)
    np.testing.assert_array_equal(collector.counts, metrics.pixel_counts(matrices))
    assert len(collector.predictions) <= 112
    chosen = [(kind, index) for kind, index in collector.choose() if kind in picture_scores.KINDS]
    assert [kind for kind, _ in chosen] == ["worst"] * 3 + ["typical"] * 3 + ["best"] * 3
    scores = [qualities[index] for _, index in chosen]
    assert scores == sorted(scores) and max(scores[:3]) <= 0 and min(scores[-3:]) >= 99
    assert all(abs(score - 50) < 3 for score in scores[3:6])
    for _, index in chosen:  # its own prediction, without the padding
        np.testing.assert_array_equal(collector.predictions[index], np.full((2, 3), index % 256))


def test_counts_are_exact_at_the_size_of_cityscapes_train():
    """2,975 pictures of 2048x1024: beyond int32, and odd numbers beyond what float32 tells apart."""
    pixels = 2048 * 1024
    matrices = np.array([[[pixels - 3, 1], [0, 2]]], np.int32)
    collector = picture_scores.Collector([(1, 1)] * 2975, 2)
    for index in range(2975):
        collector.add([index], counts_of(matrices), lambda: np.zeros((1, 1, 1), np.uint8))
    assert collector.matrix.sum() == 6_239_027_200
    np.testing.assert_array_equal(collector.matrix, [[2975 * (pixels - 3), 2975], [0, 2 * 2975]])


def test_samples_are_kept_whatever_they_score():
    collector = collect([50] * 1000, samples=(3, 997))[0]
    assert {3, 997} <= collector.predictions.keys()


def test_no_picture_comes_twice_of_few():
    for number in range(1, 12):
        chosen = collect([10 * n for n in range(number)])[0].choose()
        assert len({index for _, index in chosen}) == len(chosen)
        indices = [index for kind, index in chosen if kind in picture_scores.KINDS]
        assert min(number, 7) <= len(indices) <= 9
        assert indices == sorted(indices)


def test_pictures_whose_labels_are_doubted_and_those_of_the_largest_errors_are_kept():
    """Errors of 1 as 0 grow and those of 0 as 1 shrink from picture to picture; only picture 40 is doubted."""
    matrices = np.stack([[[100, 80 - n], [n, 100]] for n in range(60)]).astype(np.int32)
    collector = picture_scores.Collector([(2, 3)] * 60, 2)
    for start in range(0, 60, 8):
        counts = counts_of(matrices[start : start + 8])
        if start == 40:
            counts["label_probability"][0, 1] = 14
        collector.add(range(start, min(start + 8, 60)), counts, lambda: np.zeros((8, 2, 3), np.uint8))
    np.testing.assert_array_equal(collector.confused[:, 0, 1], [[80, 79, 78], [0, 1, 2]])
    np.testing.assert_array_equal(collector.confused[:, 1, 0], [[59, 58, 57], [59, 58, 57]])
    assert picture_scores.largest_errors(collector.matrix, 5) == [(0, 1), (1, 0)]
    assert [index for kind, index in collector.choose() if kind == "doubted"][0] == 40
    doubts = calibration.doubts(collector.label_probability, collector.counts)
    assert doubts[40].tolist() == [0.5, 0.1] and np.nanmin(np.delete(doubts, 40, 0)) == 0.5
    assert np.isnan(calibration.doubts(np.ones(2), np.array([[0, 0], [1000, 4], [0, 0]]))).tolist() == [False, True]


def test_doubted_is_what_is_far_below_the_usual_of_its_class_whatever_is_usual():
    """The model hardly knows class 1, and gives it less than it gives to the one label of class 0 that is wrong."""
    matrices = np.full((50, 2, 2), 50, np.int32)
    collector = picture_scores.Collector([(2, 3)] * 50, 2)
    for start in range(0, 50, 5):
        counts = counts_of(matrices[start : start + 5])
        counts["label_probability"][:] = (90, 2)
        if start == 20:
            counts["label_probability"][0, 0] = 30
        if start == 30:
            counts["label_probability"][1, 1] = 0.5
        collector.add(range(start, start + 5), counts, lambda: np.zeros((5, 2, 3), np.uint8))
    doubted = collector._doubted()
    assert doubted[:2] == [20, 31] and len(doubted) == len(set(doubted)) == picture_scores.DOUBTED


def test_pictures_without_a_labelled_pixel_are_not_shown():
    matrices = np.zeros((4, 2, 2), np.int32)
    matrices[2, 0, 0] = 5
    collector = picture_scores.Collector([(2, 3)] * 4, 2)
    collector.add(range(4), counts_of(matrices), lambda: np.zeros((4, 2, 3), np.uint8))
    assert collector.choose() == [("typical", 2)]
    empty = picture_scores.Collector([(2, 3)], 2)
    empty.add([0], counts_of(matrices[:1]), lambda: None)
    assert empty.choose() == []

import functools
import json
import re
import warnings

import jax
import numpy as np
import pytest
import recordings
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sklearn import metrics as sklearn_metrics

from dlv3p_jax.evaluation import metrics

NUM_CLASSES = 7


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, NUM_CLASSES, (4, 16, 24)).astype(np.uint8)
    predictions = np.where(rng.random(labels.shape) < 0.6, labels, rng.integers(0, NUM_CLASSES, labels.shape))
    labels[rng.random(labels.shape) < 0.1] = 255
    return labels, predictions.astype(np.int32)


def numpy_matrix(labels, predictions, num_classes=NUM_CLASSES):
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for label, prediction in zip(labels.ravel(), predictions.ravel(), strict=True):
        if label < num_classes:
            matrix[label, prediction] += 1
    return matrix


def test_confusion_matrix_counts_label_by_prediction(batch):
    matrix = jax.jit(metrics.confusion_matrix, static_argnums=2)(*batch, NUM_CLASSES)
    assert matrix.dtype == np.int32
    np.testing.assert_array_equal(matrix, numpy_matrix(*batch))


@pytest.mark.parametrize("count", [metrics._count_by_product, metrics._count_by_scatter])
def test_both_forms_of_counting_agree(batch, count):
    labels, predictions = (x.astype(np.int32) for x in batch)
    labels[0, 0] = -1
    np.testing.assert_array_equal(
        count(labels, predictions, NUM_CLASSES), numpy_matrix(np.where(labels < 0, 255, labels), predictions)
    )


@pytest.mark.parametrize("count", [metrics._count_by_product, metrics._count_by_scatter])
def test_each_picture_of_a_batch_is_counted_by_itself(batch, count, monkeypatch):
    monkeypatch.setattr(metrics, "_count_by_scatter", count)  # what a CPU takes
    matrices = metrics.confusion_matrices(*batch, NUM_CLASSES)
    np.testing.assert_array_equal(matrices, list(map(numpy_matrix, *batch)))


def test_predictions_under_ignored_pixels_change_nothing(batch):
    labels, predictions = batch
    changed = np.where(labels == 255, (predictions + 1) % NUM_CLASSES, predictions)
    np.testing.assert_array_equal(
        metrics.confusion_matrix(labels, predictions, NUM_CLASSES),
        metrics.confusion_matrix(labels, changed, NUM_CLASSES),
    )


def test_ignore_labels_below_and_above_the_classes_and_among_them():
    predictions = np.array([[[0, 1, 1, 0]]])
    for ignore_label, labels in [(255, [255, 1, 0, 0]), (-1, [-1, 1, 0, 0]), (2, [2, 1, 0, 0])]:
        matrix = metrics.confusion_matrix(np.array([[labels]]), predictions, 2, ignore_label)
        np.testing.assert_array_equal(matrix, [[1, 1], [0, 1]])
    matrix = metrics.confusion_matrix(np.array([[[0, 1, 0, 1]]]), predictions, 2, ignore_label=0)
    np.testing.assert_array_equal(matrix, [[0, 0], [1, 1]])


def test_values_outside_the_classes_are_not_counted():
    labels = np.array([[[0, 9, -3, 1, 1]]])
    predictions = np.array([[[0, 1, 1, 2, -1]]])
    np.testing.assert_array_equal(metrics.confusion_matrix(labels, predictions, 2), [[1, 0], [0, 0]])


@pytest.mark.parametrize("each", [True, False], ids=["of each picture", "of all"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 4), (4, 2)])
def test_any_sharding_gives_the_same_counts_and_moves_only_counts(batch, shape, each):
    mesh = Mesh(np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape), ("data", "space"))
    sharding = NamedSharding(mesh, PartitionSpec("data", "space"))
    count = jax.jit(
        functools.partial(metrics.confusion_matrices if each else metrics.confusion_matrix, num_classes=NUM_CLASSES),
        in_shardings=(sharding, sharding),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )
    expected = list(map(numpy_matrix, *batch)) if each else numpy_matrix(*batch)
    np.testing.assert_array_equal(count(*batch), expected)
    program = count.lower(*batch).compile().as_text()
    assert not re.search(r"all-to-all|collective-permute", program)
    moved = set(re.findall(r"= (\S+?)\{[\d,]*\} all-gather", program))
    assert moved <= ({f"s32[4,{NUM_CLASSES},{NUM_CLASSES}]"} if each else set())


def test_sums_pass_what_float32_and_int32_can_hold():
    picture = np.zeros((1, 256, 512), np.uint8)
    counts = np.asarray(jax.jit(metrics.confusion_matrix, static_argnums=2)(picture, picture, 2), np.int64)
    total = sum(counts for _ in range(20_000))
    assert total[0, 0] == 20_000 * 256 * 512 > 2**31


def test_shapes_that_differ_are_refused(batch):
    with pytest.raises(ValueError, match="differ in shape"):
        metrics.confusion_matrix(batch[0], batch[1][:, :-1], NUM_CLASSES)


@pytest.fixture
def recorded(shared):
    return np.load(shared / "parity" / "metrics.npz")


def recorded_matrix(recorded):
    return np.asarray(
        metrics.confusion_matrix(recorded["labels"], recorded["predictions"], int(recorded["num_classes"]))
    )


def test_counts_and_scores_are_paddleseg_s_with_its_convention(shared):
    recordings.hold(recordings.scores(shared))


def test_an_absent_class_is_nan_and_left_out_of_the_means(recorded):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = metrics.summarize(recorded_matrix(recorded))
    assert np.isnan(summary["IoU"][5])
    assert np.isnan(summary["class_accuracy"][5])
    np.testing.assert_allclose(summary["mIoU"], recorded["iou"][:5].mean(), rtol=1e-12)
    np.testing.assert_allclose(summary["dice"], recorded["class_dice"][:5].mean(), rtol=1e-12)
    np.testing.assert_allclose(summary["accuracy"], recorded["accuracy"], rtol=1e-12)


def test_scores_agree_with_sklearn(batch):
    labels, predictions = (x[batch[0] != 255] for x in batch)
    summary = metrics.summarize(numpy_matrix(*batch))
    np.testing.assert_allclose(summary["IoU"], sklearn_metrics.jaccard_score(labels, predictions, average=None))
    np.testing.assert_allclose(summary["class_dice"], sklearn_metrics.f1_score(labels, predictions, average=None))
    np.testing.assert_allclose(summary["mean_accuracy"], sklearn_metrics.balanced_accuracy_score(labels, predictions))
    np.testing.assert_allclose(summary["kappa"], sklearn_metrics.cohen_kappa_score(labels, predictions))
    np.testing.assert_array_equal(summary["label_pixels"], np.bincount(labels))


def test_a_class_only_predicted_scores_zero():
    summary = metrics.summarize(np.array([[3, 1], [0, 0]]))
    np.testing.assert_array_equal(summary["IoU"], [0.75, 0])
    assert summary["mIoU"] == 0.375
    assert np.isnan(summary["class_accuracy"][1])
    assert summary["mean_accuracy"] == 0.75


def test_the_score_is_of_the_data_set_not_the_mean_over_pictures():
    pictures = [np.array([[90, 0], [0, 10]]), np.array([[0, 0], [40, 60]])]
    summary = metrics.summarize(sum(pictures))
    np.testing.assert_allclose(summary["IoU"], [90 / 130, 70 / 110])


def test_scores_of_many_data_sets_at_once_are_those_of_each():
    matrices = np.random.default_rng(0).integers(0, 9, (2, 3, 4, 4))
    matrices[0, 1, 2], matrices[0, 1, :, 2], matrices[1, 2] = 0, 0, 0
    for absent_class in ("nan", "one"):
        together = metrics.scores(metrics.pixel_counts(matrices), absent_class)
        for place in np.ndindex(2, 3):
            summary = metrics.summarize(matrices[place], absent_class)
            for name, values in together.items():
                np.testing.assert_array_equal(values[place], summary[name])


def test_an_empty_matrix_is_nan_throughout():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = metrics.summarize(np.zeros((2, 2), np.int32))
        text = metrics.table(summary, ["a", "b"])
    assert all(np.isnan(summary[name]) for name in ("mIoU", "accuracy", "kappa", "dice"))
    assert "mIoU n/a" in text


def test_large_counts_keep_their_precision():
    summary = metrics.summarize(np.array([[2**40, 1], [0, 2**40]]))
    np.testing.assert_allclose(1 - summary["accuracy"], 2.0**-41, rtol=1e-3)


def test_summarize_refuses():
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        metrics.summarize(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="absent_class = 'zero'"):
        metrics.summarize(np.zeros((2, 2)), absent_class="zero")


def test_table():
    summary = metrics.summarize(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    assert metrics.table(summary, ["sky", "long name", "void"]).splitlines() == [
        "class      IoU %   Acc %  labels %",
        "----------------------------------",
        "sky        75.00   75.00     50.00",
        "long name  80.00  100.00     50.00",
        "void         n/a     n/a      0.00",
        "----------------------------------",
        "aAcc 87.50  mIoU 77.50  mAcc 87.50  kappa 75.00",
    ]
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        metrics.table(summary, ["sky", "road"])


def test_json_is_strict_and_keeps_every_digit():
    summary = metrics.summarize(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    read = json.loads(json.dumps(metrics.to_json(summary), allow_nan=False))
    assert read["IoU"] == [0.75, 0.8, None]
    assert read["mIoU"] == summary["mIoU"]
    assert read["label_pixels"] == [4, 4, 0]
    assert read.keys() == summary.keys()

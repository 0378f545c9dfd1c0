"""OHEM as MMSegmentation samples pixels, against NumPy's sorting."""

import jax
import numpy as np
import pytest

from dlv3p_jax.configs import common
from dlv3p_jax.training import losses

NUM_CLASSES = 5


def make_batch(seed):
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(2, 8, 12, NUM_CLASSES)) * 2).astype(np.float32)
    labels = rng.choice([*range(NUM_CLASSES), 255], (2, 8, 12)).astype(np.uint8)
    return logits, labels


def probabilities_of_labels(logits, labels):
    """float64 of every pixel; NaN where it is ignored."""
    exponentials = np.exp(logits.astype(np.float64))
    softmax = exponentials / exponentials.sum(-1, keepdims=True)
    picked = np.take_along_axis(softmax, np.where(labels == 255, 0, labels)[..., None].astype(int), -1)[..., 0]
    return np.where(labels == 255, np.nan, picked)


def sampled(probability, weights, min_kept, threshold):
    """Booleans [B, H, W], pixel by pixel in the order of a sort."""
    valid = ~np.isnan(probability)
    if threshold is None:
        order = np.argsort(np.where(valid, np.log(probability) * weights, np.inf), axis=None)
        kept = np.zeros(probability.size, bool)
        kept[order[: min(min_kept * len(probability), valid.sum())]] = True
        return kept.reshape(probability.shape)
    ranked = np.sort(probability[valid])
    limit = max(ranked[min(min_kept * len(probability), len(ranked) - 1)], threshold)
    return valid & (np.where(valid, probability, 1) < limit)


@pytest.mark.parametrize("class_weights", [None, (0.5, 1, 2, 0.25, 3)])
@pytest.mark.parametrize("threshold", [None, 0.02, 0.7])
@pytest.mark.parametrize("min_kept", [1, 30, 70, 1000])  # of 96 pixels, 80 or so valid
def test_the_pixels_that_count_are_those_of_the_sampler(min_kept, threshold, class_weights):
    logits, labels = make_batch(min_kept)
    probability = probabilities_of_labels(logits, labels)
    weights = np.array(class_weights or (1,) * NUM_CLASSES)[np.where(labels == 255, 0, labels)]
    kept = sampled(probability, weights, min_kept, threshold)
    pixel_losses = np.where(kept, -np.log(probability) * weights, 0)

    def loss(logits, average_over):
        options = {"ohem_min_kept": min_kept, "ohem_threshold": threshold, "average_over": average_over}
        return losses.cross_entropy(logits, labels, class_weights, **options)

    value, gradient = jax.value_and_grad(loss)(logits, "all")
    np.testing.assert_allclose(value, pixel_losses.mean(), rtol=1e-5)
    np.testing.assert_array_equal(np.any(gradient != 0, axis=-1), kept)
    np.testing.assert_allclose(loss(logits, "valid"), pixel_losses.sum() / weights[kept].sum(), rtol=1e-5)


def test_ignored_pixels_take_no_places_of_valid_ones_whose_loss_is_nothing():
    logits, labels = make_batch(0)
    right = 100 * np.eye(NUM_CLASSES, dtype=np.float32)[np.where(labels == 255, 0, labels)]
    sure = np.where(np.arange(12)[:, None] < 6, right, logits)
    assert np.sum(probabilities_of_labels(sure, labels) == 1) > 50
    for min_kept in (60, 1000):
        kept = min(min_kept * len(labels), np.sum(labels != 255))
        total = losses.cross_entropy(sure, labels, average_over="all") * labels.size
        value = losses.cross_entropy(sure, labels, ohem_min_kept=min_kept)
        np.testing.assert_allclose(value, total / kept, rtol=1e-5)


def test_all_pixels_are_in_the_mean_where_it_is_over_all():
    """PyTorch's sum over what is not ignored, by the number of all pixels, as MMSegmentation's default has it."""
    torch = pytest.importorskip("torch")
    logits, labels = make_batch(0)
    total = torch.nn.functional.cross_entropy(
        torch.tensor(logits).permute(0, 3, 1, 2), torch.tensor(labels).long(), ignore_index=255, reduction="sum"
    )
    value = losses.cross_entropy(logits, labels, average_over="all")
    np.testing.assert_allclose(value, total.item() / labels.size, rtol=1e-6)
    parts = [losses.cross_entropy(logits[i : i + 1], labels[i : i + 1], average_over="all") for i in (0, 1)]
    np.testing.assert_allclose(np.mean(parts), value, rtol=1e-6)


@pytest.mark.parametrize("threshold", [None, 0.7])
def test_without_a_valid_pixel_there_is_no_loss(threshold):
    logits, labels = make_batch(0)
    nothing = np.full_like(labels, 255)
    for average_over in ("valid", "all"):
        value, gradient = jax.value_and_grad(losses.cross_entropy)(
            logits, nothing, ohem_min_kept=10, ohem_threshold=threshold, average_over=average_over
        )
        assert value == 0 and not np.any(gradient)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ohem_min_kept": 0}, "ohem_min_kept = 0: a number of pixels"),
        ({"ohem_threshold": 0.7}, "ohem_threshold = 0.7: between 0 and 1, and with ohem_min_kept"),
        ({"ohem_min_kept": 9, "ohem_threshold": 1.5}, "ohem_threshold = 1.5"),
        ({"ohem_min_kept": 9, "top_k": 0.5}, "top_k = 0.5 goes with"),
        ({"average_over": "pixels"}, "average_over = 'pixels': choose from valid, all"),
        ({"auxiliary": -1.0}, "config.loss.auxiliary = -1.0"),
    ],
)
def test_options_that_cannot_be_are_named(changes, message):
    config = common.get_config()
    config.num_classes = NUM_CLASSES
    config.loss.update(changes)
    with pytest.raises(ValueError, match=message):
        losses.weighted(config)

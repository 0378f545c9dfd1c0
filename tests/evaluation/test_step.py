"""Batches padded, predicted and counted against NumPy: the same on any mesh, and only counts leave the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from formula import KERNELS, MODEL, VARIABLES, FormulaModel, expected_scores

from dlv3p_jax.configs import common
from dlv3p_jax.evaluation import calibration
from dlv3p_jax.evaluation.step import make_eval_step, run_step
from dlv3p_jax.models import resizing
from dlv3p_jax.runtime import sharding


def make_config(**changes):
    config = common.get_config()
    config.num_classes = 3
    config.update_from_flattened_dict(changes)
    return config


def make_pictures(number, height=13, width=22):
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (number, height, width, 3), dtype=np.uint8)
    labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), (number, height, width))
    return images, labels


def count(labels, predictions):
    known = labels != 255
    return np.bincount(labels[known].astype(int) * 3 + predictions[known], minlength=9).reshape(3, 3)


@pytest.mark.parametrize("eval_size", [None, (16, 24), (16, 8), (13, 22), (8, 8)])
def test_a_batch_is_normalised_padded_with_zero_predicted_and_counted(eval_size):
    images, labels = make_pictures(2)
    step = jax.jit(make_eval_step(make_config(eval_size=eval_size), MODEL))
    counts, predictions = step(VARIABLES, {"image": images, "label": labels})
    matrices = counts["matrices"]
    for image, prediction in zip(images, predictions, strict=True):
        height, width = (13, 22) if eval_size is None else np.maximum(eval_size, (13, 22))
        padded = np.zeros((height, width, 3), np.float32)
        padded[:13, :22] = image / 127.5 - 1
        np.testing.assert_array_equal(prediction, FormulaModel.numpy(KERNELS, padded)[:13, :22].argmax(-1))
    assert predictions.dtype == np.uint8 and matrices.dtype == np.int32
    np.testing.assert_array_equal(matrices, list(map(count, labels, np.asarray(predictions))))


def test_pictures_padded_on_the_host_are_predicted_as_those_padded_here():
    """Two sizes in one batch, whatever lies beyond the smaller picture."""
    images, labels = make_pictures(2)
    step = jax.jit(make_eval_step(make_config(eval_size=(13, 22)), MODEL))
    counts_alone, alone = step(VARIABLES, {"image": images[1:, :9, :15], "label": labels[1:, :9, :15]})
    labels = labels.copy()  # JAX may still be reading the first
    labels[1, 9:], labels[1, :, 15:] = 255, 255
    sizes = np.int32([[13, 22], [9, 15]])
    counts, together = step(VARIABLES, {"image": images, "label": labels, "size": sizes})
    np.testing.assert_array_equal(together[1, :9, :15], alone[0])
    np.testing.assert_array_equal(
        together[0], FormulaModel.numpy(KERNELS, (images[0] / 127.5 - 1).astype(np.float32)).argmax(-1)
    )
    np.testing.assert_array_equal(counts["matrices"], list(map(count, labels, np.asarray(together))))
    for name, values in counts_alone.items():
        np.testing.assert_allclose(counts[name][1], values[0], rtol=1e-5)


def test_the_views_of_the_configuration_are_taken():
    views = dict(scales=(0.5, 1.3), flip=True, window=(8, 9), stride=(5, 4), average="legacy")
    config = make_config(**{f"eval.{name}": value for name, value in views.items()})
    images, labels = make_pictures(1)
    _, predictions = jax.jit(make_eval_step(config, MODEL))(VARIABLES, {"image": images, "label": labels})
    scores = expected_scores((images[0] / 127.5 - 1).astype(np.float32), **views)
    np.testing.assert_array_equal(predictions[0], scores.argmax(-1))


class BrightestChannel:
    def apply(self, variables, images, train, output_size):
        return resizing.resize(images, output_size, align_corners=False)


def test_predictions_under_ignored_pixels_count_nothing():
    images, labels = make_pictures(2)
    step = jax.jit(make_eval_step(make_config(), BrightestChannel()))
    counts, predictions = step({}, {"image": images, "label": labels})
    matrices = counts["matrices"]
    changed = np.where((labels == 255)[..., None], 255 - images, images)  # a copy: JAX may still be reading the first
    again, others = step({}, {"image": changed, "label": labels})
    assert np.any(np.asarray(others) != predictions)
    jax.tree.map(np.testing.assert_array_equal, counts, again)
    assert matrices.sum() == (labels != 255).sum()


@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize("class_weights", [None, (0.5, 2.0, 0.0)])
def test_losses_and_probabilities_are_summed_over_the_labelled_pixels(average, class_weights):
    images, labels = make_pictures(2)
    config = make_config(**{"eval.average": average, "loss.class_weights": class_weights})
    counts, _ = jax.jit(make_eval_step(config, MODEL))(VARIABLES, {"image": images, "label": labels})
    for i, (image, label, found) in enumerate(zip(images, labels, counts["losses"], strict=True)):
        scores = np.exp(FormulaModel.numpy(KERNELS, (image / 127.5 - 1).astype(np.float32)).astype(np.float64))
        softmax = scores / scores.sum(-1, keepdims=True)
        probabilities = np.take_along_axis(softmax, np.where(label == 255, 0, label)[..., None], -1)
        weights = np.where(label == 255, 0, np.take(class_weights or (1, 1, 1), label, mode="clip"))
        expected = [-(weights * np.log(probabilities[..., 0])).sum(), weights.sum()]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        by_label = [probabilities[label == index].sum() for index in range(3)]
        np.testing.assert_allclose(counts["label_probability"][i], by_label, rtol=1e-5)
        edges = np.linspace(0, 1, calibration.BINS + 1)
        confidence, right = softmax.max(-1)[label != 255], (softmax.argmax(-1) == label)[label != 255]
        expected = [np.histogram(confidence, edges)[0], np.histogram(confidence[right], edges)[0]]
        np.testing.assert_array_equal(counts["confident"][i], expected)
        summed = np.histogram(confidence, edges, weights=confidence)[0]
        np.testing.assert_allclose(counts["confidence"][i], summed, rtol=1e-5)


def batches_of(images, labels, batch_size):
    """Batches whose last one is filled up by pictures that are ignored throughout."""
    missing = -len(images) % batch_size
    images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.uint8)])
    labels = np.concatenate([labels, np.full((missing, *labels.shape[1:]), 255, np.uint8)])
    for first in range(0, len(images), batch_size):
        yield {"image": images[first : first + batch_size], "label": labels[first : first + batch_size]}


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (8, 1), (4, 2)])
def test_counts_are_the_same_to_the_bit_on_any_mesh_and_with_any_number_of_pictures(shape):
    mesh = sharding.make_mesh(*shape)
    step = jax.jit(
        make_eval_step(make_config(**{"eval.flip": True}), MODEL),
        in_shardings=(sharding.replicated(mesh), sharding.batched(mesh)),
        out_shardings=(sharding.replicated(mesh), sharding.batched(mesh)),
    )
    variables = jax.device_put(VARIABLES, sharding.replicated(mesh))
    images, labels = make_pictures(9, height=12)
    predictions = np.stack([expected_scores(x, flip=True).argmax(-1) for x in (images / 127.5 - 1).astype(np.float32)])
    for number in (1, 7, 8, 9):
        batches = [sharding.put_batch(mesh, batch) for batch in batches_of(images[:number], labels[:number], 8)]
        seen = [matrix for _, found, _ in run_step(step, variables, batches) for matrix in found["matrices"]]
        alone = list(map(count, labels[:number], predictions[:number]))
        np.testing.assert_array_equal(seen, alone + [np.zeros((3, 3))] * (len(seen) - number))


class Unreadable:
    """Predictions that must not be fetched; on a CPU, the transfer guard lets that pass."""

    def __array__(self, *args, **kwargs):
        raise AssertionError("predictions were fetched")


def compiled_step(mesh, batch, **changes):
    step = jax.jit(
        make_eval_step(make_config(**changes), MODEL),
        in_shardings=(sharding.replicated(mesh), sharding.batched(mesh)),
        out_shardings=(sharding.replicated(mesh), sharding.batched(mesh)),
    )
    return step.lower(jax.device_put(VARIABLES, sharding.replicated(mesh)), batch).compile()


def test_only_counts_leave_the_devices():
    mesh = sharding.make_mesh(8)
    variables = jax.device_put(VARIABLES, sharding.replicated(mesh))
    images, labels = make_pictures(24)
    batches = [sharding.put_batch(mesh, batch) for batch in batches_of(images, labels, 8)]
    step = compiled_step(mesh, batches[0], **{"eval.flip": True, "eval.scales": (0.5, 1.0)})
    with jax.transfer_guard("disallow"):
        counts = run_step(lambda variables, batch: (step(variables, batch)[0], Unreadable()), variables, batches)
        seen, counted, predictions = zip(*counts, strict=True)
    assert sum(found["matrices"].sum() for found in counted) == (labels != 255).sum()
    assert list(seen) == batches and all(isinstance(prediction, Unreadable) for prediction in predictions)


class WideNet(nn.Module):
    """A network whose maps are what takes memory."""

    @nn.compact
    def __call__(self, images, train, output_size=None):
        x = images
        for channels in (64, 64, 3):
            x = nn.relu(nn.Conv(channels, (3, 3))(x))
        return resizing.resize(x, output_size or images.shape[1:3], align_corners=False)


@pytest.mark.parametrize(("average", "flip"), [("logits", True), ("legacy", True)])
def test_nothing_as_large_as_logits_is_put_out_and_memory_does_not_grow_with_the_views(average, flip):
    """What a program puts out is counts, and a byte a pixel that stays on the devices; the scores are summed inside."""
    model = WideNet()
    images, labels = make_pictures(4, height=64, width=96)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    memory = {}
    for scales in ((0.75, 1.0), (0.75, 0.8, 0.85, 0.9, 0.95, 1.0)):
        config = make_config(**{"eval.scales": scales, "eval.flip": flip, "eval.average": average})
        step = jax.jit(make_eval_step(config, model))
        compiled = step.lower(variables, {"image": images, "label": labels}).compile()
        outputs = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(compiled.out_info)]
        sure = [((4, 15), np.float32), ((4, 2, 15), np.int32), ((4, 3), np.float32)]
        assert outputs == [*sure, ((4, 2), np.float32), ((4, 3, 3), np.int32), (labels.shape, np.uint8)]
        memory[len(scales)] = compiled.memory_analysis().temp_size_in_bytes
    assert memory[2] > images.size * 4 * 64 / 3  # at least one of the wide maps
    assert memory[6] <= 1.15 * memory[2]

"""Views, windows, padding and counts against PaddleSeg's recorded numbers and against NumPy and OpenCV."""

import math

import cv2
import equivalence
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import common
from dlv3p_jax.evaluation import views as evaluate
from dlv3p_jax.evaluation.views import predict_logits
from dlv3p_jax.models import ops
from dlv3p_jax.runtime import sharding

# Against PaddleSeg.


# The rest of what is recorded takes long to compile and is measured for docs/equivalence.md.
@pytest.mark.parametrize(
    ("file", "case"),
    [("tta_r18", "ms"), ("tta_r18", "slide"), ("tta_legacy_r18", "flip"), ("tta_legacy_r18", "ms_flip")],
)
def test_views_of_paddleseg(shared, file, case):
    equivalence.hold(equivalence.views(shared, file, case))


# Against NumPy, with a network that can be written down.


class FormulaModel:
    """Logits of every pixel from itself, its left neighbour (so that flips matter) and the mean of what is seen."""

    def apply(self, variables, images, train, output_size=None):
        assert not train
        own, left, mean = variables["params"]["kernels"]
        shifted = jnp.pad(images, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]
        logits = images @ own + shifted @ left + images.mean((1, 2), keepdims=True) @ mean
        return ops.resize(logits, output_size or images.shape[1:3], align_corners=False)

    @staticmethod
    def numpy(kernels, image):
        own, left, mean = kernels
        shifted = np.concatenate([np.zeros_like(image[:, :1]), image[:, :-1]], axis=1)
        return image @ own + shifted @ left + image.mean((0, 1)) @ mean


MODEL = FormulaModel()
KERNELS = np.random.default_rng(0).normal(size=(3, 3, 3)).astype(np.float32)
VARIABLES = {"params": {"kernels": KERNELS}}


def resize(image, height, width):
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def slide(image, window, stride):
    height, width = image.shape[:2]
    total, visits = np.zeros((height, width, 3)), np.zeros((height, width, 1))
    rows = max(math.ceil((height - window[0]) / stride[0]), 0) + 1
    columns = max(math.ceil((width - window[1]) / stride[1]), 0) + 1
    for row in range(rows):
        for column in range(columns):
            bottom, right = min(row * stride[0] + window[0], height), min(column * stride[1] + window[1], width)
            at = slice(max(bottom - window[0], 0), bottom), slice(max(right - window[1], 0), right)
            total[at] += FormulaModel.numpy(KERNELS, image[at])
            visits[at] += 1
    return total / visits


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def expected_scores(image, scales=(1.0,), flip=False, window=None, stride=None, average="logits"):
    """One picture, one view after the other."""
    height, width = image.shape[:2]
    views, previous = [], image
    for scale in scales:
        size = int(height * scale + 0.5), int(width * scale + 0.5)
        previous = resize(previous if average == "legacy" else image, *size)
        for mirrored in (False, True)[: 1 + flip]:
            view = np.ascontiguousarray(previous[:, ::-1]) if mirrored else previous
            logits = slide(view, window, stride) if window else FormulaModel.numpy(KERNELS, view)
            logits = resize(np.ascontiguousarray(logits[:, ::-1] if mirrored else logits), height, width)
            views.append(softmax(logits) if average == "legacy" else logits)
    return np.mean(views, axis=0)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"flip": True},
        {"scales": (0.5, 1.3), "flip": True},
        {"average": "legacy"},
        {"scales": (0.5, 1.3, 1.0), "flip": True, "average": "legacy"},
        {"window": (8, 9), "stride": (5, 4)},
        {"window": (8, 9), "stride": (8, 9)},
        {"window": (6, 30), "stride": (5, 20)},  # as high as no picture, wider than it
        {"window": (8, 9), "stride": (5, 4), "scales": (0.75, 2.0), "flip": True},
    ],
)
def test_views_against_numpy(settings):
    images = np.random.default_rng(1).normal(size=(2, 13, 22, 3)).astype(np.float32)
    result = jax.jit(lambda images: predict_logits(MODEL, VARIABLES, images, **settings))(images)
    expected = np.stack([expected_scores(image, **settings) for image in images])
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


def test_windows_overlap_by_a_third_unless_a_stride_is_given():
    images = np.random.default_rng(1).normal(size=(1, 13, 22, 3)).astype(np.float32)
    default, given = (predict_logits(MODEL, VARIABLES, images, window=(9, 12), stride=s) for s in (None, (6, 8)))
    np.testing.assert_array_equal(default, given)


@pytest.mark.parametrize("window", [(13, 22), (1000, 1000)])
def test_a_window_that_holds_the_picture_changes_nothing(window):
    images = np.random.default_rng(1).normal(size=(1, 13, 22, 3)).astype(np.float32)
    whole = predict_logits(MODEL, VARIABLES, images)
    np.testing.assert_array_equal(predict_logits(MODEL, VARIABLES, images, window=window), whole)


def test_a_view_keeps_a_pixel_at_least():
    images = np.random.default_rng(1).normal(size=(1, 4, 4, 3)).astype(np.float32)
    assert np.isfinite(predict_logits(MODEL, VARIABLES, images, scales=(0.01,))).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"average": "probabilities"}, "eval.average='probabilities' is not one of logits, legacy"),
        ({"scales": ()}, r"eval.scales=\(\): give at least one scale"),
        ({"scales": (1.0, 0.0)}, r"eval.scales=\(1.0, 0.0\): .* positive"),
        ({"scales": ("large",)}, "positive numbers"),
        ({"scales": (float("nan"),)}, "positive numbers"),
        ({"window": (64,)}, r"eval.window=\(64,\): give \(height, width\)"),
        ({"window": (64, 0)}, "in pixels"),
        ({"window": (None,)}, "in pixels"),  # what --config.eval.window=None becomes
        ({"window": (64.5, 64)}, "in pixels"),
        ({"stride": (32, 32)}, r"eval.stride=\(32, 32\) needs eval.window"),
        ({"window": (64, 64), "stride": (65, 64)}, r"eval.stride=\(65, 64\) must be .* at most eval.window=\(64, 64\)"),
        ({"window": (64, 64), "stride": (64, 65)}, "at most eval.window"),
        ({"window": (64, 64), "stride": (0, 64)}, "at least 1"),
    ],
)
def test_views_that_make_no_sense_are_refused_before_anything_is_built(settings, message):
    with pytest.raises(ValueError, match=message):
        predict_logits(MODEL, VARIABLES, jnp.zeros((1, 8, 8, 3)), **settings)
    config = common.get_config()
    config.eval.update(settings)
    with pytest.raises(ValueError, match=message):
        evaluate.make_eval_step(config, MODEL)


# Batches and counts.


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
    step = jax.jit(evaluate.make_eval_step(make_config(eval_size=eval_size), MODEL))
    matrices, predictions = step(VARIABLES, {"image": images, "label": labels})
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
    step = jax.jit(evaluate.make_eval_step(make_config(eval_size=(13, 22)), MODEL))
    _, alone = step(VARIABLES, {"image": images[1:, :9, :15], "label": labels[1:, :9, :15]})
    labels = labels.copy()  # JAX may still be reading the first
    labels[1, 9:], labels[1, :, 15:] = 255, 255
    sizes = np.int32([[13, 22], [9, 15]])
    matrices, together = step(VARIABLES, {"image": images, "label": labels, "size": sizes})
    np.testing.assert_array_equal(together[1, :9, :15], alone[0])
    np.testing.assert_array_equal(
        together[0], FormulaModel.numpy(KERNELS, (images[0] / 127.5 - 1).astype(np.float32)).argmax(-1)
    )
    np.testing.assert_array_equal(matrices, list(map(count, labels, np.asarray(together))))


def test_the_views_of_the_configuration_are_taken():
    views = dict(scales=(0.5, 1.3), flip=True, window=(8, 9), stride=(5, 4), average="legacy")
    config = make_config(**{f"eval.{name}": value for name, value in views.items()})
    images, labels = make_pictures(1)
    _, predictions = jax.jit(evaluate.make_eval_step(config, MODEL))(VARIABLES, {"image": images, "label": labels})
    scores = expected_scores((images[0] / 127.5 - 1).astype(np.float32), **views)
    np.testing.assert_array_equal(predictions[0], scores.argmax(-1))


class BrightestChannel:
    def apply(self, variables, images, train, output_size):
        return ops.resize(images, output_size, align_corners=False)


def test_predictions_under_ignored_pixels_count_nothing():
    images, labels = make_pictures(2)
    step = jax.jit(evaluate.make_eval_step(make_config(), BrightestChannel()))
    matrices, predictions = step({}, {"image": images, "label": labels})
    changed = np.where((labels == 255)[..., None], 255 - images, images)  # a copy: JAX may still be reading the first
    again, others = step({}, {"image": changed, "label": labels})
    assert np.any(np.asarray(others) != predictions)
    np.testing.assert_array_equal(matrices, again)
    assert matrices.sum() == (labels != 255).sum()


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
        evaluate.make_eval_step(make_config(**{"eval.flip": True}), MODEL),
        in_shardings=(sharding.replicated(mesh), sharding.batched(mesh)),
        out_shardings=(sharding.replicated(mesh), sharding.batched(mesh)),
    )
    variables = jax.device_put(VARIABLES, sharding.replicated(mesh))
    images, labels = make_pictures(9, height=12)
    predictions = np.stack([expected_scores(x, flip=True).argmax(-1) for x in (images / 127.5 - 1).astype(np.float32)])
    for number in (1, 7, 8, 9):
        batches = [sharding.put_batch(mesh, batch) for batch in batches_of(images[:number], labels[:number], 8)]
        seen = []
        matrix = evaluate.evaluate(
            step, variables, batches, 3, lambda _, matrices, __, seen=seen: seen.extend(matrices)
        )
        np.testing.assert_array_equal(matrix, count(labels[:number], predictions[:number]))
        alone = list(map(count, labels[:number], predictions[:number]))
        np.testing.assert_array_equal(seen, alone + [np.zeros((3, 3))] * (len(seen) - number))


def test_counts_are_exact_at_the_size_of_cityscapes_train():
    """2,975 pictures of 2048x1024: beyond int32, and odd numbers beyond what float32 tells apart."""
    pixels = 2048 * 1024
    counts = jnp.array([[[pixels - 3, 1], [0, 2]]], jnp.int32)
    batches = [{"image": None, "label": None}] * 2975
    total = evaluate.evaluate(lambda variables, batch: (counts, None), {}, batches, 2)
    assert total.dtype == np.int64 and total.sum() == 6_239_027_200
    np.testing.assert_array_equal(total, [[2975 * (pixels - 3), 2975], [0, 2 * 2975]])


def test_nothing_to_evaluate_counts_nothing():
    np.testing.assert_array_equal(evaluate.evaluate(None, {}, [], 3), np.zeros((3, 3)))


class Unreadable:
    """Predictions that must not be fetched; on a CPU, the transfer guard lets that pass."""

    def __array__(self, *args, **kwargs):
        raise AssertionError("predictions were fetched")


def compiled_step(mesh, batch, **changes):
    step = jax.jit(
        evaluate.make_eval_step(make_config(**changes), MODEL),
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
    seen = []
    with jax.transfer_guard("disallow"):
        matrix = evaluate.evaluate(
            lambda variables, batch: (step(variables, batch)[0], Unreadable()),
            *(variables, batches, 3, lambda batch, matrices, predictions: seen.append((batch, predictions))),
        )
    assert matrix.sum() == (labels != 255).sum()
    assert [batch for batch, _ in seen] == batches and all(isinstance(x, Unreadable) for _, x in seen)


class WideNet(nn.Module):
    """A network whose maps are what takes memory."""

    @nn.compact
    def __call__(self, images, train, output_size=None):
        x = images
        for channels in (64, 64, 3):
            x = nn.relu(nn.Conv(channels, (3, 3))(x))
        return ops.resize(x, output_size or images.shape[1:3], align_corners=False)


@pytest.mark.parametrize(("average", "flip"), [("logits", True), ("legacy", True)])
def test_nothing_as_large_as_logits_is_put_out_and_memory_does_not_grow_with_the_views(average, flip):
    """What a program puts out is counts, and a byte a pixel that stays on the devices; the scores are summed inside."""
    model = WideNet()
    images, labels = make_pictures(4, height=64, width=96)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    memory = {}
    for scales in ((0.75, 1.0), (0.75, 0.8, 0.85, 0.9, 0.95, 1.0)):
        config = make_config(**{"eval.scales": scales, "eval.flip": flip, "eval.average": average})
        step = jax.jit(evaluate.make_eval_step(config, model))
        compiled = step.lower(variables, {"image": images, "label": labels}).compile()
        outputs = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(compiled.out_info)]
        assert outputs == [((4, 3, 3), np.int32), (labels.shape, np.uint8)]
        memory[len(scales)] = compiled.memory_analysis().temp_size_in_bytes
    assert memory[2] > images.size * 4 * 64 / 3  # at least one of the wide maps
    assert memory[6] <= 1.15 * memory[2]

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recordings
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dlv3p_jax.configs import common
from dlv3p_jax.training import losses

NUM_CLASSES = 5


def numpy_pixel_losses(logits, labels):
    """Float64 [pixels], 0 where ignored, and which pixels are valid."""
    logits, labels = np.float64(logits).reshape(-1, logits.shape[-1]), labels.ravel().astype(int)
    valid = labels != 255
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    picked = probabilities[np.arange(len(labels)), np.where(valid, labels, 0)]
    return np.where(valid, -np.log(picked), 0), valid


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 8, 12, NUM_CLASSES)).astype(np.float32) * 2
    labels = rng.integers(0, NUM_CLASSES, (2, 8, 12)).astype(np.uint8)
    labels[0, :5] = 255
    return logits, labels


@pytest.mark.parametrize("name", recordings.CROSS_ENTROPY)
def test_cross_entropy_is_that_recorded_from_paddleseg(shared, name):
    recordings.hold(recordings.cross_entropy(shared, name))


@pytest.mark.parametrize("name", recordings.DICE_LOVASZ)
def test_dice_and_lovasz_are_those_recorded_from_paddleseg(shared, name):
    recordings.hold(recordings.dice_lovasz(shared, name))


def test_means_against_numpy(batch):
    logits, labels = batch
    pixel_losses, valid = numpy_pixel_losses(logits, labels)
    np.testing.assert_allclose(losses.cross_entropy(logits, labels), pixel_losses.sum() / valid.sum(), rtol=1e-6)
    weights = np.array([0.5, 1, 2, 0, 3])
    pixel_weights = weights[np.where(valid, labels.ravel(), 0)] * valid
    np.testing.assert_allclose(
        losses.cross_entropy(logits, labels, class_weights=weights),
        (pixel_losses * pixel_weights).sum() / pixel_weights.sum(),
        rtol=1e-6,
    )
    count = int(0.3 * labels.size)
    hardest = np.argsort(-pixel_losses * pixel_weights)[:count]
    np.testing.assert_allclose(
        losses.cross_entropy(logits, labels, top_k=0.3), np.sort(pixel_losses)[-count:].mean(), rtol=1e-6
    )
    np.testing.assert_allclose(
        losses.cross_entropy(logits, labels, class_weights=weights, top_k=0.3),
        (pixel_losses * pixel_weights)[hardest].sum() / pixel_weights[hardest].sum(),
        rtol=1e-6,
    )


@pytest.mark.parametrize("weights", [None, (0.5, 1, 2, 0, 3)])
def test_the_mean_of_the_parts_of_a_batch_is_its_loss(batch, weights):
    """By the mean weight of the whole, however many pixels of a part are valid: of the first, less than half."""
    logits, labels = batch
    mean_weight = losses.mean_weight(labels, NUM_CLASSES, weights)
    pixel_weights = np.array((1,) * NUM_CLASSES if weights is None else weights)[labels % 255] * (labels != 255)
    np.testing.assert_allclose(mean_weight, pixel_weights.mean(), rtol=1e-6)
    whole = losses.cross_entropy(logits, labels, weights)
    parts = [losses.cross_entropy(logits[i : i + 1], labels[i : i + 1], weights) for i in (0, 1)]
    assert abs(np.mean(parts) - whole) > 1e-3
    parts = [
        losses.cross_entropy(logits[i : i + 1], labels[i : i + 1], weights, normalizer=mean_weight) for i in (0, 1)
    ]
    np.testing.assert_allclose(np.mean(parts), whole, rtol=1e-6)


def test_hand_written_gradient_is_the_automatic_one(batch):
    logits, labels = batch

    def automatic(x):
        log_probabilities = jax.nn.log_softmax(x)
        picked = jnp.take_along_axis(log_probabilities, np.where(labels == 255, 0, labels)[..., None], axis=-1)[..., 0]
        return -jnp.sum(jnp.where(labels == 255, 0, picked)) / np.sum(labels != 255)

    gradient = jax.grad(losses.cross_entropy)(logits, labels)
    np.testing.assert_allclose(gradient, jax.grad(automatic)(logits), atol=1e-8)
    assert not np.any(gradient[labels == 255])


def test_top_k_takes_zeros_once_the_valid_pixels_are_used_up(batch):
    logits, labels = batch
    labels = np.full_like(labels, 255)
    labels[0, 0, :3] = 1
    pixel_losses, _ = numpy_pixel_losses(logits, labels)
    count = int(0.5 * labels.size)
    value, gradient = jax.value_and_grad(lambda x: losses.cross_entropy(x, labels, top_k=0.5))(logits)
    np.testing.assert_allclose(value, pixel_losses.sum() / count, rtol=1e-6)
    assert np.count_nonzero(np.abs(gradient).sum(-1)) == 3


def test_with_class_weights_and_top_k_ignored_pixels_weigh_nothing(batch):
    """As the docstring says; PaddleSeg would give those that are kept the weight of class 0."""
    logits, labels = batch
    labels = np.full_like(labels, 255)
    labels[0, 0, :3] = 1
    weights, count = np.array([0.5, 2, 1, 1, 3]), int(0.5 * labels.size)
    pixel_losses, _ = numpy_pixel_losses(logits, labels)
    value = losses.cross_entropy(logits, labels, class_weights=weights, top_k=0.5)
    np.testing.assert_allclose(value, 2 * pixel_losses.sum() / (2 * 3), rtol=1e-6)
    paddleseg = 2 * pixel_losses.sum() / (2 * 3 + 0.5 * (count - 3))
    assert value > 3 * paddleseg


def test_perfect_predictions_of_some_classes_have_no_dice_loss():
    """Those that are in no label count as right where they are predicted nowhere."""
    labels = np.arange(16).reshape(1, 4, 4) % 4
    assert losses.dice(100.0 * jax.nn.one_hot(labels, 19), labels) < 1e-6


def test_top_k_shares_the_last_places_among_ties():
    logits = np.zeros((1, 1, 8, 2), np.float32)
    logits[0, 0, :2] = [0, 3]  # two hard pixels, six alike
    labels = np.zeros((1, 1, 8), np.uint8)
    value, gradient = jax.value_and_grad(lambda x: losses.cross_entropy(x, labels, top_k=0.5))(logits)
    np.testing.assert_allclose(value, (2 * np.log1p(np.exp(3)) + 2 * np.log(2)) / 4, rtol=1e-6)
    np.testing.assert_allclose(gradient[0, 0, 2:, 1], np.full(6, 0.5 / 4 * 2 / 6), rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"class_weights": (1.0,) * NUM_CLASSES}, {"top_k": 0.25}])
def test_a_batch_without_a_valid_pixel_gives_zero(batch, options):
    logits, labels = batch
    value, gradient = jax.value_and_grad(lambda x: losses.cross_entropy(x, np.full_like(labels, 255), **options))(
        logits
    )
    assert value == 0
    assert not np.any(gradient)


@pytest.mark.parametrize("top_k", [1.0, 0.5])
def test_weights_count_relative_to_each_other_alone(batch, top_k):
    weights = np.array([0.5, 2, 1, 1, 3])
    value, small = (losses.cross_entropy(*batch, class_weights=scale * weights, top_k=top_k) for scale in (1, 1e-9))
    np.testing.assert_allclose(small, value, rtol=1e-5)


def test_ignored_pixels_change_nothing(batch):
    logits, labels = batch
    other = np.where((labels == 255)[..., None], 100.0, logits)
    assert losses.cross_entropy(other, labels) == losses.cross_entropy(logits, labels)
    moved = np.where(labels == 255, 2, labels).astype(np.int32)
    moved[labels == 2] = -1
    assert losses.cross_entropy(logits, moved, ignore_label=-1) != losses.cross_entropy(logits, labels)
    np.testing.assert_array_equal(
        losses.cross_entropy(logits, np.where(labels == 255, 3, labels), ignore_label=3),
        losses.cross_entropy(logits, np.where(labels == 3, 255, labels)),
    )


def test_large_logits_stay_finite():
    logits = np.array([[[[1e4, -1e4], [-1e4, 1e4]]]], np.float32)
    value, gradient = jax.value_and_grad(losses.cross_entropy)(logits, np.zeros((1, 1, 2), np.int32))
    assert value == 1e4
    assert np.all(np.isfinite(gradient))


def test_bfloat16_logits_are_computed_in_float32(batch):
    logits, labels = batch
    half = jnp.asarray(logits, jnp.bfloat16)
    value, gradient = jax.value_and_grad(losses.cross_entropy)(half, labels)
    assert value.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    assert value == losses.cross_entropy(half.astype(jnp.float32), labels)


@pytest.mark.parametrize("top_k", [1.0, 0.2])
def test_the_mean_is_global_when_a_shard_is_all_ignored(batch, top_k):
    logits, labels = batch
    labels[0] = 255  # the first of two data shards has nothing to average
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "space"))
    sharding = NamedSharding(mesh, PartitionSpec("data", "space"))

    def loss(logits, labels):
        return losses.cross_entropy(logits, labels, top_k=top_k)

    expected, expected_gradient = jax.value_and_grad(loss)(logits, labels)
    value, gradient = jax.jit(jax.value_and_grad(loss), in_shardings=(sharding, sharding))(logits, labels)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-8)
    assert np.all(np.isfinite(gradient))


def numpy_dice(logits, labels):
    """Picture by picture and class by class, in float64."""
    terms = []
    for pixels, truth in zip(np.float64(logits), labels, strict=True):
        pixels, truth = pixels[truth != 255], truth[truth != 255]
        probabilities = np.exp(pixels) / np.exp(pixels).sum(-1, keepdims=True)
        for c in range(logits.shape[-1]):
            overlap, size = probabilities[truth == c, c].sum(), probabilities[:, c].sum() + np.sum(truth == c)
            terms.append(1 - (2 * overlap + 1) / (size + 1 + 1e-8))
    return np.mean(terms)


def numpy_lovasz(logits, labels):
    """By the definition of the extension: the Jaccard losses of growing sets, weighted by the gaps between errors."""
    logits, labels = np.float64(logits).reshape(-1, logits.shape[-1]), labels.ravel()
    logits, labels = logits[labels != 255], labels[labels != 255]
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    class_losses = []
    for c in np.unique(labels):
        truth = labels == c
        errors = np.abs(truth - probabilities[:, c])
        order = np.argsort(-errors)
        gaps = errors[order] - np.append(errors[order][1:], 0)
        value = 0
        for count, gap in enumerate(gaps, 1):
            wrong = np.zeros(len(truth), bool)
            wrong[order[:count]] = True
            found = truth ^ wrong  # a prediction that errs in exactly these pixels
            value += gap * (1 - np.sum(found & truth) / np.sum(found | truth))
        class_losses.append(value)
    return np.mean(class_losses)


SET_LOSSES = {losses.dice: numpy_dice, losses.lovasz: numpy_lovasz}


@pytest.fixture
def small_batch(batch):
    """Few enough pixels for finite differences; class 4 is in no label."""
    logits, labels = batch
    labels = np.where(labels == 4, 1, labels)
    labels[1, 2, ::3] = 255
    return logits[:, 2:8:2, ::2], labels[:, 2:8:2, ::2]


@pytest.mark.parametrize("loss", SET_LOSSES)
def test_set_losses_and_their_gradients_against_numpy(small_batch, loss):
    logits, labels = small_batch
    assert set(np.unique(labels)) == {0, 1, 2, 3, 255}
    value, gradient = jax.jit(jax.value_and_grad(loss))(logits, labels)
    np.testing.assert_allclose(value, SET_LOSSES[loss](logits, labels), rtol=2e-6)
    numeric = np.zeros(logits.shape)
    step = 1e-6
    for index in np.ndindex(logits.shape):
        moved = np.float64(logits)
        moved[index] += step
        above = SET_LOSSES[loss](moved, labels)
        moved[index] -= 2 * step
        numeric[index] = (above - SET_LOSSES[loss](moved, labels)) / (2 * step)
    np.testing.assert_allclose(gradient, numeric, atol=2e-7)
    assert np.abs(numeric).max() > 1e-3 and not np.any(gradient[labels == 255])


@pytest.mark.parametrize("loss", SET_LOSSES)
def test_set_losses_of_one_sided_predictions(loss):
    """Confident predictions turn both losses into the plain scores: 1 - Dice and 1 - IoU, over classes."""
    labels = np.array([[[0, 0, 0, 1, 1, 2, 255, 255]]], np.uint8)
    predictions = np.array([[[0, 0, 1, 1, 1, 0, 2, 3]]])
    logits = 200.0 * (predictions[..., None] == np.arange(4)).astype(np.float32)
    value, gradient = jax.value_and_grad(loss)(logits, labels)
    expected = {
        losses.dice: 1 - np.mean([(2 * 2 + 1) / (3 + 3 + 1), (2 * 2 + 1) / (3 + 2 + 1), 1 / (1 + 1), 1]),
        losses.lovasz: 1 - np.mean([2 / 4, 2 / 3, 0]),  # class 3 is left out
    }
    np.testing.assert_allclose(value, expected[loss], rtol=1e-5)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("loss", SET_LOSSES)
def test_set_losses_without_a_valid_pixel_give_zero(batch, loss):
    logits, labels = batch
    value, gradient = jax.value_and_grad(loss)(logits, np.full_like(labels, 255))
    assert value == 0 and not np.any(gradient)


@pytest.mark.parametrize("loss", SET_LOSSES)
def test_set_losses_leave_out_what_is_ignored_and_compute_in_float32(batch, loss):
    logits, labels = batch
    value = loss(logits, labels)
    assert loss(np.where((labels == 255)[..., None], 100.0, logits), labels) == value
    np.testing.assert_array_equal(
        loss(logits, np.where(labels == 255, 3, labels), ignore_label=3),
        loss(logits, np.where(labels == 3, 255, labels)),
    )
    half = jnp.asarray(logits, jnp.bfloat16)
    assert loss(half, labels).dtype == jnp.float32 and loss(half, labels) == loss(half.astype(jnp.float32), labels)
    with pytest.raises(ValueError, match="leading dimensions"):
        loss(logits, labels[:, :-1])


@pytest.mark.parametrize("loss", SET_LOSSES)
def test_set_losses_are_global_over_a_mesh(batch, loss):
    logits, labels = batch
    labels[0] = 255
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "space"))
    sharding = NamedSharding(mesh, PartitionSpec("data", "space"))
    expected, expected_gradient = jax.value_and_grad(loss)(logits, labels)
    value, gradient = jax.jit(jax.value_and_grad(loss), in_shardings=(sharding, sharding))(logits, labels)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-8)


def test_lovasz_does_not_depend_on_how_equal_errors_are_ordered():
    labels = np.array([[[0, 1, 0, 1, 1, 255]]], np.uint8)
    value = losses.lovasz(np.zeros((1, 1, 6, 2), np.float32), labels)
    np.testing.assert_allclose(value, 0.5, rtol=1e-6)  # every error is 0.5, so the extension is 0.5 x the loss of all


def make_config(**settings):
    config = common.get_config()
    config.num_classes = NUM_CLASSES
    config.loss.update(settings)
    return config


def test_weighted_scales_the_sum_and_returns_the_parts_unscaled(batch):
    config = make_config(cross_entropy=0.5, class_weights=(1.0, 2.0, 3.0, 4.0, 5.0), top_k=0.5)
    value, parts = jax.jit(losses.weighted(config))(*batch)
    expected = losses.cross_entropy(*batch, class_weights=(1.0, 2.0, 3.0, 4.0, 5.0), top_k=0.5)
    assert parts.keys() == {"cross_entropy"}
    np.testing.assert_allclose(parts["cross_entropy"], expected, rtol=1e-6)
    np.testing.assert_allclose(value, 0.5 * expected, rtol=1e-6)


def test_weighted_mixes_the_parts_and_ignores_its_label(batch):
    logits, labels = batch
    config = make_config(cross_entropy=0.5, dice=2.0, lovasz=0.25, top_k=0.5)
    config.ignore_label = 3
    value, parts = jax.jit(losses.weighted(config))(logits, labels)
    expected = {
        "cross_entropy": losses.cross_entropy(logits, labels, top_k=0.5, ignore_label=3),
        "dice": losses.dice(logits, labels, ignore_label=3),
        "lovasz": losses.lovasz(logits, labels, ignore_label=3),
    }
    assert parts.keys() == expected.keys()
    for name, part in expected.items():
        np.testing.assert_allclose(parts[name], part, rtol=1e-6)
    mix = 0.5 * expected["cross_entropy"] + 2 * expected["dice"] + 0.25 * expected["lovasz"]
    np.testing.assert_allclose(value, mix, rtol=1e-6)
    value, parts = losses.weighted(make_config(cross_entropy=0.0, lovasz=1.0))(logits, labels)
    assert parts.keys() == {"lovasz"} and value == losses.lovasz(logits, labels)


def test_half_rmi_is_what_is_recorded_from_paddleseg(shared):
    recorded = np.load(shared / "parity" / "loss_mixed.npz")
    config = make_config(cross_entropy=0.5, rmi=0.5)
    config.num_classes = 19
    loss = jax.jit(jax.value_and_grad(losses.weighted(config), has_aux=True))
    (value, parts), gradient = loss(recorded["logits"].transpose(0, 2, 3, 1), recorded["labels"])
    expected = recorded["grad"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(value, recorded["loss"], rtol=1e-5)
    assert np.linalg.norm(gradient - expected) < 1e-4 * np.linalg.norm(expected)
    assert parts.keys() == {"cross_entropy", "rmi"}
    np.testing.assert_allclose(value, 0.5 * parts["cross_entropy"] + 0.5 * parts["rmi"], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cross_entropy": 0.0}, "every weight"),
        ({"cross_entropy": -1.0}, "loss.cross_entropy = -1"),
        ({"dice": -0.5}, "loss.dice = -0.5"),
        ({"lovasz": -0.5}, "loss.lovasz = -0.5"),
        ({"rmi": -0.5}, "loss.rmi = -0.5"),
        ({"class_weights": (1.0, 2.0)}, "2 class_weights for 5 classes"),
        ({"class_weights": ("a", "b", "c", "d", "e")}, "class_weights = .* they are numbers"),
        ({"class_weights": (0.0,) * NUM_CLASSES}, "one is above"),
        ({"top_k": 0.0}, "top_k = 0"),
        ({"top_k": 1.5}, "top_k = 1.5"),
    ],
)
def test_weighted_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        losses.weighted(make_config(**settings))


def test_shapes_that_do_not_fit_are_refused(batch):
    logits, labels = batch
    with pytest.raises(ValueError, match="leading dimensions"):
        losses.cross_entropy(logits, labels[:, :-1])

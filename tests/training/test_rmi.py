"""RMI against PaddleSeg's recorded numbers, its definition in float64, and where float32 would give out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlv3p_jax.configs import common
from dlv3p_jax.runtime import sharding
from dlv3p_jax.training import losses, run

A = 5e-4
rmi = jax.jit(losses.rmi, static_argnames="ignore_label")
value_and_gradient = jax.jit(jax.value_and_grad(losses.rmi))


def definition(logits, labels):
    """As the paper and PaddleSeg write it, but for one step; labels below C.

    Their M = S_yy - S_yp (S_pp + a I)^-1 S_yp^T + a I subtracts what is nearly equal, which for good predictions of
    large pictures leaves two digits of the gradient in float64 too. With R = y - B p and B = S_yp (S_pp + a I)^-1 it is
    R R^T + a B B^T + a I.
    """
    batch, _, _, num_classes = logits.shape
    valid = (labels != 255)[..., None]
    one_hot = ((labels[..., None] == jnp.arange(num_classes)) & valid).astype(logits.dtype)

    def vectors(x):
        window = (1, 3, 3, 1)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, ((0, 0), (1, 1), (1, 1), (0, 0)))
        height, width = x.shape[1] - 2, x.shape[2] - 2
        x = jnp.stack([x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)])
        x = x.transpose(1, 4, 0, 2, 3).reshape(batch, num_classes, 9, -1)
        return x - x.mean(-1, keepdims=True)

    p, y = vectors(jax.nn.sigmoid(logits) * valid + 1e-6), vectors(one_hot)
    regression = jnp.linalg.solve(p @ p.mT + A * jnp.eye(9), p @ y.mT).mT
    rest = y - regression @ p
    matrix = rest @ rest.mT + A * regression @ regression.mT + A * jnp.eye(9)
    diagonal = jnp.diagonal(jnp.linalg.cholesky(matrix), axis1=-2, axis2=-1)
    return jnp.sum(jnp.mean(jnp.sum(jnp.log(diagonal + 1e-8), -1), 0)) / 9


defined_value_and_gradient = jax.jit(jax.value_and_grad(definition))


def in_float64(logits, labels):
    jax.config.update("jax_enable_x64", True)
    try:
        return jax.device_get(defined_value_and_gradient(np.float64(logits), labels))
    finally:
        jax.config.update("jax_enable_x64", False)


def distance(gradient, expected):
    expected = np.asarray(expected, np.float64)
    return np.linalg.norm(np.asarray(gradient, np.float64) - expected) / np.linalg.norm(expected)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (2, 24, 31)).repeat(2, axis=1)[:, :33].astype(np.uint8)
    labels[rng.random(labels.shape) < 0.05] = 255
    return rng.normal(size=(*labels.shape, 3)).astype(np.float32), labels


@pytest.mark.parametrize("name", ["loss_rmi_c19", "loss_rmi_c5"])
def test_value_and_gradient_are_those_recorded_from_paddleseg(shared, name):
    recorded = np.load(shared / "parity" / f"{name}.npz")
    value, gradient = value_and_gradient(recorded["logits"].transpose(0, 2, 3, 1), recorded["labels"])
    assert value.dtype == gradient.dtype == np.float32
    np.testing.assert_allclose(value, recorded["loss"], rtol=1e-6)  # asked for: 1e-5, and 1e-4 of the gradient
    assert distance(gradient, recorded["grad"].transpose(0, 2, 3, 1)) < 1e-5


# Pictures of the size that is trained on: in sums of products of 1e5, the ridge of 5e-4 is lost to float32.


def blocks(rng, height, width):
    labels = np.zeros((height, width), np.uint8)
    for _ in range(25):
        y, x = rng.integers(0, height - 8), rng.integers(0, width - 8)
        labels[y : y + rng.integers(8, height // 2), x : x + rng.integers(8, width // 4)] = rng.integers(0, 2)
    return labels


LABELS = {
    "blocks": blocks,
    "noise": lambda rng, height, width: rng.integers(0, 2, (height, width)).astype(np.uint8),
    # A straight edge makes few different regions: most of the matrix's eigenvalues are the ridge alone.
    "horizon": lambda rng, height, width: (np.arange(height)[:, None] + 0 * np.arange(width) > 200).astype(np.uint8),
    "diagonal": lambda rng, height, width: (np.arange(height)[:, None] + np.arange(width) > 700).astype(np.uint8),
}


def sign(labels):
    return np.eye(2, dtype=np.float32)[labels] * 2 - 1


def smooth(coarse, factor):
    batch, height, width, channels = coarse.shape
    shape = (batch, height * factor, width * factor, channels)
    return np.asarray(jax.image.resize(coarse.astype(np.float32), shape, "bilinear"))


LOGITS = {
    "noise": lambda rng, labels: 2 * rng.normal(size=(*labels.shape, 2)),
    "smooth noise": lambda rng, labels: 2 * smooth(rng.normal(size=(1, 64, 128, 2)), 8),
    # What a network gives: resized four times, and ever surer of itself.
    "near": lambda rng, labels: smooth(3 * sign(labels)[:, ::4, ::4] + 0.3 * rng.normal(size=(1, 128, 256, 2)), 4),
    "sure": lambda rng, labels: smooth(15 * sign(labels)[:, ::4, ::4] + rng.normal(size=(1, 128, 256, 2)), 4),
    "right": lambda rng, labels: 8 * sign(labels) + 0.5 * rng.normal(size=(*labels.shape, 2)),
}


@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("labels", LABELS)
def test_large_pictures_against_the_definition_in_float64(labels, logits):
    rng = np.random.default_rng(0)
    labels = LABELS[labels](rng, 512, 1024)[None]
    logits = np.float32(LOGITS[logits](rng, labels))
    value, gradient = value_and_gradient(logits, labels)
    expected, expected_gradient = in_float64(logits, labels)
    np.testing.assert_allclose(value, expected, rtol=2e-6, atol=2e-6)
    assert distance(gradient, expected_gradient) < 1e-4


# Where there is little or nothing to tell apart.

DEGENERATE = {
    "one label": lambda logits, labels: (logits, np.ones_like(labels)),
    "flat logits": lambda logits, labels: (np.full_like(logits, 0.3), labels),
    "flat logits, one label": lambda logits, labels: (np.zeros_like(logits), np.zeros_like(labels)),
    "saturated": lambda logits, labels: (50 * np.sign(logits), labels),
    "saturated far beyond": lambda logits, labels: (1e4 * np.sign(logits), labels),
    "saturated one way": lambda logits, labels: (np.full_like(logits, -1e4), labels),
    "saturated and right": lambda logits, labels: (50 * (np.eye(4)[np.minimum(labels, 3)][..., :3] * 2 - 1), labels),
    "right by little": lambda logits, labels: (np.eye(4)[np.minimum(labels, 3)][..., :3] * 1e-3, labels),
    "one pixel": lambda logits, labels: (logits, np.eye(33 * 31)[500].reshape(33, 31)[None].repeat(2, 0)),
    "a class absent": lambda logits, labels: (logits, np.where(labels == 2, 1, labels)),
    "one picture ignored": lambda logits, labels: (logits, np.where([[[True]], [[False]]], 255, labels)),
    "all ignored": lambda logits, labels: (logits, np.full_like(labels, 255)),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_batches_have_the_defined_value_and_finite_gradients(batch, name):
    logits, labels = DEGENERATE[name](*batch)
    logits, labels = np.float32(logits), np.uint8(labels)
    value, gradient = jax.device_get(value_and_gradient(logits, labels))
    expected, expected_gradient = in_float64(logits, labels)
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    assert np.all(np.isfinite(gradient)) and not np.any(gradient[labels == 255])
    if name in ("one pixel", "a class absent", "one picture ignored"):
        assert distance(gradient, expected_gradient) < 1e-5
    if name == "a class absent":
        assert np.linalg.norm(gradient[..., 2]) < 1e-7 * np.linalg.norm(gradient)
    if name == "all ignored":
        assert not np.any(gradient)
        np.testing.assert_allclose(value, 3 * np.log(A) / 2, rtol=1e-6)


def test_thousands_of_steps_drive_the_loss_down_and_stay_finite(batch):
    logits, labels = batch
    labels = np.repeat(np.repeat(labels[:, ::4, ::4], 4, 1), 4, 2)[:, :20, :24]
    logits = jnp.asarray(logits[:, :20, :24])

    @jax.jit
    def descend(logits, learning_rate):
        def step(logits, _):
            value, gradient = jax.value_and_grad(losses.rmi)(logits, labels)
            return logits - learning_rate * gradient, (value, jnp.all(jnp.isfinite(gradient)))

        return jax.lax.scan(step, logits, length=2000)

    for learning_rate, goal in ((10.0, -9.4), (1000.0, 0.0)):  # the least of all is 3 log(2 a) / 2 = -10.4
        last, (values, finite) = jax.device_get(descend(logits, learning_rate))
        assert np.all(np.isfinite(values)) and np.all(finite) and np.all(np.isfinite(last))
        assert values[-1] < goal < values[0]
        np.testing.assert_allclose(rmi(last, labels), in_float64(last, labels)[0], rtol=2e-6)


# Properties.


def test_the_mean_is_over_pictures_in_any_order(batch):
    logits, labels = batch
    value, gradient = value_and_gradient(logits, labels)
    swapped, swapped_gradient = value_and_gradient(logits[::-1], labels[::-1])
    np.testing.assert_allclose(swapped, value, rtol=1e-6)
    np.testing.assert_allclose(swapped_gradient[::-1], gradient, atol=1e-8)
    alone = [rmi(logits[i : i + 1], labels[i : i + 1]) for i in range(2)]
    np.testing.assert_allclose(np.mean(alone), value, rtol=1e-6)


def test_classes_may_be_renamed(batch):
    logits, labels = batch
    renamed = np.where(labels == 255, 255, (labels + 1) % 3)
    np.testing.assert_allclose(rmi(np.roll(logits, 1, -1), renamed), rmi(logits, labels), rtol=1e-6)


def test_better_predictions_have_a_lower_loss(batch):
    logits, labels = batch
    right = np.eye(256, dtype=np.float32)[labels][..., :3] * 2 - 1
    values = [rmi(logits + confidence * right, labels) for confidence in (0, 1, 3, 10)]
    assert values[0] > values[1] > values[2] > values[3]


def test_what_is_ignored_changes_nothing(batch):
    logits, labels = batch
    value, gradient = value_and_gradient(logits, labels)
    assert not np.any(gradient[labels == 255])
    assert rmi(np.where((labels == 255)[..., None], 100.0, logits), labels) == value
    for outside in (3, 200, -1):
        assert rmi(logits, np.where(labels == 255, outside, labels.astype(np.int32))) == value
    left_out = rmi(logits, np.where(labels == 2, 255, labels))
    assert rmi(logits, labels, ignore_label=2) == left_out != value


def test_the_first_of_the_pixels_that_tie_has_the_gradient(batch):
    """Pooling's windows begin one pixel outside the picture, so that they start at pixels 2, 5, 8…"""
    coarse, labels = batch[0][:, :8, :10], np.minimum(batch[1][:, :23, :29], 2)
    tied = coarse.repeat(3, axis=1).repeat(3, axis=2)[:, 1:, 1:]
    first = tied - 1
    first[:, 2::3, 2::3] = coarse[:, 1:, 1:]
    first[:, 2::3, 0] = coarse[:, 1:, 0]
    first[:, 0, 2::3] = coarse[:, 0, 1:]
    first[:, 0, 0] = coarse[:, 0, 0]
    value, gradient = value_and_gradient(tied, labels)
    expected, expected_gradient = value_and_gradient(first, labels)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(gradient, expected_gradient)
    assert np.count_nonzero(gradient) == coarse.size


def test_bfloat16_logits_are_computed_in_float32(batch):
    logits, labels = batch
    half = jnp.asarray(logits, jnp.bfloat16)
    value, gradient = value_and_gradient(half, labels)
    assert value.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, rmi(half.astype(jnp.float32), labels), rtol=1e-6)


@pytest.mark.parametrize("shape", [(4, 2), (1, 4)])
def test_any_mesh_gives_the_value_and_gradient_of_one_device(batch, shape):
    logits, labels = (np.concatenate([x, x[::-1, ::-1]])[:, :32] for x in batch)
    expected, expected_gradient = value_and_gradient(logits, labels)
    mesh = sharding.make_mesh(*shape)
    batched, replicated = sharding.batched(mesh), sharding.replicated(mesh)
    sharded = jax.jit(jax.value_and_grad(losses.rmi), in_shardings=batched, out_shardings=(replicated, batched))
    value, gradient = sharded(jax.device_put(logits, batched), jax.device_put(labels, batched))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert distance(gradient, expected_gradient) < 1e-5


def test_every_product_is_of_full_precision(batch):
    program = jax.jit(jax.value_and_grad(losses.rmi)).lower(*batch).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) >= 5
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_pictures_that_hold_no_region_are_refused(batch):
    logits, labels = batch
    assert np.isfinite(rmi(logits[:, :7, :7], labels[:, :7, :7]))
    with pytest.raises(ValueError, match="RMI of pictures of 33x6: both sides must be at least 7 pixels"):
        rmi(logits[:, :, :6], labels[:, :, :6])
    with pytest.raises(ValueError, match="leading dimensions"):
        rmi(logits, labels[:, :-1])


def test_crops_that_hold_no_region_are_told_with_their_key():
    config = common.get_config()
    config.loss.rmi = 1.0
    config.crop_size = (4, 40)
    with pytest.raises(ValueError, match="config.crop_size=.*config.loss.rmi needs 7 pixels or more a side"):
        run.check_values(config)

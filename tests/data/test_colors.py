import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recordings
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance

from dlv3p_jax.data import colors

ADJUST = {
    "brightness": jax.jit(colors.adjust_brightness),
    "contrast": jax.jit(colors.adjust_contrast),
    "saturation": jax.jit(colors.adjust_saturation),
    "hue": jax.jit(colors.adjust_hue),
}
PILLOW = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


def pillow_hue(image, shift):
    """As PaddleSeg does it: a float added to the H channel, cast back by C's rules."""
    hsv = np.array(Image.fromarray(image).convert("HSV"))
    hsv[..., 0] = np.trunc(hsv[..., 0] + np.float64(shift)).astype(int) % 256
    channels = [Image.fromarray(np.ascontiguousarray(hsv[..., i])) for i in range(3)]
    return np.asarray(Image.merge("HSV", channels).convert("RGB"))


def pillow(name, image, amount):
    if name == "hue":
        return pillow_hue(image, amount)
    return np.asarray(PILLOW[name](Image.fromarray(image)).enhance(float(amount)))


@pytest.fixture
def image():
    """Random colours, so that every kind of pixel occurs."""
    return np.random.default_rng(0).integers(0, 256, (96, 128, 3)).astype(np.uint8)


def test_normalisation_and_colours_are_those_recorded_from_paddleseg(shared):
    recordings.hold(recordings.transforms(shared))


def test_normalize():
    normalized = colors.normalize(jnp.array([0, 127.5, 255]))
    assert normalized.dtype == jnp.float32
    np.testing.assert_array_equal(normalized, [-1, 0, 1])


@pytest.mark.parametrize("name", PILLOW)
def test_factors_are_pillow_s_bit_for_bit(image, name):
    factors = np.concatenate([np.arange(0, 41) / 20, np.random.default_rng(1).uniform(0.6, 1.4, 40)])
    for factor in factors:
        adjusted = ADJUST[name](image[None], factor)
        np.testing.assert_array_equal(adjusted[0], pillow(name, image, factor), err_msg=str(factor))


def test_hue_shifts_are_truncated_and_wrap(image):
    for shift in [-18, -17.5, -0.25, 0, 0.75, 3.999, 18]:
        adjusted = ADJUST["hue"](image[None], shift)
        np.testing.assert_array_equal(adjusted[0], pillow("hue", image, shift), err_msg=str(shift))


def test_every_pair_of_values_blends_as_in_pillow():
    grey, value = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    blend = jax.jit(lambda factor: colors._blend((value,), grey.astype(jnp.float32), factor)[0])
    for factor in [0.6, 0.65, 0.7, 0.9, 1.1, 1.3, 1.35, 1.4, *np.random.default_rng(0).uniform(0, 2, 20)]:
        expected = Image.blend(Image.fromarray(grey), Image.fromarray(value), factor)
        np.testing.assert_array_equal(blend(factor), np.asarray(expected), err_msg=str(factor))


def test_every_colour_converts_as_in_pillow():
    to_hsv = jax.jit(lambda x: jnp.stack(colors._rgb_to_hsv(colors._split(x)), -1).astype(jnp.uint8))
    luma = jax.jit(lambda x: colors._luma(colors._split(x)).astype(jnp.uint8))

    @jax.jit
    def to_rgb(hsv):
        planes = [plane.astype(jnp.float32) for plane in colors._split(hsv)]
        return jnp.stack(colors._hsv_to_rgb(*planes), -1).astype(jnp.uint8)

    codes = np.arange(2**24, dtype=np.uint32).reshape(16, 1024, 1024)
    for code in codes:
        triples = np.stack([code >> 16, code >> 8 & 255, code & 255], axis=-1).astype(np.uint8)
        rgb = Image.fromarray(triples)
        hsv = Image.merge("HSV", rgb.split())
        np.testing.assert_array_equal(luma(triples), np.asarray(rgb.convert("L")))
        np.testing.assert_array_equal(to_hsv(triples), np.asarray(rgb.convert("HSV")))
        np.testing.assert_array_equal(to_rgb(triples), np.asarray(hsv.convert("RGB")))


def test_every_picture_has_its_own_factor_and_mean(image):
    images = np.stack([image, image // 3])
    factors = np.array([0.7, 1.3], np.float32)
    for name, adjust in ADJUST.items():
        amounts = factors * 10 if name == "hue" else factors
        adjusted = adjust(images, amounts)
        for i in range(2):
            np.testing.assert_array_equal(adjusted[i], pillow(name, images[i], amounts[i]), err_msg=name)


RANGES = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.2, "hue": 18.0}


def test_distort_is_the_chosen_pieces_in_their_order(image):
    images = np.stack([image[:32, :32]] * 32)
    rng = jax.random.key(3)
    distorted = jax.jit(lambda x: colors.distort(x, rng, **RANGES))(images)
    assert distorted.dtype == jnp.uint8
    draw = jax.vmap(lambda key: colors._draw(key, list(RANGES.values())))
    order, amounts, chosen = map(np.asarray, draw(jax.random.split(rng, len(images))))
    for i, expected in enumerate(images):
        for piece in order[i]:
            name = list(RANGES)[piece]
            if chosen[i, piece]:
                amount = amounts[i, piece] if name == "hue" else np.float32(1) + amounts[i, piece]
                expected = pillow(name, expected, amount)
        np.testing.assert_array_equal(distorted[i], expected)


def test_draws_follow_the_stated_distributions():
    number = 24_000
    draw = jax.jit(jax.vmap(lambda key: colors._draw(key, list(RANGES.values()))))
    order, amounts, chosen = map(np.asarray, draw(jax.random.split(jax.random.key(0), number)))
    counts = collections.Counter(map(tuple, order.tolist()))
    assert len(counts) == 24
    assert all(abs(count - 1000) < 5 * np.sqrt(1000) for count in counts.values())
    np.testing.assert_allclose(chosen.mean(0), 0.5, atol=5 * 0.5 / np.sqrt(number))
    np.testing.assert_allclose(np.cov(chosen.T, ddof=0), np.eye(4) / 4, atol=0.01)  # independent of each other
    for amount, limit in zip(amounts.T, RANGES.values(), strict=True):
        shares, _ = np.histogram(amount, bins=10, range=(-limit, limit))
        assert shares.sum() == number  # nothing lies outside
        assert np.all(np.abs(shares - number / 10) < 5 * np.sqrt(number / 10))


@pytest.mark.parametrize("name", RANGES)
def test_a_range_of_zero_switches_a_piece_off(image, name):
    images = np.stack([image[:16, :16]] * 8)
    rng = jax.random.key(0)
    only = dict.fromkeys(RANGES, 0.0) | {name: RANGES[name]}
    distorted = colors.distort(images, rng, **only)
    draw = jax.vmap(lambda key: colors._draw(key, [RANGES[name]]))
    _, amounts, chosen = draw(jax.random.split(rng, len(images)))
    assert 0 < chosen.sum() < len(images)
    adjusted = ADJUST[name](images, amounts[:, 0] + (name != "hue"))
    np.testing.assert_array_equal(distorted, np.where(chosen[:, :, None, None], adjusted, images))


def test_ranges_that_are_all_zero_or_negative(image):
    none = dict.fromkeys(RANGES, 0.0)
    np.testing.assert_array_equal(colors.distort(image[None], jax.random.key(0), **none), image[None])
    with pytest.raises(ValueError, match="hue = -1"):
        colors.distort(image[None], jax.random.key(0), hue=-1)


@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_the_result_does_not_depend_on_the_sharding(image, shape):
    images = np.stack([np.roll(image[:32, :48], i, axis=0) for i in range(8)])
    rng = jax.random.key(1)
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(shape), ("data", "space"))
    sharding = NamedSharding(mesh, PartitionSpec("data", "space"))
    distort = jax.jit(colors.distort, in_shardings=(sharding, None), out_shardings=sharding)
    program = distort.lower(images, rng).compile().as_text()
    assert "all-gather" not in program
    np.testing.assert_array_equal(distort(images, rng), jax.jit(colors.distort)(images, rng))

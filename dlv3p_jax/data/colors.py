"""Colour distortion and normalisation of a batch, on the device.

The distortions are those of PaddleSeg's `RandomDistort`, hence Pillow's: each equals Pillow's result bit for bit.
Inside, an image is three planes, which vectorise where a last axis of 3 would not, and every rounding falls as it does
in Pillow's C code whether or not the backend fuses a multiply with an add or divides exactly: the arithmetic is of
whole numbers, or of products that float32 holds exactly.
"""

import jax
import jax.numpy as jnp
from jax import Array

# Where 255 x hue is exactly a whole number, Pillow's floating-point arithmetic may end just below it and truncate to
# one less: a bit for each of the 256 numbers, the lowest first.
_HUES_ROUNDED_DOWN = (0xFFFFFFFE, 0x00000000, 0x11000000, 0x00000111, 0x222AAAAA, 0x23232222, 0x00022222, 0x00000000)


def normalize(images: Array) -> Array:
    """(x / 255 - 0.5) / 0.5: uint8 or float `[B, H, W, 3]` in 0..255 to float32 in -1..1."""
    return (images.astype(jnp.float32) / 255 - 0.5) / 0.5


def grey_levels(images: Array) -> Array:
    """What `normalize` was given: float `[B, H, W, 3]` in -1..1 to int32 in 0..255."""
    return jnp.rint((images * 0.5 + 0.5) * 255).astype(jnp.int32)


def distort(
    images: Array,
    rng: Array,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 18,
) -> Array:
    """PaddleSeg's `RandomDistort`: brightness, contrast, saturation and hue in random order, each with probability 0.5.

    The first three by a factor uniform in 1 - range .. 1 + range, hue by a shift uniform in -range .. range. Every
    picture has its own order, choices and factors, which follow from `rng` and its place in the batch, however the
    batch is sharded. Padding is part of a picture (its contrast is about the mean of all pixels).

    Every piece is computed in each of the four places and the right one selected: a choice for each picture
    (`lax.map` over `lax.switch`) would be ten times less work, but would gather a batch that is sharded.

    Args:
        images: uint8 `[B, H, W, 3]`, RGB.
        rng: a key.
        brightness, contrast, saturation: ranges of the factors, at least 0; 0 leaves the piece out.
        hue: range of the shift, of 256; 0 leaves the piece out.

    Returns:
        uint8 `[B, H, W, 3]`.
    """
    ranges = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    for name, value in ranges.items():
        if value < 0:
            raise ValueError(f"{name} = {value}: a range is at least 0")
    pieces = [name for name, value in ranges.items() if value > 0]
    if not pieces:
        return images
    keys = jax.random.split(rng, images.shape[0])
    order, amounts, chosen = jax.vmap(lambda key: _draw(key, [ranges[name] for name in pieces]))(keys)

    def slot(planes, i):
        piece = order[:, i]
        amount = jnp.take_along_axis(amounts, piece[:, None], axis=1)
        is_chosen = jnp.take_along_axis(chosen, piece[:, None], axis=1)

        def selects(name):  # [B, 1, 1]
            return ((piece == pieces.index(name))[:, None] & is_chosen)[..., None]

        # The first three are one blend towards different greys; a factor of 1 changes nothing.
        grey: Array | float = 0.0
        factor = jnp.where(is_chosen, 1 + amount, 1.0)[..., None]
        if "contrast" in pieces or "saturation" in pieces:
            luma = _luma(planes)
            grey = jnp.where(selects("contrast"), _mean(luma), grey) if "contrast" in pieces else grey
            grey = jnp.where(selects("saturation"), luma, grey) if "saturation" in pieces else grey
        if "hue" in pieces:
            is_hue = selects("hue")
            blended = _blend(planes, grey, jnp.where(is_hue, 1.0, factor))
            shifted = _shift_hue(planes, amount[..., None])
            return tuple(jnp.where(is_hue, s, b) for s, b in zip(shifted, blended, strict=True)), None
        return _blend(planes, grey, factor), None

    planes, _ = jax.lax.scan(slot, _split(images), jnp.arange(len(pieces)))
    return jnp.stack(planes, axis=-1)


def adjust_brightness(images: Array, factor: Array | float) -> Array:
    """Pillow's `ImageEnhance.Brightness`: uint8 `[B, H, W, 3]` blended with black; `factor` is a scalar or `[B]`."""
    return jnp.stack(_blend(_split(images), 0.0, _per_picture(factor)), axis=-1)


def adjust_contrast(images: Array, factor: Array | float) -> Array:
    """Pillow's `ImageEnhance.Contrast`: blended with the rounded mean of the picture's luma. Else as for brightness."""
    planes = _split(images)
    return jnp.stack(_blend(planes, _mean(_luma(planes)), _per_picture(factor)), axis=-1)


def adjust_saturation(images: Array, factor: Array | float) -> Array:
    """Pillow's `ImageEnhance.Color`: blended with the luma of each pixel. Else as for brightness."""
    planes = _split(images)
    return jnp.stack(_blend(planes, _luma(planes), _per_picture(factor)), axis=-1)


def adjust_hue(images: Array, shift: Array | float) -> Array:
    """The 8-bit H of Pillow's "HSV" plus `shift` (a scalar or `[B]`), truncated towards 0 and taken modulo 256.

    The rest is the loss of going through 8-bit HSV, which a shift of 0 has too. uint8 `[B, H, W, 3]`.
    """
    return jnp.stack(_shift_hue(_split(images), _per_picture(shift)), axis=-1)


def _draw(key, ranges):
    """One picture's order of the pieces, the amount of each (uniform in -range .. range), and which are chosen."""
    order_key, amount_key, chosen_key = jax.random.split(key, 3)
    order = jax.random.permutation(order_key, len(ranges))
    amounts = jnp.asarray(ranges, jnp.float32) * jax.random.uniform(amount_key, (len(ranges),), minval=-1, maxval=1)
    return order, amounts, jax.random.bernoulli(chosen_key, 0.5, (len(ranges),))


def _per_picture(value):
    return jnp.asarray(value, jnp.float32)[..., None, None]


def _split(images):
    return tuple(images[..., i] for i in range(3))


def _luma(planes):
    """Pillow's "L": float32 whole numbers."""
    red, green, blue = (plane.astype(jnp.int32) for plane in planes)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).astype(jnp.float32)


def _mean(luma):
    """int(mean + 0.5) of every picture, exactly for fewer than 2^23 pixels: float32 `[B, 1, 1]`."""
    pixels = luma.shape[-1] * luma.shape[-2]
    total = jnp.sum(luma.astype(jnp.int32), axis=(-2, -1), keepdims=True)
    whole, rest = total // pixels, total % pixels
    return (whole + (2 * rest >= pixels)).astype(jnp.float32)


def _blend(planes, grey, factor):
    """Pillow's `Image.blend(grey, image, factor)`: grey + factor (image - grey) in float32, clipped and truncated."""
    # The factor in two halves of 12 bits: their products with 8-bit numbers are exact, so that only their sum is
    # rounded, to the very float32 product.
    bits = jax.lax.bitcast_convert_type(jnp.asarray(factor, jnp.float32), jnp.int32)
    high = jax.lax.bitcast_convert_type(bits & ~0xFFF, jnp.float32)
    low = factor - high

    def blend(plane):
        difference = plane.astype(jnp.float32) - grey
        value = grey + (high * difference + low * difference)
        return jnp.clip(value, 0, 255).astype(jnp.uint8)

    return tuple(map(blend, planes))


def _shift_hue(planes, shift):
    hue, saturation, value = _rgb_to_hsv(planes)
    below, above = hue + jnp.floor(shift), hue + jnp.ceil(shift)
    hue = jnp.where(below >= 0, below, above).astype(jnp.int32) & 255
    return tuple(plane.astype(jnp.uint8) for plane in _hsv_to_rgb(hue.astype(jnp.float32), saturation, value))


def _rgb_to_hsv(planes):
    """Pillow's 8-bit "HSV": float32 whole numbers in 0..255."""
    red, green, blue = (plane.astype(jnp.float32) for plane in planes)
    largest = jnp.maximum(red, jnp.maximum(green, blue))
    chroma = largest - jnp.minimum(red, jnp.minimum(green, blue))
    saturation, _ = _divide(255 * chroma, jnp.maximum(largest, 1))
    # The hue in sixths of the circle, times the chroma; 255 / 6 = 85 / 2.
    sixths = jnp.where(red == largest, green - blue, 4 * chroma + red - green)
    sixths = jnp.where((green == largest) & (red != largest), 2 * chroma + blue - red, sixths)
    sixths = jnp.where(sixths < 0, sixths + 6 * chroma, sixths)
    hue, rest = _divide(85 * sixths, jnp.maximum(2 * chroma, 1))
    whole = hue.astype(jnp.int32)
    word = sum(jnp.where(whole >> 5 == i, jnp.uint32(bits), 0) for i, bits in enumerate(_HUES_ROUNDED_DOWN))
    rounded_down = (word >> (whole & 31).astype(jnp.uint32)) & 1
    return hue - jnp.where(rest == 0, rounded_down, 0).astype(jnp.float32), saturation, largest


def _hsv_to_rgb(hue, saturation, value):
    """Pillow's "RGB" of its 8-bit "HSV": float32 whole numbers in 0..255, each rounded to nearest (no value ties)."""
    sixth, part = _divide(6 * hue, 255)  # 0..6, and 0..254 of 255
    sixth = jnp.where(sixth == 6, 0, sixth)
    is_odd = (sixth == 1) | (sixth == 3) | (sixth == 5)
    smallest, _ = _divide(value * (255 - saturation) + 127, 255)
    middle, _ = _divide(value * (65025 - saturation * jnp.where(is_odd, part, 255 - part)) + 32512, 65025)

    def plane(largest_in, middle_in):
        def within(sixths):
            return (sixth == sixths[0]) | (sixth == sixths[1])

        return jnp.where(within(largest_in), value, jnp.where(within(middle_in), middle, smallest))

    return plane((0, 5), (1, 4)), plane((1, 2), (0, 3)), plane((3, 4), (2, 5))


def _divide(numerator, denominator):
    """Quotient and remainder of float32 whole numbers in 0 .. 2^24 - 1, exact even where the division is not."""
    quotient = jnp.floor(numerator / denominator)
    rest = numerator - quotient * denominator
    quotient += (rest >= denominator).astype(jnp.float32) - (rest < 0).astype(jnp.float32)
    return quotient, numerator - quotient * denominator

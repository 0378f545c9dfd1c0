"""Random geometry on the host, in TensorFlow: scale, pad, crop and flip a picture and its label; uint8 in, uint8 out.

Only the crop is resampled, never the whole scaled picture. Interpolation is OpenCV's: bilinear with half-pixel centres
for pictures, floor(i / scale) for labels. Resized values lose their fraction, because PaddleSeg casts to uint8 before
its colour distortion, and the cast truncates; padding of 127.5 becomes 127 in the same way.

TensorFlow's fastest way to resize cannot begin between two pixels. But the pixels of a scaled picture lie between those
of the source in a pattern that repeats, at 1.25 times the size after 5 of them, which are 4 of the source. So what is
resized begins and ends with a period, and has one more on either side, whose neighbours it sees.
"""

from collections.abc import Sequence

import tensorflow as tf

PADDING = 127
_LONGEST_PERIOD = 64  # in scaled pixels; at scales in steps of 0.25 up to 2, sides that 4 divides have 8 at most


def scale_steps(min_scale: float, max_scale: float, scale_step: float) -> list[float]:
    """The scales that are equally likely: min_scale, min_scale + scale_step, …, max_scale.

    Raises:
      ValueError: the range is empty or the step does not divide it.
    """
    if not 0 < min_scale <= max_scale:
        raise ValueError(
            f"augment.min_scale={min_scale} and augment.max_scale={max_scale} must be positive and in order"
        )
    if scale_step < 0:
        raise ValueError(f"augment.scale_step={scale_step} is negative")
    if scale_step == 0:
        return []
    count = round((max_scale - min_scale) / scale_step)
    if abs(count * scale_step - (max_scale - min_scale)) > 1e-6:
        raise ValueError(
            f"augment.scale_step={scale_step} does not divide the range from {min_scale} to {max_scale} (0: any scale)"
        )
    return [min_scale + i * (max_scale - min_scale) / max(count, 1) for i in range(count + 1)]


def random_crop(
    image: tf.Tensor,
    label: tf.Tensor,
    seed: tf.Tensor,
    *,
    crop_size: Sequence[int],
    min_scale: float,
    max_scale: float,
    scale_step: float,
    flip: bool,
    ignore_label: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """A randomly scaled, padded, cropped and flipped picture, determined by `seed` alone.

    Args:
      image: uint8 `[H, W, 3]`.
      label: uint8 `[H, W]`.
      seed: two int64, for example (run's seed, position in the run).
      crop_size: (height, width).
      min_scale, max_scale, scale_step: see `scale_steps`; a step of 0 draws any scale in between.
      flip: mirror left to right with probability 0.5.
      ignore_label: what pads labels; pictures are padded with 127.

    Returns:
      uint8 `[crop height, crop width, 3]` and uint8 `[crop height, crop width]`.
    """
    draws = tf.random.stateless_uniform([4], seed=seed, dtype=tf.float64)
    scales = scale_steps(min_scale, max_scale, scale_step)
    if scales:
        scale = tf.gather(tf.constant(scales, tf.float64), tf.cast(draws[0] * len(scales), tf.int32))
    else:
        scale = min_scale + draws[0] * (max_scale - min_scale)
    size = tf.cast(tf.shape(label), tf.float64)
    scaled = tf.maximum(tf.cast(tf.round(size * scale), tf.int32), 1)  # half to even, as Python's round
    room = tf.maximum(scaled - tf.constant(crop_size, tf.int32), 0)
    offset = tf.cast(draws[1:3] * tf.cast(room + 1, tf.float64), tf.int32)
    mirrored = draws[3] < 0.5 if flip else tf.constant(False)
    return resample_crop(image, label, scaled, offset, crop_size, mirrored, ignore_label)


def resample_crop(image, label, scaled, offset, crop_size, mirrored, ignore_label) -> tuple[tf.Tensor, tf.Tensor]:
    """The crop at `offset` of the picture resized to `scaled` and padded at the bottom and right.

    Args:
      image, label: uint8 `[H, W, 3]`, uint8 `[H, W]`.
      scaled, offset: int32 `[2]`, (height, width) of the scaled picture and (y, x) of the crop in it.
      crop_size: (height, width).
      mirrored: bool scalar; whether the crop is mirrored left to right afterwards.
      ignore_label: pads the label.
    """
    size, scaled, offset = tf.shape(label), tf.convert_to_tensor(scaled, tf.int32), tf.cast(offset, tf.int32)
    count = tf.minimum(scaled - offset, crop_size)  # rows and columns of the crop that show the picture
    lengths = tf.range(1, _LONGEST_PERIOD + 1)[:, None]
    repeats = lengths * size % scaled == 0
    cropped = tf.cond(
        tf.reduce_all(tf.reduce_any(repeats, axis=0)),
        lambda: _resample_periods(image, scaled, offset, count, tf.argmax(repeats, output_type=tf.int32) + 1),
        lambda: _resample(image, scaled, offset, count),
    )
    labels = label
    for axis in (0, 1):
        positions = tf.cast(tf.range(offset[axis], offset[axis] + count[axis]), tf.float64)
        nearest = tf.cast(positions * (1.0 / (scaled[axis] / size[axis])), tf.int32)
        labels = tf.gather(labels, tf.minimum(nearest, size[axis] - 1), axis=axis)

    borders = tf.stack([tf.zeros_like(count), crop_size - count], axis=1)
    cropped = tf.pad(tf.cast(cropped, tf.uint8), tf.pad(borders, [[0, 1], [0, 0]]), constant_values=PADDING)
    labels = tf.pad(labels, borders, constant_values=ignore_label)
    cropped, labels = tf.cond(
        mirrored, lambda: (tf.reverse(cropped, [1]), tf.reverse(labels, [1])), lambda: (cropped, labels)
    )
    cropped.set_shape([*crop_size, 3])
    labels.set_shape(list(crop_size))
    return cropped, labels


def _resample_periods(image, scaled, offset, count, period) -> tf.Tensor:
    """float32 `[*count, 3]` at `offset` of the scaled picture, whose pattern has `period`; all int32 `[2]`."""
    source_period = period * tf.shape(image)[:2] // scaled
    first = tf.maximum(offset // period - 1, 0)
    periods = tf.minimum((offset + count - 1) // period + 2, scaled // period) - first
    window = _slice(image, first * source_period, periods * source_period)
    resized = tf.raw_ops.ResizeBilinear(images=window[None], size=periods * period, half_pixel_centers=True)[0]
    return _slice(resized, offset - first * period, count)


def _resample(image, scaled, offset, count) -> tf.Tensor:
    """What `_resample_periods` gives, where there is no short period: several times slower."""
    size = tf.shape(image)[:2]
    scale, start, end = scaled / size, tf.cast(offset, tf.float64), tf.cast(offset + count, tf.float64)
    first = tf.maximum(tf.cast(start / scale, tf.int32) - 1, 0)
    last = tf.minimum(tf.cast(end / scale, tf.int32) + 1, size - 1)
    return tf.raw_ops.ScaleAndTranslate(
        images=_slice(image, first, last + 1 - first)[None],
        size=count,
        scale=tf.cast(scale, tf.float32),
        translation=tf.cast(tf.cast(first, tf.float64) * scale - start, tf.float32),
        kernel_type="triangle",
        antialias=False,
    )[0]


def _slice(image: tf.Tensor, first: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    return image[first[0] : first[0] + size[0], first[1] : first[1] + size[1]]

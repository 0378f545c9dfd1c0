"""Random geometry on the host, in TensorFlow: scale, pad, crop and flip a picture and its label; uint8 in, uint8 out.

Only the crop is resampled, never the whole scaled picture. Interpolation is OpenCV's: bilinear with half-pixel centres
for pictures, floor(i / scale) for labels. Resized values lose their fraction, because PaddleSeg casts to uint8 before
its colour distortion, and the cast truncates; padding of 127.5 becomes 127 in the same way.
"""

from collections.abc import Sequence

import tensorflow as tf

PADDING = 127


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
    axes = []
    for axis in (0, 1):
        positions = tf.range(crop_size[axis]) + offset[axis]
        if axis == 1:
            positions = tf.cond(
                mirrored, lambda positions=positions: positions[::-1], lambda positions=positions: positions
            )
        axes.append(_taps(positions, tf.shape(label)[axis], scaled[axis]))
    (top, bottom, down, nearest_y, inside_y), (left, right, across, nearest_x, inside_x) = axes

    # Along the width first, as OpenCV does; only the columns and rows of the crop are ever touched.
    first = tf.reduce_min(top)
    rows = tf.cast(image[first : tf.reduce_max(bottom) + 1], tf.float32)
    rows = _blend(tf.gather(rows, left, axis=1), tf.gather(rows, right, axis=1), across[:, None])
    values = _blend(tf.gather(rows, top - first), tf.gather(rows, bottom - first), down[:, None, None])
    inside = inside_y[:, None] & inside_x[None, :]
    cropped = tf.where(inside[:, :, None], tf.cast(values, tf.uint8), tf.constant(PADDING, tf.uint8))
    labels = tf.gather(tf.gather(label, nearest_y), nearest_x, axis=1)
    labels = tf.where(inside, labels, tf.constant(ignore_label, label.dtype))
    cropped.set_shape([*crop_size, 3])
    labels.set_shape(list(crop_size))
    return cropped, labels


def _taps(positions: tf.Tensor, side: tf.Tensor, scaled: tf.Tensor):
    """For positions along a side of the scaled picture: two source positions, a weight, the nearest, and validity."""
    ratio = 1.0 / (tf.cast(scaled, tf.float64) / tf.cast(side, tf.float64))
    centre = tf.cast((tf.cast(positions, tf.float64) + 0.5) * ratio - 0.5, tf.float32)
    low = tf.floor(centre)
    first = tf.cast(low, tf.int32)
    last = side - 1
    nearest = tf.minimum(tf.cast(tf.floor(tf.cast(positions, tf.float64) * ratio), tf.int32), last)
    low_tap, high_tap = tf.clip_by_value(first, 0, last), tf.clip_by_value(first + 1, 0, last)
    return low_tap, high_tap, centre - low, nearest, positions < scaled


def _blend(a: tf.Tensor, b: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    return a * (1.0 - weight) + b * weight

"""Random geometry on the host, in TensorFlow: scale, turn, pad, crop and flip a picture and its label, all in uint8.

Only the crop is resampled, never the whole scaled picture. Interpolation is OpenCV's: bilinear with half-pixel centres
for pictures, floor(i / scale) for labels. Resized values lose their fraction, because PaddleSeg casts to uint8 before
its colour distortion, and the cast truncates; padding of 127.5 becomes 127 in the same way.

TensorFlow's fastest way to resize cannot begin between two pixels. But the pixels of a scaled picture lie between those
of the source in a pattern that repeats, at 1.25 times the size after 5 of them, which are 4 of the source. So what is
resized begins and ends with a period, and has one more on either side, whose neighbours it sees.

A crop that is turned is seen through a turned window, so that its corners show what is there.
"""

import dataclasses
import math
from collections.abc import Callable

import tensorflow as tf

PADDING = 127
_REDRAWN = 10  # how often a crop with too much of one class is drawn again, as in MMSegmentation
_LONGEST_PERIOD = 64  # in scaled pixels; at scales in steps of 0.25 up to 2, sides that 4 divides have 8 at most


@dataclasses.dataclass(frozen=True)
class Crop:
    """How training cuts pictures.

    Attributes:
        size: (height, width).
        min_scale, max_scale, scale_step: see `scales`; a step of 0 draws any scale in between.
        flip: mirror left to right with probability 0.5.
        ignore_label: what pads labels; pictures are padded with 127.
        max_class_share: a crop is drawn again, elsewhere in the scaled picture and at most ten times, where a class has
            this share of its pixels that are not ignored, or more; 1: whatever it shows.
        rotation: it is turned about its centre by an angle that is uniform in ± so many degrees.
        vertical_flip: the probability with which it is turned upside down.

    Raises:
        ValueError: the range of scales is empty or the step does not divide it, or a value is outside its range.
    """

    size: tuple[int, int]
    min_scale: float
    max_scale: float
    scale_step: float
    flip: bool
    ignore_label: int
    max_class_share: float = 1.0
    rotation: float = 0.0
    vertical_flip: float = 0.0

    def __post_init__(self):
        for key, most in (("max_class_share", 1), ("rotation", 180), ("vertical_flip", 1)):
            if not 0 <= (value := getattr(self, key)) <= most:
                raise ValueError(f"augment.{key}={value}: give a number from 0 to {most}")
        if not 0 < self.min_scale <= self.max_scale:
            raise ValueError(
                f"augment.min_scale={self.min_scale} and augment.max_scale={self.max_scale} must be positive and in "
                "order"
            )
        if self.scale_step < 0:
            raise ValueError(f"augment.scale_step={self.scale_step} is negative")
        spread = self.max_scale - self.min_scale
        if self.scale_step and abs(round(spread / self.scale_step) * self.scale_step - spread) > 1e-6:
            raise ValueError(
                f"augment.scale_step={self.scale_step} does not divide the range from {self.min_scale} to "
                f"{self.max_scale} (0: any scale)"
            )

    @property
    def scales(self) -> list[float]:
        """Those that are equally likely: min_scale, min_scale + scale_step, …, max_scale; [] for any in between."""
        if not self.scale_step:
            return []
        spread = self.max_scale - self.min_scale
        count = round(spread / self.scale_step)
        return [self.min_scale + i * spread / max(count, 1) for i in range(count + 1)]


def crop_of(config) -> Crop:
    """The crops of a configuration: its `crop_size`, `augment` and `ignore_label`; raises as `Crop`."""
    ranges = config.augment
    scales = (ranges.min_scale, ranges.max_scale, ranges.scale_step)
    more = (ranges.max_class_share, ranges.rotation, ranges.vertical_flip)
    return Crop(tuple(config.crop_size), *scales, ranges.flip, config.ignore_label, *more)


def random_crop(image: tf.Tensor, label: tf.Tensor, seed: tf.Tensor, crop: Crop) -> tuple[tf.Tensor, tf.Tensor]:
    """A randomly scaled, turned, padded, cropped and flipped picture, determined by `seed` alone.

    Args:
        image: uint8 `[H, W, 3]`.
        label: uint8 `[H, W]`.
        seed: two int64, for example (run's seed, position in the run).
        crop: how it is cut.

    Returns:
        uint8 `[*crop.size, 3]` and uint8 `[*crop.size]`.
    """
    draws = tf.random.stateless_uniform([4], seed=seed, dtype=tf.float64)
    if scales := crop.scales:
        scale = tf.gather(tf.constant(scales, tf.float64), tf.cast(draws[0] * len(scales), tf.int32))
    else:
        scale = crop.min_scale + draws[0] * (crop.max_scale - crop.min_scale)
    size = tf.cast(tf.shape(label), tf.float64)
    scaled = tf.maximum(tf.cast(tf.round(size * scale), tf.int32), 1)  # half to even, as Python's round
    room = tf.maximum(scaled - tf.constant(crop.size, tf.int32), 0)
    offset = tf.cast(draws[1:3] * tf.cast(room + 1, tf.float64), tf.int32)
    mirrored = draws[3] < 0.5 if crop.flip else tf.constant(False)
    # Other draws have seeds of their own, so that these four are the same with and without them.
    angle = upside_down = None
    if crop.rotation or crop.vertical_flip:
        turns = tf.random.stateless_uniform([2], tf.random.experimental.stateless_fold_in(seed, 1), dtype=tf.float64)
        angle = (2 * turns[0] - 1) * math.radians(crop.rotation) if crop.rotation else None
        upside_down = turns[1] < crop.vertical_flip
    if crop.max_class_share < 1:
        again = tf.random.experimental.stateless_fold_in(seed, 2)
        places = tf.random.stateless_uniform([_REDRAWN, 2], again, dtype=tf.float64)
        others = tf.cast(places * tf.cast(room + 1, tf.float64), tf.int32)
        offset = _first_mixed(
            tf.concat([offset[None], others], axis=0),
            lambda offset: _crop_label(label, scaled, offset, crop.size, crop.ignore_label, angle),
            crop,
        )
    return resample_crop(image, label, scaled, offset, crop.size, mirrored, crop.ignore_label, angle, upside_down)


def _first_mixed(offsets: tf.Tensor, label_at: Callable[[tf.Tensor], tf.Tensor], crop: Crop) -> tf.Tensor:
    """The first of the offsets, `[N, 2]`, where no class has `max_class_share` of the label, or the last."""

    def is_mixed(index):
        values = tf.cast(tf.reshape(label_at(offsets[index]), [-1]), tf.int32)
        counts = tf.math.bincount(values, minlength=256, maxlength=256)
        counts = tf.cast(counts * (1 - tf.one_hot(crop.ignore_label, 256, dtype=tf.int32)), tf.float64)
        return tf.reduce_max(counts) < crop.max_class_share * tf.reduce_sum(counts)

    (chosen,) = tf.while_loop(
        lambda index: tf.logical_and(index < _REDRAWN, tf.logical_not(is_mixed(index))),
        lambda index: [index + 1],
        [tf.constant(0)],
    )
    return offsets[chosen]


def resample_crop(
    image, label, scaled, offset, crop_size, mirrored, ignore_label, angle=None, upside_down=None
) -> tuple[tf.Tensor, tf.Tensor]:
    """The crop at `offset` of the picture resized to `scaled` and padded at the bottom and right.

    Args:
        image, label: uint8 `[H, W, 3]`, uint8 `[H, W]`.
        scaled, offset: int32 `[2]`, (height, width) of the scaled picture and (y, x) of the crop in it.
        crop_size: (height, width).
        mirrored: bool scalar; whether the crop is mirrored left to right afterwards.
        ignore_label: pads the label.
        angle: in radians, float64, by which the crop is turned clockwise; None: not at all.
        upside_down: bool scalar, or None; whether it is mirrored top to bottom afterwards.
    """
    scaled, offset = tf.convert_to_tensor(scaled, tf.int32), tf.cast(offset, tf.int32)
    if angle is None:
        cropped = _crop_image(image, scaled, offset, crop_size)
    else:
        cropped = _turn(image, scaled, offset, crop_size, angle, "BILINEAR", PADDING)
    labels = _crop_label(label, scaled, offset, crop_size, ignore_label, angle)
    cropped, labels = tf.cond(
        mirrored, lambda: (tf.reverse(cropped, [1]), tf.reverse(labels, [1])), lambda: (cropped, labels)
    )
    if upside_down is not None:
        cropped, labels = tf.cond(
            upside_down, lambda: (tf.reverse(cropped, [0]), tf.reverse(labels, [0])), lambda: (cropped, labels)
        )
    cropped.set_shape([*crop_size, 3])
    labels.set_shape(list(crop_size))
    return cropped, labels


def _crop_image(image, scaled, offset, crop_size) -> tf.Tensor:
    size = tf.shape(image)[:2]
    count = tf.minimum(scaled - offset, crop_size)  # rows and columns of the crop that show the picture
    lengths = tf.range(1, _LONGEST_PERIOD + 1)[:, None]
    repeats = lengths * size % scaled == 0
    cropped = tf.cond(
        tf.reduce_all(tf.reduce_any(repeats, axis=0)),
        lambda: _resample_periods(image, scaled, offset, count, tf.argmax(repeats, output_type=tf.int32) + 1),
        lambda: _resample(image, scaled, offset, count),
    )
    borders = tf.stack([tf.zeros_like(count), crop_size - count], axis=1)
    return tf.pad(tf.cast(cropped, tf.uint8), tf.pad(borders, [[0, 1], [0, 0]]), constant_values=PADDING)


def _crop_label(label, scaled, offset, crop_size, ignore_label, angle=None) -> tf.Tensor:
    if angle is not None:
        return _turn(label[..., None], scaled, offset, crop_size, angle, "NEAREST", ignore_label)[..., 0]
    size, count, labels = tf.shape(label), tf.minimum(scaled - offset, crop_size), label
    for axis in (0, 1):
        positions = tf.cast(tf.range(offset[axis], offset[axis] + count[axis]), tf.float64)
        nearest = tf.cast(positions * (1.0 / (scaled[axis] / size[axis])), tf.int32)
        labels = tf.gather(labels, tf.minimum(nearest, size[axis] - 1), axis=axis)

    borders = tf.stack([tf.zeros_like(count), crop_size - count], axis=1)
    return tf.pad(labels, borders, constant_values=ignore_label)


def _turn(picture, scaled, offset, crop_size, angle, interpolation, fill) -> tf.Tensor:
    """uint8 `[*crop_size, C]`: the crop of a picture, `[H, W, C]`, turned about the centre of what it shows of it."""
    scale = scaled / tf.shape(picture)[:2]
    middle = tf.cast(tf.minimum(scaled - offset, crop_size), tf.float64) / 2
    along, across = tf.cos(angle), tf.sin(angle)
    back = tf.reshape(
        tf.stack([along, -across, across, along]), [2, 2]
    )  # of (y, x), from the crop to the scaled picture
    shift = tf.linalg.matvec(back, 0.5 - middle) + middle + tf.cast(offset, tf.float64)  # of the first pixel's centre
    (yy, yx), (xy, xx) = (tf.unstack(row) for row in tf.unstack(back / scale[:, None]))
    y, x = tf.unstack(shift / scale - 0.5)
    zero = tf.zeros([], tf.float64)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=picture[None],
        transforms=tf.cast(tf.stack([xx, xy, x, yx, yy, y, zero, zero])[None], tf.float32),
        output_shape=tf.constant(crop_size, tf.int32),
        fill_value=float(fill),
        interpolation=interpolation,
        fill_mode="CONSTANT",
    )[0]


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

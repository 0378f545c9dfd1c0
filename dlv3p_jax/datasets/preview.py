"""A picture of a data set: some of its pictures with their labels laid over, and what augmentation makes of them."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw

from dlv3p_jax.data import augment, colors, fonts, viz
from dlv3p_jax.data.labels import read_label
from dlv3p_jax.data.pictures import read_rgb
from dlv3p_jax.data.records import Dataset

_COLUMNS = 5
_CELL_WIDTH = 320
_MARGIN = 10
_LINE = 24
_ALPHA = 0.45
_INK, _PAPER, _OUTLINE = (20, 20, 20), (246, 246, 246), (150, 150, 150)


def preview_sheet(dataset: Dataset, split: str, config, num_pictures: int = 10) -> Image.Image:
    """Pictures spread over a split: each with its label, beneath it augmented, and augmented with its label.

    Args:
        dataset: a prepared data set.
        split: of its splits, one with labels.
        config: its `crop_size`, `augment` and `seed` are used.
        num_pictures: how many, if the split has as many.

    Raises:
        DatasetError: the split has no labels, or cannot be read.
    """
    dataset.require_labels(split)
    source, total = dataset.source(split), dataset.num_pictures(split)
    indices = np.unique(np.linspace(0, total - 1, num_pictures).round().astype(int)).tolist()
    ids, images, labels = [], [], []
    for index in indices:
        record = source[index]
        ids.append(record["id"].decode())
        images.append(read_rgb(record["image"]))
        labels.append(read_label(record["label"]))
    crops, crop_labels = augment_pictures(images, labels, indices, config, dataset.ignore_label)

    def laid_over(image, label):
        label = np.where(label == dataset.ignore_label, -1, label.astype(np.int32))
        return viz.overlay(image, label, dataset.palette, _ALPHA)

    cells = [
        (laid_over(image, label), crop, laid_over(crop, crop_label))
        for image, label, crop, crop_label in zip(images, labels, crops, crop_labels, strict=True)
    ]
    height, width = config.crop_size
    heading = (
        f"{dataset.name}, {split}, {len(indices)} of {total} pictures with their labels; beneath each, augmented to "
        f"{width}x{height} (width x height), without and with its label; ignored pixels have no colour"
    )
    return _draw(heading, ids, cells, dataset.class_names, dataset.palette)


def augment_pictures(
    images: Sequence[np.ndarray], labels: Sequence[np.ndarray], indices: Sequence[int], config, ignore_label: int
) -> tuple[np.ndarray, np.ndarray]:
    """What training makes of pictures, before normalisation: random scale, padding, crop, flip and colours.

    Returns:
        uint8 `[B, *crop_size, 3]` and uint8 `[B, *crop_size]`.
    """
    ranges = config.augment
    crop = dataclasses.replace(augment.crop_of(config), ignore_label=ignore_label)
    crops = [
        augment.random_crop(tf.constant(image), tf.constant(label), tf.constant([config.seed, index], tf.int64), crop)
        for image, label, index in zip(images, labels, indices, strict=True)
    ]
    cut_images, cut_labels = (np.stack([part.numpy() for part in parts]) for parts in zip(*crops, strict=True))
    strengths = (ranges.brightness, ranges.contrast, ranges.saturation, ranges.hue)
    return np.asarray(colors.distort(jnp.asarray(cut_images), jax.random.key(config.seed), *strengths)), cut_labels


def _draw(
    heading: str,
    ids: Sequence[str],
    cells: Sequence[tuple[np.ndarray, ...]],
    class_names: Sequence[str],
    palette: viz.Palette,
) -> Image.Image:
    """The cells of each picture in a column of their own, `_COLUMNS` side by side, with names and a legend."""
    font, class_names = fonts.font(12), fonts.drawable_names(class_names)
    thumbnails = [
        [
            Image.fromarray(cell).resize((_CELL_WIDTH, max(round(_CELL_WIDTH * len(cell) / len(cell[0])), 1)))
            for cell in column
        ]
        for column in cells
    ]
    bands = [thumbnails[start : start + _COLUMNS] for start in range(0, len(thumbnails), _COLUMNS)]
    heights = [[max(column[row].height for column in band) + _MARGIN for row in range(len(band[0]))] for band in bands]
    width = _MARGIN + _COLUMNS * (_CELL_WIDTH + _MARGIN)
    entry_width = 26 + max(int(np.ceil(font.getlength(name))) for name in class_names) + 16
    per_line = max((width - _MARGIN) // entry_width, 1)
    legend_height = -(-len(class_names) // per_line) * _LINE
    height = 2 * _MARGIN + _LINE + sum(_LINE + sum(rows) for rows in heights) + legend_height

    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), fonts.drawable(heading), _INK, font)
    top = _MARGIN + _LINE
    for number, (band, rows) in enumerate(zip(bands, heights, strict=True)):
        for column, cell_column in enumerate(band):
            left, y = _MARGIN + column * (_CELL_WIDTH + _MARGIN), top + _LINE
            draw.text(
                (left, top + _LINE / 2), fonts.drawable(ids[number * _COLUMNS + column][-40:]), _INK, font, anchor="lm"
            )
            for cell, row_height in zip(cell_column, rows, strict=True):
                sheet.paste(cell, (left, y))
                draw.rectangle((left - 1, y - 1, left + cell.width, y + cell.height), outline=_OUTLINE)
                y += row_height
        top += _LINE + sum(rows)
    for i, (name, color) in enumerate(zip(class_names, palette, strict=True)):
        left, y = _MARGIN + i % per_line * entry_width, top + i // per_line * _LINE + _LINE // 2
        draw.rectangle((left, y - 9, left + 18, y + 9), fill=tuple(color), outline=_OUTLINE)
        draw.text((left + 26, y), name, _INK, font, anchor="lm")
    return sheet

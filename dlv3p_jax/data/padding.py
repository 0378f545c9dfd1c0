"""How far pictures are filled up: to what size in evaluation, and how much of what is trained on is padding."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import logging

if TYPE_CHECKING:  # it imports TensorFlow, which prediction does without
    from dlv3p_jax.data import augment

_MUCH = 0.5  # VOC's pictures in crops of 512x512 have a quarter


def padded_size(size: Sequence[int], eval_size: Sequence[int] | None) -> tuple[int, int]:
    """What a picture of (height, width) is padded to; larger ones, and all without `eval_size`, keep their own size."""
    height, width = size if eval_size is None else map(max, size, eval_size)
    return height, width


def padding_share(sizes: Sequence[tuple[int, int]], crop: "augment.Crop") -> float:
    """The mean share of a training crop that is padding, 0..1; pictures have these (height, width)."""
    different, counts = np.unique(np.array(sizes), axis=0, return_counts=True)
    scales = crop.scales or np.linspace(crop.min_scale, crop.max_scale, 101)
    scaled = np.maximum(np.round(different[:, None] * np.asarray(scales)[:, None]), 1)  # [sizes, scales, 2]
    filled = np.prod(np.minimum(scaled, crop.size) / np.array(crop.size), axis=-1).mean(axis=1)
    return 1 - float(np.average(filled, weights=counts))


def warn_of_padding(sizes: Sequence[tuple[int, int]], crop: "augment.Crop") -> None:
    """Logs a line where more than half of what is trained on is padding."""
    share = padding_share(sizes, crop)
    if share <= _MUCH:
        return
    height, width = np.median(np.array(sizes), axis=0)
    fitting = tuple(int(-(-side // 32) * 32) for side in (height, width))
    logging.warning(
        "%.0f %% of what is trained on is padding: the middle picture is %dx%d (height x width) and "
        'config.crop_size=%s. Take --config.crop_size="%s", or larger scales (config.augment.min_scale, .max_scale)',
        *(100 * share, height, width, crop.size, fitting),
    )

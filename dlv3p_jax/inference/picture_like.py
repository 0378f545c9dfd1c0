"""Pictures as users of Python give them: paths, PIL images and arrays."""

import os

import numpy as np
from absl import logging
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from dlv3p_jax.data import decoding, ranges
from dlv3p_jax.data.pictures import read_image, to_eight_bits

PictureLike = np.ndarray | Image.Image | str | os.PathLike[str]


def as_array(image: PictureLike, picture_range: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """A picture as uint8 `[H, W, 3]`, RGB, turned as its EXIF orientation says.

    Args:
        image: a path, a PIL image or an array.
        picture_range: the values that become 0 and 255 in files and PIL images of more than 8 bits.

    Raises:
        ValueError: it is no picture, or cannot be read; the message names it.
    """
    if isinstance(image, (str, os.PathLike)):
        stored = read_image(image, picture_range)
        _warn_of_dark(str(image), stored.values, stored.taken_for)
        return stored.pixels()
    if isinstance(image, Image.Image):
        name = getattr(image, "filename", "") or "the PIL image"
        with decoding.naming(name):  # it is decoded only here
            if picture_range is not None and isinstance(image, ImageFile.ImageFile) and image.mode in ("RGB", "RGBA"):
                _refuse_lost_bits(name, image)
            upright = ImageOps.exif_transpose(image)
            if not upright.mode.startswith(("F", "I")):
                return np.asarray(upright.convert("RGB"))
            values = np.asarray(upright)
        if picture_range is None and not upright.mode.startswith("I;16"):
            raise ValueError(f"{name}: a PIL image of mode {image.mode} has no known range: convert it to 8 bits first")
        if picture_range is None:
            _warn_of_dark(name, (float(values.min()), float(values.max())), (0, 65535))
        grey = to_eight_bits(name, values, picture_range or (0, 65535))
        return np.stack([grey] * 3, axis=-1)
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(
            f"an array of {array.dtype} {list(array.shape)} is no picture: give uint8 [height, width, 3], RGB, 0..255"
        )
    return array


def _refuse_lost_bits(name: str, image: ImageFile.ImageFile) -> None:
    """Raises DatasetError where the file has 16 bits a colour, of which a PIL image keeps 8."""
    if any("16" in str(tile.args) for tile in image.tile):
        raise decoding.DatasetError(f"{name}: a PIL image keeps 8 of its 16 bits a colour: give its path")


def _warn_of_dark(name: str, values: ranges.Range | None, taken_for: ranges.Range | None) -> None:
    if values is None or taken_for is None:
        return
    seen = ranges.Seen()
    seen.add(name, values, taken_for)
    if complaint := seen.complaint():
        logging.log_first_n(logging.WARNING, "%s", 1, complaint)

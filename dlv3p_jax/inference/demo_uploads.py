"""The pictures that dlv3p_jax.demo takes, and its example."""

import base64
import dataclasses
import io
import os
import pathlib

import numpy as np
from PIL import Image, UnidentifiedImageError

from dlv3p_jax.data import opening
from dlv3p_jax.data.pictures import encode, read_image
from dlv3p_jax.datasets.toy_streets import scenes
from dlv3p_jax.evaluation import picture_scores
from dlv3p_jax.weights import checkpoint_reading

# What browsers save, and cameras and editors write; others of Pillow's start programs, as EPS does Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


@dataclasses.dataclass(frozen=True)
class Upload:
    """A picture to predict.

    Attributes:
        name: what its file was called.
        image: uint8 `[H, W, 3]`.
        url: the same pixels as a data URL.
    """

    name: str
    image: np.ndarray
    url: str


def read_picture(name: str, data: bytes, max_pixels: int, picture_range: tuple[float, float] | None = None) -> Upload:
    """The picture in the bytes of a file, upright and without its alpha; its range is that of `pictures.read_image`.

    Raises:
        ValueError: it is none, it is damaged, or it has more than `max_pixels` pixels, which are not decoded then.
    """
    try:
        with opening.of_any_size(), Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
            opening.count_pictures(opened)  # which leaves it at the page that is read below
            width, height = opened.size
        if fits := width * height <= max_pixels:
            data = read_image(data, picture_range).data
    except UnidentifiedImageError:
        raise ValueError(f"{name} is no picture of these formats: {', '.join(_FORMATS)}") from None
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        raise ValueError(f"{name} cannot be read: {str(error).removeprefix('picture: ')}") from error
    if not fits:
        raise ValueError(
            f"{name} is {width} x {height}: {width * height:,} pixels, and {max_pixels:,} are the most here "
            "(--max_pixels). Make it smaller, and try again."
        )
    return Upload(name, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), data_url(data))


def data_url(data: bytes) -> str:
    """A PNG or JPEG as an address that holds it."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def find_example(checkpoint: str | os.PathLike[str]) -> tuple[str, bytes]:
    """A name and a file: a picture that an evaluation of the model's run kept, or else a street that a program drew."""
    try:
        config = checkpoint_reading.find_config(checkpoint_reading.find(checkpoint))
        kept = sorted((config.parent / "eval").glob("*.npz")) if config is not None else []
        pictures = picture_scores.read(kept[-1]) if kept else None
    except (OSError, ValueError):  # no workdir, or a damaged file
        pictures = None
    if pictures is not None and pictures.shown:
        shown = next((shown for shown in pictures.shown if shown.kind == "typical"), pictures.shown[0])
        return f"{pathlib.PurePath(pictures.ids[shown.index]).name}.jpg", shown.image
    return "drawn_street.png", encode(scenes.draw_scene("val", 0)[0])

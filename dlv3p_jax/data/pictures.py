"""Reading pictures of every kind that people have, into the kind that records hold.

Nothing here imports TensorFlow: worker processes run it.
"""

import dataclasses
import io
import os
from typing import Any

import numpy as np
from PIL import Image

from dlv3p_jax.data import opening, ranges, stored
from dlv3p_jax.data.decoding import Opened, name_of, naming, open_picture
from dlv3p_jax.data.errors import DatasetError


@dataclasses.dataclass(frozen=True)
class Stored:
    """A picture file as records hold it.

    Attributes:
        data: a file of 8-bit RGB or grey, JPEG or PNG.
        size: (height, width) as it is shown.
        kind: what the file was if it is not the same any more, such as "TIFF with 4 bands of 16 bits"; "" if it is.
        became: what was made of it then, such as "RGB, alpha dropped".
        orientation: what the file's EXIF says, 1 to 8.
        values: the smallest and the largest value of a picture of more than 8 bits.
        taken_for: the values of such a picture that became 0 and 255, where the file alone says so.
    """

    data: bytes
    size: tuple[int, int]
    kind: str = ""
    became: str = ""
    orientation: int = 1
    values: ranges.Range | None = None
    taken_for: ranges.Range | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done, in words: empty, or one sentence."""
        return (f"{self.kind} stored as {self.became}",) if self.kind else ()

    def pixels(self) -> np.ndarray:
        """RGB, uint8 [H, W, 3]."""
        with opening.of_any_size():
            return np.asarray(Image.open(io.BytesIO(self.data)).convert("RGB"))


def read_image(source: str | os.PathLike | bytes, picture_range: ranges.Range | None = None) -> Stored:
    """A picture file, given by its path or its bytes, as bytes of 8-bit RGB or grey JPEG or PNG.

    Such files come back byte for byte. Everything else (CMYK, palette, alpha, 16 bits, 1 bit, other formats, pictures
    that their EXIF orientation turns) becomes an RGB PNG, shown as every viewer shows it, without its alpha.

    Args:
        source: the file.
        picture_range: the values that become 0 and 255 in pictures of more than 8 bits; None: all that the file has
            room for.

    Raises:
        DatasetError: the file cannot be read or decoded to its end, or has no 8-bit RGB reading.
    """
    with naming(name_of(source)):  # tags and pixels of other kinds than they should be fail late
        return _stored(open_picture(source), picture_range)


def _stored(opened: Opened, picture_range: ranges.Range | None) -> Stored:
    """What `read_image` gives of an opened picture."""
    picture = opened.picture
    kind, dropped = _unusual(opened)
    if kind is None:
        return Stored(opened.data, (picture.height, picture.width))
    wide, values, taken_for = stored.wide_values(opened, exactly=picture_range is not None), None, None
    if wide is None:
        pixels, became = np.asarray(picture.convert("RGB")), "RGB"
    else:
        taken_for = stored.full_range(opened) if picture_range is None else None
        pixels, became = to_eight_bits(opened.name, wide, picture_range or taken_for), "8-bit RGB"
        finite = wide[np.isfinite(wide)]
        values = (float(finite.min()), float(finite.max())) if finite.size else None
        dropped += f", {ranges.show(picture_range)} as 0..255" if picture_range else ""
    image = Image.fromarray(np.ascontiguousarray(opened.upright(pixels))).convert("RGB")
    size = (image.height, image.width)
    return Stored(encode_png(image), size, kind, became + dropped, opened.orientation, values, taken_for)


def read_rgb(source: str | os.PathLike | bytes, picture_range: ranges.Range | None = None) -> np.ndarray:
    """A picture file as uint8 [H, W, 3], shown as every viewer shows it; arguments and errors as of `read_image`."""
    return read_image(source, picture_range).pixels()


def to_eight_bits(name: str, values: np.ndarray, picture_range: ranges.Range | None) -> np.ndarray:
    """Values of more than 8 bits as uint8, by a range; raises DatasetError where it is not known."""
    if picture_range is None:
        raise DatasetError(
            f"{name}: values of the type {values.dtype} have no known range; say which become black and white with "
            "--picture_range=LOW,HIGH, or save it with 8 or 16 bits"
        )
    return ranges.stretch(values, picture_range)


def _unusual(opened: Opened) -> tuple[str | None, str]:
    """Names what keeps a picture from being stored as it came, and what is dropped then.

    (None, "") for plain 8-bit RGB or grey JPEG and PNG.
    """
    picture = opened.picture
    bits, bands = stored.bits_of(opened), stored.num_bands(opened)
    if picture.has_transparency_data:
        dropped = ", alpha dropped"
    else:
        dropped = " of the first three" if bands > 3 and picture.mode != "CMYK" else ""
    if opened.orientation != 1:
        return f"{picture.format} with an EXIF orientation", dropped
    if picture.format in ("JPEG", "MPO"):
        return (None, "") if picture.mode in ("RGB", "L") else (f"{picture.mode} JPEG", dropped)
    if picture.format == "PNG":
        if picture.has_transparency_data:
            return f"{'' if bits == 8 else f'{bits}-bit '}PNG with alpha", dropped
        if picture.mode == "P":
            return "palette PNG", dropped
        return (None, "") if bits == 8 else (f"{bits}-bit PNG", dropped)
    if bits > 8 or bands > 3 and picture.mode != "CMYK":
        return f"{picture.format} with {bands} band{'s' if bands > 1 else ''} of {bits} bits", dropped
    return f"{picture.format} file", dropped


def encode(picture: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """The file of a picture, with Pillow's options for files of its kind."""
    buffer = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(buffer, kind, **options)
    return buffer.getvalue()


def encode_png(picture: Image.Image | np.ndarray) -> bytes:
    """A PNG as data sets are prepared with: not the smallest, but soon made."""
    return encode(picture, compress_level=3)

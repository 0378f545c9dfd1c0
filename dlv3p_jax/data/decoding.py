"""Opening picture files with Pillow: whatever is wrong with one ends in a `DatasetError` that names it."""

import contextlib
import dataclasses
import functools
import io
import os
from collections.abc import Iterator

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from dlv3p_jax.data import opening
from dlv3p_jax.data.errors import DatasetError

_PNG_END = b"\0\0\0\0IEND\xae\x42\x60\x82"
_ORIENTATION = 0x0112  # the EXIF tag
QUARTER_TURNS = (5, 6, 7, 8)  # its values that exchange width and height


@dataclasses.dataclass(frozen=True)
class Opened:
    """A picture file, decoded to its end.

    Attributes:
        name: what messages call it.
        data: its bytes.
        picture: as Pillow has it, which has turned a TIFF already.
        tiles: how Pillow decodes it: (decoder, extents, offset, arguments) of each part.
        orientation: what its EXIF says, 1 (upright) to 8.
    """

    name: str
    data: bytes
    picture: Image.Image
    tiles: tuple
    orientation: int

    @functools.cached_property
    def raw_mode(self) -> str:
        """Pillow's name for the pixels as they stand in the file, such as "L;2" or "RGB;16B"; "" where it has none."""
        arguments = self.tiles[0][3] if self.tiles else ""
        first = arguments if isinstance(arguments, str) else (arguments or ("",))[0]
        return first if isinstance(first, str) else ""

    def upright(self, values: np.ndarray) -> np.ndarray:
        """An array of the picture's pixels, [H, W] or [H, W, C], turned as its EXIF says, if Pillow has not."""
        return values if isinstance(self.picture, TiffImagePlugin.TiffImageFile) else turn(values, self.orientation)


def turn(values: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [H, W] or [H, W, C] as they are shown where EXIF gives this orientation."""
    if orientation in QUARTER_TURNS:
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values


def name_of(source: str | os.PathLike | bytes, of_bytes: str = "picture") -> str:
    return of_bytes if isinstance(source, bytes) else str(source)


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Makes a DatasetError of whatever Pillow raises; its plugins raise nearly anything on a damaged file."""
    try:
        yield
    except DatasetError:
        raise
    except UnidentifiedImageError as error:
        raise DatasetError(f"{name}: not a picture that Pillow can read") from error
    except MemoryError as error:
        raise DatasetError(f"{name}: needs more memory than there is, or is damaged") from error
    except Exception as error:
        raise DatasetError(f"{name}: damaged or truncated ({str(error) or type(error).__name__})") from error


def open_picture(source: str | os.PathLike | bytes, of_bytes: str = "picture") -> Opened:
    """A picture file, given by its path or its bytes, decoded to the end.

    Raises:
        DatasetError: it cannot be read, is no picture, is damaged, or holds more than one.
    """
    name = name_of(source, of_bytes)
    data = source if isinstance(source, bytes) else opening.read_bytes(source)
    if not data:
        raise DatasetError(f"{name}: the file is empty (0 bytes)")
    with naming(name), opening.of_any_size():
        picture = Image.open(io.BytesIO(data))
        frames = opening.count_pictures(picture)
        orientation = 1
        if isinstance(picture, TiffImagePlugin.TiffImageFile):  # which drops the tag when it is decoded
            orientation = picture.getexif().get(_ORIENTATION, 1)
        tiles = tuple(picture.tile)
        picture.load()
        if picture.format == "PNG":
            # load() forgives damage behind the last row; the decoder that reads the record later does not.
            Image.open(io.BytesIO(data)).verify()
            if _PNG_END not in data:
                raise OSError("its end is missing")
        if not isinstance(picture, TiffImagePlugin.TiffImageFile):
            orientation = picture.getexif().get(_ORIENTATION, 1)
    if frames > 1 and picture.format != "MPO":  # a phone's JPEG, whose other frames are previews
        raise DatasetError(f"{name}: holds {frames} pictures; save one")
    return Opened(name, data, picture, tiles, orientation if orientation in range(1, 9) else 1)


def read_size(path: str | os.PathLike) -> tuple[int, int]:
    """(height, width) of a picture file as it is shown, from its header.

    Raises:
        DatasetError: it cannot be read, or is no picture.
    """
    opening.check_ordinary(path)
    with naming(str(path)), opening.of_any_size():
        try:
            with Image.open(path) as opened:
                opening.count_pictures(opened)  # and so goes to the page that is the picture
                width, height = opened.size
                # To look for it behind a PNG's pixels, Pillow would decode them.
                has_exif = opened.format != "PNG" or "exif" in opened.info
                if isinstance(opened, TiffImagePlugin.TiffImageFile):  # whose size some versions of Pillow turn already
                    width, height = (
                        opened.tag_v2[tag] for tag in (TiffImagePlugin.IMAGEWIDTH, TiffImagePlugin.IMAGELENGTH)
                    )
                turned = has_exif and opened.getexif().get(_ORIENTATION, 1) in QUARTER_TURNS
        except UnidentifiedImageError:
            raise
        except OSError as error:
            raise opening.unreadable(path, error) from error
    return (width, height) if turned else (height, width)

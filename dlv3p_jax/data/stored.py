"""The values that a picture file holds, where Pillow gives others: it scales few bits, inverts, and drops low bytes."""

import io
import re
import sys

import numpy as np
from PIL import Image, TiffImagePlugin

from dlv3p_jax.data import opening
from dlv3p_jax.data.decoding import Opened, naming
from dlv3p_jax.data.errors import DatasetError

_PLANAR = 284  # the TIFF tag PlanarConfiguration
_FEW_BITS = {"L;2": 85, "L;4": 17}  # by which Pillow multiplies, so that the largest value becomes 255
_SWAPPED = {"I;16BS": np.int16, "I;32BS": np.int32, "F;32BF": np.float32}  # of which libtiff swaps the bytes first
_SIXTEEN_COLORS = re.compile(r"(RGB|RGBX|RGBA);16([LBN])")
_WHITE_IS_ZERO = 0  # which Pillow turns round in files of 8 bits and fewer alone


def bits_of(opened: Opened) -> int:
    """Bits of a channel in the file."""
    picture, data = opened.picture, opened.data
    if picture.format == "PNG":
        return data[24]
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        return max(picture.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    if _is_scaled_ppm(opened):
        return int(_maxval(opened)).bit_length()
    digits = re.search(r";(\d+)", opened.raw_mode)
    if digits:
        return int(digits[1])
    return {"1": 1, "I": 32, "F": 32}.get(picture.mode, 16 if picture.mode.startswith("I;16") else 8)


def num_bands(opened: Opened) -> int:
    """Channels in the file, those that Pillow drops too."""
    if isinstance(opened.picture, TiffImagePlugin.TiffImageFile):
        return opened.picture.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    return len(opened.picture.getbands())


def one_channel(opened: Opened) -> np.ndarray:
    """The numbers [H, W] of a file with one channel, of whatever type; they are not turned.

    Raises:
        DatasetError: Pillow does not read it as it is.
    """
    picture, raw = opened.picture, opened.raw_mode.rstrip("R")  # R: the bits of a byte in the other order
    values = np.asarray(picture)
    if picture.format in ("BMP", "DIB"):
        bits = int.from_bytes(opened.data[(at := 28 if picture.format == "BMP" else 14) : at + 2], "little")
        if bits != {"1": 1, "L": 8}.get(picture.mode, bits):  # of a palette that is a ramp of greys
            raise DatasetError(f"{opened.name}: Pillow misreads a grey BMP of {bits} bits; save it as PNG")
    if _is_scaled_ppm(opened):
        return _ppm_values(opened)
    if picture.mode == "1":
        ones = values.astype(np.uint8)
        return 1 - ones if raw == "1;I" else ones
    if picture.mode == "L":
        factor = _FEW_BITS.get(raw.rstrip("I"), 1)
        values = (255 - values if raw.endswith("I") else values) // factor
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        if opened.tiles[0][0] == "libtiff" and raw in _SWAPPED and sys.byteorder == "little":
            values = values.astype(_SWAPPED[raw]).byteswap()
        if _is_signed(opened):
            values = values.view(np.int8)
        if raw == "I;32N" and _sample_format(picture) == 1:  # which Pillow takes for signed
            values = values.view(np.uint32)
    return values


def _is_signed(opened: Opened) -> bool:
    """Whether it is a TIFF of signed 8 bits, whose signs Pillow drops."""
    picture = opened.picture
    if not isinstance(picture, TiffImagePlugin.TiffImageFile):
        return False
    return picture.mode == "L" and _sample_format(picture) == 2


def _sample_format(picture: TiffImagePlugin.TiffImageFile) -> int:
    return picture.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0]


def full_range(opened: Opened) -> tuple[int, int] | None:
    """What a file of more than 8 bits counts as black and white by its own word; None where it has none."""
    picture = opened.picture
    if _is_scaled_ppm(opened):
        return 0, _maxval(opened)
    if opened.raw_mode.startswith("I;12"):
        return 0, 4095
    if picture.mode.startswith("I;16") or opened.raw_mode in ("I;16B", "LA;16B"):  # a PGM's mode is I
        return 0, 65535
    return (0, 65535) if _SIXTEEN_COLORS.fullmatch(opened.raw_mode) else None


def wide_values(opened: Opened, exactly: bool) -> np.ndarray | None:
    """The numbers of a picture with more than 8 bits a channel, or 8 with a sign, [H, W] or RGB [H, W, 3]; or None.

    They are not turned. `exactly` asks for all bits of a TIFF of separate planes, of which Pillow gives the high byte.

    Raises:
        DatasetError: Pillow cannot read them.
    """
    picture, raw = opened.picture, opened.raw_mode
    in_planes = num_bands(opened) > 1 and _is_planar(picture) and bits_of(opened) > 8
    if in_planes and (exactly or opened.tiles[0][0] == "raw"):
        raise DatasetError(
            f"{opened.name}: a TIFF of {num_bands(opened)} separate planes of {bits_of(opened)} bits, which Pillow "
            "cannot read; save it with interleaved channels (GDAL: -co INTERLEAVE=PIXEL)"
        )
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16") or _is_signed(opened):
        values, room = one_channel(opened), full_range(opened)
        is_negative = isinstance(picture, TiffImagePlugin.TiffImageFile) and (
            picture.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO
        )
        return room[1] - values if is_negative and room is not None else values
    if _is_scaled_ppm(opened) and picture.mode == "RGB" and opened.tiles[0][0] == "ppm" and _maxval(opened) > 255:
        return _ppm_values(opened)
    if raw == "LA;16B":
        pairs = _decode_as(opened, "RGBA").astype(np.uint16)  # its four bytes
        return pairs[..., 0] << 8 | pairs[..., 1]
    colors = _SIXTEEN_COLORS.fullmatch(raw)
    if colors is None:
        return None
    # Pillow keeps the high bytes. Those that are low are high in the other order of bytes.
    if in_planes:
        return np.asarray(picture)[..., :3].astype(np.uint16) << 8
    kind, order = colors.groups()
    swapped = "L" if order == "B" or (order == "N" and sys.byteorder == "big") else "B"
    low = _decode_as(opened, f"{kind};16{swapped}")[..., :3]
    return np.asarray(picture)[..., :3].astype(np.uint16) << 8 | low


def _is_planar(picture: Image.Image) -> bool:
    return isinstance(picture, TiffImagePlugin.TiffImageFile) and picture.tag_v2.get(_PLANAR) == 2


def _decode_as(opened: Opened, raw_mode: str) -> np.ndarray:
    """The picture decoded anew, its pixels taken for another kind of the same size."""
    with naming(opened.name), opening.of_any_size():
        again = Image.open(io.BytesIO(opened.data))
        opening.count_pictures(again)  # and so goes to the page that is the picture
        again.tile = [
            tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode)
            for tile in again.tile
        ]
        again.load()
        return np.asarray(again)


def _is_scaled_ppm(opened: Opened) -> bool:
    return bool(opened.tiles) and opened.tiles[0][0] in ("ppm", "ppm_plain") and not isinstance(opened.tiles[0][3], str)


def _maxval(opened: Opened) -> int:
    return opened.tiles[0][3][1]


def _ppm_values(opened: Opened) -> np.ndarray:
    """The numbers of a PGM or PPM file, [H, W] or [H, W, 3], which Pillow scales by its maxval."""
    decoder, _, offset, (_, maxval) = opened.tiles[0]
    values = np.asarray(opened.picture)
    if decoder == "ppm":
        dtype = np.dtype(np.uint8 if maxval < 256 else ">u2")
        return (
            np.frombuffer(opened.data, dtype, values.size, offset).reshape(values.shape).astype(dtype.newbyteorder("="))
        )
    largest = 65535 if opened.picture.mode == "I" else 255
    return np.rint(values.astype(np.float64) * maxval / largest).astype(np.uint16)

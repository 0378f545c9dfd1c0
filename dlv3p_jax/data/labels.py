"""Reading label files: the integers that they hold, as they hold them, or a refusal."""

import dataclasses
import os
import re

import numpy as np
from PIL import Image

from dlv3p_jax.data import stored
from dlv3p_jax.data.decoding import Opened, name_of, naming, open_picture
from dlv3p_jax.data.errors import DatasetError, UnmappedColors
from dlv3p_jax.data.label_map import LabelMap, count_colors, count_values, describe_values

LOSSLESS = ("PNG", "BMP", "DIB", "TIFF", "GIF", "PPM", "TGA")  # formats that keep a label's values
_LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp", "tiff_sgilog", "tiff_sgilog24")


@dataclasses.dataclass(frozen=True)
class Label:
    """What a label file holds.

    Attributes:
        values: [H, W], uint8 or uint16, upright.
        notes: what was seen or done, in words, for the summary.
        colors: (value, class index, (red, green, blue)) of the values that a palette label holds.
        orientation: what its own EXIF says, by which it was turned.
    """

    values: np.ndarray
    notes: tuple[str, ...] = ()
    colors: tuple[tuple[int, int, tuple[int, int, int]], ...] = ()
    orientation: int = 1


def read_label(
    source: str | os.PathLike | bytes, label_map: LabelMap | None = None, advice: str | None = None
) -> np.ndarray:
    """The integers that a label file holds, [H, W], uint8 or uint16; arguments and errors are those of `decode`."""
    return decode(source, label_map, advice).values


def decode(source: str | os.PathLike | bytes, label_map: LabelMap | None = None, advice: str | None = None) -> Label:
    """Reads a label file.

    Grey pictures of 1 to 32 bits give their stored values, whatever a viewer makes of them; floats must be whole
    numbers, or in the map; three equal channels are one. A palette picture gives its indices; its colours only if the
    map lists nothing but colours. Other colours need a map. It is turned as its own EXIF orientation says.

    Args:
        source: a path, or the bytes of a file.
        label_map: turns values or colours into indices.
        advice: what to do about colours, where a label map is no way out.

    Returns:
        Its values, uint8 where a map was given.

    Raises:
        DatasetError: a lossy format, colours without a map, values that the map lacks, channels of which Pillow reads
            not all bits, pixels that are transparent in part, or an unreadable file.
    """
    with naming(name_of(source, "label")):  # tags and pixels of other kinds than they should be fail late
        return _decode(open_picture(source, "label"), label_map, advice)


def _decode(opened: Opened, label_map: LabelMap | None, advice: str | None) -> Label:
    """What `decode` gives of an opened label."""
    name, picture = opened.name, opened.picture
    if picture.format not in LOSSLESS or picture.info.get("compression") in _LOSSY_TIFF:
        raise DatasetError(
            f"{name}: labels are not kept as {picture.format}, for lossy compression changes class indices; save them "
            "as PNG, from their source"
        )
    if picture.format == "GIF" and any(tuple(extents) != (0, 0, *picture.size) for _, extents, *_ in opened.tiles):
        raise DatasetError(f"{name}: this GIF's frame leaves a part of the picture out; save it as PNG")
    by_color = label_map is not None and bool(label_map.colors) and not label_map.values
    notes: list[str] = []
    palette: dict[int, tuple[int, int, int]] = {}
    if picture.mode == "P":
        values = np.asarray(picture.convert("RGB") if by_color else picture)
        palette = {} if by_color else _palette_of(picture, values)
    elif picture.mode in ("1", "L", "F") or picture.mode.startswith("I"):
        values = stored.one_channel(opened)
    elif picture.mode in ("RGB", "RGBA", "LA"):
        values = _channels(opened, notes)
        if values.ndim == 3 and not (label_map is not None and label_map.colors):
            if not (values == values[..., :1]).all():
                shape = "x".join(map(str, np.asarray(picture).shape))
                mend = f"save one channel of class indices, {advice or 'or list every colour with --label_map'}"
                message = f"{name}: a colour picture of shape {shape} is no label; {mend}"
                raise DatasetError(message) if advice else UnmappedColors(message, count_colors(values))
            values = values[..., 0]
            notes.append("label of three equal channels, read as one")
    else:
        raise DatasetError(f"{name}: labels have one channel of class indices, not Pillow's mode {picture.mode}")
    values = opened.upright(values)
    if opened.orientation != 1:
        notes.append("label turned as its EXIF orientation says")
    if values.dtype.kind == "f":
        values = _whole(values, notes)
    if label_map is None:
        colors = tuple((value, value, color) for value, color in palette.items())
        return Label(_sixteen_bits(name, values, advice), tuple(notes), colors, opened.orientation)
    if values.ndim == 2 and not label_map.values:
        raise DatasetError(f"{name}: the label map lists colours only, but this label has one channel")
    try:
        indices, used_other = label_map.apply(values)
    except UnmappedColors as error:
        raise UnmappedColors(f"{name}: {error}", error.colors) from error
    except DatasetError as error:
        raise DatasetError(f"{name}: {error}") from error
    if used_other:
        what = "colours" if values.ndim == 3 else "values"
        notes.append(f"label with {what} that the label map does not list, which became its other:{label_map.other}")
    classes = dict(label_map.values)
    return Label(
        indices,
        tuple(notes),
        tuple((value, classes[value], color) for value, color in palette.items() if value in classes),
        opened.orientation,
    )


def _channels(opened: Opened, notes: list[str]) -> np.ndarray:
    """A label of several channels, uint8 [H, W, 3], or [H, W] of grey with alpha.

    Raises:
        DatasetError: they have not 8 bits each, or alpha that hides something.
    """
    name, picture, raw = opened.name, opened.picture, opened.raw_mode
    bits, full = stored.bits_of(opened), stored.full_range(opened)
    if re.search(r"\d", raw) or bits != 8 or full not in (None, (0, 255)):
        raise DatasetError(
            f"{name}: a {picture.format} of {bits} bits in each of several channels, whose values cannot be read as "
            "they are; save one channel of class indices, as 8-bit or 16-bit grey PNG"
        )
    values = np.asarray(picture)
    if picture.mode in ("RGBA", "LA"):
        alpha = values[..., -1]
        lowest, highest = alpha.min(), alpha.max()
        if lowest != highest or ("a" in raw and lowest != 255):  # a: colours were multiplied by alpha
            raise DatasetError(
                f"{name}: its alpha differs: {(alpha != highest).sum()} of {alpha.size} pixels are more transparent "
                "than others, and what they hide may be no class; save it without alpha, with the value to be ignored "
                "where nothing is to be seen"
            )
        notes.append("label with the same alpha everywhere, which was dropped")
        values = values[..., :-1] if picture.mode == "RGBA" else values[..., 0]
    return values


def _whole(values: np.ndarray, notes: list[str]) -> np.ndarray:
    """Floats as int64, if all are whole numbers; the others stay, for a label map."""
    with np.errstate(invalid="ignore"):
        if not (np.isfinite(values) & (values == np.rint(values)) & (np.abs(values) < 2**53)).all():
            return values.astype(np.float64)
    notes.append("label of floats that are whole numbers, read as integers")
    return values.astype(np.int64)


def _sixteen_bits(name: str, values: np.ndarray, advice: str | None) -> np.ndarray:
    """Values that need no label map, uint8 or uint16."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        found = count_values(values)
        pairs = [f"{value}:{value}" if 0 <= value < 255 else f"{value}:ignore" for value, _ in found[:12]]
        if values.dtype.kind == "f":
            pairs = ["0:0", "1:1", "nan:ignore", "other:ignore"]
        mend = advice or f'say with --label_map what others mean, for example "{",".join(pairs)}"'
        raise DatasetError(f"{name}: {describe_values(found)}: class indices are whole numbers from 0; {mend}")
    return values.astype(np.uint16)


def _palette_of(picture: Image.Image, values: np.ndarray) -> dict[int, tuple[int, int, int]]:
    """The colours of the values that a palette picture holds, where its palette has them."""
    palette = np.reshape(picture.getpalette("RGB") or [], (-1, 3)).tolist()
    return {value: tuple(palette[value]) for value, _ in count_values(values) if value < len(palette)}

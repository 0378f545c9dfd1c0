"""Reading pictures and labels of every kind that people have, into the two kinds that records hold.

Nothing here imports TensorFlow: worker processes run it.
"""

import dataclasses
import io
import os
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dlv3p_jax.data import opening
from dlv3p_jax.data.errors import DatasetError, UnmappedColors
from dlv3p_jax.data.label_map import LabelMap, count_colors, count_values, list_counts

LOSSLESS = ("PNG", "BMP", "DIB", "TIFF", "GIF", "PPM", "TGA")  # formats that keep a label's values
_PNG_END = b"\0\0\0\0IEND\xae\x42\x60\x82"
_ORIENTATION = 0x0112  # the EXIF tag


@dataclasses.dataclass(frozen=True)
class Pair:
    """A picture and its label, as paths; `id` names the pair within its split. None: a picture without a label."""

    id: str
    image: str
    label: str | None


@dataclasses.dataclass(frozen=True)
class Example:
    """What one record holds, and what the data set's metadata counts about it.

    Attributes:
        id: names the picture within its split.
        image: an 8-bit RGB or grey JPEG or PNG file.
        label: an 8-bit grey PNG file of class indices; empty where a picture has no label.
        size: (height, width).
        class_pixels: int64 [num_classes].
        ignored_pixels: how many pixels hold the ignore label.
        notes: what was changed on the way, such as "CMYK JPEG stored as RGB PNG".
        colors: (value, class index, (red, green, blue)) of the values that a palette label holds.
    """

    id: str
    image: bytes
    label: bytes
    size: tuple[int, int]
    class_pixels: np.ndarray
    ignored_pixels: int
    notes: tuple[str, ...] = ()
    colors: tuple[tuple[int, int, tuple[int, int, int]], ...] = ()


@dataclasses.dataclass(frozen=True)
class Problem:
    """Why a pair cannot be used: one sentence that names the file and the value, and colours of `UnmappedColors`."""

    id: str
    message: str
    colors: tuple[tuple[tuple[int, int, int], int], ...] = ()


def read_pair(
    pair: Pair,
    num_classes: int,
    ignore_label: int,
    label_map: LabelMap | None = None,
    *,
    read_values: Callable[[str], np.ndarray] | None = None,
    advice: str | None = None,
) -> Example | Problem:
    """Reads and checks both files of a pair, decoding them fully.

    Args:
        pair: the paths.
        num_classes, ignore_label: what the label may hold.
        label_map: turns values or colours into indices.
        read_values: reads the indices of a label file, in place of `read_label` and the map.
        advice: what to do about values outside the classes, where a label map is no way out.
    """
    try:
        image, size, notes = read_image(pair.image)
        if pair.label is None:
            return Example(pair.id, image, b"", size, np.zeros(num_classes, np.int64), 0, notes)
        label, label_note, colors = (
            (read_values(pair.label), None, ()) if read_values else _read_label(pair.label, label_map, advice)
        )
        if label.shape != size:
            raise DatasetError(_different_sizes(pair, size, label.shape))
        found = count_values(label)
        wrong = [(value, count) for value, count in found if value >= num_classes and value != ignore_label]
        if wrong:
            raise DatasetError(f"{pair.label}: {_outside(wrong, found, pair.label, num_classes, ignore_label, advice)}")
        notes = (*notes, *filter(None, [label_note]))
        example = encode_example(pair.id, image, label.astype(np.uint8), num_classes, ignore_label, notes)
        return dataclasses.replace(example, colors=colors)
    except UnmappedColors as error:
        return Problem(pair.id, str(error), error.colors)
    except DatasetError as error:
        return Problem(pair.id, str(error))


def encode_example(
    example_id: str,
    image: np.ndarray | bytes,
    label: np.ndarray,
    num_classes: int,
    ignore_label: int,
    notes: tuple[str, ...] = (),
) -> Example:
    """The record of a picture, uint8 [H, W, 3] or a file's bytes, and its label, uint8 [H, W] of checked indices."""
    counts = np.bincount(label.ravel(), minlength=256)
    return Example(
        id=example_id,
        image=image if isinstance(image, bytes) else _encode_png(Image.fromarray(image)),
        label=_encode_png(Image.fromarray(label)),
        size=label.shape,
        class_pixels=counts[:num_classes],
        ignored_pixels=int(counts[ignore_label]),
        notes=notes,
    )


def read_image(source: str | os.PathLike | bytes) -> tuple[bytes, tuple[int, int], tuple[str, ...]]:
    """A picture file, given by its path or its bytes, as bytes of 8-bit RGB or grey JPEG or PNG.

    Such files come back byte for byte. Everything else (CMYK, palette, alpha, 16 bits, 1 bit, other formats, pictures
    that their EXIF orientation turns) becomes an RGB PNG, shown as every viewer shows it, without its alpha.

    Returns:
        The bytes, (height, width), and what was done, in words: empty, or one sentence.

    Raises:
        DatasetError: the file cannot be read or decoded to its end, or has no 8-bit RGB reading.
    """
    data, picture = _open(source)
    kind = _unusual(data, picture)
    if kind is None:
        return data, (picture.height, picture.width), ()
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        values = np.asarray(picture).astype(np.uint16)
        picture = Image.fromarray((values >> 8).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        raise DatasetError(
            f"{_name(source)}: {picture.mode} pixels of 32 bits have no known range; save it with 8 or 16 bits"
        )
    picture = picture.convert("RGB")
    return _encode_png(picture), (picture.height, picture.width), (f"{kind} stored as RGB PNG",)


def read_rgb(source: str | os.PathLike | bytes) -> np.ndarray:
    """A picture file as uint8 [H, W, 3], shown as every viewer shows it; raises as `read_image`."""
    data, _, _ = read_image(source)
    with opening.of_any_size():
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def read_label(
    source: str | os.PathLike | bytes, label_map: LabelMap | None = None, advice: str | None = None
) -> np.ndarray:
    """The integers that a label file holds.

    Grey pictures of 1 to 16 bits give their stored values; three equal channels are one. A palette picture gives its
    indices; its colours only if the map lists nothing but colours. Other colours need a map.

    Args:
        source: a path, or the bytes of a file.
        label_map: turns values or colours into indices.
        advice: what to do about colours, where a label map is no way out.

    Returns:
        [H, W], uint8 or uint16; uint8 where a map was given.

    Raises:
        DatasetError: a lossy format, colours without a map, values that the map lacks, or an unreadable file.
    """
    return _read_label(source, label_map, advice)[0]


def _read_label(
    source: str | os.PathLike | bytes, label_map: LabelMap | None, advice: str | None
) -> tuple[np.ndarray, str | None, tuple[tuple[int, int, tuple[int, int, int]], ...]]:
    """What `read_label` returns, a remark for the summary, and the `colors` of an `Example`."""
    name = "label" if isinstance(source, bytes) else str(source)
    data, picture = _open(source)
    if picture.format not in LOSSLESS or picture.info.get("compression") == "jpeg":
        raise DatasetError(
            f"{name}: labels are not kept as {picture.format}, for lossy compression changes class indices; save them "
            "as PNG, from their source"
        )
    by_color = label_map is not None and label_map.colors and not label_map.values
    note, palette = None, {}
    if picture.mode == "P":
        label = np.asarray(picture.convert("RGB") if by_color else picture)
        palette = {} if by_color else _palette_of(picture, label)
    elif picture.mode in ("1", "L") or picture.mode.startswith("I"):
        label = _stored_values(name, data, picture)
    elif picture.mode in ("RGB", "RGBA"):
        label = np.asarray(picture)[..., :3]
        if label_map is not None and label_map.colors:
            pass
        elif (label == label[..., :1]).all():
            label, note = label[..., 0], "label of three equal channels, read as one"
        else:
            shape = "x".join(map(str, np.asarray(picture).shape))
            mend = f"save one channel of class indices, {advice or 'or list every colour with --label_map'}"
            message = f"{name}: a colour picture of shape {shape} is no label; {mend}"
            raise DatasetError(message) if advice else UnmappedColors(message, count_colors(label))
    else:
        raise DatasetError(f"{name}: labels have one channel of class indices, not Pillow's mode {picture.mode}")
    if label_map is None:
        return label, note, tuple((value, value, color) for value, color in palette.items())
    if label.ndim == 2 and not label_map.values:
        raise DatasetError(f"{name}: the label map lists colours only, but this label has one channel")
    try:
        indices = label_map.apply(label)
    except UnmappedColors as error:
        raise UnmappedColors(f"{name}: {error}", error.colors) from error
    except DatasetError as error:
        raise DatasetError(f"{name}: {error}") from error
    classes = label_map.apply(np.array([list(palette)], label.dtype))[0].tolist() if palette else []
    return indices, note, tuple((value, index, palette[value]) for value, index in zip(palette, classes, strict=True))


def _palette_of(picture: Image.Image, values: np.ndarray) -> dict[int, tuple[int, int, int]]:
    """The colours of the values that a palette picture holds, where its palette has them."""
    palette = np.reshape(picture.getpalette("RGB") or [], (-1, 3)).tolist()
    return {value: tuple(palette[value]) for value, _ in count_values(values) if value < len(palette)}


def _name(source: str | os.PathLike | bytes) -> str:
    return "picture" if isinstance(source, bytes) else str(source)


def _open(source: str | os.PathLike | bytes) -> tuple[bytes, Image.Image]:
    """A file's bytes and its picture, decoded to the end."""
    name = _name(source)
    data = source if isinstance(source, bytes) else opening.read_bytes(source)
    if not data:
        raise DatasetError(f"{name}: the file is empty (0 bytes)")
    try:
        with opening.of_any_size():
            picture = Image.open(io.BytesIO(data))
            frames = opening.count_pictures(picture)
            picture.load()
            if picture.format == "PNG":
                # load() forgives damage behind the last row; the decoder that reads the record later does not.
                Image.open(io.BytesIO(data)).verify()
                if _PNG_END not in data:
                    raise OSError("its end is missing")
    except UnidentifiedImageError as error:
        raise DatasetError(f"{name}: not a picture that Pillow can read") from error
    except (
        *(OSError, SyntaxError, ValueError, EOFError, IndexError),
        TypeError,  # of a TIFF whose tags have other types
    ) as error:
        raise DatasetError(f"{name}: damaged or truncated ({error})") from error
    if frames > 1 and picture.format != "MPO":  # a phone's JPEG, whose other frames are previews
        raise DatasetError(f"{name}: holds {frames} pictures; save one")
    return data, picture


def _png_header(data: bytes) -> tuple[int, int]:
    """(bits a channel, colour type) of a PNG file."""
    return data[24], data[25]


def _unusual(data: bytes, picture: Image.Image) -> str | None:
    """Names what keeps a picture from being stored as it came; None for plain 8-bit RGB or grey JPEG and PNG."""
    if picture.getexif().get(_ORIENTATION, 1) != 1:
        return f"{picture.format} with an EXIF orientation"
    if picture.format in ("JPEG", "MPO"):
        return None if picture.mode in ("RGB", "L") else f"{picture.mode} JPEG"
    if picture.format == "PNG":
        bits, color_type = _png_header(data)
        if "transparency" in picture.info or color_type in (4, 6):
            return "PNG with alpha"
        if color_type == 3:
            return "palette PNG"
        return None if bits == 8 else f"{bits}-bit PNG"
    return f"{picture.format} file"


def _stored_values(name: str, data: bytes, picture: Image.Image) -> np.ndarray:
    """The integers of a one-channel picture as the file holds them."""
    values = np.asarray(picture)
    if picture.format == "PNG" and picture.mode == "L":
        # Pillow stretches 2 and 4 bits of grey to 0..255.
        values = values // {2: 85, 4: 17, 8: 1}[_png_header(data)[0]]
    elif picture.mode == "1":
        values = values.astype(np.uint8)
    if values.min() < 0 or values.max() > 65535:
        raise DatasetError(f"{name}: values {values.min()}..{values.max()} do not fit 16 bits")
    return values if values.dtype == np.uint8 else values.astype(np.uint16)


def _encode_png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _different_sizes(pair: Pair, size: tuple[int, int], label_size: tuple[int, int]) -> str:
    (height, width), (label_height, label_width) = size, label_size
    message = (
        f"{pair.image} is {width}x{height} (width x height) but its label {pair.label} is {label_width}x{label_height}"
    )
    with opening.of_any_size(), Image.open(pair.image) as picture:
        if picture.size == (label_width, label_height):
            message += "; the label fits the picture without its EXIF orientation: remove that tag or turn the label"
    return message


def _outside(
    wrong: list[tuple[int, int]],
    found: list[tuple[int, int]],
    name: str,
    num_classes: int,
    ignore_label: int,
    advice: str | None,
) -> str:
    """Says which values are wrong and, where they look familiar, what they may be."""
    values = [value for value, _ in found if value != ignore_label]
    message = (
        f"{list_counts([(str(value), count) for value, count in wrong])} outside the {num_classes} classes "
        f"(0..{num_classes - 1}) and not ignore_label {ignore_label}; the file holds {', '.join(map(str, values[:20]))}"
        f"{', …' if len(values) > 20 else ''}"
    )
    if advice is not None:
        message += f"; {advice}"
    elif num_classes == 2 and set(values) <= {0, 255}:
        message += '; for a mask of 0 and 255 give --label_map "0:0,255:1"'
    elif ("labelIds" in name or num_classes == 19) and max(values) <= 33:
        message += "; values of 0..33 look like Cityscapes labelIds, which must be turned into trainIds"
    elif max(values) == num_classes:
        message += "; is a class (background?) missing in the class names, or do the indices begin at 1?"
    else:
        message += '; turn other values into indices with --label_map, for example "0:0,128:1"'
    return message

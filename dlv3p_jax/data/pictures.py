"""Reading pictures and labels of every kind that people have, into the two kinds that records hold.

Nothing here imports TensorFlow: worker processes run it.
"""

import dataclasses
import io
import os
from collections.abc import Callable

import numpy as np
from PIL import Image

from dlv3p_jax.data import labels, opening, ranges, stored
from dlv3p_jax.data.decoding import QUARTER_TURNS, Opened, name_of, naming, open_picture
from dlv3p_jax.data.errors import DatasetError, UnmappedColors, UnreadableError
from dlv3p_jax.data.label_map import LabelMap, count_values, list_counts

UNTOLD_TURN = (
    "EXIF turns the picture, and the size of its label does not tell whether it was turned too: taken as drawn on the "
    "picture as it is shown"
)


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
        values, taken_for: of pictures of more than 8 bits, as in `Stored`.
    """

    id: str
    image: bytes
    label: bytes
    size: tuple[int, int]
    class_pixels: np.ndarray
    ignored_pixels: int
    notes: tuple[str, ...] = ()
    colors: tuple[tuple[int, int, tuple[int, int, int]], ...] = ()
    values: ranges.Range | None = None
    taken_for: ranges.Range | None = None


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
    draw: Callable[[str, tuple[int, int]], np.ndarray] | None = None,
    advice: str | None = None,
    picture_range: ranges.Range | None = None,
) -> Example | Problem:
    """Reads and checks both files of a pair, decoding them fully.

    Args:
        pair: the paths.
        num_classes, ignore_label: what the label may hold.
        label_map: turns values or colours into indices.
        read_values: reads the indices of a label file, in place of `labels.decode` and the map.
        draw: draws them, given the label and the (height, width) of the picture.
        advice: what to do about values outside the classes, where a label map is no way out.
        picture_range: see `read_image`.

    Raises:
        UnreadableError: the disk answered with an error, which says nothing about the pair.
    """
    try:
        image = read_image(pair.image, picture_range)
        if pair.label is None:
            nothing = np.zeros(num_classes, np.int64)
            return Example(
                *(pair.id, image.data, b"", image.size, nothing, 0, image.notes, ()),
                *(image.values, image.taken_for),
            )
        if draw is not None:
            label = labels.Label(draw(pair.label, image.size))
        elif read_values is not None:
            label = labels.Label(read_values(pair.label))
        else:
            label = labels.decode(pair.label, label_map, advice)
        if label.values.shape != image.size:
            raise DatasetError(_different_sizes(pair, image, label))
        found = count_values(label.values)
        wrong = [(value, count) for value, count in found if value >= num_classes and value != ignore_label]
        if wrong:
            raise DatasetError(f"{pair.label}: {_outside(wrong, found, pair.label, num_classes, ignore_label, advice)}")
        notes = (*image.notes, *label.notes)
        height, width = image.size
        tells = image.orientation in QUARTER_TURNS and height != width
        if image.orientation != 1 and label.orientation == 1 and not tells:
            notes += (UNTOLD_TURN,)
        example = encode_example(pair.id, image.data, label.values.astype(np.uint8), num_classes, ignore_label, notes)
        return dataclasses.replace(example, colors=label.colors, values=image.values, taken_for=image.taken_for)
    except UnreadableError:
        raise
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
    return Stored(_encode_png(image), size, kind, became + dropped, opened.orientation, values, taken_for)


def read_rgb(source: str | os.PathLike | bytes, picture_range: ranges.Range | None = None) -> np.ndarray:
    """A picture file as uint8 [H, W, 3], shown as every viewer shows it; arguments and errors as of `read_image`."""
    return read_image(source, picture_range).pixels()


def to_eight_bits(name: str, values: np.ndarray, picture_range: ranges.Range | None) -> np.ndarray:
    """Values of more than 8 bits as uint8, by a range; raises DatasetError where it is not known."""
    if picture_range is None:
        raise DatasetError(
            f"{name}: values of 32 bits have no known range; say which become black and white with "
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


def _encode_png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _different_sizes(pair: Pair, image: Stored, label: labels.Label) -> str:
    (height, width), (label_height, label_width) = image.size, label.values.shape
    message = (
        f"{pair.image} is {width}x{height} (width x height) but its label {pair.label} is {label_width}x{label_height}"
    )
    if (label_height, label_width) == (width, height):
        if label.orientation in QUARTER_TURNS:
            message += "; the label fits without its own EXIF orientation, by which it was turned: remove that tag"
        elif image.orientation in QUARTER_TURNS:
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
    elif len(values) > 2 * num_classes + 8:
        message += (
            "; so many values may be smoothed edges: list those that are meant with --label_map, and other:ignore"
        )
    elif max(values) == num_classes:
        same = ",".join(f"{value}:{value}" for value in range(num_classes))
        message += (
            "; is a class (background?) missing in the class names, do the indices begin at 1, or is it what to ignore "
            f'(--label_map "{same},{num_classes}:ignore")?'
        )
    else:
        message += '; turn other values into indices with --label_map, for example "0:0,128:1"'
    return message

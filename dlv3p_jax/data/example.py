"""A picture and its label, read and checked together: the example that a record holds, or the problem with the two.

Nothing here imports TensorFlow: worker processes run it.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from dlv3p_jax.data import labels, ranges
from dlv3p_jax.data.decoding import QUARTER_TURNS
from dlv3p_jax.data.errors import DatasetError, UnmappedColors, UnreadableError
from dlv3p_jax.data.label_map import LabelMap, count_values, list_counts
from dlv3p_jax.data.pictures import Stored, encode_png, read_image

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
        values, taken_for: of pictures of more than 8 bits, as in `pictures.Stored`.
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
        picture_range: see `pictures.read_image`.

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
        image=image if isinstance(image, bytes) else encode_png(image),
        label=encode_png(label),
        size=label.shape,
        class_pixels=counts[:num_classes],
        ignored_pixels=int(counts[ignore_label]),
        notes=notes,
    )


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

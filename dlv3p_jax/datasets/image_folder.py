"""A user's own pictures and labels as a data set."""

import contextlib
import functools
import itertools
import os
import pathlib
from typing import Any

from PIL import Image

from dlv3p_jax.data import opening, ranges
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.example import Pair, read_pair
from dlv3p_jax.data.label_map import LabelMap, parse
from dlv3p_jax.datasets import class_files, pairs, voc_layout
from dlv3p_jax.datasets.builder import PictureBuilder
from dlv3p_jax.datasets.class_files import Classes

_COLORED = ("RGB", "RGBA", "P")  # Pillow's modes of labels that may be read by their colours


def make_builder(
    data_dir: str | os.PathLike,
    source: str | os.PathLike,
    *,
    name: str = "image_folder",
    label_suffix: str = "",
    class_names: str | os.PathLike | None = None,
    label_map: str | None = None,
    ignore_label: int = 255,
    picture_range: ranges.Range | None = None,
    **options: Any,
) -> PictureBuilder:
    """The builder of a folder's pictures and labels, in one of three layouts (see `pairs.LAYOUTS`).

    Args:
        data_dir, source, name, options: see `by_name`.
        label_suffix: see `pairs.find_pairs`.
        class_names: a file that `class_files.read` reads; None: the first of `class_files.FILES` in the source.
        label_map: a file or text that `label_map.parse` reads; None: what the file of classes says of values and
            colours.
        ignore_label: the value, 0..255, of pixels that count nowhere.
        picture_range: see `PictureBuilder`.

    Raises:
        DatasetError: the folder, the lists, the names or the map cannot be used.
    """
    if not 0 <= ignore_label <= 255:
        raise DatasetError(f"--ignore_label={ignore_label}: labels are stored in 8 bits, so give 0 to 255")
    table = None if label_map is None else parse(label_map, ignore_label)
    has_lists = any((pathlib.Path(source).expanduser() / name).exists() for name in ("train.txt", "images"))
    if voc_layout.is_one(source) and not has_lists:
        if label_suffix:
            raise DatasetError(f"--label_suffix={label_suffix}: lists name the labels of this layout; leave it out")
        found, problems, remarks = voc_layout.find_pairs(source)
    else:
        found, problems, remarks = pairs.find_pairs(source, label_suffix)
    classes = class_files.read(class_names, source, ignore_label)
    names = classes.names
    if table is None:
        is_colored = classes.by_color and _mode(found) in (("RGB", "RGBA") if classes.is_plain else _COLORED)
        table = classes.by_color if is_colored else classes.by_value
    check_indices(names, ignore_label, table)
    return PictureBuilder(
        data_dir,
        found,
        functools.partial(
            read_pair,
            num_classes=len(names),
            ignore_label=ignore_label,
            label_map=table,
            picture_range=picture_range,
        ),
        name=name,
        class_names=names,
        colors=colors_of(classes, table),
        ignore_label=ignore_label,
        description=f"Pictures and labels of {pathlib.Path(source).expanduser().resolve()}",
        problems=problems,
        remarks=[*classes.remarks, *remarks],
        label_map=table,
        picture_range=picture_range,
        **options,
    )


def check_indices(names: list[str], ignore_label: int, table: LabelMap | None) -> None:
    """Raises DatasetError where the ignored label is a class, or the label map has indices that are none."""
    last = len(names) - 1
    if ignore_label <= last:
        raise DatasetError(
            f'--ignore_label={ignore_label} is the index of class "{names[ignore_label]}"; ignored values need no '
            'class name, and --label_map can move indices, like "0:ignore,1:0,2:1"'
        )
    wrong = sorted(index for index in (table.targets() if table else ()) if index > last and index != ignore_label)
    if wrong:
        raise DatasetError(f"--label_map: index {wrong[0]} is outside the {len(names)} classes (0..{last})")


def _mode(found: dict[str, list[Pair]]) -> str | None:
    """Pillow's mode of the first label that can be opened."""
    for pair in itertools.chain.from_iterable(found.values()):
        with contextlib.suppress(Exception), opening.of_any_size(), Image.open(str(pair.label)) as label:
            return label.mode
    return None


def colors_of(classes: Classes, table: LabelMap | None) -> dict[int, class_files.Color]:
    """The colours of classes, by index, that the label map gives, or the file of classes."""
    given = {index: color for color, index in reversed(table.colors) if index < len(classes.names)} if table else {}
    return classes.colors | given

"""A user's own pictures and labels as a data set."""

import functools
import os
import pathlib

from dlv3p_jax.data import pairs, palettes
from dlv3p_jax.data.builder import PictureBuilder
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.label_map import LabelMap, parse
from dlv3p_jax.data.pictures import read_pair


class ImageFolder(PictureBuilder):
    """Pictures and labels of a folder: list files, or images/SPLIT and labels/SPLIT (see `pairs.LAYOUTS`)."""

    def __init__(
        self,
        data_dir: str | os.PathLike,
        source: str | os.PathLike,
        *,
        class_names: str | os.PathLike | None = None,
        label_map: str | None = None,
        ignore_label: int = 255,
        workers: int = 1,
        skip_bad: bool = False,
    ):
        """
        Args:
            data_dir: where TFDS makes image_folder/VERSION.
            source: the folder.
            class_names: a file of names, one a line; None: classes.txt or class_names.txt in the source.
            label_map: a file or text that `label_map.parse` reads.
            ignore_label: the value, 0..255, of pixels that count nowhere.
            workers, skip_bad: see `PictureBuilder`.

        Raises:
            DatasetError: the folder, the lists, the names or the map cannot be used.
        """
        if not 0 <= ignore_label <= 255:
            raise DatasetError(f"--ignore_label={ignore_label}: labels are stored in 8 bits, so give 0 to 255")
        table = None if label_map is None else parse(label_map, ignore_label)
        found, problems, remarks = pairs.find_pairs(source)
        names = pairs.read_class_names(class_names, source)
        _check_indices(names, ignore_label, table)
        super().__init__(
            data_dir,
            found,
            functools.partial(read_pair, num_classes=len(names), ignore_label=ignore_label, label_map=table),
            class_names=names,
            palette=_palette(len(names), table),
            ignore_label=ignore_label,
            description=f"Pictures and labels of {pathlib.Path(source).expanduser().resolve()}",
            synthetic=False,
            problems=problems,
            remarks=remarks,
            label_map=table,
            workers=workers,
            skip_bad=skip_bad,
        )


def _check_indices(names: list[str], ignore_label: int, table: LabelMap | None) -> None:
    last = len(names) - 1
    if ignore_label <= last:
        raise DatasetError(
            f'--ignore_label={ignore_label} is the index of class "{names[ignore_label]}"; ignored values need no '
            'class name, and --label_map can move indices, like "0:ignore,1:0,2:1"'
        )
    wrong = sorted(index for index in (table.targets() if table else ()) if index > last and index != ignore_label)
    if wrong:
        raise DatasetError(f"--label_map: index {wrong[0]} is outside the {len(names)} classes (0..{last})")


def _palette(num_classes: int, table: LabelMap | None) -> list[list[int]]:
    """The colours that the label map gives, and Pascal VOC's for the rest."""
    known = {index: color for color, index in reversed(table.colors) if index < num_classes} if table else {}
    return palettes.complete(known, num_classes)

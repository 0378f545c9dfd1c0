"""Pictures and labels that another library's data sets hold as examples, and their classes."""

import dataclasses
import functools
import os
import pathlib
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from dlv3p_jax.data import labels, ranges
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.example import Example, Pair, Problem, read_pair
from dlv3p_jax.data.label_map import LabelMap, count_values, parse
from dlv3p_jax.data.pictures import encode
from dlv3p_jax.datasets import class_files, image_folder
from dlv3p_jax.datasets.builder import PictureBuilder


@dataclasses.dataclass(frozen=True)
class Item:
    """A picture and its label as files of bytes, and how the library names the example; or what is wrong with it."""

    id: str
    image: bytes
    label: bytes
    problem: str | None = None


class Items(Collection[Item]):
    """A number of items, which are read whenever one goes over them."""

    def __init__(self, count: int, read: Callable[[], Iterator[Item]]):
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        return self._read()

    def __contains__(self, item: object) -> bool:
        return any(item == each for each in self)


def check_keys(image_key: str, label_key: str | None, found: Collection[str], what: str) -> tuple[str, str]:
    """The keys of picture and label; DatasetError where one is not among those `found` to hold pictures."""
    for flag, key in {"--image_key": image_key, "--label_key": label_key}.items():
        if key not in found:
            wrong = "" if key is None else f"={key}"
            raise DatasetError(f"{flag}{wrong}: name a {what} that holds pictures: {', '.join(found) or 'it has none'}")
    assert label_key is not None
    return image_key, label_key


def build(
    items: Mapping[str, Collection[Item]],
    data_dir: str | os.PathLike,
    *,
    name: str,
    names: list[str],
    description: str,
    class_names: str | os.PathLike | None = None,
    label_map: str | None = None,
    ignore_label: int = 255,
    picture_range: ranges.Range | None = None,
    **options: Any,
) -> PictureBuilder:
    """The builder of examples; without a label map, all labels are read first to find their values.

    Where 0 is not among them, classes begin with 1.

    Args:
        items: by split; they are read whenever one goes over them.
        data_dir: where TFDS makes NAME/VERSION.
        name: what the data set is called here.
        names: of classes, if the library knows them.
        description: see `records.METADATA`.
        class_names: a file that `class_files.read` reads; None: `names`, or the values of labels.
        label_map, ignore_label: see `image_folder.make_builder`.
        picture_range, options: see `PictureBuilder`.

    Raises:
        DatasetError: the classes cannot be told, or a file or a map cannot be used.
    """
    classes = class_files.Classes(names)
    if class_names is not None:
        classes = class_files.read(class_names, ".", ignore_label)
        names = classes.names
    remarks = classes.remarks
    if label_map is not None:
        table = parse(label_map, ignore_label)
    else:
        table = _values_as_classes(items.values(), ignore_label, len(names))
        if min(value for value, _ in table.values):
            remarks = (*remarks, "labels begin with 1: value 1 is class 0, 2 is 1, and so on")
    names = names or _names(table, ignore_label)
    image_folder.check_indices(names, ignore_label, table)
    return PictureBuilder(
        data_dir,
        items,
        functools.partial(
            read_item,
            num_classes=len(names),
            ignore_label=ignore_label,
            label_map=table,
            picture_range=picture_range,
        ),
        name=name,
        class_names=names,
        colors=image_folder.colors_of(dataclasses.replace(classes, names=names), table),
        ignore_label=ignore_label,
        description=description,
        remarks=remarks,
        label_map=table,
        picture_range=picture_range,
        **options,
    )


def read_item(item: Item, **options: Any) -> Example | Problem:
    """What `read_pair` makes of an item, whose messages then say its id; options are those of `read_pair`."""
    if item.problem is not None:
        return Problem(item.id, item.problem)
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, f"{item.id}.{kind}") for kind in ("image", "label")]
        for path, data in zip(paths, (item.image, item.label), strict=True):
            pathlib.Path(path).write_bytes(data)
        result = read_pair(Pair(item.id, *paths), **options)
        if isinstance(result, Problem):
            return dataclasses.replace(result, message=result.message.replace(f"{folder}{os.sep}", ""))
        return result


def to_file(value: bytes | np.ndarray) -> bytes:
    """The file of a picture; arrays [H, W], [H, W, 1] or [H, W, 3] become PNG, or TIFF where 8 bits are too few."""
    if isinstance(value, bytes):
        return value
    values = value[..., 0] if value.shape[2:] == (1,) else value
    if values.dtype.kind not in "bui":
        raise ValueError(f"its values are {values.dtype}, and no integers")
    if values.size and not -(2**31) <= values.min() <= values.max() < 2**31:
        raise ValueError(f"its values, {values.min()} to {values.max()}, are too large")
    small = values.dtype == bool or values.size and values.min() >= 0 and values.max() <= 255
    return encode(values.astype(np.uint8), "PNG") if small else encode(values.astype(np.int32), "TIFF")


def _values_as_classes(splits: Collection[Collection[Item]], ignore_label: int, num_classes: int) -> LabelMap:
    """A map of all values of all labels, from the first to the last.

    The first is 1 where 0 is in no label, and the values are more than the `num_classes` that are known, or none are.
    """
    seen: set[int] = set()
    problem = None
    for item in (item for split in splits for item in split):
        try:
            seen.update(value for value, _ in count_values(labels.read_label(item.label)))
        except DatasetError as error:  # which `read_item` tells of, if there is any other label
            problem = error
    seen.discard(ignore_label)
    if not seen:
        raise problem or DatasetError("its labels hold no class")
    if max(seen) > 255 or max(seen) >= 2 * len(seen):
        raise DatasetError(
            f"its labels hold {len(seen)} values up to {max(seen)}: say with --label_map which are which classes"
        )
    first = 0 if 0 in seen or max(seen) < num_classes else 1
    return LabelMap(tuple((value, value - first) for value in range(first, max(seen) + 1) if value != ignore_label))


def _names(table: LabelMap, ignore_label: int) -> list[str]:
    """Names of classes by the values or colours that stand for them."""
    by_index: dict[int, list[str]] = {}
    for value, index in (*table.values, *(("-".join(map(str, color)), index) for color, index in table.colors)):
        by_index.setdefault(index, []).append(str(value))
    indices = sorted(table.targets() - {ignore_label})
    if len(indices) < 2 or indices != list(range(len(indices))):
        raise DatasetError(
            f"--label_map: its classes are {', '.join(map(str, indices)) or 'none'}; they go on from 0, at least two, "
            "or --class_names=FILE names them"
        )
    return [f"value {' or '.join(by_index.get(index, ['other']))}" for index in indices]

"""Segmentation data sets of TensorFlow Datasets' catalogue, or of a folder that TFDS has prepared."""

import dataclasses
import functools
import io
import os
import pathlib
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from dlv3p_jax.data import labels, ranges, records, viz
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.label_map import LabelMap, count_values, parse
from dlv3p_jax.data.pictures import Example, Pair, Problem, read_pair
from dlv3p_jax.datasets import class_files, image_folder
from dlv3p_jax.datasets.builder import PictureBuilder
from dlv3p_jax.runtime import text


@dataclasses.dataclass(frozen=True)
class Item:
    """A picture and its label as files of bytes, and how TFDS names the example."""

    id: str
    image: bytes
    label: bytes


def make_builder(
    dataset: str,
    data_dir: str | os.PathLike,
    *,
    name: str,
    label_key: str | None,
    image_key: str = "image",
    source: str | os.PathLike | None = None,
    splits: Sequence[str] = (),
    class_names: str | os.PathLike | None = None,
    label_map: str | None = None,
    ignore_label: int = 255,
    picture_range: ranges.Range | None = None,
    workers: int = 1,
    skip_bad: bool = False,
) -> PictureBuilder:
    """The builder of tfds:NAME; TFDS downloads and prepares its own records first, unless they are there.

    Without a label map, all labels are read to find their values. Where 0 is not among them, classes begin with 1.

    Args:
        dataset: `tfds:NAME`, `tfds:NAME/CONFIG`, with `:VERSION` for another than the newest.
        data_dir: where TFDS makes NAME/VERSION.
        name: what the data set is called here.
        label_key, image_key: of the features with the label and the picture.
        source: TFDS's own data_dir; None: TFDS's default.
        splits: as NAME=SPLIT, where SPLIT may be a part such as `train[:80%]`; none: all, with `validation` as `val`.
        class_names: a file that `class_files.read` reads; None: the names of the label's feature, or its values.
        label_map, ignore_label: see `ImageFolder`.
        picture_range, workers, skip_bad: see `PictureBuilder`.

    Raises:
        DatasetError: TFDS has no such data set or cannot fetch it; or it has no such features, splits or classes.
    """
    catalogue = _open(dataset.removeprefix(records.TFDS), source)
    features = catalogue.info.features
    keys = {"--image_key": image_key, "--label_key": label_key}
    for flag, key in keys.items():
        _check_key(catalogue.name, features, flag, key)
    assert label_key is not None
    items = {split: _Split(catalogue, spec, image_key, label_key) for split, spec in _splits(catalogue, splits).items()}
    names = list(getattr(features[label_key], "names", None) or ())
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
    colors = image_folder.colors_of(dataclasses.replace(classes, names=names), table)
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
        palette=viz.class_colors(len(names), colors),
        colors=colors,
        ignore_label=ignore_label,
        description=f"{catalogue.info.full_name} of TensorFlow Datasets, {image_key} and {label_key}",
        synthetic=False,
        remarks=remarks,
        label_map=table,
        picture_range=picture_range,
        workers=workers,
        skip_bad=skip_bad,
    )


def read_item(item: Item, **options: Any) -> Example | Problem:
    """What `read_pair` makes of an item, whose messages then name it as TFDS does; options are those of `read_pair`."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, f"{item.id}.{kind}") for kind in ("image", "label")]
        for path, data in zip(paths, (item.image, item.label), strict=True):
            pathlib.Path(path).write_bytes(data)
        result = read_pair(Pair(item.id, *paths), **options)
        if isinstance(result, Problem):
            return dataclasses.replace(result, message=result.message.replace(f"{folder}{os.sep}", ""))
        return result


class _Split(Collection):
    """The items of a split, which are read whenever one goes over them."""

    def __init__(self, catalogue: tfds.core.DatasetBuilder, split: str, image_key: str, label_key: str):
        self._catalogue, self._split, self._keys = catalogue, split, (image_key, label_key)

    def __len__(self) -> int:
        return self._catalogue.info.splits[self._split].num_examples

    def __contains__(self, item: object) -> bool:
        return any(item == each for each in self)

    def __iter__(self) -> Iterator[Item]:
        features = self._catalogue.info.features
        as_files = {key: tfds.decode.SkipDecoding() for key in self._keys if _is_file(features[key])}
        options = {
            "decoders": tfds.decode.PartialDecoding(dict.fromkeys(self._keys, True), as_files),
            "read_config": tfds.ReadConfig(add_tfds_id=True, interleave_cycle_length=1),
        }
        try:
            for example in self._catalogue.as_dataset(self._split, shuffle_files=False, **options).as_numpy_iterator():
                image, label = (_to_file(example[key]) for key in self._keys)
                yield Item(example["tfds_id"].decode(), image, label)
        except tf.errors.OpError as error:
            raise DatasetError(
                f"{self._catalogue.data_path}: {self._split} cannot be read ({text.first_line(error)}): remove this "
                "folder, and TFDS prepares it again"
            ) from error


def _open(name: str, source: str | os.PathLike | None) -> tfds.core.DatasetBuilder:
    """TFDS's builder, with its records in place."""
    try:
        builder = tfds.builder(name, data_dir=source)
        builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError as error:
        raise DatasetError(
            f"--dataset={records.TFDS}{name}: {text.first_line(error)} TFDS {tfds.__version__} has those of "
            "https://www.tensorflow.org/datasets/catalog, and those that are prepared in --source=FOLDER"
        ) from error
    except Exception as error:  # whatever its builders and the network raise
        raise DatasetError(
            f"--dataset={records.TFDS}{name}: TFDS cannot prepare it ({text.one_line(error)}). Where it cannot be "
            "downloaded from here, prepare it with TFDS elsewhere, and give its data_dir as --source"
        ) from error
    return builder


def _check_key(name: str, features: Mapping[str, Any], flag: str, key: str | None) -> None:
    """Raises DatasetError where a key is not of a picture: a file of 8 or 16 bits, or an array."""
    kinds = {each: feature for each, feature in features.items() if _is_file(feature) or _is_array(feature)}
    if key not in kinds:
        wrong = "" if key is None else f"={key}"
        raise DatasetError(
            f"{flag}{wrong}: name a feature of {name} that holds pictures: {', '.join(kinds) or 'it has none'}"
        )


def _is_file(feature: Any) -> bool:
    return isinstance(feature, tfds.features.Image) and feature.np_dtype in (np.uint8, np.uint16)


def _is_array(feature: Any) -> bool:
    is_integer = isinstance(feature, tfds.features.Tensor) and np.dtype(feature.np_dtype).kind in "bui"
    return is_integer and (len(feature.shape) == 2 or len(feature.shape) == 3 and feature.shape[-1] in (1, 3))


def _to_file(value: bytes | np.ndarray) -> bytes:
    """The file of a picture; arrays [H, W], [H, W, 1] or [H, W, 3] become PNG, or TIFF where 8 bits are too few."""
    if isinstance(value, bytes):
        return value
    values = value[..., 0] if value.shape[2:] == (1,) else value
    small = values.dtype == bool or values.size and values.min() >= 0 and values.max() <= 255
    picture = Image.fromarray(values.astype(np.uint8 if small else np.int32))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG" if small else "TIFF")
    return buffer.getvalue()


def _splits(catalogue: tfds.core.DatasetBuilder, wanted: Sequence[str]) -> dict[str, str]:
    """TFDS's split, or part of one, by our names."""
    if not wanted:
        return {"val" if name == "validation" else name: name for name in catalogue.info.splits}
    found = {}
    for word in wanted:
        name, equals, spec = word.partition("=")
        try:
            catalogue.info.splits[spec].num_examples  # noqa: B018
        except Exception as error:  # of TFDS's parser
            raise DatasetError(
                f"--splits={word}: write NAME=SPLIT, such as train=train[:80%],val=train[80%:]; {catalogue.name} has "
                f"{', '.join(catalogue.info.splits)}"
            ) from error
        if not name.isidentifier() or not equals or name in found:
            raise DatasetError(f"--splits={word}: each name is one word, and there once")
        found[name] = spec
    return found


def _values_as_classes(splits: Collection[_Split], ignore_label: int, num_classes: int) -> LabelMap:
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

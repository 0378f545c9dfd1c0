"""Data sets of Hugging Face's `datasets`: of its hub, or folders that it has saved or can read."""

import importlib.util
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dlv3p_jax.data import records
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.datasets import examples
from dlv3p_jax.datasets.builder import PictureBuilder
from dlv3p_jax.runtime import text

_SLICE = re.compile(r"(?P<split>\w+)(?:\[(?P<start>\d+%?)?:(?P<end>\d+%?)?\])?")


def make_builder(
    data_dir: str | os.PathLike,
    *,
    dataset: str,
    name: str,
    label_key: str | None,
    image_key: str = "image",
    splits: Sequence[str] = (),
    **options: Any,
) -> PictureBuilder:
    """The builder of hf:PATH_OR_NAME: a folder, or a data set of the hub, which `datasets` fetches.

    Args:
        data_dir, name: see `by_name`.
        dataset: `hf:` and a folder of `save_to_disk`, or what `load_dataset` takes, with `:CONFIG` behind it.
        label_key, image_key: the columns with the label and the picture: pictures, or labels as arrays of integers.
        splits: as NAME=SPLIT, where SPLIT may be a part such as `train[:80%]`; none: all, with `validation` as `val`.
        options: see `examples.build`.

    Raises:
        DatasetError: `datasets` is not installed or cannot load it; or it has no such columns, splits or classes.
    """
    if importlib.util.find_spec("datasets") is None:
        raise DatasetError(f"--dataset={dataset}: it is read with datasets: pip install 'dlv3p_jax[hf]'")
    loaded = _load(dataset)
    keys = examples.check_keys(image_key, label_key, _columns(next(iter(loaded.values()))), f"column of {dataset}")
    items = {split: _items(part, split, keys) for split, part in _splits(loaded, splits).items()}
    description = f"{dataset.removeprefix(records.HF)} of Hugging Face's datasets, {image_key} and {label_key}"
    return examples.build(items, data_dir, name=name, names=[], description=description, **options)


def _items(rows, split: str, keys: tuple[str, str]) -> examples.Items:
    """The items of a split; `keys` are of picture and label."""
    from datasets import Image

    for key in keys:
        if isinstance(rows.features[key], Image):  # their files, as they are
            rows = rows.cast_column(key, Image(decode=False))
    rows = rows.select_columns(list(dict.fromkeys(keys)))

    def read() -> Iterator[examples.Item]:
        for index, row in enumerate(rows):
            where = f"{split}-{index:06d}"
            try:
                image, label = (_file(row[key], f"{where}, {key}") for key in keys)
            except DatasetError as error:
                yield examples.Item(where, b"", b"", str(error))
            else:
                yield examples.Item(where, image, label)

    return examples.Items(len(rows), read)


def _file(value: Any, where: str) -> bytes:
    """The bytes of a picture's file, or of one that is made of an array."""
    if value is None:
        raise DatasetError(f"{where}: there is none")
    try:
        if isinstance(value, Mapping):
            return value["bytes"] if value["bytes"] is not None else pathlib.Path(value["path"]).read_bytes()
        return examples.to_file(np.asarray(value))
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise DatasetError(f"{where}: no picture or array of integers [H, W] ({text.one_line(error)})") from error


def _load(dataset: str) -> Mapping[str, Any]:
    """The splits of a data set, by their names."""
    import datasets

    place, _, config = dataset.removeprefix(records.HF).partition(":")
    folder = pathlib.Path(place).expanduser()
    datasets.disable_progress_bars()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(str(folder) if folder.is_dir() else place, config or None)
    except Exception as error:  # whatever its readers and the network raise
        raise DatasetError(
            f"--dataset={dataset}: datasets cannot load it ({text.one_line(error)}). Where it cannot be fetched from "
            "here, save it elsewhere with save_to_disk, and give that folder"
        ) from error
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}


def _columns(rows) -> list[str]:
    """The columns that hold pictures, or arrays of two dimensions."""
    from datasets import Array2D, Image, List

    def is_mask(feature) -> bool:
        nested = isinstance(feature, List) and isinstance(feature.feature, List)
        return isinstance(feature, Image | Array2D) or nested

    return [each for each, feature in rows.features.items() if is_mask(feature)]


def _splits(loaded: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    """The rows of splits, or of parts of them, by our names."""
    if not wanted:
        return {"val" if split == "validation" else split: rows for split, rows in loaded.items()}
    found: dict[str, Any] = {}
    for word in wanted:
        name, equals, spec = word.partition("=")
        match = _SLICE.fullmatch(spec)
        if not equals or not name.isidentifier() or name in found or match is None or match["split"] not in loaded:
            raise DatasetError(
                f"--splits={word}: write NAME=SPLIT, such as train=train[:80%],val=train[80%:], each name once; it has "
                f"{', '.join(loaded)}"
            )
        rows = loaded[match["split"]]
        start, end = (
            default if bound is None else len(rows) * int(bound[:-1]) // 100 if bound.endswith("%") else int(bound)
            for bound, default in ((match["start"], 0), (match["end"], len(rows)))
        )
        if not 0 <= start < end <= len(rows):
            raise DatasetError(f"--splits={word}: {match['split']} has {len(rows)} pictures, and none of these")
        found[name] = rows.select(range(start, end))
    return found

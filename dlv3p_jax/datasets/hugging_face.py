"""Data sets of Hugging Face's `datasets`: of its hub, or folders that it has saved or can read."""

import importlib.util
import os
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
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
        data_dir: where TFDS makes NAME/VERSION.
        dataset: `hf:` and a folder of `save_to_disk`, or what `load_dataset` takes, with `:CONFIG` behind it.
        name: what the data set is called here.
        label_key, image_key: the columns with the label and the picture: pictures, or labels as arrays of integers.
        splits: as NAME=SPLIT, where SPLIT may be a part such as `train[:80%]`; none: all, with `validation` as `val`.
        options: see `examples.build`.

    Raises:
        DatasetError: `datasets` is not installed or cannot load it; or it has no such columns, splits or classes.
    """
    if importlib.util.find_spec("datasets") is None:
        raise DatasetError(f"--dataset={dataset}: it is read with datasets: pip install 'dlv3p_jax[hf]'")
    loaded = _load(dataset)
    for flag, key in {"--image_key": image_key, "--label_key": label_key}.items():
        _check_key(dataset, next(iter(loaded.values())), flag, key)
    assert label_key is not None
    items = {split: _Split(part, split, image_key, label_key) for split, part in _splits(loaded, splits).items()}
    description = f"{dataset.removeprefix(records.HF)} of Hugging Face's datasets, {image_key} and {label_key}"
    return examples.build(items, data_dir, name=name, names=[], description=description, **options)


class _Split(Collection):
    """The items of a split, which are read whenever one goes over them."""

    def __init__(self, rows, split: str, image_key: str, label_key: str):
        from datasets import Image

        self._split, self._keys = split, (image_key, label_key)
        for key in self._keys:
            if isinstance(rows.features[key], Image):  # their files, as they are
                rows = rows.cast_column(key, Image(decode=False))
        self._rows = rows.select_columns(list(dict.fromkeys(self._keys)))

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, item: object) -> bool:
        return any(item == each for each in self)

    def __iter__(self) -> Iterator[examples.Item]:
        for index, row in enumerate(self._rows):
            where = f"{self._split}-{index:06d}"
            image, label = (_file(row[key], f"{where}, {key}") for key in self._keys)
            yield examples.Item(where, image, label)


def _file(value: Any, where: str) -> bytes:
    """The bytes of a picture's file, or of one that is made of an array."""
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


def _check_key(dataset: str, rows, flag: str, key: str | None) -> None:
    """Raises DatasetError where a column holds neither pictures nor arrays of two dimensions."""
    from datasets import Array2D, Image, List

    def is_mask(feature) -> bool:
        nested = isinstance(feature, List) and isinstance(feature.feature, List)
        return isinstance(feature, Image | Array2D) or nested

    columns = [each for each, feature in rows.features.items() if is_mask(feature)]
    if key not in columns:
        wrong = "" if key is None else f"={key}"
        raise DatasetError(
            f"{flag}{wrong}: name a column of {dataset} that holds pictures: {', '.join(columns) or 'it has none'}"
        )


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

"""Segmentation data sets of TensorFlow Datasets' catalogue, or of a folder that TFDS has prepared."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from dlv3p_jax.data import records
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.datasets import examples
from dlv3p_jax.datasets.builder import PictureBuilder
from dlv3p_jax.runtime import text


def make_builder(
    data_dir: str | os.PathLike,
    *,
    dataset: str,
    name: str,
    label_key: str | None,
    image_key: str = "image",
    source: str | os.PathLike | None = None,
    splits: Sequence[str] = (),
    **options: Any,
) -> PictureBuilder:
    """The builder of tfds:NAME; TFDS downloads and prepares its own records first, unless they are there.

    Args:
        data_dir, name: see `by_name`.
        dataset: `tfds:NAME`, `tfds:NAME/CONFIG`, with `:VERSION` for another than the newest.
        label_key, image_key: of the features with the label and the picture.
        source: TFDS's own data_dir; None: TFDS's default.
        splits: as NAME=SPLIT, where SPLIT may be a part such as `train[:80%]`; none: all, with `validation` as `val`.
        options: see `examples.build`.

    Raises:
        DatasetError: TFDS has no such data set or cannot fetch it; or it has no such features, splits or classes.
    """
    catalogue = _open(dataset.removeprefix(records.TFDS), source)
    features = catalogue.info.features
    of_pictures = [each for each, feature in features.items() if _is_file(feature) or _is_array(feature)]
    keys = examples.check_keys(image_key, label_key, of_pictures, f"feature of {catalogue.name}")
    items = {split: _items(catalogue, spec, keys) for split, spec in _splits(catalogue, splits).items()}
    return examples.build(
        items,
        data_dir,
        name=name,
        names=list(getattr(features[keys[1]], "names", None) or ()),
        description=f"{catalogue.info.full_name} of TensorFlow Datasets, {image_key} and {label_key}",
        **options,
    )


def _items(catalogue: tfds.core.DatasetBuilder, split: str, keys: tuple[str, str]) -> examples.Items:
    """The items of a split; `keys` are of picture and label."""
    features = catalogue.info.features
    as_files = {key: tfds.decode.SkipDecoding() for key in keys if _is_file(features[key])}
    options = {
        "decoders": tfds.decode.PartialDecoding(dict.fromkeys(keys, True), as_files),
        "read_config": tfds.ReadConfig(add_tfds_id=True, interleave_cycle_length=1),
    }

    def read() -> Iterator[examples.Item]:
        try:
            for example in catalogue.as_dataset(split, shuffle_files=False, **options).as_numpy_iterator():
                image, label = (examples.to_file(example[key]) for key in keys)
                yield examples.Item(example["tfds_id"].decode(), image, label)
        except tf.errors.OpError as error:
            raise DatasetError(
                f"{catalogue.data_path}: {split} cannot be read ({text.first_line(error)}): remove this folder, and "
                "TFDS prepares it again"
            ) from error

    return examples.Items(catalogue.info.splits[split].num_examples, read)


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


def _is_file(feature: Any) -> bool:
    """Whether it is a picture, as a file of 8 or 16 bits."""
    return isinstance(feature, tfds.features.Image) and feature.np_dtype in (np.uint8, np.uint16)


def _is_array(feature: Any) -> bool:
    is_integer = isinstance(feature, tfds.features.Tensor) and np.dtype(feature.np_dtype).kind in "bui"
    return is_integer and (len(feature.shape) == 2 or len(feature.shape) == 3 and feature.shape[-1] in (1, 3))


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

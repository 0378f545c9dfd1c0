"""Weights from wherever a user has them: a published name, another program's file, a workdir, a checkpoint's folder."""

import dataclasses
import difflib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from etils import epath

from dlv3p_jax import models
from dlv3p_jax.data import classes, ranges, viz
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.models import Variables, variable_shapes
from dlv3p_jax.models.deeplabv3plus import DeepLabV3Plus
from dlv3p_jax.runtime import configuration, sharding
from dlv3p_jax.weights import (
    checkpoint_files,
    checkpoint_reading,
    foreign,
    model_folder,
    pdparams,
    published,
    renamed,
)


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A network with its weights, and what its classes are called.

    Attributes:
        config: what it was trained with, with the changes that were asked for, as a FrozenConfigDict.
        model: the linen module.
        variables: {'params': …, 'batch_stats': …}; the averaged ones where a checkpoint has them.
        class_names: C names.
        palette: uint8 `[C, 3]`, the classes' colours.
        source: where the weights are from, such as "workdir/mine/checkpoints/best/4000, step 4000 (ema)".
        picture_range: the values that became 0 and 255 in the pictures of more than 8 bits that it was trained on,
            where `prepare` was told; such pictures are read by it too.
        path: the file, or the folder of the checkpoint.
        step: of the training; 0 of converted weights.
    """

    config: ml_collections.FrozenConfigDict
    model: DeepLabV3Plus
    variables: Variables
    class_names: tuple[str, ...]
    palette: np.ndarray
    source: str
    picture_range: ranges.Range | None
    path: epath.PathLike
    step: int

    def describe(self) -> dict[str, Any]:
        """What the `meta` of a folder to share is to hold of it, without any path of this machine."""
        about = self.class_names, self.palette, self.config.ignore_label, self.picture_range
        return checkpoint_reading.describe_classes(*about) | {"step": self.step}


def load_checkpoint(config, checkpoint: epath.PathLike, changes: Mapping[str, Any] | None = None) -> TrainedModel:
    """A trained model from wherever a user has it.

    Args:
        config: a configuration; its `num_classes` is the checkpoint's where it is None. None: the checkpoint's own. A
            published model has its own, and of another program's file all that it says is: see `foreign.describe`.
        checkpoint: see `resolve`.
        changes: keys, dotted, that take other values.

    Raises:
        ValueError, OSError: there is no such checkpoint, it is of another network than `config` says, a key is wrong,
            or JAX finds no devices; the message says which.
    """
    sharding.find_devices()  # reading would call the checkpoint damaged where they are missing
    path = resolve(checkpoint)
    if config is None and published.is_name(str(checkpoint)):
        config = published.config_of(str(checkpoint))
    if path.is_file():
        return _load_foreign_model(config, path, changes)
    trained = checkpoint_reading.read_config(path)
    config = trained if config is None else config
    if config is None:
        raise ValueError(f"no config.json in {path} or above it: give --config=FILE, what it was trained with")
    config = config.copy_and_resolve_references()
    if config.num_classes is None and trained is not None:
        config.num_classes = trained.num_classes
    if config.num_classes is None and "num_classes" not in (changes or {}):
        raise ValueError(
            f"no config.json in {path} or above it, which would say how many classes it has: put it there, or give "
            "--config.num_classes=N"
        )
    config.update_from_flattened_dict(changes or {})
    config.model.dtype = sharding.dtype(config.model.dtype)
    configuration.check(config)
    if trained is not None:
        trained = trained.copy_and_resolve_references()
        trained.model.dtype = sharding.dtype(trained.model.dtype)
        configuration.check_model(config, trained, path)
    model = models.build_model(config)
    variables, averaged = checkpoint_reading.read_model(path)
    variables, _ = checkpoint_reading.fit_variables(
        variables, variable_shapes(model), allow_new_head=False, source=path
    )
    meta = checkpoint_reading.read_meta(path)
    source = f"{path}, step {meta['step']}{' (ema)' if averaged else ''}"
    return _trained_model(config, model, variables, meta, source, path)


def resolve(source: epath.PathLike) -> epath.Path:
    """What a user means by a source of weights: the file of another program, or the folder of the checkpoint.

    Args:
        source: the name of a published model or backbone, which is fetched unless it is in the cache; a `.pdparams`
            file, an archive with one or a `.pth`; a workdir, a checkpoint's folder or one of `save_pretrained`; or
            hf:USER/MODEL, such a folder on Hugging Face's hub.

    Raises:
        DownloadError: the file of a name cannot be had, or was changed.
        HubError: a model of the hub cannot be had.
        CheckpointError: `source` is none of these; the message says what was looked for.
    """
    source = os.path.expanduser(source)
    if published.is_name(str(source)):
        return epath.Path(published.fetch(str(source)))
    if str(source).startswith(model_folder.HUB):
        return model_folder.fetch(str(source).removeprefix(model_folder.HUB))
    if epath.Path(source).is_file():
        folder = epath.Path(source).parent
        if epath.Path(source).name == model_folder.WEIGHTS and model_folder.is_one(folder):
            raise checkpoint_files.CheckpointError(f"{source} is a part of a model: give its folder, {folder}")
        return epath.Path(source)
    try:
        return checkpoint_reading.find(source)
    except checkpoint_files.CheckpointError as error:
        if "://" not in str(source) and (files := pdparams.weights_in(pathlib.Path(source))):
            listed = " or ".join(map(str, files[:3]))
            raise checkpoint_files.CheckpointError(
                f"{source} is a folder of PaddleSeg's: give the file, {listed}"
            ) from error
        near = difflib.get_close_matches(str(source), published.names(), n=1)
        raise checkpoint_files.CheckpointError(f"{error}{f'; did you mean {near[0]}?' if near else ''}") from error


def _load_foreign_model(config, path: epath.PathLike, changes: Mapping[str, Any] | None) -> TrainedModel:
    file = foreign.read(path)
    if file.is_backbone:
        raise ValueError(f"{path} holds a backbone alone, which has no classes: give a whole model")
    described = config is None
    config = foreign.describe(file) if described else config.copy_and_resolve_references()
    if config.num_classes is None:
        config.num_classes = file.num_classes
    config.update_from_flattened_dict(changes or {})
    config.model.dtype = sharding.dtype(config.model.dtype)
    if not described:  # which has no data set
        configuration.check(config)
    model = models.build_model(config)
    variables = foreign.convert(file, model, allow_new_head=False)
    meta = dict(zip(("class_names", "palette"), file.classes, strict=True)) if file.classes else {}
    return _trained_model(config, model, variables, meta, str(path), path)


def _trained_model(
    config, model, variables, meta: Mapping[str, Any], source: str, path: epath.PathLike
) -> TrainedModel:
    logging.info("Loaded %s", source)
    names, palette = _classes_of(config, meta)
    picture_range = None
    if "picture_range" in meta:
        low, high = picture_range = tuple(meta["picture_range"])
        logging.info("Pictures of more than 8 bits are read as those of its data were: %g..%g as 0..255", low, high)
    frozen = ml_collections.FrozenConfigDict(config)
    about = tuple(names), palette, source, picture_range, path, meta.get("step", 0)
    return TrainedModel(frozen, model, variables, *about)


def _classes_of(config, meta: Mapping[str, Any]) -> tuple[list[str], np.ndarray]:
    """Names and colours, uint8 `[C, 3]`, of a configuration's classes.

    They are those that the checkpoint was trained on, if its `meta` has them; otherwise those of the configuration's
    data set, if that is known or prepared.
    """
    numbers = [f"class {index}" for index in range(config.num_classes)], viz.class_colors(config.num_classes)
    if "class_names" in meta:
        names, palette = meta["class_names"], meta["palette"]
    else:
        names, palette = _classes_of_dataset(config.dataset, config.data_dir) or numbers
    if len(names) != config.num_classes:
        logging.warning(
            "%s has %d classes and the model %d, so they are called by their numbers",
            *(config.dataset, len(names), config.num_classes),
        )
        names, palette = numbers
    return list(names), np.array(palette, np.uint8)


def _published_classes(name: str):
    """Names and colours of what a published model was trained on; None where it is none, or a backbone."""
    return _classes_of_dataset(published.config_of(name).dataset, "") if name in published.models() else None


def _classes_of_dataset(name: str | None, data_dir: str):
    if name is None:
        return None
    if name in classes.CLASSES:
        return classes.CLASSES[name]
    from dlv3p_jax.data import records  # imports TensorFlow, which checkpoints that name their classes do without

    try:
        dataset = records.open_dataset(name, data_dir)
    except DatasetError:
        return None
    return dataset.class_names, dataset.palette


def load_foreign(path: epath.PathLike, model: DeepLabV3Plus, allow_new_head: bool) -> Variables:
    """The weights of a `.pdparams` file, of an archive with one, or of a `.pth`; see `foreign.convert`.

    Raises:
        ValueError: the file cannot be read, or is of another network; subclasses name what.
    """
    return foreign.convert(foreign.read(path), model, allow_new_head)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Weights as they were found: `variables` of a whole model or of its backbone, and the file or folder they are of.

    `averaged` says whether they are the averaged ones of a checkpoint; `class_names` are those of its classifier, where
    they are known.
    """

    variables: Variables
    path: epath.PathLike
    averaged: bool
    class_names: Sequence[str] | None


def read_pretrained(source: epath.PathLike, model: DeepLabV3Plus) -> Pretrained:
    """Reads weights to start from; nothing is compiled for it.

    Args:
        source: see `resolve`; of a checkpoint, the averaged variables are taken where there are any.
        model: what `build_model` returned.

    Raises:
        ValueError, OSError: `source` is none of these, or cannot be had; the message says which.
    """
    path = resolve(source)
    if path.is_file():
        file = foreign.read(path)
        names, _ = file.classes or _published_classes(str(source)) or (None, None)
        return Pretrained(foreign.convert(file, model, allow_new_head=True), path, averaged=False, class_names=names)
    variables, averaged = checkpoint_reading.read_model(path)
    config = checkpoint_reading.read_config(path)
    if config is not None and isinstance(model, DeepLabV3Plus):  # another network, of a user's own, has no such keys
        try:
            renamed.check_function(model, config.model, variables["params"].keys() == {"backbone"})
        except renamed.ConversionError as error:
            raise renamed.ConversionError(f"{path}: {error}") from error
    return Pretrained(variables, path, averaged, checkpoint_reading.read_meta(path).get("class_names"))


def fit_pretrained(found: Pretrained, fresh: Variables, class_names: Sequence[str] = ()) -> Variables:
    """Weights to start from in the structure of `fresh`; logs what was loaded.

    Args:
        found: by `read_pretrained`.
        fresh: freshly initialised variables of the model; the classifier keeps them where `found` has another number of
            classes, and everything but the backbone where it holds nothing else.
        class_names: of the data that are trained on; where the classifier is taken and is of others, a warning says so.

    Raises:
        ValueError: they are of another network; the message says where they differ.
    """
    variables, new = checkpoint_reading.fit_variables(found.variables, fresh, allow_new_head=True, source=found.path)
    total = len(jax.tree.leaves(fresh))
    logging.info(
        "Loaded %d of %d arrays from %s%s%s",
        *(total - len(new), total, found.path, ", the averaged ones" if found.averaged else ""),
        f"; initialised afresh: {_shortened(new)}" if new else "",
    )
    lines = checkpoint_reading.other_classes({"class_names": found.class_names or class_names}, class_names)
    if lines and not any(name.startswith("params/decoder/classifier") for name in new):
        logging.warning(
            "%s was trained with other classes, in number as many, and its classifier is taken for those of now:%s",
            *(found.path, lines),
        )
    return variables


def _shortened(names: list[str]) -> str:
    """The names, or their first components with counts where there are many."""
    if len(names) <= 8:
        return ", ".join(names)
    parts = sorted({name.split("/")[1] for name in names})
    return ", ".join(f"{sum(name.split('/')[1] == part for name in names)} of {part}" for part in parts)

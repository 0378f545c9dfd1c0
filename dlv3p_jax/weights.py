"""Weights from wherever a user has them: a published name, a .pdparams file, a workdir or a checkpoint's folder."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from absl import logging
from etils import epath

from dlv3p_jax import checkpoints, configuration, paddle_weights, pdparams, pretrained, steps
from dlv3p_jax.models import build_model
from dlv3p_jax.models.deeplabv3plus import DeepLabV3Plus


def load_checkpoint(config, checkpoint: epath.PathLike, changes: Mapping[str, Any] | None = None):
    """A checkpoint and the network that it is of.

    Args:
        config: a configuration; its `num_classes` is the checkpoint's where it is None. None: the checkpoint's own.
        checkpoint: a workdir, or a checkpoint's folder.
        changes: keys, dotted, that take other values.

    Returns:
        The configuration as a FrozenConfigDict, the linen module, and its variables: the averaged ones where there are.

    Raises:
        ValueError: there is no such checkpoint, it is of another network than `config` says, or a key is wrong.
    """
    path = checkpoints.find(checkpoint)
    of_checkpoint = checkpoints.find_config(path)
    trained = None if of_checkpoint is None else configuration.read(of_checkpoint)
    if config is None and trained is None:
        raise ValueError(f"no config.json in {path} or above it: give --config=FILE, what it was trained with")
    config = (trained if config is None else config).copy_and_resolve_references()
    if config.num_classes is None and trained is not None:
        config.num_classes = trained.num_classes
    config.update_from_flattened_dict(changes or {})
    configuration.check(config)
    if trained is not None:
        configuration.check_model(config, trained, path)
    model = build_model(config)
    variables, averaged = checkpoints.read_model(path)
    variables, _ = checkpoints.fit_variables(variables, _shapes(model), allow_new_head=False, source=path)
    logging.info("Loaded %s, step %d%s", path, checkpoints.read_meta(path)["step"], " (ema)" if averaged else "")
    return ml_collections.FrozenConfigDict(config), model, variables


def load_paddle(path: epath.PathLike, model: DeepLabV3Plus, allow_new_head: bool) -> steps.Variables:
    """The weights of a `.pdparams` file, or of an archive with one.

    Args:
        path: the file.
        model: what `build_model` returned.
        allow_new_head: whether the classifier may be for another number of classes than `model` has.

    Returns:
        {'params': …, 'batch_stats': …}; of a backbone alone, such as ImageNet weights, only their `backbone`.

    Raises:
        ValueError: the file cannot be read, or is of another network; subclasses name what.
    """
    state = pdparams.load_pdparams(path)
    try:
        if paddle_weights.is_backbone(state):
            variables, dropped = paddle_weights.convert_backbone(state, model)
            if dropped:
                logging.info("%s is a backbone with its classifier, which is left out: %s", path, ", ".join(dropped))
            return variables
        num_classes = paddle_weights.num_classes_of(state)
        if allow_new_head and num_classes is not None:
            model = model.clone(num_classes=num_classes)
        return paddle_weights.convert(state, model)
    except paddle_weights.ConversionError as error:
        raise paddle_weights.ConversionError(f"{path}: {error}") from error


def load_pretrained(source: epath.PathLike, model: DeepLabV3Plus, fresh: steps.Variables) -> steps.Variables:
    """What training starts from, `config.pretrained`, in the structure of `fresh`; logs what was loaded.

    Args:
        source: a name of `pretrained` (which is downloaded unless it is in the cache), a `.pdparams` file or an archive
            with one, a workdir or a checkpoint's folder, of which the averaged variables are taken where there are any.
        model: what `build_model` returned.
        fresh: freshly initialised variables of `model`; the classifier keeps them where `source` has another number of
            classes, and everything but the backbone where it holds nothing else.

    Raises:
        ValueError, OSError: `source` is none of these, cannot be had, or is of another network; the message says which.
    """
    averaged = False
    if pretrained.is_name(str(source)):
        path = pretrained.fetch(str(source))
        loaded = load_paddle(path, model, allow_new_head=True)
    elif epath.Path(source).is_file():
        path = source
        loaded = load_paddle(path, model, allow_new_head=True)
    else:
        path = checkpoints.find(source)
        loaded, averaged = checkpoints.read_model(path)
    variables, new = checkpoints.fit_variables(loaded, fresh, allow_new_head=True, source=path)
    total = len(jax.tree.leaves(fresh))
    logging.info(
        "Loaded %d of %d arrays from %s%s%s",
        *(total - len(new), total, path, ", the averaged ones" if averaged else ""),
        f"; initialised afresh: {_shortened(new)}" if new else "",
    )
    return variables


def _shortened(names: list[str]) -> str:
    """The names, or their first components with counts where there are many."""
    if len(names) <= 8:
        return ", ".join(names)
    parts = sorted({name.split("/")[1] for name in names})
    return ", ".join(f"{sum(name.split('/')[1] == part for name in names)} of {part}" for part in parts)


def _shapes(model: DeepLabV3Plus):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(lambda rng, images: model.init(rng, images, train=False), jax.random.key(0), images)

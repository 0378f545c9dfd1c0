"""A run's configuration: checked before anything is built, written as JSON, compared when a run goes on."""

import json
import math
import numbers
from collections.abc import Sequence
from typing import Any

import ml_collections
from absl import logging
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from dlv3p_jax.configs import common
from dlv3p_jax.runtime import files, hints, sealing
from dlv3p_jax.runtime.errors import UserError

# These may change when a run is resumed, and all below them: they decide where and on what, how often and how it is
# looked at, not what is trained.
MAY_CHANGE = (
    "allow_changed_data",
    "cache_pictures",
    "checkpoint_every_steps",
    "data_dir",
    "early_stopping",
    "eval",
    "eval_every_steps",
    "eval_size",
    "eval_split",
    "keep_checkpoints",
    "log_every_steps",
    "mesh",
    "model.remat",
    "pretrained",
    "profile_steps",
)

# These keys of the network may differ from those it was trained with: they change its speed and precision, or training.
MODEL_MAY_DIFFER = ("auxiliary_head", "dropout", "dtype", "output_stride", "remat")


# With fewer pictures in BatchNorm's statistics, scores are known to drop; no published recipe has fewer.
FEW_PICTURES = 8


BALANCED = "balanced"  # of loss.class_weights
# What a user may leave open, by key: it is decided where a run begins, and a run that goes on has what it had.
OPEN = {"loss.class_weights": BALANCED, "model.dtype": "auto"}


class ConfigError(UserError):
    """A configuration key has a value that cannot be used; the message names both."""


def resolve(
    config: ml_collections.ConfigDict, num_classes: int, ignore_label: int, class_pixels: Sequence[int] | None = None
) -> ml_collections.FrozenConfigDict:
    """The configuration with what the data set knows filled in.

    Args:
        config: checked.
        num_classes, ignore_label: of the data set.
        class_pixels: how many pixels each class has in `config.train_split`; None: there is no such split.

    Raises:
        ConfigError: `num_classes`, `ignore_label` or the number of `loss.class_weights` differs from the data set's, or
            there is nothing to balance these by.
    """
    config = config.copy_and_resolve_references()
    for key, value in (("num_classes", num_classes), ("ignore_label", ignore_label)):
        if config[key] is None:
            config[key] = value
        elif config[key] != value:
            raise ConfigError(
                f"config.{key}={config[key]}, but the data set {config.dataset} in {config.data_dir} has {value}: "
                f"give --config.{key}={value}, or prepare the data set again"
            )
    if config.loss.class_weights == BALANCED:
        if class_pixels is None or not any(class_pixels):
            raise ConfigError(
                f"config.loss.class_weights={BALANCED!r}: the data set {config.dataset} has no labelled pixels in the "
                f"split {config.train_split!r} of config.train_split"
            )
        with config.ignore_type():
            config.loss.class_weights = balanced_weights(class_pixels)
    weights = config.loss.class_weights
    if weights is not None and len(weights) != num_classes:
        raise ConfigError(f"config.loss.class_weights={weights}: give one for each of the {num_classes} classes")
    return ml_collections.FrozenConfigDict(config)


def balanced_weights(class_pixels: Sequence[int]) -> tuple[float, ...]:
    """Weights of classes by their shares p of the labelled pixels: 1 / ln(1.02 + p), as of ENet (Paszke et al., 2016).

    They are scaled so that the mean weight of a pixel is 1, and rounded to four decimals. A rare class weighs at most
    35 times as much as one that is everywhere. A class without a pixel has the weight 1.
    """
    shares = [pixels / sum(class_pixels) for pixels in class_pixels]
    weights = [1 / math.log(1.02 + share) for share in shares]
    mean = sum(share * weight for share, weight in zip(shares, weights, strict=True))
    return tuple(round(weight / mean, 4) if share else 1.0 for share, weight in zip(shares, weights, strict=True))


def check(config) -> None:
    """Raises ConfigError for the first key that no run can use; model, views and mesh check their own."""
    values = flatten_dict(config.to_dict(), sep=".")
    known = flatten_dict(common.get_config().to_dict(), sep=".")
    for key in values.keys() - known.keys():  # a slip in a config file, which would count for nothing
        raise ConfigError(f"config.{key} is no key that is known here: {hints.meant(key, known) or hints.OTHERWISE}")

    def require(condition: bool, key: str, expected: str) -> None:
        if not condition:
            raise ConfigError(f"config.{key}={values[key]!r}: {expected}")

    for key, value in values.items():
        parts = value if isinstance(value, tuple) else (value,)
        require(all(math.isfinite(x) for x in parts if isinstance(x, float)), key, "must be finite")
        whole = [x for x in parts if isinstance(x, int)]
        # Steps are counted in int32. Of a seed, JAX takes the lower 32 bits: a larger one would be another's in part.
        limit = 2**32 if key == "seed" else 2**31
        require(all(abs(x) < limit for x in whole), key, f"must be below {limit}")
    require(isinstance(config.dataset, str) and config.dataset != "", "dataset", "name a prepared data set")
    for key in ("crop_size", "eval_size"):
        size = config[key]
        if key == "eval_size" and size is None:
            continue
        valid = isinstance(size, tuple) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)
        require(valid, key, 'give (height, width) in pixels, on the command line as "(512, 1024)"')
    # The image pooling branch normalises one value per picture and channel, which needs at least two pictures.
    require(config.batch_size >= 2, "batch_size", "BatchNorm needs a global batch of at least 2 pictures")
    require(config.accumulate_steps >= 1, "accumulate_steps", "must be at least 1")
    require(
        config.batch_size % config.accumulate_steps == 0 and config.batch_size >= 2 * config.accumulate_steps,
        "accumulate_steps",
        f"config.batch_size={config.batch_size} must divide into so many micro-batches, of at least 2 pictures",
    )
    require(config.eval.batch_size >= 1, "eval.batch_size", "must be at least 1")
    require(config.eval.buckets >= 0, "eval.buckets", "must not be negative")
    padded_too = config.eval.resize is not None and config.eval_size is not None
    require(not padded_too, "eval.resize", "pictures are resized or padded (config.eval_size), not both")
    for key in ("num_train_steps", "log_every_steps", "eval_every_steps", "checkpoint_every_steps", "keep_checkpoints"):
        require(config[key] >= 1, key, "must be at least 1")
    for key, choices in (("optimizer", ("sgd", "adamw")), ("schedule", ("poly", "cosine"))):
        require(config[key] in choices, key, f"choose from {', '.join(choices)}")
    patience = config.early_stopping.patience
    require(patience is None or patience >= 1, "early_stopping.patience", "must be at least 1, or None")
    require(config.learning_rate > 0, "learning_rate", "must be positive")
    require(0 <= config.momentum < 1, "momentum", "must be at least 0 and below 1")
    rates = ("end_learning_rate", "poly_power", "weight_decay", "backbone_lr_factor")
    for key in (*rates, "warmup_steps", "profile_steps", "seed"):
        require(config[key] >= 0, key, "must not be negative")
    require(config.warmup_steps < config.num_train_steps, "warmup_steps", "must be below config.num_train_steps")
    weights = config.loss.class_weights
    require(
        weights is None or weights == BALANCED or (isinstance(weights, tuple | list) and all(map(_is_number, weights))),
        "loss.class_weights",
        f"give a number for each class, such as (1.0, 2.5), or {BALANCED}",
    )
    require(config.clip_grad_norm is None or config.clip_grad_norm > 0, "clip_grad_norm", "must be positive, or None")
    require(config.ema_decay is None or 0 < config.ema_decay < 1, "ema_decay", "must be between 0 and 1, or None")
    for key in ("brightness", "contrast", "saturation"):
        require(0 <= config.augment[key] <= 1, f"augment.{key}", "a factor is uniform in 1 ± this; 0 to 1")
    require(0 <= config.augment.hue <= 128, "augment.hue", "0 to 128, of a hue circle of 256")


def _is_number(value) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def warn_of_few_pictures(config) -> None:
    """One line in the log where BatchNorm's statistics in training are of fewer than FEW_PICTURES pictures."""
    pictures = config.batch_size // config.accumulate_steps
    if pictures >= FEW_PICTURES:
        return
    parts = f" / config.accumulate_steps={config.accumulate_steps}" if config.accumulate_steps > 1 else ""
    frozen = "" if config.freeze_backbone else ", or train with --config.pretrained and --config.freeze_backbone=True"
    logging.warning(
        "BatchNorm's statistics are of %d pictures (config.batch_size=%d%s); below %d, scores are known to drop: take "
        "more if memory allows%s",
        *(pictures, config.batch_size, parts, FEW_PICTURES, frozen),
    )


def warn_of_float32(config, platform: str) -> None:
    """One line in the log where devices that are made for bfloat16 compute in float32."""
    if config.model.dtype != "float32" or platform == "cpu":
        return
    cost = "each product is six of bfloat16" if platform == "tpu" else "products leave out the tensor cores"
    logging.warning(
        "config.model.dtype=float32 on a %s: %s, and activations take twice the memory; --config.model.dtype=bfloat16 "
        "is several times as fast, and parameters, statistics, logits and losses stay float32",
        *(platform.upper(), cost),
    )


def to_dict(config) -> dict[str, Any]:
    """Plain JSON values: tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


def write(config, path: epath.Path) -> None:
    """Writes the configuration as readable JSON with a seal; the file appears whole or not at all."""
    files.write_json(path, sealing.seal(to_dict(config)), sort_keys=True)


def read(path: epath.PathLike) -> ml_collections.ConfigDict:
    """A configuration that `write` wrote; JSON's lists become tuples.

    Keys that it lacks, since an older version wrote it, are as in `configs/common.py`.

    Raises:
        ConfigError: the file holds something else, or was damaged or changed.
    """
    try:
        return from_dict(sealing.unseal(json.loads(epath.Path(path).read_text(encoding="utf-8"))))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is no configuration that this program wrote ({error})") from error


def from_dict(written: dict[str, Any]) -> ml_collections.ConfigDict:
    """A configuration from what `to_dict` gave; keys that it lacks are as in `read`.

    Raises:
        ValueError, TypeError: it is something else.
    """

    def restore(value):
        if isinstance(value, dict):
            return {key: restore(inner) for key, inner in value.items()}
        return tuple(map(restore, value)) if isinstance(value, list) else value

    if not isinstance(written, dict):
        raise TypeError(f"it holds a {type(written).__name__}")
    values = flatten_dict(common.get_config().to_dict(), sep=".") | flatten_dict(restore(written), sep=".")
    return ml_collections.ConfigDict(unflatten_dict(values, sep="."))


def check_model(config, trained, checkpoint: epath.PathLike) -> None:
    """Compares the network of `config` with that of the configuration that a checkpoint was trained with.

    The keys in MODEL_MAY_DIFFER are only told. A key that `trained` lacks, since it is older, is not compared.

    Raises:
        ConfigError: another key differs, so that the scores would be wrong; the message has keys and both values.
    """
    then, now = to_dict(trained).get("model", {}), to_dict(config)["model"]
    lines = []
    for key, (before, after) in differences(then, now).items():
        if key in MODEL_MAY_DIFFER:
            logging.warning("config.model.%s is %r here, but %s was trained with %r", key, after, checkpoint, before)
        elif key in then:
            value = tuple(before) if isinstance(before, list) else before
            lines.append(f'\n  model.{key}: {before!r} then, {after!r} now; give --config.model.{key}="{value}"')
    if lines:
        raise ConfigError(f"{checkpoint} was trained with another network:{''.join(lines)}")


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys, dotted, whose values differ, with both values; a key that is absent counts as None."""
    old, new = flatten_dict(old, sep="."), flatten_dict(new, sep=".")
    keys = sorted(old.keys() | new.keys())
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def left_open(config) -> list[str]:
    """The keys that `config` leaves OPEN."""
    values = flatten_dict(config.to_dict(), sep=".")
    return [key for key, word in OPEN.items() if values[key] == word]


def take_open(config, begun_with) -> ml_collections.ConfigDict:
    """A copy of `config` that has what it leaves OPEN as the run of `begun_with` has it, which is logged."""
    config, then = config.copy_and_resolve_references(), flatten_dict(begun_with.to_dict(), sep=".")
    for key in left_open(config):
        if then[key] is not None:
            logging.info("config.%s=%s is %s, as the run was begun with", key, OPEN[key], then[key])
            with config.ignore_type():
                config.update_from_flattened_dict({key: then[key]})
    return config


def check_resume(old, config, workdir: epath.PathLike) -> None:
    """Raises ConfigError, with keys and both values, if a run begun with `old` cannot go on with `config`."""
    lines = "\n".join(
        f"  {key}: {before!r} then, {after!r} now"
        for key, (before, after) in differences(to_dict(old), to_dict(config)).items()
        if not any(key == free or key.startswith(f"{free}.") for free in MAY_CHANGE)
    )
    if lines:
        raise ConfigError(
            f"{workdir} holds a run with another configuration:\n{lines}\n"
            "give the values of then to go on with it, or another --workdir to begin a new run"
        )

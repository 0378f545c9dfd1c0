"""A run: what it trains on, checked before anything is compiled, and the state that it goes on from."""

import dataclasses
import functools
from typing import Any

import jax
import ml_collections
from absl import logging
from etils import epath
from jax.sharding import Mesh

from dlv3p_jax.data import augment, padding, records
from dlv3p_jax.evaluation.evaluator import init_variables
from dlv3p_jax.models.deeplabv3plus import DeepLabV3Plus
from dlv3p_jax.runtime import agreement, configuration, memory, sharding
from dlv3p_jax.training import losses, rmi, steps
from dlv3p_jax.weights import checkpoint_files, checkpoint_reading, checkpoints, trained


@dataclasses.dataclass(frozen=True)
class Run:
    """What training works with from its first step to its last.

    Attributes:
      config: checked, with what the data set fills in (`evaluator.prepare_run`).
      dataset: prepared.
      mesh: of the devices.
      model: what `build_model` made of `config`.
      workdir: gets config.json, checkpoints/, TensorBoard events and eval/.
    """

    config: ml_collections.FrozenConfigDict
    dataset: records.Dataset
    mesh: Mesh
    model: DeepLabV3Plus
    workdir: epath.Path

    def describe(self) -> dict[str, Any]:
        """What every checkpoint of the run holds in its `meta`: classes, the digests of the two splits, its average."""
        data, config = self.dataset, self.config
        meta = checkpoint_reading.describe_classes(
            data.class_names, data.palette, data.ignore_label, data.picture_range
        )
        meta["ema_ramps"] = True
        meta["data"] = {"train": data.digest(config.train_split), "val": data.digest(config.eval_split)}
        return meta


def check_values(config) -> None:
    """Checks what training asks for and no data are needed for.

    Raises:
      ValueError: the loss or the scales cannot be used; the message names the key.
    """
    losses.check_weights(config.loss)
    size = augment.crop_of(config).size
    if config.loss.rmi and min(size) < rmi.SMALLEST:
        raise ValueError(f"config.crop_size={size}: config.loss.rmi needs {rmi.SMALLEST} pixels or more a side")


def check_run(config, dataset: records.Dataset, mesh: Mesh) -> None:
    """Checks what training alone asks for, before anything is compiled, and warns of what is known to cost scores.

    Raises:
      ValueError: the loss, the scales or the sizes of batches and pictures cannot be used; the message names the key.
    """
    losses.check(config)
    crop = augment.crop_of(config)
    memory.check_logits(config, mesh)
    sharding.check_micro_batch(mesh, config.batch_size, config.accumulate_steps, crop.size[0])
    configuration.warn_of_few_pictures(config)
    configuration.warn_of_float32(config, mesh.devices.flat[0].platform)
    padding.warn_of_padding(dataset.sizes(config.train_split), crop)


def take_open(config, workdir: epath.PathLike):
    """`config` with what it leaves open as the run in `workdir` has it, so that it goes on as it began, or as it is.

    Raises:
      ConfigError: its config.json holds something else.
      CheckpointError: a checkpoint cannot be read now.
    """
    if not configuration.left_open(config):
        return config
    try:
        begun_with = checkpoint_reading.read_config(checkpoint_reading.find(workdir))
    except checkpoint_files.UnreadableError:
        raise
    except checkpoint_files.CheckpointError:  # there is none; what is damaged is told when the run is opened
        return config
    return config if begun_with is None else configuration.take_open(config, begun_with)


def configure_run(run: Run, saved: checkpoints.Checkpoints) -> ml_collections.ConfigDict:
    """The configuration to write down for a run: its own, or where it goes on, with what it was begun from.

    Raises:
      ConfigError: the run was begun with another configuration, or config.json holds something else.
      CheckpointError: nothing says what it was begun with.
      UnreadableError: a checkpoint cannot be read now.
    """
    begun_with = config_of_run(saved, run.workdir)
    config = ml_collections.ConfigDict(run.config)
    if begun_with is None:
        return config
    configuration.check_resume(begun_with, run.config, run.workdir)
    if saved.latest_step is None:  # it was stopped before its first checkpoint, and begins anew
        return config
    if config.pretrained not in (None, begun_with.pretrained):
        logging.warning(
            "config.pretrained=%s is not used, as the run goes on from a checkpoint; it was begun with %s",
            *(config.pretrained, begun_with.pretrained),
        )
    config.pretrained = begun_with.pretrained
    return config


def config_of_run(saved: checkpoints.Checkpoints, workdir: epath.Path) -> ml_collections.ConfigDict | None:
    """The configuration that the run in `workdir` was begun with; None if there is no checkpoint of one.

    It is in config.json, and where that is gone, in the checkpoints.

    Raises:
      ConfigError: config.json holds something else.
      CheckpointError: it is gone, and the checkpoints are of older versions, which did not hold it.
      UnreadableError: a checkpoint cannot be read now.
    """
    if not saved.paths:
        return None
    path = workdir / "config.json"
    if path.exists():
        return configuration.read(path)
    for checkpoint in saved.paths:
        try:
            meta = checkpoint_reading.read_meta(checkpoint)
        except checkpoint_files.UnreadableError:
            raise
        except checkpoint_files.CheckpointError:  # is told when the newest is restored
            continue
        if "config" in meta:
            logging.warning("%s is gone; it is written anew, as %s says that the run was begun", path, checkpoint)
            return configuration.from_dict(meta["config"])
    raise checkpoint_files.CheckpointError(
        f"{path} is gone, which says what {saved.paths[0]} was trained with: put it back to go on, or give another "
        f"--workdir to begin a new run; --config.pretrained={workdir} starts from the weights of this one"
    )


def first_state(run: Run, saved: checkpoints.Checkpoints) -> steps.TrainState:
    """The state that training goes on from: the newest checkpoint, `pretrained` weights, or a fresh model.

    Raises:
      CheckpointError: the workdir holds a run that cannot go on with this network and data set, or not now.
    """
    config, best = run.config, saved.best_path
    if saved.latest_step is None and best is not None:
        raise checkpoint_files.CheckpointError(
            f"{run.workdir} holds {best}, but no checkpoint in checkpoints/latest to go on from: give another "
            "--workdir to begin a new run, or remove this folder"
        )
    found = None
    if config.pretrained is not None and saved.latest_step is None:
        found = trained.read_pretrained(config.pretrained, run.model)
    digest = None if found is None else agreement.digest(found.variables)
    agreement.require("weights", {"sha256 of config.pretrained": digest})
    if saved.latest_step is not None:
        shapes = jax.eval_shape(lambda: steps.create_train_state(config, init_variables(config, run.model)))
        placed = functools.partial(jax.ShapeDtypeStruct, sharding=sharding.replicated(run.mesh))
        state = saved.restore(jax.tree.map(lambda x: placed(x.shape, x.dtype), shapes), config.allow_changed_data)
        logging.info("Resumed from %s", saved.latest_path)
        return state
    logging.info("Initialising %s", config.model.backbone)
    # The program runs once. A CPU's compiler takes half the time for one less optimised, which draws the same numbers.
    options = {"xla_backend_optimization_level": 1} if sharding.platform() == "cpu" else None
    variables = jax.jit(lambda: init_variables(config, run.model), compiler_options=options)()
    if found is not None:
        variables = trained.fit_pretrained(found, variables, run.dataset.class_names)
    return sharding.replicate(run.mesh, steps.create_train_state(config, variables))

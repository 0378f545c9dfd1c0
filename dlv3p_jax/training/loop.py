"""The host loop: reads batches, runs the step, evaluates, logs and saves; nothing numeric happens here."""

import collections
import contextlib
import math
import time
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from clu import periodic_actions
from etils import epath

from dlv3p_jax.data import augment, padding, pipeline, records
from dlv3p_jax.evaluation.evaluator import Result, init_variables, make_evaluator, prepare_run, print_result, views_name
from dlv3p_jax.models import build_model
from dlv3p_jax.runtime import (
    agreement,
    board,
    configuration,
    ending,
    memory,
    preemption,
    sharding,
    starts,
    workdir_lock,
)
from dlv3p_jax.runtime.preemption import Preempted
from dlv3p_jax.runtime.watchdog import Watchdog
from dlv3p_jax.training import event_writer, losses, steps
from dlv3p_jax.weights import checkpoint_files, checkpoint_reading, checkpoints, trained


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step, and what is saved."""


def train_and_evaluate(
    config,
    workdir: epath.PathLike,
    told: preemption.Preemption | None = None,
    hang_timeout: float = 0,
) -> dict[str, Any]:
    """Trains from the newest checkpoint in `workdir`, or from the start, to `num_train_steps`, and evaluates.

    Args:
      config: a configuration (`configs/common.py`).
      workdir: gets config.json, checkpoints/, TensorBoard events and eval/.
      told: is asked before each step and after each batch of an evaluation whether to save and leave now.
      hang_timeout: seconds without a step that end the process (`watchdog.Watchdog`); 0: none do.

    Returns:
      What `metrics.summarize` says of the last step; of the averaged model where `ema_decay` is set.

    Raises:
      ValueError: configuration, data set, mesh or checkpoint cannot be used; subclasses name what.
      TrainingError: the loss is no longer finite.
      SaveError: a checkpoint could not be written.
      OSError: something else could not be, such as the event file.
      WorkdirInUse: another run lives in `workdir`.
      DifferenceError: the processes of the run do not have the same.
      GivenUp: too many starts of this run were killed or hung without getting on.
      Preempted: `told` said so, and all is saved.
    """
    workdir = epath.Path(workdir)
    config, dataset, mesh = prepare_run(config)
    losses.check_weights(config.loss)
    crop = augment.crop_of(config)
    memory.check_logits(config, mesh)
    sharding.check_micro_batch(mesh, config.batch_size, config.accumulate_steps, config.crop_size[0])
    configuration.warn_of_few_pictures(config)
    padding.warn_of_padding(dataset.sizes(config.train_split), crop)
    num_pictures = dataset.num_pictures(config.train_split)
    logging.info(
        "Data: %s in %s, %d classes, ignored label %d; %d pictures in %s, %d in %s; an epoch has %.1f steps",
        *(dataset.title, config.data_dir, config.num_classes, config.ignore_label, num_pictures, config.train_split),
        *(dataset.num_pictures(config.eval_split), config.eval_split, num_pictures / config.batch_size),
    )

    if config.cache_pictures:
        gigabytes = pipeline.cache_bytes(dataset, config.train_split) / 1e9
        logging.info("Decoded pictures are kept in memory: %.1f GB when all have been seen", gigabytes)

    model = build_model(config)

    told = preemption.Preemption() if told is None else told

    def before_batch(compiles: bool) -> None:
        watchdog.feed(compiling=compiles)

    def between_batches() -> None:
        watchdog.feed()
        if told.reached():
            raise Preempted

    run_evaluation = make_evaluator(
        *(config, dataset, mesh, model, workdir), before_batch=before_batch, between_batches=between_batches
    )
    workdir.mkdir(parents=True, exist_ok=True)
    meta = checkpoint_reading.describe_classes(
        dataset.class_names, dataset.palette, dataset.ignore_label, dataset.picture_range
    )
    meta["data"] = {"train": dataset.digest(config.train_split), "val": dataset.digest(config.eval_split)}
    views, val = views_name(config), meta["data"]["val"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(workdir_lock.hold(workdir))
        start = stack.enter_context(starts.Start(workdir))
        ending.count(start)
        watchdog = stack.enter_context(Watchdog(hang_timeout, told, start.code))
        saved = stack.enter_context(checkpoints.Checkpoints(workdir, config.keep_checkpoints, meta))
        writer = stack.enter_context(event_writer.EventWriter(workdir))
        begun_with = config_of_run(saved, workdir)
        if begun_with is not None:
            configuration.check_resume(begun_with, config, workdir)
        state = first_state(config, model, mesh, saved, workdir)
        kept = config if begun_with is None or int(state.step) == 0 else _keep_pretrained(config, begun_with)
        saved.meta["config"] = configuration.to_dict(kept)
        if jax.process_index() == 0:
            configuration.write(kept, workdir / "config.json")

        finished = int(state.step) >= config.num_train_steps
        best_views = saved.best_metrics.get("views", views)
        if not saved.best_is_of(views, val):
            then = best_views if best_views != views else "other pictures or labels"
            now = views if best_views != views else f"{dataset.title} {config.eval_split} as it is now"
            what = "it stays" if finished else "the comparison begins anew, and the best is evaluated so once more"
            logging.info("The best checkpoint was found with %s, and this evaluates %s: %s", then, now, what)

        def evaluate(state: steps.TrainState) -> dict[str, Result]:
            step = int(state.step)
            writer.flush()  # what a run that goes on from here will not log again
            saved.save(state)  # so that it may leave at any time while it evaluates
            watchdog.feed()
            variants = {"": state.variables} | ({"ema": state.ema} if state.ema is not None else {})
            try:
                with told.nothing_to_lose(lambda: _saved(step, saved) if saved.is_saved(step) else None):
                    anew = None
                    if not finished and not saved.best_is_of(views, val):
                        anew = _evaluate_best(saved, mesh, run_evaluation)
                    results = {suffix: run_evaluation(tree, step, suffix) for suffix, tree in variants.items()}
                if anew is not None:
                    saved.measured_again(anew, views, val)
            except Preempted:
                _save_and_leave(state, saved, writer)
            for suffix, result in results.items():
                _write_evaluation(writer, step, f"eval_{suffix}" if suffix else "eval", result, dataset)
            mean_iou = results[max(results)].summary["mIoU"]  # the averaged model's, where there is one
            if saved.best_is_of(views, val) and saved.save_best(state, mean_iou, views, val):
                logging.info("Best so far: step %d, mIoU %.4f", step, mean_iou)
            return results

        if finished:
            logging.info("All %d steps were done before; evaluating the last", config.num_train_steps)
            results = evaluate(state)
        else:
            results = _train(config, dataset, mesh, model, state, workdir, saved, writer, evaluate, told, watchdog)
    for result in results.values():
        print_result(result, dataset)
    return result.summary


def _write_evaluation(
    writer: event_writer.EventWriter, step: int, prefix: str, result: Result, dataset: records.Dataset
) -> None:
    scalars = {name: result.summary[name] for name in ("mIoU", "accuracy", "kappa", "dice")}
    scalars |= {
        f"IoU/{name}": float(value)
        for name, value in zip(dataset.class_names, result.summary["IoU"], strict=True)
        if not math.isnan(value)
    }
    scalars["pictures_per_second"] = result.num_pictures / result.seconds
    writer.write_scalars(step, {f"{prefix}/{name}": value for name, value in scalars.items()})
    if result.sheet is not None:
        writer.write_images(step, {f"{prefix}/picture_label_prediction": np.asarray(result.sheet)[None]})


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


def _keep_pretrained(config, begun_with) -> ml_collections.ConfigDict:
    """`config` with what the run was begun from, which this command cannot change any more."""
    kept = ml_collections.ConfigDict(config)
    if config.pretrained not in (None, begun_with.pretrained):
        logging.warning(
            "config.pretrained=%s is not used, as the run goes on from a checkpoint; it was begun with %s",
            *(config.pretrained, begun_with.pretrained),
        )
    kept.pretrained = begun_with.pretrained
    return kept


def _evaluate_best(saved: checkpoints.Checkpoints, mesh, run_evaluation) -> float:
    """The mIoU of the best checkpoint as this run evaluates, which writes a report of it too."""
    path = saved.best_path
    variables, averaged = checkpoint_reading.read_model(path)
    step = checkpoint_reading.read_meta(path)["step"]
    result = run_evaluation(sharding.replicate(mesh, variables), step, "ema" if averaged else "")
    logging.info("The best so far, %s, has a mIoU of %.4f so", path, result.summary["mIoU"])
    return result.summary["mIoU"]


def first_state(config, model, mesh, saved: checkpoints.Checkpoints, workdir: epath.Path) -> steps.TrainState:
    """The state that training goes on from: the newest checkpoint, `pretrained` weights, or a fresh model.

    Raises:
      CheckpointError: `workdir` holds a run that cannot go on with this network and data set, or not now.
    """
    best = saved.best_path
    if saved.latest_step is None and best is not None:
        if int(best.name) > config.checkpoint_every_steps:  # more than an evaluation before the first checkpoint
            raise checkpoint_files.CheckpointError(
                f"{workdir} holds {best}, but no checkpoint in checkpoints/latest to go on from: give another "
                "--workdir to begin a new run, or remove this folder"
            )
        logging.info(
            "The run was stopped before its first checkpoint and begins anew; its first best replaces %s", best
        )
        saved.forget_best()
    found = None
    if config.pretrained is not None and saved.latest_step is None:
        found = trained.read_pretrained(config.pretrained, model)
    digest = None if found is None else agreement.digest(found.variables)
    agreement.require("weights", {"sha256 of config.pretrained": digest})
    variables = jax.jit(lambda: init_variables(config, model))()
    if found is not None:
        variables = trained.fit_pretrained(found, variables)
    state = sharding.replicate(mesh, steps.create_train_state(config, model, variables))
    if saved.latest_step is not None:
        state = saved.restore(state, config.allow_changed_data)
        logging.info("Resumed from %s", saved.latest_path)
    return state


def _train(config, dataset, mesh, model, state: steps.TrainState, workdir, saved, writer, evaluate, told, watchdog):
    """Takes the remaining steps; returns the results of the last state's evaluation."""
    first_step, last_step = int(state.step), config.num_train_steps
    batches = _prefetch(mesh, _train_batches(config, dataset, mesh, first_step))
    rng = jax.jit(lambda: jax.random.key(config.seed), out_shardings=sharding.replicated(mesh))()
    train_step = _compile_step(config, mesh, model, state, rng)
    board.barrier("compiled")  # gloo, for one, gives the slowest 30 s at their first exchange
    watchdog.feed()

    progress = periodic_actions.ReportProgress(
        num_train_steps=last_step, every_steps=config.log_every_steps, every_secs=None
    )
    hooks = [progress]
    if config.profile_steps and jax.process_index() == 0:
        hooks.append(
            periodic_actions.Profile(
                logdir=workdir,
                num_profile_steps=config.profile_steps,
                profile_duration_ms=None,
                first_profile=first_step + 10,
                every_secs=None,
            )
        )
    if first_step > 0 and first_step % config.eval_every_steps == 0:
        evaluate(state)  # once more, for the run may have been killed while it evaluated this step or saved the best
    previous, meter = None, _Meter(config.batch_size)
    for step in range(first_step + 1, last_step + 1):
        saved.check()
        watchdog.feed()
        if told.reached():
            if previous is not None:
                _check_finite(*previous, saved)
            _save_and_leave(state, saved, writer)
        with meter.waiting_for_input(), progress.timed("input", wait_jax_async_dispatch=False):
            batch, picture_ids = next(batches)
        logging.debug("Step %d, read here: %s", step, b" ".join(picture_ids).decode())
        state, scalars = train_step(state, batch, rng)
        if previous is not None:  # one step behind, so that the devices never wait for the host
            _check_finite(*previous, saved)
        previous = (step, scalars, picture_ids)
        meter.count_step()

        saving = step % config.checkpoint_every_steps == 0 or step == last_step
        evaluating = step % config.eval_every_steps == 0 or step == last_step
        if saving or evaluating:
            _check_finite(*previous, saved)  # nothing that is not finite is ever saved
        if step % config.log_every_steps == 0 or step == last_step:
            values = {name: float(value) for name, value in jax.device_get(scalars).items()} | meter.read()
            writer.write_scalars(step, {f"train/{name}": value for name, value in values.items()})
        for hook in hooks:
            hook(step)
        if saving:
            watchdog.feed()
            writer.flush()  # what a run that goes on from here will not log again
            saved.save(state)
        if evaluating:
            with meter.paused(), progress.timed("evaluation", wait_jax_async_dispatch=False):
                results = evaluate(state)
    return results


def _save_and_leave(
    state: steps.TrainState, saved: checkpoints.Checkpoints, writer: event_writer.EventWriter
) -> NoReturn:
    step = int(state.step)
    if step == 0:
        raise Preempted("told to leave before the first step; the same command begins")
    writer.flush()  # what a run that goes on from here will not log again
    saved.save(state)
    saved.wait()
    raise Preempted(f"told to leave; {_saved(step, saved)}")


def _saved(step: int, saved: checkpoints.Checkpoints) -> str:
    return f"step {step} is saved in {saved.latest_path}, and the same command goes on from it"


class _Meter:
    """Pictures a second and seconds spent waiting for input since it was last read, evaluations left out."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._reset()

    def _reset(self) -> None:
        self._start, self._waited, self._steps = time.monotonic(), 0.0, 0

    def count_step(self) -> None:
        self._steps += 1

    @contextlib.contextmanager
    def waiting_for_input(self):
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    @contextlib.contextmanager
    def paused(self):
        start = time.monotonic()
        yield
        self._start += time.monotonic() - start

    def read(self) -> dict[str, float]:
        rate = self._steps * self._batch_size / (time.monotonic() - self._start)
        values = {"pictures_per_second": rate, "seconds_waiting_for_input": self._waited}
        self._reset()
        return values


def _train_batches(config, dataset: records.Dataset, mesh, first_step: int):
    return pipeline.train_batches(
        dataset,
        config.train_split,
        augment.crop_of(config),
        batch_size=config.batch_size,
        first_step=first_step,
        num_steps=config.num_train_steps,
        seed=config.seed,
        cache=config.cache_pictures,
        rows=sharding.local_rows(mesh, config.batch_size),
    )


def _prefetch(mesh, batches, ahead: int = 2):
    """Batches on the mesh and their pictures' ids; the next ones are on their way while one is computed with."""
    queue: collections.deque[tuple[dict[str, jax.Array], np.ndarray]] = collections.deque()
    for batch in batches:
        arrays = sharding.put_batch(mesh, {name: batch[name] for name in ("image", "label")})
        queue.append((arrays, batch["id"]))
        if len(queue) > ahead:
            yield queue.popleft()
    yield from queue


def _compile_step(config, mesh, model, state: steps.TrainState, rng: jax.Array):
    """Compiles the step for the mesh; says beforehand what and for which devices, and afterwards how long it took."""
    replicated, batched = sharding.replicated(mesh), sharding.batched(mesh)
    height, width = config.crop_size
    batch = {
        "image": jax.ShapeDtypeStruct((config.batch_size, height, width, 3), jnp.uint8, sharding=batched),
        "label": jax.ShapeDtypeStruct((config.batch_size, height, width), jnp.uint8, sharding=batched),
    }
    logging.info(
        "Compiling the training step: %s, output stride %d, %s, %d pictures of %dx%d (height x width), for %s",
        *(config.model.backbone, config.model.output_stride, config.model.dtype, config.batch_size, height, width),
        sharding.describe(mesh),
    )
    start = time.monotonic()
    lowered = sharding.jit(
        mesh,
        steps.make_train_step(config, model),
        in_shardings=(replicated, batched, replicated),
        out_shardings=(replicated, replicated),
        donate_argnums=0,
    ).lower(state, batch, rng)
    compiled = lowered.compile()
    memory.check_program(config, mesh, compiled)
    logging.info("Compiled in %.0f s", time.monotonic() - start)
    return compiled


def _check_finite(step: int, scalars, picture_ids, saved: checkpoints.Checkpoints) -> None:
    values = {name: float(value) for name, value in jax.device_get(scalars).items()}
    if all(math.isfinite(value) for value in values.values()):
        return
    shown = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
    names = ", ".join(picture_id.decode() for picture_id in picture_ids[:8])
    path = saved.latest_path
    last = "no checkpoint was saved before it" if path is None else f"the last good checkpoint is {path}"
    raise TrainingError(
        f"step {step} is not finite ({shown}); {last}. The batch held {names}. "
        "Try a lower learning_rate, warmup_steps or clip_grad_norm, and look at the pictures and labels of this batch"
    )

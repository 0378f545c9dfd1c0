"""The host loop: reads batches, runs the step, has states logged, saved and evaluated; nothing numeric happens here."""

import collections
import contextlib
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from clu import periodic_actions
from etils import epath

from dlv3p_jax import models
from dlv3p_jax.data import augment, pipeline, sources
from dlv3p_jax.datasets import summary
from dlv3p_jax.evaluation.evaluator import make_evaluator, prepare_run
from dlv3p_jax.evaluation.files import evaluation_name
from dlv3p_jax.evaluation.result import Result, print_result
from dlv3p_jax.runtime import board, configuration, ending, memory, preemption, sharding, starts, workdir_lock
from dlv3p_jax.runtime.preemption import Preempted
from dlv3p_jax.runtime.watchdog import Watchdog
from dlv3p_jax.training import event_writer, log_files, progress, steps, trackers
from dlv3p_jax.training.evaluating import evaluate, log_best, stops_early
from dlv3p_jax.training.run import Run, check_run, check_values, configure_run, first_state, take_open
from dlv3p_jax.training.session import Hook, Session
from dlv3p_jax.weights import checkpoint_reading, checkpoints

_BEFORE_PROFILE = 10  # steps, of which the first are slower


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step, and what is saved."""


def train_and_evaluate(
    config,
    workdir: epath.PathLike,
    told: preemption.Preemption | None = None,
    hang_timeout: float = 0,
    tracker: str | None = None,
    *,
    train: sources.Source | None = None,
    val: sources.Source | None = None,
    hooks: Sequence[Hook] = (),
) -> dict[str, Any]:
    """Trains from the newest checkpoint in `workdir`, or from the start, to `num_train_steps`, and evaluates.

        train_and_evaluate(config, "workdir/mine", train=my_pictures, val=[(image, label), …], hooks=[show])

    Args:
      config: a configuration (`configs/common.py`).
      workdir: gets config.json, checkpoints/, TensorBoard events, train.log, metrics.csv and eval/.
      told: is asked before each step and after each batch of an evaluation whether to save and leave now.
      hang_timeout: seconds without a step that end the process (`watchdog.Watchdog`); 0: none do.
      tracker: 'wandb' or 'mlflow', which gets the scalars too; what it does not take is warned of.
      train, val: pictures to train on and to evaluate on, in place of prepared data, of which `config` then only names
        the splits and the number of classes.
      hooks: are called in their order with (step, scalars, state) at every log line and evaluation: with the scalars
        that TensorBoard gets, such as 'train/loss' and 'eval/mIoU', and the state after this step, which is theirs
        until they return: the next step takes its memory. What they raise ends the run.

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
    check_values(config)
    if unfit := [hook for hook in hooks if not callable(hook)]:
        raise ValueError(f"hooks: {unfit[0]!r} cannot be called: give functions of (step, scalars, state)")
    given = None
    if train is not None or val is not None:
        if train is None or val is None:
            raise ValueError("give train and val, or neither")
        config = config.copy_and_resolve_references()
        config.dataset = config.dataset or "sources"
        given = sources.open_sources(config, {config.train_split: train, config.eval_split: val})
        for warning in summary.warnings(given):
            logging.warning("%s", warning)
    config, dataset, mesh = prepare_run(take_open(config, workdir), given)
    check_run(config, dataset, mesh)
    run = Run(config, dataset, mesh, models.build_model(config), epath.Path(workdir))
    told = preemption.Preemption() if told is None else told

    def before_batch(compiles: bool) -> None:
        watchdog.feed(compiling=compiles)

    def between_batches() -> None:
        watchdog.feed()
        if told.reached():
            raise Preempted

    evaluator = make_evaluator(
        *(config, dataset, mesh, run.model, run.workdir), before_batch=before_batch, between_batches=between_batches
    )

    run.workdir.mkdir(parents=True, exist_ok=True)
    meta = run.describe()
    with contextlib.ExitStack() as stack:
        # ---------------------------------------------------------------------------------------- the workdir is ours
        stack.enter_context(workdir_lock.hold(run.workdir))
        logs = stack.enter_context(log_files.LogFiles(run.workdir))
        _log_data(run)
        start = stack.enter_context(starts.Start(run.workdir))
        ending.count(start)
        watchdog = stack.enter_context(Watchdog(hang_timeout, told, start.code))
        saved = stack.enter_context(checkpoints.Checkpoints(run.workdir, config.keep_checkpoints, meta))
        writer = stack.enter_context(event_writer.EventWriter(run.workdir))
        tracking = stack.enter_context(trackers.Tracker(tracker, run.workdir, config))
        session = Session(
            *(run, saved, writer, tracking, logs, told, watchdog, evaluator),
            measured=(evaluation_name(config), meta["data"]["val"]),
            hooks=tuple(hooks),
        )

        # ----------------------------------------------------------------------------------------- what is gone on from
        written = configure_run(run, saved)
        state = first_state(run, saved)
        if saved.latest_path is not None:  # a run begun before averages ramped up ends as it would have then
            saved.meta["ema_ramps"] = checkpoint_reading.read_meta(saved.latest_path).get("ema_ramps", False)
        saved.meta["config"] = configuration.to_dict(written)
        if jax.process_index() == 0:
            configuration.write(written, run.workdir / "config.json")
        writer.write_hparams(trackers.to_flat(written))
        finished = int(state.step) >= config.num_train_steps
        log_best(session, finished)

        # ------------------------------------------------------------------------------------------------ all the steps
        if finished:
            logging.info("All %d steps were done before; evaluating the last", config.num_train_steps)
        step = int(state.step)
        # Perhaps once more: it may have been killed while it evaluated this step or saved the best.
        due = step > 0 and step % config.eval_every_steps == 0
        if finished or due:
            results = evaluate(session, state, finished)
        if not finished and not (due and stops_early(session, step)):
            results = _train(session, state)
    for result in results.values():
        print_result(result, dataset)
    return result.summary


def _train(session: Session, state: steps.TrainState) -> dict[str, Result]:
    """Takes the remaining steps; returns the results of the last state's evaluation."""
    config, mesh, saved = session.run.config, session.run.mesh, session.saved
    first_step, last_step = int(state.step), config.num_train_steps
    if config.profile_steps and first_step + _BEFORE_PROFILE + config.profile_steps > last_step:
        logging.warning(
            "No profile: config.profile_steps=%d after the first %d need more than the %d steps that are left",
            *(config.profile_steps, _BEFORE_PROFILE, last_step - first_step),
        )
    batches = _prefetch(mesh, _train_batches(session.run, first_step))
    rng = jax.jit(lambda: jax.random.key(config.seed), out_shardings=sharding.replicated(mesh))()
    # A run that goes on may have evaluated first, after which it leaves through `reached` alone, but where it says so.
    going_on = lambda: session.describe_saved(first_step) if saved.is_saved(first_step) else None  # noqa: E731
    with session.told.nothing_to_lose(going_on) if first_step else contextlib.nullcontext():
        train_step = _compile_step(session.run, state, rng, saved.meta["ema_ramps"])
    board.barrier("compiled")  # gloo, for one, gives the slowest 30 s at their first exchange
    session.watchdog.feed()

    profile = None
    if config.profile_steps and jax.process_index() == 0:
        profile = periodic_actions.Profile(
            logdir=session.run.workdir,
            num_profile_steps=config.profile_steps,
            profile_duration_ms=None,
            first_profile=first_step + _BEFORE_PROFILE,
            every_secs=None,
        )
    meter = progress.Meter(config, session.run.dataset.num_pictures(config.train_split), mesh, **_unlogged(session))
    with progress.Line(first_step, last_step) as line:

        def finish(step: int, scalars, picture_ids, state: steps.TrainState) -> None:
            """Takes what a step says from the devices; one step late, so that they never wait for the host."""
            values = _finite_values(step, scalars, picture_ids, saved)
            meter.add(values)
            line.move(step)
            if step % config.log_every_steps == 0 or step == last_step:
                _log(session, line, step, first_step, *meter.read(step), state)
            saved.meta["since_last_line"] = {"sums": meter.sums, "steps": meter.steps}

        running: tuple[int, dict[str, jax.Array], np.ndarray] | None = None
        for step in range(first_step + 1, last_step + 1):
            # ------------------------------------------------------------------------------------------ go on or leave?
            saved.check()
            session.watchdog.feed()
            if session.told.reached():
                if running is not None:
                    finish(*running, state)
                session.save_and_leave(state)

            # -------------------------------------------------------------------------------------------------- a step
            with meter.waiting_for_input():
                batch, picture_ids = next(batches)
            logging.debug("Step %d, read here: %s", step, b" ".join(picture_ids).decode())
            if running is not None and session.hooks and running[0] % config.log_every_steps == 0:
                finish(*running, state)  # hooks get the state of their step, whose memory the next one takes
                running = None
            state, scalars = train_step(state, batch, rng)
            if running is not None:
                finish(*running, state)
            running = (step, scalars, picture_ids)

            # ------------------------------------------------------------------------------------------ save, evaluate
            saving = step % config.checkpoint_every_steps == 0 or step == last_step
            evaluating = step % config.eval_every_steps == 0 or step == last_step
            if saving or evaluating:
                finish(*running, state)  # nothing that is not finite is ever saved
                running = None
            if profile is not None:
                profile(step)
            if saving:
                session.watchdog.feed()
                session.save(state)
            if evaluating:
                with meter.evaluating():
                    results = evaluate(session, state)
                if stops_early(session, step):
                    break
    return results


def _unlogged(session: Session) -> dict[str, Any]:
    """What the steps between the last log line and the checkpoint that the run goes on from said, for `Meter`."""
    path = session.saved.latest_path
    return {} if path is None else checkpoint_reading.read_meta(path).get("since_last_line", {})


def _log(
    session: Session,
    line: progress.Line,
    step: int,
    first_step: int,
    values: dict[str, float],
    seconds_left: float,
    state: steps.TrainState,
) -> None:
    text = line.write(step, values, seconds_left)
    if not line.in_log:
        session.logs.say(text)
    session.logs.write_metrics(step, values, first_step)
    session.write_scalars(step, {f"train/{name}": value for name, value in values.items()}, state)


def _log_data(run: Run) -> None:
    config, dataset = run.config, run.dataset
    num_pictures = dataset.num_pictures(config.train_split)
    logging.info(
        "Data: %s in %s, %d classes, ignored label %d; %d pictures in %s, %d in %s; an epoch has %.1f steps",
        *(dataset.title, config.data_dir, config.num_classes, config.ignore_label, num_pictures, config.train_split),
        *(dataset.num_pictures(config.eval_split), config.eval_split, num_pictures / config.batch_size),
    )
    if config.cache_pictures:
        gigabytes = pipeline.cache_bytes(dataset, config.train_split) / 1e9
        logging.info("Decoded pictures are kept in memory: %.1f GB when all have been seen", gigabytes)


def _train_batches(run: Run, first_step: int):
    config = run.config
    return pipeline.train_batches(
        run.dataset,
        config.train_split,
        augment.crop_of(config),
        batch_size=config.batch_size,
        first_step=first_step,
        num_steps=config.num_train_steps,
        seed=config.seed,
        cache=config.cache_pictures,
        rows=sharding.local_rows(run.mesh, config.batch_size),
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


def _compile_step(run: Run, state: steps.TrainState, rng: jax.Array, ema_ramps: bool):
    """Compiles the step for the mesh; says beforehand what and for which devices, and afterwards how long it took."""
    config, mesh = run.config, run.mesh
    batched, (height, width) = sharding.batched(mesh), config.crop_size
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
    compiled = steps.jit_train_step(config, run.model, mesh, ema_ramps).lower(state, batch, rng).compile()
    memory.check_program(config, mesh, compiled)
    logging.info("Compiled in %.0f s", time.monotonic() - start)
    return compiled


def _finite_values(step: int, scalars, picture_ids, saved: checkpoints.Checkpoints) -> dict[str, float]:
    values = {name: float(value) for name, value in jax.device_get(scalars).items()}
    if all(math.isfinite(value) for value in values.values()):
        return values
    shown = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
    names = ", ".join(picture_id.decode() for picture_id in picture_ids[:8])
    path = saved.latest_path
    last = "no checkpoint was saved before it" if path is None else f"the last good checkpoint is {path}"
    raise TrainingError(
        f"step {step} is not finite ({shown}); {last}. The batch held {names}. "
        "Try a lower learning_rate, warmup_steps or clip_grad_norm, and look at the pictures and labels of this batch"
    )

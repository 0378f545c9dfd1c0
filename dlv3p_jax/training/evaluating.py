"""An evaluation while a run trains: written down, the best checkpoint kept, and training ended that gets no better."""

import dataclasses
import math

import numpy as np
from absl import logging

from dlv3p_jax.evaluation.result import Result
from dlv3p_jax.runtime import sharding
from dlv3p_jax.runtime.preemption import Preempted
from dlv3p_jax.training import steps
from dlv3p_jax.training.session import Session
from dlv3p_jax.weights import checkpoint_reading


def log_best(session: Session, finished: bool) -> None:
    """Says what becomes of a best checkpoint that was measured otherwise than this run measures."""
    if session.saved.best_is_of(*session.measured):
        return
    config, views = session.run.config, session.measured[0]
    best_views = session.saved.best_metrics.get("views", views)
    then = best_views if best_views != views else "other pictures or labels"
    now = views if best_views != views else f"{session.run.dataset.title} {config.eval_split} as it is now"
    what = "it stays" if finished else "the comparison begins anew, and the best is evaluated so once more"
    logging.info("The best checkpoint was found with %s, and this evaluates %s: %s", then, now, what)


def evaluate(session: Session, state: steps.TrainState, finished: bool = False) -> dict[str, Result]:
    """Evaluates the model and, where there is one, the averaged one ('ema'); saves the better if it is the best so far.

    A best that was measured otherwise is first measured once more as it is now, unless the run is `finished`.
    """
    step, saved, told = int(state.step), session.saved, session.told
    session.save(state)  # so that it may leave at any time while it evaluates
    session.watchdog.feed()
    variants = {"": state.variables} | ({"ema": state.ema} if state.ema is not None else {})
    try:
        with told.nothing_to_lose(lambda: session.describe_saved(step) if saved.is_saved(step) else None):
            anew = None
            if not finished and not saved.best_is_of(*session.measured):
                anew = _evaluate_best(session)
            results = {suffix: session.evaluator(tree, step, suffix) for suffix, tree in variants.items()}
        if anew is not None:
            saved.measured_again(anew, *session.measured)
    except Preempted:
        session.save_and_leave(state)
    for suffix, result in results.items():
        prefix = f"eval_{suffix}" if suffix else "eval"
        _write_evaluation(session, step, prefix, result, state)
        averaged = " of the averaged weights" if suffix else ""
        values = [result.summary[name] for name in ("mIoU", "accuracy", "loss")]
        logging.info("Evaluated step %d%s: mIoU %.4f, accuracy %.4f, loss %.4g", step, averaged, *values)
    scores = {suffix: result.summary["mIoU"] for suffix, result in results.items()}
    # Of a run begun before averages ramped up, the averaged weights count wherever there are any.
    better = max(scores, key=lambda suffix: (scores[suffix], suffix)) if saved.meta["ema_ramps"] else max(scores)
    mean_iou = scores[better]
    # Who reads a checkpoint takes the averaged weights where there are any.
    model = state if better else dataclasses.replace(state, ema=None)
    if saved.best_is_of(*session.measured) and saved.save_best(model, mean_iou, *session.measured):
        which = ", of the averaged weights" if better else ""
        logging.info("Best so far: step %d, mIoU %.4f%s", step, mean_iou, which)
    return results


def _evaluate_best(session: Session) -> float:
    """The mIoU of the best checkpoint as this run evaluates, which writes a report of it too."""
    path = session.saved.best_path
    variables, averaged = checkpoint_reading.read_model(path)
    step = checkpoint_reading.read_meta(path)["step"]
    result = session.evaluator(sharding.replicate(session.run.mesh, variables), step, "ema" if averaged else "")
    logging.info("The best so far, %s, has a mIoU of %.4f so", path, result.summary["mIoU"])
    return result.summary["mIoU"]


def _write_evaluation(session: Session, step: int, prefix: str, result: Result, state: steps.TrainState) -> None:
    scalars = {name: result.summary[name] for name in ("mIoU", "accuracy", "kappa", "dice", "loss")}
    scalars |= {
        f"IoU/{name}": float(value)
        for name, value in zip(session.run.dataset.class_names, result.summary["IoU"], strict=True)
        if not math.isnan(value)
    }
    scalars["pictures_per_second"] = result.num_pictures / result.seconds
    session.write_scalars(step, {f"{prefix}/{name}": value for name, value in scalars.items()}, state)
    if result.sheet is not None:
        session.writer.write_images(step, {f"{prefix}/picture_label_prediction": np.asarray(result.sheet)[None]})


def stops_early(session: Session, step: int) -> bool:
    """Whether so many evaluations as `early_stopping.patience` have found no new best, the last one of `step`; says so.

    It follows from the steps alone, so that a run that goes on ends where it would have.
    """
    config, best = session.run.config, session.saved.best_path
    patience = config.early_stopping.patience
    if patience is None or best is None or (step - int(best.name)) // config.eval_every_steps < patience:
        return False
    logging.info(
        "No new best since step %s: training ends at step %d of %d (config.early_stopping.patience=%d)",
        *(best.name, step, config.num_train_steps, patience),
    )
    return True

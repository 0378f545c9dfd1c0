"""Orbax checkpoints of a run: the latest few to go on from, the best by mIoU to keep.

WORKDIR/checkpoints/latest/STEP holds the items `variables`, `optimizer`, `ema` (where there is one) and `meta`;
WORKDIR/checkpoints/best/STEP the same without the optimiser, with `metrics`. Two managers, because one that keeps the
best would delete the newest. A checkpoint appears under its name only when it is whole, with the digests of its files.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath

from dlv3p_jax.models import Variables
from dlv3p_jax.runtime import disk_errors, text
from dlv3p_jax.weights import checkpoint_digests, checkpoint_files, checkpoint_manager, checkpoint_reading
from dlv3p_jax.weights.checkpoint_files import CheckpointError, UnreadableError

_LOOKS = itertools.count()  # barriers have names of their own


class State(Protocol):
    """What is saved of a run: `training.steps.TrainState`, which stands above this package."""

    @property
    def step(self) -> Any: ...
    @property
    def variables(self) -> Variables: ...
    @property
    def opt_state(self) -> Any: ...
    @property
    def ema(self) -> Variables | None: ...


AnyState = TypeVar("AnyState", bound=State)


class SaveError(CheckpointError):
    """A checkpoint could not be written; the message says why, what to do, and what is saved."""


class Checkpoints:
    """The checkpoints of one workdir; saving is asynchronous, so close them (or use `with`) to be sure of the last."""

    def __init__(self, workdir: epath.PathLike, keep: int = 3, meta: Mapping[str, Any] | None = None):
        """Opens, and makes where needed, WORKDIR/checkpoints, and ends there what a kill has left half done.

        A best checkpoint that is damaged is set aside. Where one was to take the place of another, one of them stays.

        Args:
          workdir: of the run.
          keep: how many of the latest are kept.
          meta: JSON values that every checkpoint's `meta` holds beside its step; see `describe_classes`. They may be
            changed while this is open.

        Raises:
          UnreadableError: a checkpoint cannot be read now.
        """
        root = checkpoint_reading.absolute(workdir) / "checkpoints"
        self.meta = dict(meta or {})
        with _first_process_only("best") as ours:
            if ours:
                if "://" in str(root):
                    checkpoint_files.remove_incomplete(root / "latest", ("variables", "optimizer", "meta"))
                    checkpoint_files.remove_incomplete(root / "best", ("variables", "meta", "metrics"))
                checkpoint_files.set_damaged_aside(root / "best", ("variables", "meta", "metrics"), all_may_go=True)
                checkpoint_files.bring_back(root / "best")
        self._latest = checkpoint_manager.Manager(root / "latest", max_to_keep=keep)
        self._kept = checkpoint_manager.KeepOne()
        # Orbax is to write the scores, but not to judge by them: they may have been measured otherwise.
        self._best = checkpoint_manager.Manager(
            root / "best", preservation_policy=self._kept, best_fn=lambda metrics: metrics["mIoU"]
        )
        scores = {step: self._best.metrics(step) or {} for step in self._best.all_steps()}
        if scores:  # one, but where an older version was killed
            self._kept.step = max(scores, key=lambda step: (scores[step].get("mIoU", -1.0), step))
        self._best_metrics = scores.get(self._kept.step, {})
        self._aside: epath.Path | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Waits for what is being written.

        Raises:
          SaveError: it could not be.
        """
        self.wait()
        with self._writing():
            self._latest.close()
            self._best.close()

    def wait(self) -> None:
        """Waits for what is being written; raises as `close`."""
        with self._writing():
            self._latest.wait_until_finished()
            self._best.wait_until_finished()
            self._remove_replaced()

    def check(self) -> None:
        """Raises SaveError if what was being written has failed; waits for nothing."""
        with self._writing():
            if not self._latest.is_saving_in_progress():
                self._latest.wait_until_finished()  # Orbax's own check_for_errors knows only half of them
            if not self._best.is_saving_in_progress():
                self._best.wait_until_finished()
                self._remove_replaced()

    def is_saved(self, step: int) -> bool:
        """Whether this step and all that was to be saved is written; waits for nothing, and raises as `check`."""
        self.check()
        writing = self._latest.is_saving_in_progress() or self._best.is_saving_in_progress()
        return not writing and step in self._latest.all_steps()

    @property
    def latest_step(self) -> int | None:
        """The newest step that can be resumed, None if there is none."""
        return self._latest.latest_step()

    @property
    def latest_path(self) -> epath.Path | None:
        """The folder of the newest step, for messages; None if there is none."""
        return None if self.latest_step is None else self._latest.directory / str(self.latest_step)

    @property
    def paths(self) -> list[epath.Path]:
        """The folders of all checkpoints, the newest first and the best last; they may be damaged."""
        paths = [self._latest.directory / str(step) for step in sorted(self._latest.all_steps(), reverse=True)]
        return paths + ([] if self.best_path is None else [self.best_path])

    @property
    def best_path(self) -> epath.Path | None:
        """The folder of the best checkpoint so far, when it is written; None if there is none."""
        with self._writing():
            self._best.wait_until_finished()
        return None if self._kept.step is None else self._best.directory / str(self._kept.step)

    @property
    def best_metrics(self) -> dict[str, Any]:
        """'mIoU' of the best checkpoint, the 'views' it was measured with and the digests of its 'data'; or {}."""
        return dict(self._best_metrics)

    def best_is_of(self, views: str, data: Mapping[str, str]) -> bool:
        """Whether a score of these views and this data (see `save_best`) can be compared with that of the best.

        Of digests, those are compared that both have, and views where they are known: older versions wrote neither.
        """
        known = self._best_metrics
        return known.get("views", views) == views and not checkpoint_reading.other_digests(known.get("data", {}), data)

    def measured_again(self, mean_iou: float, views: str, data: Mapping[str, str]) -> None:
        """Has the next scores compared with this one, of the best checkpoint."""
        self._best_metrics = {"mIoU": float(mean_iou), "views": views, "data": dict(data)}

    def save(self, state: State) -> None:
        """Saves everything that training goes on from, unless this step is saved already.

        Raises:
          SaveError: this or the save before it failed.
        """
        step = int(state.step)
        if step in self._latest.all_steps():
            return
        items = self._model_items(state) | {"optimizer": ocp.args.StandardSave({"opt_state": state.opt_state})}
        with self._writing():
            self._best.wait_until_finished()  # one after the other: some of what Orbax counts, all managers share
            self._latest.save(step, args=ocp.args.Composite(**items))

    def save_best(
        self, state: State, mean_iou: float, views: str = "plain", data: Mapping[str, str] | None = None
    ) -> bool:
        """Saves the model if `mean_iou` (a fraction) is better than every one before; says whether it was.

        The one before may be of this step or a later one: a killed run goes on from before its best, and may now be
        evaluated more often. It is there until this one is whole.

        Args:
          state: of the step that was evaluated.
          mean_iou: its score.
          views: how it was measured (`files.evaluation_name` of evaluation).
          data: digests of what it was measured on, by name. A best that was measured otherwise has no say; see
            `best_is_of` and `measured_again`.

        Raises:
          SaveError: this or the save before it failed.
        """
        data = dict(data or {})
        before = self._best_metrics if self.best_is_of(views, data) else {}
        if not mean_iou > before.get("mIoU", -1.0):
            return False
        self.wait()
        step, others = int(state.step), self._best.all_steps()
        metrics = {"mIoU": float(mean_iou), "views": views, "data": data}
        with self._writing():
            if step in others:
                self._set_aside(step)
            self._kept.step = step
            self._best.save(
                step,
                args=ocp.args.Composite(**self._model_items(state)),
                metrics=metrics | {"replaces": [other for other in others if other != step]},
                force=True,
            )
        self._best_metrics = metrics
        return True

    def restore(self, state: AnyState, allow_changed_data: bool = False) -> AnyState:
        """The newest whole checkpoint, laid out as `state` is (shapes, dtypes and shardings; its values are not used).

        Newer ones that are damaged are renamed STEP.damaged, with a warning.

        Raises:
          CheckpointError: there is none, none is whole, it is of another model, its classes have other names than the
            `meta` of this opening, or it was trained on other data and that is not allowed.
          UnreadableError: one cannot be read now.
        """
        self.wait()  # or what is on its way would be missing from the list of steps that is read anew below
        required = ("variables", "optimizer", "meta") + (("ema",) if state.ema is not None else ())
        there = checkpoint_files.steps_in(self._latest.directory)
        if there and state.ema is not None and not any((path / "ema").is_dir() for path in there):
            raise CheckpointError(f"{there[-1]} holds no averaged weights: the run has been without config.ema_decay")
        with _first_process_only("latest") as ours:
            if ours:
                checkpoint_files.set_damaged_aside(self._latest.directory, required)
        self._latest.reload()
        path = self.latest_path
        if path is None:
            raise CheckpointError(f"no checkpoint in {self._latest.directory}")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        items = {
            "variables": ocp.args.StandardRestore(abstract.variables),
            "optimizer": ocp.args.StandardRestore({"opt_state": abstract.opt_state}),
            "meta": ocp.args.JsonRestore(),
        }
        if state.ema is not None:
            items["ema"] = ocp.args.StandardRestore(abstract.ema)
        try:
            restored = disk_errors.patiently(
                lambda: self._latest.restore(self.latest_step, args=ocp.args.Composite(**items)),
                None if jax.process_count() == 1 else (),  # several processes would have to try again together
            )
        except Exception as error:  # its files are whole
            if words := checkpoint_files.unreadable(error):
                raise UnreadableError(f"{path} cannot be read now: {words}") from error
            checkpoint_reading.fit_variables(
                checkpoint_reading.read_variables(path), abstract.variables, allow_new_head=False, source=path
            )
            raise CheckpointError(f"{path} cannot be read into this model's state: {text.first_line(error)}") from error
        lines = checkpoint_reading.other_classes(restored["meta"], self.meta.get("class_names", ()))
        if lines:
            raise CheckpointError(
                f"{path} was trained with other classes than the data set has now:{lines}\n"
                "prepare the data set of then to go on with it, or give another --workdir to begin a new run"
            )
        data = (meta.get("data", {}).get("train", {}) for meta in (restored["meta"], self.meta))
        changed = checkpoint_reading.other_digests(*data)
        if changed and not allow_changed_data:
            raise CheckpointError(
                f"{path} was trained on other pictures or labels than the data set has now ({', '.join(changed)} "
                "differ): prepare the data set of then to go on with it, give another --workdir to begin a new run, or "
                "--config.allow_changed_data=True to go on with the data of now"
            )
        return dataclasses.replace(  # type: ignore[type-var]  # flax's are dataclasses, which mypy does not see
            state,
            step=jax.device_put(jax.numpy.int32(restored["meta"]["step"]), state.step.sharding),
            params=restored["variables"]["params"],
            batch_stats=restored["variables"]["batch_stats"],
            opt_state=restored["optimizer"]["opt_state"],
            ema=restored["ema"] if state.ema is not None else None,
        )

    def _set_aside(self, step: int) -> None:
        path = self._best.directory / str(step)
        self._aside = path.with_name(f"{step}{checkpoint_files.ASIDE}")
        with _first_process_only("aside") as ours:
            if ours:
                path.rename(self._aside)
        self._best.reload()

    def _remove_replaced(self) -> None:
        """Removes what was set aside if what takes its place is whole; after a save that failed, it is not."""
        if self._aside is not None and jax.process_index() == 0:
            successor = self._aside.with_name(self._aside.name.removesuffix(checkpoint_files.ASIDE))
            if ocp.utils.is_checkpoint_finalized(successor):
                self._aside.rmtree(missing_ok=True)
        self._aside = None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            folder = self._latest.directory.parent
            reason = disk_errors.reason(error) or disk_errors.passing(error) or text.first_line(error)
            try:
                saved = [path for name in ("latest", "best") for path in checkpoint_files.steps_in(folder / name)[-1:]]
            except OSError:  # the file system is away altogether
                whole = "what was saved before is whole"
            else:
                shown = ", ".join(map(str, saved))
                whole = f"what was saved before is whole ({shown})" if saved else "none was saved before"
            raise SaveError(
                f"a checkpoint could not be written in {folder}: {reason}; {whole}, and the same command goes on"
            ) from error

    def _model_items(self, state: State) -> dict[str, Any]:
        meta = self.meta | checkpoint_digests.META | {"step": int(state.step)}
        items = {"variables": ocp.args.StandardSave(state.variables), "meta": ocp.args.JsonSave(meta)}
        if state.ema is not None:
            items["ema"] = ocp.args.StandardSave(state.ema)
        return items


@contextlib.contextmanager
def _first_process_only(what: str) -> Iterator[bool]:
    """Whether this is the process to look through folders and rename in them; the others go on when it has."""
    yield jax.process_index() == 0
    ocp.multihost.sync_global_processes(f"dlv3p_jax looked through {what} {next(_LOOKS)}", timeout=3600)

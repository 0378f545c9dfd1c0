"""Orbax checkpoints of a run: the latest few to go on from, the best by mIoU to keep, and reading any of them again.

WORKDIR/checkpoints/latest/STEP holds the items `variables`, `optimizer`, `ema` (where there is one) and `meta`;
WORKDIR/checkpoints/best/STEP the same without the optimiser. Two managers, because one that keeps the best would delete
the newest. A checkpoint appears under its name only when it is whole.
"""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, overload

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from dlv3p_jax import checkpoint_files, configuration, disk_errors, steps
from dlv3p_jax.checkpoint_files import CheckpointError

_LOOKS = itertools.count()  # barriers have names of their own


class SaveError(CheckpointError):
    """A checkpoint could not be written; the message says why, what to do, and what is saved."""


class Checkpoints:
    """The checkpoints of one workdir; saving is asynchronous, so close them (or use `with`) to be sure of the last."""

    def __init__(self, workdir: epath.PathLike, keep: int = 3, meta: Mapping[str, Any] | None = None):
        """Opens, and makes where needed, WORKDIR/checkpoints. A best checkpoint that is damaged is set aside.

        Args:
          workdir: of the run.
          keep: how many of the latest are kept.
          meta: JSON values that every checkpoint's `meta` holds beside its step; see `describe_classes`.
        """
        root = absolute(workdir) / "checkpoints"
        self._meta = dict(meta or {})
        with _first_process_only("best") as ours:
            if ours:
                checkpoint_files.set_damaged_aside(root / "best", ("variables", "meta", "metrics"), all_may_go=True)
        self._latest = _manager(root / "latest", max_to_keep=keep)
        self._best = _manager(root / "best", max_to_keep=1, best_fn=lambda metrics: metrics["mIoU"], best_mode="max")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Waits for what is being written.

        Raises:
          SaveError: it could not be.
        """
        with self._writing():
            self._latest.close()
            self._best.close()

    def wait(self) -> None:
        """Waits for what is being written; raises as `close`."""
        with self._writing():
            self._latest.wait_until_finished()
            self._best.wait_until_finished()

    def check(self) -> None:
        """Raises SaveError if what was being written has failed; waits for nothing."""
        with self._writing():
            for manager in (self._latest, self._best):
                if not manager.is_saving_in_progress():
                    manager.wait_until_finished()  # Orbax's own check_for_errors knows only half of them

    @property
    def latest_step(self) -> int | None:
        """The newest step that can be resumed, None if there is none."""
        return self._latest.latest_step()

    @property
    def latest_path(self) -> epath.Path | None:
        """The folder of the newest step, for messages; None if there is none."""
        return None if self.latest_step is None else self._latest.directory / str(self.latest_step)

    @property
    def best_path(self) -> epath.Path | None:
        """The folder of the best checkpoint so far; None if there is none."""
        with self._writing():
            self._best.wait_until_finished()
        step = self._best.best_step()
        return None if step is None else self._best.directory / str(step)

    @property
    def best_metrics(self) -> dict[str, Any]:
        """'mIoU' of the best checkpoint and the 'views' it was measured with; {} if there is none."""
        path = self.best_path  # which waits: the score of a checkpoint that is being written cannot be read yet
        return {} if path is None else self._best.metrics(int(path.name))

    def drop_best(self) -> None:
        """Deletes the best checkpoint: what comes next is the best."""
        for step in self._best.all_steps():
            self._best.delete(step)

    def save(self, state: steps.TrainState) -> None:
        """Saves everything that training goes on from, unless this step is saved already.

        Raises:
          SaveError: this or the save before it failed.
        """
        step = int(state.step)
        if step in self._latest.all_steps():
            return
        items = self._model_items(state) | {"optimizer": ocp.args.StandardSave({"opt_state": state.opt_state})}
        with self._writing():
            self._latest.save(step, args=ocp.args.Composite(**items))

    def save_best(self, state: steps.TrainState, mean_iou: float, views: str = "plain") -> bool:
        """Saves the model if `mean_iou` (a fraction) is better than every one before; says whether it was.

        What was measured with other `views` (`evaluator.views_name`) cannot be compared, and is replaced. The one
        before may be of this step or a later one: a killed run goes on from before its best, and may now be evaluated
        more often.
        """
        before = self.best_metrics
        comparable = before.get("views", views) == views  # older versions did not say
        if not mean_iou > (before.get("mIoU", -1.0) if comparable else -1.0):
            return False
        step = int(state.step)
        for other in self._best.all_steps():
            # A later one stays until this one is whole, for it is worse; Orbax would keep a better one in its place.
            if other == step or not comparable:
                self._best.delete(other)
        metrics = {"mIoU": float(mean_iou), "views": views}
        with self._writing():
            self._best.save(step, args=ocp.args.Composite(**self._model_items(state)), metrics=metrics, force=True)
        return True

    def restore(self, state: steps.TrainState) -> steps.TrainState:
        """The newest whole checkpoint, laid out as `state` is (shapes, dtypes and shardings; its values are not used).

        Newer ones that are damaged are renamed STEP.damaged, with a warning.

        Raises:
          CheckpointError: there is none, none is whole, it is of another model, or its classes have other names
            than the `meta` of this opening.
        """
        self.wait()  # or what is on its way would be missing from the list of steps that is read anew below
        required = ("variables", "optimizer", "meta") + (("ema",) if state.ema is not None else ())
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
            restored = self._latest.restore(self.latest_step, args=ocp.args.Composite(**items))
        except Exception as error:  # its files are whole
            fit_variables(read_variables(path), abstract.variables, allow_new_head=False, source=path)
            raise CheckpointError(
                f"{path} cannot be read into this model's state: {checkpoint_files.first_line(error)}"
            ) from error
        lines = other_classes(restored["meta"], self._meta.get("class_names", ()))
        if lines:
            raise CheckpointError(
                f"{path} was trained with other classes than the data set has now:{lines}\n"
                "prepare the data set of then to go on with it, or give another --workdir to begin a new run"
            )
        return steps.TrainState(
            step=jax.device_put(jax.numpy.int32(restored["meta"]["step"]), state.step.sharding),
            params=restored["variables"]["params"],
            batch_stats=restored["variables"]["batch_stats"],
            opt_state=restored["optimizer"]["opt_state"],
            ema=restored["ema"] if state.ema is not None else None,
        )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            folder = self._latest.directory.parent
            reason = disk_errors.reason(error) or checkpoint_files.first_line(error)
            saved = [path for name in ("latest", "best") for path in checkpoint_files.steps_in(folder / name)[-1:]]
            whole = (
                f"what was saved before is whole ({', '.join(map(str, saved))})" if saved else "none was saved before"
            )
            raise SaveError(
                f"a checkpoint could not be written in {folder}: {reason}; {whole}, and the same command goes on"
            ) from error

    def _model_items(self, state: steps.TrainState) -> dict[str, Any]:
        items = {
            "variables": ocp.args.StandardSave(state.variables),
            "meta": ocp.args.JsonSave(self._meta | {"step": int(state.step)}),
        }
        if state.ema is not None:
            items["ema"] = ocp.args.StandardSave(state.ema)
        return items


@contextlib.contextmanager
def _first_process_only(what: str) -> Iterator[bool]:
    """Whether this is the process to look through folders and rename in them; the others go on when it has."""
    yield jax.process_index() == 0
    ocp.multihost.sync_global_processes(f"dlv3p_jax looked through {what} {next(_LOOKS)}", timeout=3600)


class _Manager(ocp.CheckpointManager):
    """Leaves it to the training loop to ask for preemption.

    Orbax asks too, with the number of a step, in a background thread when this step is long past, which takes JAX's
    count back: processes would not agree on where to leave, and wait for each other.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


def _manager(directory: epath.Path, **options) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(cleanup_tmp_directories=True, **options)
    return _Manager(directory, options=options)


def absolute(path: epath.PathLike) -> epath.Path:
    """Orbax takes no relative paths."""
    path = epath.Path(path)
    return path if "://" in str(path) else path.absolute()


def _is_backbone(name: str) -> bool:
    return name.split("/")[1:2] == ["backbone"]


def write_variables(folder: epath.PathLike, variables: steps.Variables, config, meta: dict[str, Any]) -> epath.Path:
    """Writes a checkpoint of converted weights with its config.json; the folder appears whole or not at all.

    Args:
      folder: is made; it may exist if it is empty.
      variables: {'params': …, 'batch_stats': …}, of a whole model or of `backbone` alone.
      config: the configuration of the model that they are of.
      meta: JSON values on where they come from; the step 0 is added.

    Raises:
      CheckpointError: `folder` holds something.
    """
    folder = absolute(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not empty: give another folder, or remove it first")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    items = {"variables": ocp.args.StandardSave(variables), "meta": ocp.args.JsonSave({"step": 0} | meta)}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(unfinished, ocp.args.Composite(**items), force=True)
    configuration.write(config, unfinished / "config.json")
    if folder.exists():
        folder.rmdir()
    unfinished.rename(folder)
    return folder


def find(path: epath.PathLike) -> epath.Path:
    """The folder of one checkpoint: `path` itself, or the best (else the newest) one of a workdir or of its parts.

    Raises:
      CheckpointError: there is none; the message says what was looked for.
    """
    path = absolute(path)
    if (path / "variables").is_dir():
        return path
    for folder in (
        path / "checkpoints" / "best",
        path / "best",
        path / "checkpoints" / "latest",
        path / "latest",
        path,
    ):
        if folder.is_dir():
            found = [entry for entry in folder.iterdir() if entry.name.isdigit() and (entry / "variables").is_dir()]
            # In a bucket, a checkpoint has its name before it is whole.
            found = [entry for entry in found if ocp.utils.is_checkpoint_finalized(entry)]
            if found:
                return max(found, key=lambda entry: int(entry.name))
    raise CheckpointError(
        f"no checkpoint in {path}: give a workdir (with checkpoints/best or …/latest) or one checkpoint's folder"
    )


def find_config(checkpoint: epath.Path) -> epath.Path | None:
    """The config.json of the run that wrote a checkpoint: in its folder or up to three above; None if there is none."""
    for folder in (checkpoint, *list(checkpoint.parents)[:3]):
        if (folder / "config.json").exists():
            return folder / "config.json"
    return None


def read_meta(checkpoint: epath.PathLike) -> dict[str, Any]:
    """What a checkpoint says of itself: its training `step` (folder names are not asked), and what else was known.

    That is what `describe_classes` gives of the data that it was trained on, or where converted weights come from.

    Raises:
      CheckpointError: the folder holds no whole checkpoint.
    """
    path = absolute(checkpoint)
    with checkpoint_files.naming(path, "meta"):
        meta = checkpoint_files.read_json(path, "meta")
        return meta | {"step": int(meta["step"])}


def describe_classes(class_names: Sequence[str], palette, ignore_label: int) -> dict[str, Any]:
    """JSON values for a checkpoint's `meta`: names and colours (`[C, 3]`, 0 to 255) of its classes."""
    return {
        "class_names": list(class_names),
        "palette": np.asarray(palette).tolist(),
        "ignore_label": int(ignore_label),
    }


def other_classes(meta: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """The classes that a checkpoint's `meta` calls otherwise than `class_names`, a line each; "" if there are none."""
    pairs = zip(meta.get("class_names", class_names), class_names, strict=False)
    lines = [f"\n  class {i}: {then!r} then, {now!r} now" for i, (then, now) in enumerate(pairs) if then != now]
    return "".join(lines[:20] + ["\n  …"] * (len(lines) > 20))


def read_model(checkpoint: epath.PathLike) -> tuple[steps.Variables, bool]:
    """The variables to use a checkpoint with, and whether they are the averaged ones: these where it holds any."""
    averaged = read_variables(checkpoint, "ema")
    return (read_variables(checkpoint), False) if averaged is None else (averaged, True)


@overload
def read_variables(checkpoint: epath.PathLike, item: Literal["variables"] = ...) -> steps.Variables: ...
@overload
def read_variables(checkpoint: epath.PathLike, item: str) -> steps.Variables | None: ...
def read_variables(checkpoint: epath.PathLike, item: str = "variables") -> steps.Variables | None:
    """{'params': …, 'batch_stats': …} of one checkpoint as NumPy arrays; `item` 'ema' for the averaged, None if absent.

    Raises:
      CheckpointError: the folder holds no whole checkpoint.
    """
    path = absolute(checkpoint)
    if item == "ema" and not (path / item).is_dir():
        return None
    with checkpoint_files.naming(path, item):
        return checkpoint_files.read_arrays(path, item)


def fit_variables(
    loaded: steps.Variables,
    expected: steps.Variables,
    allow_new_head: bool,
    source: epath.PathLike = "the checkpoint",
) -> tuple[dict, list[str]]:
    """`loaded` in the structure of `expected`, which is what the model has.

    Args:
      loaded: variables read from a checkpoint.
      expected: freshly initialised variables of the model.
      allow_new_head: whether the classifier (`decoder/classifier`) may have another number of classes, and whether
        `loaded` may be a backbone alone; what it has no values for then keeps its fresh ones.
      source: where `loaded` is from, for the message.

    Returns:
      The variables, and the names that were initialised afresh.

    Raises:
      CheckpointError: lists every name that is missing, unexpected or of another shape.
    """
    loaded, expected = flatten_dict(loaded, sep="/"), flatten_dict(expected, sep="/")
    missing = [name for name in expected if name not in loaded]
    fresh = []
    if all(_is_backbone(name) for name in loaded):
        if not allow_new_head:
            raise CheckpointError(f"{source} holds only a backbone: to train from it, give --config.pretrained")
        fresh = [name for name in missing if not _is_backbone(name)]
    problems = [f"missing: {name}" for name in missing if name not in fresh]
    problems += [f"unexpected: {name}" for name in loaded if name not in expected]
    for name in expected.keys() & loaded.keys():
        if loaded[name].shape != expected[name].shape:
            if allow_new_head and "decoder/classifier/" in name:
                fresh.append(name)
            else:
                problems.append(f"{name} is {loaded[name].shape} there and {expected[name].shape} in this model")
    if problems:
        shown = "\n  ".join(sorted(problems)[:5] + (["…"] if len(problems) > 5 else []))
        raise CheckpointError(
            f"{source} is of another model ({len(problems)} differences): give the config.model that it was trained "
            f"with, or other weights\n  {shown}"
        )
    merged = {name: expected[name] if name in fresh else loaded[name] for name in expected}
    return unflatten_dict(merged, sep="/"), sorted(fresh)

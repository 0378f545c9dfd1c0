"""Orbax checkpoints of a run: the latest few to go on from, the best by mIoU to keep, and reading any of them again.

WORKDIR/checkpoints/latest/STEP holds the items `variables`, `optimizer`, `ema` (where there is one) and `meta`;
WORKDIR/checkpoints/best/STEP the same without the optimiser. Two managers, because one that keeps the best would delete
the newest. A checkpoint appears under its name only when it is whole.
"""

from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from dlv3p_jax import steps


class CheckpointError(ValueError):
    """A checkpoint is not there, or is not one of this model."""


class Checkpoints:
    """The checkpoints of one workdir; saving is asynchronous, so close them (or use `with`) to be sure of the last."""

    def __init__(self, workdir: epath.PathLike, keep: int = 3):
        """Opens, and makes where needed, WORKDIR/checkpoints; `keep` is how many of the latest are kept."""
        root = epath.Path(workdir) / "checkpoints"
        self._latest = _manager(root / "latest", max_to_keep=keep)
        self._best = _manager(root / "best", max_to_keep=1, best_fn=lambda metrics: metrics["mIoU"], best_mode="max")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Waits for what is being written."""
        self._latest.close()
        self._best.close()

    @property
    def latest_step(self) -> int | None:
        """The newest step that can be resumed, None if there is none."""
        return self._latest.latest_step()

    @property
    def latest_path(self) -> epath.Path | None:
        """The folder of the newest step, for messages; None if there is none."""
        return None if self.latest_step is None else self._latest.directory / str(self.latest_step)

    @property
    def best_mIoU(self) -> float:  # noqa: N802
        """The best mIoU so far, -1 if none was saved."""
        step = self._best.best_step()
        return -1.0 if step is None else self._best.metrics(step)["mIoU"]

    def save(self, state: steps.TrainState) -> None:
        """Saves everything that training goes on from, unless this step is saved already."""
        step = int(state.step)
        if step in self._latest.all_steps():
            return
        items = _model_items(state) | {"optimizer": ocp.args.StandardSave({"opt_state": state.opt_state})}
        self._latest.save(step, args=ocp.args.Composite(**items))

    def save_best(self, state: steps.TrainState, mean_iou: float) -> bool:
        """Saves the model if `mean_iou` (a fraction) is better than every one before; says whether it was."""
        if not mean_iou > self.best_mIoU:
            return False
        self._best.save(
            int(state.step), args=ocp.args.Composite(**_model_items(state)), metrics={"mIoU": float(mean_iou)}
        )
        return True

    def restore(self, state: steps.TrainState) -> steps.TrainState:
        """The newest checkpoint, laid out as `state` is (its shapes, dtypes and shardings; its values are not used)."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        items = {
            "variables": ocp.args.StandardRestore(abstract.variables),
            "optimizer": ocp.args.StandardRestore({"opt_state": abstract.opt_state}),
            "meta": ocp.args.JsonRestore(),
        }
        if state.ema is not None:
            items["ema"] = ocp.args.StandardRestore(abstract.ema)
        restored = self._latest.restore(self.latest_step, args=ocp.args.Composite(**items))
        return steps.TrainState(
            step=jax.device_put(jax.numpy.int32(restored["meta"]["step"]), state.step.sharding),
            params=restored["variables"]["params"],
            batch_stats=restored["variables"]["batch_stats"],
            opt_state=restored["optimizer"]["opt_state"],
            ema=restored["ema"] if state.ema is not None else None,
        )


def _manager(directory: epath.Path, **options) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        step_prefix=None, create=True, cleanup_tmp_directories=True, save_interval_steps=1, **options
    )
    return ocp.CheckpointManager(directory, options=options)


def _model_items(state: steps.TrainState) -> dict[str, Any]:
    items = {
        "variables": ocp.args.StandardSave(state.variables),
        "meta": ocp.args.JsonSave({"step": int(state.step)}),
    }
    if state.ema is not None:
        items["ema"] = ocp.args.StandardSave(state.ema)
    return items


def find(path: epath.PathLike) -> epath.Path:
    """The folder of one checkpoint: `path` itself, or the best (else the newest) one of a workdir or of its parts.

    Raises:
      CheckpointError: there is none; the message says what was looked for.
    """
    path = epath.Path(path)
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


def read_step(checkpoint: epath.Path) -> int:
    """The training step that is written inside a checkpoint; folder names are not asked."""
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        return checkpointer.restore(checkpoint / "meta")["step"]


def read_variables(checkpoint: epath.Path, item: str = "variables") -> steps.Variables | None:
    """{'params': …, 'batch_stats': …} of one checkpoint as NumPy arrays; `item` 'ema' for the averaged, None if absent.

    Raises:
      CheckpointError: the folder holds no whole checkpoint.
    """
    if item == "ema" and not (checkpoint / "ema").is_dir():
        return None
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        try:
            structure = checkpointer.metadata(checkpoint / item).item_metadata
            abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), dict(structure.items()))
            device = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
            abstract = jax.tree.map(lambda leaf: leaf.update(sharding=device), abstract)
            return jax.device_get(checkpointer.restore(checkpoint / item, args=ocp.args.StandardRestore(abstract)))
        except (FileNotFoundError, ValueError, KeyError) as error:
            raise CheckpointError(f"{checkpoint / item} cannot be read as a checkpoint: {error}") from error


def fit_variables(loaded: steps.Variables, expected: steps.Variables, allow_new_head: bool) -> tuple[dict, list[str]]:
    """`loaded` in the structure of `expected`, which is what the model has.

    Args:
      loaded: variables read from a checkpoint.
      expected: freshly initialised variables of the model.
      allow_new_head: whether the classifier (`decoder/classifier`) may have another number of classes; it then
        keeps its fresh values.

    Returns:
      The variables, and the names that were initialised afresh.

    Raises:
      CheckpointError: lists every name that is missing, unexpected or of another shape.
    """
    loaded, expected = flatten_dict(loaded, sep="/"), flatten_dict(expected, sep="/")
    problems = [f"missing: {name}" for name in expected if name not in loaded]
    problems += [f"unexpected: {name}" for name in loaded if name not in expected]
    fresh = []
    for name in expected.keys() & loaded.keys():
        if loaded[name].shape != expected[name].shape:
            if allow_new_head and "decoder/classifier/" in name:
                fresh.append(name)
            else:
                problems.append(f"{name} is {loaded[name].shape} there and {expected[name].shape} in this model")
    if problems:
        shown = "\n  ".join(sorted(problems)[:20] + (["…"] if len(problems) > 20 else []))
        raise CheckpointError(f"the checkpoint is of another model ({len(problems)} differences):\n  {shown}")
    merged = {name: expected[name] if name in fresh else loaded[name] for name in expected}
    return unflatten_dict(merged, sep="/"), sorted(fresh)

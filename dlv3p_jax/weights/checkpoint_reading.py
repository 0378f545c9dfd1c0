"""Single checkpoints, wherever they lie: finding, reading and writing them, and fitting them to a model."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from dlv3p_jax.models import Variables
from dlv3p_jax.runtime import configuration, files
from dlv3p_jax.weights import checkpoint_digests, checkpoint_files, model_folder
from dlv3p_jax.weights.checkpoint_files import CheckpointError


def absolute(path: epath.PathLike) -> epath.Path:
    """The path from the root, as Orbax takes no others.

    Raises:
      CheckpointError: a part of its name has no UTF-8 in this locale, and TensorStore takes no other names.
    """
    path = epath.Path(path)
    path = path if "://" in str(path) else path.absolute()
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(
            f"{str(path)!a} cannot be opened, as its name is not UTF-8 in this locale: set PYTHONUTF8=1 or "
            "LC_ALL=C.UTF-8, or give a folder whose name is"
        ) from error
    return path


def _is_auxiliary(name: str) -> bool:
    return "/auxiliary_head/" in name


def _is_backbone(name: str) -> bool:
    return name.split("/")[1:2] == ["backbone"]


def write_variables(folder: epath.PathLike, variables: Variables, config, meta: dict[str, Any]) -> epath.Path:
    """Writes a checkpoint of converted weights with its config.json; read back, it appears whole or not at all.

    Args:
      folder: is made; it may exist if it is empty.
      variables: {'params': …, 'batch_stats': …}, of a whole model or of `backbone` alone.
      config: the configuration of the model that they are of.
      meta: JSON values on where they come from; the step 0 is added.

    Raises:
      CheckpointError: `folder` holds something, or a value is not finite.
      OSError: the disk does not take it, or gives back other bits.
    """
    try:
        checkpoint_files.check_finite(variables)
    except ValueError as error:
        raise CheckpointError(f"these weights are not used: {error}") from error
    folder = absolute(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not empty: give another folder, or remove it first")
    unfinished = folder.with_name(files.unfinished_name())
    meta = {"step": 0, "config": configuration.to_dict(config)} | checkpoint_digests.META | meta
    items = {"variables": ocp.args.StandardSave(variables), "meta": ocp.args.JsonSave(meta)}
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(unfinished, ocp.args.Composite(**items))
        checkpoint_digests.write(unfinished)
        configuration.write(config, unfinished / "config.json")
        written = read_variables(unfinished)
        if not jax.tree.all(jax.tree.map(np.array_equal, variables, written)):
            raise OSError(f"{folder} does not hold what was written; is the disk damaged?")
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.rmtree(missing_ok=True)
        raise
    return folder


def find(path: epath.PathLike) -> epath.Path:
    """The folder of one checkpoint: `path` itself, or the best (else the newest) one of a workdir or of its parts.

    A folder to share (`model_folder`) is one, too.

    Raises:
      CheckpointError: there is none; the message says what was looked for.
    """
    path = absolute(path)
    if (path / "variables").is_dir() or model_folder.is_one(path):
        return path
    for folder in (
        path / "checkpoints" / "best",
        path / "best",
        path / "checkpoints" / "latest",
        path / "latest",
        path,
    ):
        if folder.is_dir():
            found = [entry for entry in checkpoint_files.steps_in(folder) if (entry / "variables").is_dir()]
            # In a bucket, a checkpoint has its name before it is whole.
            found = [entry for entry in found if ocp.utils.is_checkpoint_finalized(entry)]
            replaced = checkpoint_files.replaced(found) if folder.name == "best" else []
            found = [entry for entry in found if entry not in replaced] or checkpoint_files.set_aside(folder)
            if found:
                return found[-1]
    raise CheckpointError(
        f"no checkpoint in {path}: give a workdir (with checkpoints/best or …/latest), one checkpoint's folder or one "
        f"with {model_folder.WEIGHTS}"
    )


def find_config(checkpoint: epath.Path) -> epath.Path | None:
    """The config.json of a checkpoint: in its folder, or of the workdir that it lies in; None if there is none."""
    workdir = checkpoint.parent.parent.parent
    is_in_workdir = checkpoint.parent.parent.name == "checkpoints"
    for folder in (checkpoint, *([workdir] if is_in_workdir else [])):
        if (folder / "config.json").exists():
            return folder / "config.json"
    return None


def read_config(checkpoint: epath.Path) -> ml_collections.ConfigDict | None:
    """The configuration that a checkpoint was trained with: the config.json that belongs to it, else from its `meta`.

    Checkpoints of older versions have none in `meta`: of one that was copied, a config.json up to three folders above
    counts. None if there is none there either.

    Raises:
      ConfigError: config.json holds something else.
      CheckpointError: `meta` is damaged, or cannot be read now.
    """
    if (path := find_config(checkpoint)) is not None:
        return configuration.read(path)
    meta = read_meta(checkpoint)
    if "config" in meta:
        return configuration.from_dict(meta["config"])
    above = [folder / "config.json" for folder in list(checkpoint.parents)[:3]]
    found = next((path for path in above if path.exists()), None)
    return None if found is None else configuration.read(found)


def read_meta(checkpoint: epath.PathLike) -> dict[str, Any]:
    """What a checkpoint says of itself: its training `step` (folder names are not asked), and what else was known.

    That is what `describe_classes` gives of the data that it was trained on, or where converted weights come from.

    Raises:
      CheckpointError: the folder holds no whole checkpoint.
    """
    path = absolute(checkpoint)
    if model_folder.is_one(path):
        with checkpoint_files.naming(path, model_folder.WEIGHTS):
            return model_folder.read_meta(path)
    with checkpoint_files.naming(path, "meta"):
        meta = checkpoint_files.read_json(path, "meta")
        return {key: meta[key] for key in meta.keys() - checkpoint_digests.META.keys()} | {"step": int(meta["step"])}


def describe_classes(
    class_names: Sequence[str], palette, ignore_label: int, picture_range: Sequence[float] | None = None
) -> dict[str, Any]:
    """JSON values for a checkpoint's `meta`: what pictures and labels it was trained on.

    Args:
        class_names, palette: names and colours (`[C, 3]`, 0 to 255) of its classes.
        ignore_label: of pixels that counted nowhere.
        picture_range: the values that became 0 and 255 in pictures of more than 8 bits, where somebody said.
    """
    return ({} if picture_range is None else {"picture_range": list(map(float, picture_range))}) | {
        "class_names": list(class_names),
        "palette": np.asarray(palette).tolist(),
        "ignore_label": int(ignore_label),
    }


def other_classes(meta: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """The classes that a checkpoint's `meta` calls otherwise than `class_names`, a line each; "" if there are none."""
    pairs = zip(meta.get("class_names", class_names), class_names, strict=False)
    lines = [f"\n  class {i}: {then!r} then, {now!r} now" for i, (then, now) in enumerate(pairs) if then != now]
    return "".join(lines[:20] + ["\n  …"] * (len(lines) > 20))


def other_digests(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names of the digests of a split (`records.Dataset.digest`) that differ.

    Those are compared that both have, as older versions wrote fewer, or none; where both have that of the whole
    'content', this one alone.
    """
    both = then.keys() & now.keys()
    return sorted(name for name in ({"content"} & both or both) if then[name] != now[name])


def read_model(checkpoint: epath.PathLike) -> tuple[Variables, bool]:
    """The variables to use a checkpoint with, and whether they are the averaged ones: these where it holds any."""
    averaged = read_variables(checkpoint, "ema")
    return (read_variables(checkpoint), False) if averaged is None else (averaged, True)


@overload
def read_variables(checkpoint: epath.PathLike, item: Literal["variables"] = ...) -> Variables: ...
@overload
def read_variables(checkpoint: epath.PathLike, item: str) -> Variables | None: ...
def read_variables(checkpoint: epath.PathLike, item: str = "variables") -> Variables | None:
    """{'params': …, 'batch_stats': …} of one checkpoint as NumPy arrays; `item` 'ema' for the averaged, None if absent.

    Raises:
      CheckpointError: the folder holds no whole checkpoint.
    """
    path = absolute(checkpoint)
    if item == "ema" and not (path / item).is_dir():
        return None
    if model_folder.is_one(path):
        with checkpoint_files.naming(path, model_folder.WEIGHTS):
            variables = model_folder.read_variables(path)
            checkpoint_files.check_finite(variables)
            return variables
    with checkpoint_files.naming(path, item):
        return checkpoint_files.read_arrays(path, item)


def fit_variables(
    loaded: Variables,
    expected: Variables,
    allow_new_head: bool,
    source: epath.PathLike = "the checkpoint",
) -> tuple[dict, list[str]]:
    """`loaded` in the structure of `expected`, which is what the model has.

    Args:
      loaded: variables read from a checkpoint.
      expected: freshly initialised variables of the model.
      allow_new_head: whether classifiers may have another number of classes, and whether `loaded` may be a backbone
        alone; what it has no values for then keeps its fresh ones. An auxiliary head, which only training sees, may be
        in one alone: then it is left out, or where `allow_new_head`, fresh.
      source: where `loaded` is from, for the message.

    Returns:
      The variables, and the names that were initialised afresh.

    Raises:
      CheckpointError: lists every name that is missing, unexpected or of another shape.
    """
    loaded, expected = flatten_dict(loaded, sep="/"), flatten_dict(expected, sep="/")
    loaded = {name: value for name, value in loaded.items() if name in expected or not _is_auxiliary(name)}
    if not allow_new_head:
        expected = {name: value for name, value in expected.items() if name in loaded or not _is_auxiliary(name)}
    missing = [name for name in expected if name not in loaded]
    fresh = []
    if all(_is_backbone(name) for name in loaded):
        if not allow_new_head:
            raise CheckpointError(f"{source} holds only a backbone: to train from it, give --config.pretrained")
        fresh = [name for name in missing if not _is_backbone(name)]
    else:
        fresh = [name for name in missing if _is_auxiliary(name)]
    problems = [f"missing: {name}" for name in missing if name not in fresh]
    problems += [f"unexpected: {name}" for name in loaded if name not in expected]
    for name in expected.keys() & loaded.keys():
        if loaded[name].shape != expected[name].shape:
            if allow_new_head and "/classifier/" in name:
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

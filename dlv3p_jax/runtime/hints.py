"""What was meant by a key of a configuration that is not there."""

import difflib
from collections.abc import Collection

# What other programs call ours.
_ELSEWHERE = {
    "amp": "model.dtype",
    "base_lr": "learning_rate",
    "batch": "batch_size",
    "ema": "ema_decay",
    "epochs": "num_train_steps",
    "image_size": "crop_size",
    "imgsz": "crop_size",
    "iters": "num_train_steps",
    "load_from": "pretrained",
    "lr": "learning_rate",
    "lr_schedule": "schedule",
    "lr_scheduler": "schedule",
    "max_iters": "num_train_steps",
    "max_steps": "num_train_steps",
    "num_epochs": "num_train_steps",
    "num_steps": "num_train_steps",
    "optim": "optimizer",
    "precision": "model.dtype",
    "scheduler": "schedule",
    "steps": "num_train_steps",
}

OTHERWISE = "docs/configuration.md has a table of all keys"  # where nothing comes near


def meant(name: str, keys: Collection[str]) -> str | None:
    """What to say of a name, dotted or not, that is none of `keys`: the full flag that comes near, or what there is.

    None where nothing comes near.
    """
    group, _, last = name.rpartition(".")
    ends = {key.rpartition(".")[2]: key for key in reversed(list(keys))}
    near = [key for key in keys if key.rpartition(".")[2] == last]
    if not near:
        similar = [*difflib.get_close_matches(name, keys, 1, 0.75)]
        similar += [ends[end] for end in difflib.get_close_matches(last, ends, 1, 0.75)]
        near = ([_ELSEWHERE[last]] if last in _ELSEWHERE else similar)[:1]
    if near:
        unit = ", in steps; the log says how many an epoch has" if "epochs" in last else ""
        return f"did you mean {' or '.join(f'--config.{key}' for key in near)}{unit}?"
    there = [key.removeprefix(f"{group}.") for key in keys if key.startswith(f"{group}.")]
    return f"config.{group} has {', '.join(there)}" if there else None

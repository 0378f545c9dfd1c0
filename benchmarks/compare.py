"""Ours against what users would run instead, in one run:

    python -m benchmarks.compare --config=configs/cityscapes_r50.py --work=predict,train [--config.KEY=VALUE] …

Every contestant is a process of its own with the same threads, the same allocator settings and, where it is the same
network, the same weights. All are warmed up, then they take turns; what is reported are ratios within a round, their
median and spread, and what share of the machine others took meanwhile. Of PyTorch's variants (eager and compiled, with
channels last and first) the fastest counts. PyTorch, segmentation_models_pytorch and PaddleSeg are optional: what is
not installed is said, and left out.
"""

import json
import os
import pathlib
import signal
import sys
import tempfile

from absl import app, flags, logging

from benchmarks import rounds
from dlv3p_jax.runtime import arguments, cli, configuration

TORCH_VARIANTS = ("eager", "eager-channels_last", "compiled", "compiled-channels_last")
WORKS = ("train", "predict", "evaluate", "evaluate-flip", "evaluate-flip-scales")


def define_flags() -> None:
    """Defines the command's flags; not at import, since tests import this module."""
    arguments.DEFINE_config("config", "A file of configs/; --config.KEY=VALUE changes one key.")
    flags.DEFINE_list("work", ["predict", "train"], f"What to compare, of {', '.join(WORKS)}.")
    flags.DEFINE_list("size", None, "HEIGHT,WIDTH of predict and evaluate; config.crop_size by default.")
    flags.DEFINE_list("torch_variants", list(TORCH_VARIANTS), "Which of PyTorch's variants take part.")
    flags.DEFINE_bool("smp", True, "Let segmentation_models_pytorch take part, where it is installed.")
    flags.DEFINE_string("torch_python", sys.executable, "The Python that has PyTorch.")
    flags.DEFINE_string("paddleseg_python", None, "The Python that has Paddle and PaddleSeg; without it, neither.")
    flags.DEFINE_integer("threads", None, "Processor threads of each; all cores by default.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "How many turns each takes.", lower_bound=1)
    flags.DEFINE_float("turn_seconds", 3.0, "About how long a turn lasts.", lower_bound=0.01)
    flags.DEFINE_enum(
        "processes",
        "auto",
        ["auto", "resident", "fresh"],
        "resident: all processes stay while they take turns. fresh: each turn is a new process, so that one has the "
        "device's memory to itself; PyTorch's slower variants then have one turn. auto: fresh where there is a GPU.",
    )
    flags.DEFINE_integer("start_seconds", 600, "How long a contestant may take to get ready.", lower_bound=1)
    flags.DEFINE_string("json", None, "A file that the report goes to as JSON.")


def main(argv: list[str]) -> None:
    values = flags.FLAGS
    cli.require_config(argv)
    for name, known in (("work", WORKS), ("torch_variants", TORCH_VARIANTS)):
        if unknown := set(values[name].value) - set(known):
            raise app.UsageError(f"--{name}: {sorted(unknown)[0]} is none of {', '.join(known)}")
    cli.configure_logging()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the contestants are ended too
    try:
        if values.config.dataset is None:
            values.config.dataset = "made"
        configuration.check(values.config)
        _check_loss(values.config.loss)
        size = cli.parse_size("size", values.size) if values.size else tuple(values.config.crop_size)
        contestants = _contestants(values)
        reports = []
        for work in values.work:
            reports.append(_compare(work, values, size, contestants))
            print(f"\n{rounds.to_text(reports[-1])}", flush=True)
            if values.json is not None:  # after each, for a later one may fail
                pathlib.Path(values.json).write_text(json.dumps(reports, indent=2) + "\n", encoding="utf-8")
    except (ValueError, OSError, rounds.ContestantError) as error:
        logging.debug("The traceback of the error below", exc_info=True)
        sys.exit(f"compare: {error}")


def _check_loss(loss) -> None:
    parts = {name: loss[name] for name in ("rmi", "dice", "lovasz") if loss[name] != 0}
    if parts or loss.class_weights is not None or loss.top_k != 1:
        keys = " ".join(f"--config.loss.{name}=0" for name in parts)
        raise ValueError(f"the others have plain cross-entropy alone: give {keys or 'no class_weights and no top_k'}")


def _contestants(values) -> list[rounds.Entry]:
    torch_needs = "pip install torch, or give --torch_python=PATH"
    entries = [rounds.Entry("ours", "benchmarks.ours", sys.executable, {}, "pip install -e .")]
    variants = {
        name: {"compiled": name.startswith("compiled"), "channels_last": name.endswith("channels_last")}
        for name in TORCH_VARIANTS
    }
    for name in values.torch_variants:
        settings = variants[name]
        entries.append(
            rounds.Entry(f"torch {name}", "benchmarks.torch_twin", values.torch_python, settings, torch_needs)
        )
    if values.smp:
        needs = "pip install segmentation_models_pytorch (into the Python of --torch_python)"
        entries.append(rounds.Entry("smp", "benchmarks.smp", values.torch_python, variants["eager"], needs))
    if values.paddleseg_python:
        needs = "install Paddle and PaddleSeg for --paddleseg_python"
        entries.append(rounds.Entry("paddleseg", "benchmarks.paddleseg", values.paddleseg_python, {}, needs))
    return entries


def _compare(work: str, values, size: tuple[int, int], entries: list[rounds.Entry]) -> dict:
    """One work: everything that the contestants need goes into a temporary folder, then the rounds."""
    with tempfile.TemporaryDirectory(prefix="dlv3p_jax_compare_") as folder:
        common = specification(work, values.config, size, values.threads, pathlib.Path(folder))
        return rounds.run(
            common,
            entries,
            rounds=values.rounds,
            turn_seconds=values.turn_seconds,
            fresh=None if values.processes == "auto" else values.processes == "fresh",
            start_seconds=values.start_seconds,
            folder=pathlib.Path(folder),
        )


def specification(work: str, config, size: tuple[int, int], threads: int | None, folder: pathlib.Path) -> dict:
    """What every contestant is told, as plain JSON; weights, batch and configuration are files in `folder`."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # this process leaves the device to the contestants
    import numpy as np
    from flax import traverse_util

    from dlv3p_jax.models import build_model
    from dlv3p_jax.performance import workloads
    from dlv3p_jax.weights import paddle

    config = workloads.prepare(config)
    kind, *views = work.split("-")
    if kind == "train":
        size, batch_size = tuple(config.crop_size), config.batch_size
    else:
        batch_size = config.eval.batch_size
    scales = workloads.scales_of(config) if "scales" in views else (1.0,)
    configuration.write(config, folder / "config.json")
    variables = workloads.init_variables(config)
    np.savez(folder / "weights.npz", **traverse_util.flatten_dict(variables, sep="/"))
    np.savez(folder / "paddle_weights.npz", **paddle.revert(variables, build_model(config)))
    np.savez(folder / "batch.npz", **workloads.made_batch(config, batch_size, size, np.float32))
    return {
        "work": kind,
        "title": work,
        "batch_size": batch_size,
        "height": size[0],
        "width": size[1],
        "num_classes": config.num_classes,
        "ignore_label": config.ignore_label,
        "dtype": config.model.dtype,
        "model": configuration.to_dict(config)["model"],
        "learning_rate": config.learning_rate,
        "momentum": config.momentum,
        "weight_decay": config.weight_decay,
        "scales": list(scales),
        "flip": "flip" in views,
        "threads": threads or len(os.sched_getaffinity(0)),
        "config": str(folder / "config.json"),
        "weights": str(folder / "weights.npz"),
        "paddle_weights": str(folder / "paddle_weights.npz"),
        "batch": str(folder / "batch.npz"),
    }


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=cli.make_flags_parser("compare"))

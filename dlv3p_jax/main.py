"""Train (with evaluation) or evaluate: python -m dlv3p_jax.main --config=configs/quickstart.py [--workdir=…]"""

import os
import signal
import sys

if __name__ == "__main__":  # what follows takes seconds to import, in which SIGTERM would kill
    signal.signal(signal.SIGTERM, lambda *_: os._exit(os.EX_TEMPFAIL))  # `preemption` takes it over

from absl import app, flags
from ml_collections import config_flags

from dlv3p_jax.runtime import arguments, cli, process_flags  # noqa: F401  the flags of runs of several processes

_CONFIG = arguments.DEFINE_config(
    "config", "A file of configs/, or by default that of the run in --workdir; --config.KEY=VALUE changes one key."
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where checkpoints, logs and reports go; workdir/CONFIG by default, and with --checkpoint where that belongs.",
)
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train and evaluate, or only evaluate a checkpoint.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "With --mode=eval: a workdir or checkpoint; the best by default.")
_ABSENT_CLASS = flags.DEFINE_enum(
    "absent_class",
    "nan",
    ["nan", "one"],
    "With --mode=eval: a class in neither labels nor predictions is left out of the means, or counts as an IoU of 1, "
    "as PaddleSeg counts it.",
)
_DETERMINISTIC = flags.DEFINE_bool(
    "deterministic", False, "The same bits in every run on GPUs too, as on CPUs; it is slower there."
)
_TRACKER = flags.DEFINE_enum(
    "tracker",
    None,
    ["wandb", "mlflow"],
    "Weights & Biases or MLflow, which gets the curves and the configuration; their own environment variables, such as "
    "WANDB_PROJECT and MLFLOW_TRACKING_URI, say where.",
)
_HANG_TIMEOUT = flags.DEFINE_float(
    "hang_timeout",
    1800,
    "Seconds without a training step after which a process shows where it hangs and exits with 75, to be started "
    "again, or, at the third time without a newer checkpoint, with 70; compiling may take an hour. 0: never.",
    lower_bound=0,
)


def main(argv: list[str]) -> None:
    # Exit codes: 0 done, 1 an error, 75 start me again (preemption.py), 70 that will not help (starts.py), 130 Ctrl-C.
    try:
        _run(argv)
    except KeyboardInterrupt:
        training = "; the same command goes on from the newest checkpoint" if _MODE.value == "train" else ""
        print(f"\nmain: interrupted{training}", file=sys.stderr, flush=True)
        os._exit(130)  # as a shell counts SIGINT; sys.exit would wait for threads of a save that will never end


def _run(argv: list[str]) -> None:
    cli.refuse_words(argv)
    config = _CONFIG.value
    if config is None:
        if _WORKDIR.value is not None:
            what = "and so no run to go on with: look for another, or give --config=FILE to begin one there"
            if os.path.isdir(os.path.join(_WORKDIR.value, "checkpoints")):
                what = "which its run had: give the --config that it was begun with, and it goes on"
            raise app.UsageError(f"--workdir={_WORKDIR.value} holds no config.json, {what}")
        raise app.UsageError("give --config=FILE, such as --config=configs/quickstart.py, or the --workdir of a run")
    if _CHECKPOINT.value is not None and _MODE.value != "eval":
        raise app.UsageError("--checkpoint goes with --mode=eval; to start from weights, --config.pretrained=PATH")
    if _ABSENT_CLASS.value != "nan" and _MODE.value != "eval":
        raise app.UsageError("--absent_class goes with --mode=eval")
    if _TRACKER.value is not None and _MODE.value != "train":
        raise app.UsageError("--tracker goes with --mode=train")
    cli.configure_logging()
    if _DETERMINISTIC.value:
        cli.make_deterministic()
    name = os.path.splitext(os.path.basename(config_flags.get_config_filename(flags.FLAGS["config"])))[0]
    workdir = _WORKDIR.value or (os.path.join("workdir", name) if _CHECKPOINT.value is None else None)

    from dlv3p_jax.reporting import run_page  # imports JAX, as the next: wrong flags do not wait for it
    from dlv3p_jax.training import command

    settings = {"mode": _MODE.value, "absent_class": _ABSENT_CLASS.value, "deterministic": _DETERMINISTIC.value}
    settings |= {"tracker": _TRACKER.value}
    command.run(
        config, name, workdir, _CHECKPOINT.value, settings, _HANG_TIMEOUT.value, write_page=run_page.write_after_run
    )


if __name__ == "__main__":
    cli.run(main, "main")

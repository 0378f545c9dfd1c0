"""Train (with evaluation) or evaluate: python -m dlv3p_jax.main --config=configs/quickstart.py [--workdir=…]"""

import os
import signal
import sys
import time
from typing import NoReturn

if __name__ == "__main__":  # what follows takes seconds to import, in which SIGTERM would kill
    signal.signal(signal.SIGTERM, lambda *_: os._exit(os.EX_TEMPFAIL))  # `preemption` takes it over

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from dlv3p_jax.runtime import (
    agreement,
    arguments,
    board,
    cli,
    configuration,
    disk_errors,
    ending,
    memory,
    preemption,
    processes,
    starts,
    warned,
)
from dlv3p_jax.weights import checkpoints, download, published

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

_HANG_TIMEOUT = flags.DEFINE_float(
    "hang_timeout",
    1800,
    "Seconds without a training step after which a process shows where it hangs and exits with 75, to be started "
    "again, or, at the third time without a newer checkpoint, with 70; compiling may take an hour. 0: never.",
    lower_bound=0,
)


def main(argv: list[str]) -> None:
    # Exit codes: 0 done, 1 an error, 75 start me again (preemption.py), 70 that will not help (starts.py), 130 Ctrl-C.
    told = preemption.Preemption()
    try:
        with ending.together(told, processes.heartbeat):
            _run(argv, told)
    except KeyboardInterrupt:
        training = "; the same command goes on from the newest checkpoint" if _MODE.value == "train" else ""
        print(f"\nmain: interrupted{training}", file=sys.stderr, flush=True)
        os._exit(130)  # as a shell counts SIGINT; sys.exit would wait for threads of a save that will never end


def _run(argv: list[str], told: preemption.Preemption) -> None:
    cli.refuse_words(argv)
    if _CONFIG.value is None:
        raise app.UsageError("give --config=FILE, such as --config=configs/quickstart.py, or the --workdir of a run")
    if _CHECKPOINT.value is not None and _MODE.value != "eval":
        raise app.UsageError("--checkpoint goes with --mode=eval; to start from weights, --config.pretrained=PATH")
    if _ABSENT_CLASS.value != "nan" and _MODE.value != "eval":
        raise app.UsageError("--absent_class goes with --mode=eval")
    cli.configure_logging()
    if _DETERMINISTIC.value:
        cli.make_deterministic()
    config = _CONFIG.value
    configuration.check(config)  # before TensorFlow is imported, so that a slip is told at once
    name = os.path.splitext(os.path.basename(config_flags.get_config_filename(flags.FLAGS["config"])))[0]
    workdir = _WORKDIR.value or (os.path.join("workdir", name) if _CHECKPOINT.value is None else None)
    if workdir is not None:
        cli.check_folder("main", "workdir", workdir)

    told.install(ending.leave)
    jax.config.update("jax_enable_preemption_service", False)  # which takes SIGTERM, and then waits for a step

    from dlv3p_jax.evaluation import evaluator
    from dlv3p_jax.reporting import run_page
    from dlv3p_jax.training import loop

    try:
        processes.initialize()
        ending.listen(told)
        warned.once()
        flags_ = {"mode": _MODE.value, "absent_class": _ABSENT_CLASS.value, "deterministic": _DETERMINISTIC.value}
        versions = {"versions": agreement.versions()}
        agreement.require("flags", flags_ | versions | {"config": agreement.configured(config)})
        if workdir is not None:
            processes.check_shared(workdir)
        if _MODE.value == "eval":
            result = evaluator.evaluate_checkpoint(config, workdir, _CHECKPOINT.value, _ABSENT_CLASS.value)
            run_page.write_after_run(result.path.parent.parent, result.step)
        else:
            for note in published.recipe_notes(name, config):
                logging.info("%s", note)
            loop.train_and_evaluate(config, workdir, told, _HANG_TIMEOUT.value)
            run_page.write_after_run(workdir)
    except preemption.Preempted as error:
        # A second one, while Python ends and has no handlers, would kill.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if jax.process_index() == 0:
            preemption.say(str(error))
        sys.exit(preemption.EXIT_CODE)
    except starts.GivenUp as error:
        print(f"main: {error}", file=sys.stderr, flush=True)
        sys.exit(starts.GIVE_UP)
    except Exception as error:
        if not board.alone() and board.lost_connection(error):  # `ending` finds out which process is gone
            logging.debug("The traceback of a lost connection", exc_info=True)
            raise
        if (message := _passing(error, workdir)) is not None:
            _leave_for_now(message, workdir, told)
        message, known = _message(error, workdir), (loop.TrainingError, evaluator.EvaluationError)
        if message is None and not isinstance(error, (ValueError, OSError, *known)):
            raise
        logging.debug("The traceback of the error below", exc_info=True)
        sys.exit(f"main: {message or cli.told(error, workdir)}")


def _message(error: Exception, workdir: str | None) -> str | None:
    """What to say of too little memory or disk, whichever part of the program ran into it; None if it is not that."""
    if message := memory.exhausted(error):
        return message
    for link in disk_errors.chain(error):
        if isinstance(link, checkpoints.SaveError):
            return str(link)
    reason = disk_errors.reason(error)
    if reason is None:
        return None
    files = (getattr(link, "filename", None) for link in disk_errors.chain(error))
    path = next(filter(None, files), workdir)
    return f"{path}: {reason}; what was saved before is whole, and the same command goes on"


def _passing(error: Exception, workdir: str | None) -> str | None:
    """What to say of a file system that is away just now, whoever ran into it; None if it is not that."""
    words = disk_errors.passing(error)
    if words is None or memory.exhausted(error) or disk_errors.reason(error):
        return None
    links = list(disk_errors.chain(error))
    if any(isinstance(link, download.DownloadError) for link in links):  # the network is no file system
        return None
    path = next(filter(None, (getattr(link, "filename", None) for link in links)), workdir)
    told = next((str(link) for link in links if isinstance(link, ValueError)), f"{path}: {words}")
    return told if "the same command goes on" in told else f"{told}; the same command goes on when it is back"


def _leave_for_now(message: str, workdir: str | None, told: preemption.Preemption) -> NoReturn:
    """Ends a run that a disk's error ended: to be started again, unless it never gets past that."""
    logging.debug("The traceback of the error below", exc_info=True)
    code = preemption.EXIT_CODE
    if _MODE.value == "train" and workdir is not None:
        code, count, wait = starts.away(workdir)
        ended_so = f"{count} starts ended so without a newer checkpoint"
        if code == starts.GIVE_UP:
            message = f"{message}, but {ended_so}, over an hour and more: mend it first"
        elif wait:
            preemption.say(f"{message}; {ended_so}: leaving in {wait:.0f} s")
            with told.nothing_to_lose(lambda: message):
                time.sleep(wait)
    if not board.alone():  # an orderly end would wait for the others, who wait for us
        ending.leave(code, message)
    print(f"main: {message}", file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    cli.run(main, "main")

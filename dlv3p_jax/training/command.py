"""What `main` does once its flags are right: a run with all that may end it, its last words and its exit code."""

import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from absl import logging

from dlv3p_jax.runtime import (
    agreement,
    board,
    cli,
    configuration,
    disk_errors,
    ending,
    memory,
    preemption,
    process_flags,
    processes,
    starts,
    warned,
)
from dlv3p_jax.training import trackers
from dlv3p_jax.weights import checkpoints, download, published


def run(
    config,
    name: str,
    workdir: str | None,
    checkpoint: str | None,
    settings: dict[str, Any],
    hang_timeout: float,
    write_page: Callable[..., None],
) -> None:
    """Trains and evaluates, or evaluates a checkpoint, as one of the processes that do so together.

    Args:
        config: as it was given; it is checked here.
        name: of the configuration.
        workdir: of the run; None: that which the checkpoint belongs to.
        checkpoint: what to evaluate; None: the best of the run.
        settings: 'mode', 'absent_class', 'deterministic' and 'tracker', in which all processes have to agree.
        hang_timeout: seconds without a step after which the process is started again.
        write_page: gets the workdir, and of an evaluation alone its step, when all is done.

    Raises:
        ValueError, OSError: a value of `config` is wrong, or the workdir cannot be written.
        SystemExit: with the exit codes of `main`.
    """
    told = preemption.Preemption()
    with ending.together(told, process_flags.heartbeat):
        _run(config, name, workdir, checkpoint, settings, hang_timeout, write_page, told)


def _run(config, name, workdir, checkpoint, settings, hang_timeout, write_page, told) -> None:
    if settings["tracker"] is not None:
        trackers.check(settings["tracker"])
    configuration.check(config)  # before TensorFlow is imported, so that a slip is told at once
    if workdir is not None:
        cli.check_folder("main", "workdir", workdir)

    told.install(ending.leave)
    jax.config.update("jax_enable_preemption_service", False)  # which takes SIGTERM, and then waits for a step

    from dlv3p_jax.evaluation import evaluator
    from dlv3p_jax.evaluation.result import EvaluationError
    from dlv3p_jax.training import loop

    training = settings["mode"] == "train"
    try:
        processes.initialize()
        ending.listen(told)
        warned.once()
        versions = {"versions": agreement.versions()}
        agreement.require("flags", settings | versions | {"config": agreement.configured(config)})
        if workdir is not None:
            processes.check_shared(workdir)
        if training:
            for note in published.recipe_notes(name, config):
                logging.info("%s", note)
            loop.train_and_evaluate(config, workdir, told, hang_timeout, settings["tracker"])
            write_page(workdir)
        else:
            result = evaluator.evaluate_checkpoint(config, workdir, checkpoint, settings["absent_class"])
            write_page(result.path.parent.parent, result.step)
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
            _leave_for_now(message, workdir, told, training)
        message, known = _message(error, workdir), (loop.TrainingError, EvaluationError)
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


def _leave_for_now(message: str, workdir: str | None, told: preemption.Preemption, training: bool) -> NoReturn:
    """Ends a run that a disk's error ended: to be started again, unless it never gets past that."""
    logging.debug("The traceback of the error below", exc_info=True)
    code = preemption.EXIT_CODE
    if training and workdir is not None:
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

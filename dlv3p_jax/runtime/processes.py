"""One run in several processes: how they meet, and that they have one workdir."""

import os
import sys
import threading
import time

import jax
from absl import logging
from etils import epath
from jax._src import distributed as jax_distributed  # the public part does not tell which address JAX found

from dlv3p_jax.runtime import board, files, process_flags, sharding
from dlv3p_jax.runtime.process_flags import DistributedError

_TOKEN_SECONDS = 15
_FIRST_REMINDER, _REMINDERS = 10, 60  # seconds until it is said that others are waited for, and between the next times


def initialize() -> None:
    """Connects this process to the others of its run, if there are any, and logs who it is and where they met.

    Must be called before JAX is first used. That others are missing is said after 10 s, and then every minute; if they
    do not come in time, the process ends with exit code 1 and a message (JAX would abort it with a stack trace).

    Raises:
        DistributedError: see `process_flags.arguments`; or what JAX says about a cluster that it cannot make out.
        ValueError: this process is alone, and the devices that JAX is told to use are not here.
    """
    settings = process_flags.arguments()
    if settings is None:
        sharding.find_devices()
        return
    met = threading.Event()
    threading.Thread(target=_remind, args=(met,), daemon=True).start()
    try:
        jax.distributed.initialize(
            **settings,
            initialization_timeout=process_flags.TIMEOUT.value + 30,  # ours is over first
            heartbeat_timeout_seconds=round(process_flags.heartbeat()),
        )
    except (ValueError, RuntimeError) as error:
        if "coordinator_address should be" in str(error):  # a TPU that is not one of a slice
            return
        raise DistributedError(f"the processes of this run cannot find each other: {error}") from error
    finally:
        met.set()
    address = jax_distributed.global_state.coordinator_address
    logging.info("Process %d of %d; the coordinator is at %s", jax.process_index(), jax.process_count(), address)
    if jax.process_index() > 0 and logging.get_verbosity() == logging.INFO:
        logging.set_verbosity(logging.WARNING)  # what process 0 says is said once


def check_shared(workdir: epath.PathLike) -> None:
    """Makes `workdir`, and sees to it that all processes of the run find the same folder there.

    Checkpoints are written by all of them, each its part. Process 0 writes a token for all to read.

    Raises:
        DistributedError: some process has another folder under this name; names which.
        OSError: the folder cannot be made or written.
    """
    if board.alone():
        return
    if board.index() == 0:
        token = epath.Path(workdir) / files.unfinished_name()  # which a later run removes where this one is killed
        token.parent.mkdir(parents=True, exist_ok=True)
        token.write_text("", encoding="utf-8")
        board.post("token", token.name)
    token = epath.Path(workdir) / board.wait_for("token")
    deadline = time.monotonic() + _TOKEN_SECONDS
    while not (seen := token.exists()) and time.monotonic() < deadline:
        time.sleep(0.5)  # network folders may show a new file a little later
    if not seen:
        board.post(f"without_token/{board.index()}", str(workdir))
    board.barrier("looked for the token")
    if board.index() == 0:
        token.unlink()
    missing = sorted(board.read("without_token").items(), key=lambda item: int(item[0]))
    if missing:
        who = ", ".join(index for index, _ in missing)
        folders = sorted({folder for _, folder in missing} - {str(workdir)})
        as_ = f" (its --workdir is {', '.join(folders)})" if folders else ""
        raise DistributedError(
            f"--workdir={workdir} is not one folder for all: process {who} of {board.count()}{as_} cannot see what "
            "process 0 wrote there. Give a folder on a file system that all machines share, or gs://…"
        )


def _remind(met: threading.Event) -> None:
    seconds = process_flags.TIMEOUT.value
    deadline, wait = time.monotonic() + seconds, _FIRST_REMINDER
    while not met.wait(min(wait, max(deadline - time.monotonic(), 0))):
        state, wait = jax_distributed.global_state, _REMINDERS
        who = f"process {state.process_id} of {state.num_processes}"
        if time.monotonic() < deadline:
            left = deadline - time.monotonic()
            print(
                f"main: {who} waits for the coordinator {state.coordinator_address} and the other processes; "
                f"start all processes (it waits for {left:.0f} s more)",
                file=sys.stderr,
                flush=True,
            )
            continue
        _exit(
            f"main: {who} waited {seconds} s for the coordinator {state.coordinator_address} and the other "
            f"processes: start all {state.num_processes}, let them reach this address, or give more "
            "--coordinator_timeout"
        )


def _exit(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)

"""One run in several processes: how they find each other, and that they have one workdir.

On SLURM (`srun`, a task a process) and on the workers of a TPU slice, JAX finds everything itself. Elsewhere every
process is told, by flags or by the environment (the first is JAX's own name):

    --coordinator_address=HOST:PORT  JAX_COORDINATOR_ADDRESS  process 0's host, and a port that is free there
    --num_processes=N                JAX_NUM_PROCESSES        1: alone, whatever the machine belongs to
    --process_id=I                   JAX_PROCESS_ID           0 … N-1

JAX_COORDINATOR_PORT changes the port that JAX chooses on SLURM and TPUs, where a firewall wants another, and
JAX_LOCAL_DEVICE_IDS names the GPUs of a process. On CPUs the processes talk through gloo. `launch/local.py` starts
several on one machine.
"""

import importlib.util
import os
import sys
import threading
import time
from collections.abc import Mapping

import jax
from absl import flags, logging
from etils import epath
from jax._src import distributed as jax_distributed  # the public part does not tell which address JAX found

from dlv3p_jax.runtime import board, files, sharding
from dlv3p_jax.runtime.errors import UserError

_ADDRESS = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0 of a run of several processes.")
_COUNT = flags.DEFINE_integer("num_processes", None, "How many processes the run has; 1: this one alone.")
_INDEX = flags.DEFINE_integer("process_id", None, "Which of them this is: 0 … num_processes - 1.")
_TIMEOUT = flags.DEFINE_integer(
    "coordinator_timeout", 1800, "Seconds to wait at the start for all processes of the run.", lower_bound=1
)
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_timeout", 60, "Seconds without a sign of life after which a process counts as dead.", lower_bound=2
)
_TOKEN_SECONDS = 15
_FIRST_REMINDER, _REMINDERS = 10, 60  # seconds until it is said that others are waited for, and between the next times


def heartbeat() -> float:
    """Seconds without a sign of life after which a process counts as dead."""
    return _HEARTBEAT.value


class DistributedError(UserError):
    """The processes of a run cannot find each other; the message says what is missing."""


def arguments(environment: Mapping[str, str] = os.environ) -> dict | None:
    """What `jax.distributed.initialize` is to be told, from flags, else the environment; None for a single process.

    Raises:
        DistributedError: an incomplete description, or numbers that cannot be.
    """
    address = _ADDRESS.value or environment.get("JAX_COORDINATOR_ADDRESS")
    count = _number("num_processes", _COUNT.value, "JAX_NUM_PROCESSES", environment)
    index = _number("process_id", _INDEX.value, "JAX_PROCESS_ID", environment)
    if count == 1:
        return None
    given = {"coordinator_address": address, "num_processes": count, "process_id": index}
    if count is not None and (count < 1 or (index is not None and not 0 <= index < count)):
        raise DistributedError(f"--process_id={index} with --num_processes={count}: give 0 … num_processes - 1")
    if address is not None and not address.rpartition(":")[2].isdigit():
        raise DistributedError(f"--coordinator_address={address}: give HOST:PORT, such as 10.0.0.1:8476")
    if None not in given.values():
        return given | {"cluster_detection_method": "deactivate"}
    if int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_NODELIST" in environment:
        return given | {"cluster_detection_method": "slurm"}
    if "tpu" in environment.get("JAX_PLATFORMS", "tpu") and importlib.util.find_spec("libtpu"):
        return given
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return None
    raise DistributedError(
        f"a run of several processes needs --{' and --'.join(missing)} too (or JAX_COORDINATOR_ADDRESS, "
        "JAX_NUM_PROCESSES and JAX_PROCESS_ID); --num_processes=1 is a run of this process alone"
    )


def _number(name: str, flag: int | None, variable: str, environment: Mapping[str, str]) -> int | None:
    text = environment.get(variable) if flag is None else str(flag)
    if text is None:
        return None
    if not text.isdigit():
        raise DistributedError(f"{variable if flag is None else f'--{name}'}={text}: give a whole number")
    return int(text)


def initialize() -> None:
    """Connects this process to the others of its run, if there are any, and logs who it is and where they met.

    Must be called before JAX is first used. That others are missing is said after 10 s, and then every minute; if they
    do not come in time, the process ends with exit code 1 and a message (JAX would abort it with a stack trace).

    Raises:
        DistributedError: see `arguments`; or what JAX says about a cluster that it cannot make out.
        ValueError: this process is alone, and the devices that JAX is told to use are not here.
    """
    settings = arguments()
    if settings is None:
        sharding.find_devices()
        return
    met = threading.Event()
    threading.Thread(target=_remind, args=(met,), daemon=True).start()
    try:
        jax.distributed.initialize(
            **settings,
            initialization_timeout=_TIMEOUT.value + 30,  # ours is over first
            heartbeat_timeout_seconds=_HEARTBEAT.value,
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
    deadline, wait = time.monotonic() + _TIMEOUT.value, _FIRST_REMINDER
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
            f"main: {who} waited {_TIMEOUT.value} s for the coordinator {state.coordinator_address} and the other "
            f"processes: start all {state.num_processes}, let them reach this address, or give more "
            "--coordinator_timeout"
        )


def _exit(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)

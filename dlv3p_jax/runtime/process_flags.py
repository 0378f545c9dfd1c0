"""One run in several processes: the flags that say which of them this is, and how the others are found.

Nothing here imports JAX: wrong flags do not wait for it.

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
from collections.abc import Mapping

from absl import flags

from dlv3p_jax.runtime.errors import UserError

_ADDRESS = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0 of a run of several processes.")
_COUNT = flags.DEFINE_integer("num_processes", None, "How many processes the run has; 1: this one alone.")
_INDEX = flags.DEFINE_integer("process_id", None, "Which of them this is: 0 … num_processes - 1.")
TIMEOUT = flags.DEFINE_integer(
    "coordinator_timeout", 1800, "Seconds to wait at the start for all processes of the run.", lower_bound=1
)
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_timeout", 60, "Seconds without a sign of life after which a process counts as dead.", lower_bound=2
)


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

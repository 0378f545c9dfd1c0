"""What the processes of one run tell each other beside their computations, through JAX's coordination service.

Nothing is compiled for it, and no process has to be at any point of the run to be told something. What is posted stays.
"""

from typing import Any

from jax._src import distributed as jax_distributed  # the public part has neither the service nor who we are
from jax.errors import JaxRuntimeError

from dlv3p_jax.runtime import disk_errors

_ROOT = "dlv3p_jax"
_LOST = ("Gloo", "NCCL", "coordination_service", "Connection closed by peer", "Socket closed")
_DAY = 24 * 3600  # one that is gone ends the others long before


def alone() -> bool:
    """Whether this process is the only one of its run. JAX is not asked, which would look for devices."""
    return jax_distributed.global_state.client is None or count() == 1


def index() -> int:
    return jax_distributed.global_state.process_id


def count() -> int:
    return jax_distributed.global_state.num_processes


def name() -> str:
    """This process for messages, such as 'process 1 of 4'."""
    return f"process {index()} of {count()}"


def post(key: str, text: str) -> bool:
    """Puts `text` up under `key`; False if something is there already, which stays."""
    try:
        _client().key_value_set(f"{_ROOT}/{key}", text)
    except JaxRuntimeError as error:
        if "ALREADY_EXISTS" in str(error):
            return False
        raise
    return True


def read(folder: str) -> dict[str, str]:
    """What is posted below `folder` now, by the rest of its key."""
    found = _client().key_value_dir_get(f"{_ROOT}/{folder}/")
    return {key.partition(f"{_ROOT}/{folder}/")[2]: text for key, text in found}


def wait_for(key: str, seconds: float = _DAY) -> str:
    """What is posted under `key`, as soon as it is."""
    return _client().blocking_key_value_get(f"{_ROOT}/{key}", round(1000 * seconds))


def barrier(where: str, seconds: float = _DAY) -> None:
    """Waits until all processes have come to `where`, each once."""
    if not alone():
        _client().wait_at_barrier(f"{_ROOT} {where}", timeout_in_ms=round(1000 * seconds))


def lost_connection(error: BaseException) -> bool:
    """Whether an error, or what led to it, says that another process is gone, or cannot be reached."""
    for link in disk_errors.chain(error):
        words = _LOST + (("UNAVAILABLE",) if isinstance(link, JaxRuntimeError) else ())  # of buckets, it says another
        if any(word in str(link) for word in words):
            return True
    return False


def _client() -> Any:
    client = jax_distributed.global_state.client
    assert client is not None  # as there are several processes
    return client

"""One run at a time in a workdir: a lock that ends with the process that holds it, however that ends."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator

import jax
from absl import logging
from etils import epath

NAME = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}


class WorkdirInUse(ValueError):
    """Another run lives in the workdir; the message says which."""


@contextlib.contextmanager
def hold(workdir: epath.PathLike) -> Iterator[None]:
    """Locks `workdir`, which has to exist, for this run; of several processes, the first does it for all.

    Evaluating what is in it needs no lock. Where there are no locks, as on gs://, a warning says so.

    Raises:
      WorkdirInUse: another run holds it.
      OSError: the workdir cannot be written.
    """
    if jax.process_index() > 0:
        yield
        return
    if "://" in str(workdir):
        _warn(workdir, "buckets have no locks")
        yield
        return
    # The file stays: one that is removed while another process waits to open it would be locked twice.
    with open(os.path.join(workdir, NAME), "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                _warn(workdir, f"its file system has no locks ({error.strerror})")
            elif isinstance(error, BlockingIOError):
                file.seek(0)
                raise WorkdirInUse(
                    f"{workdir} is in use by another run ({file.read().strip() or 'unknown'}): wait for its end, end "
                    "it, or give another --workdir. To evaluate what it has saved, --mode=eval"
                ) from error
            else:
                raise
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _warn(workdir: epath.PathLike, reason: str) -> None:
    logging.warning("%s cannot be locked, as %s: see to it that no other run writes there", workdir, reason)

"""One run at a time in a workdir: a lock that ends with the process that holds it, however that ends."""

import contextlib
import os
from collections.abc import Iterator

import jax
from absl import logging
from etils import epath

from dlv3p_jax.runtime import files
from dlv3p_jax.runtime.errors import UserError

NAME = ".lock"


class WorkdirInUse(UserError):
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
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.lock(os.path.join(workdir, NAME)))
            # Reports are written there without the lock, in much less than an hour.
            files.remove_unfinished(workdir, older_than=3600)
        except files.NoLocks as error:
            _warn(workdir, f"its file system has no locks ({error.strerror})")
        except files.Locked as error:
            raise WorkdirInUse(
                f"{workdir} is in use by another run ({error.holder or 'unknown'}): wait for its end, end it, or give "
                "another --workdir. To evaluate what it has saved, --mode=eval"
            ) from error
        yield


def _warn(workdir: epath.PathLike, reason: str) -> None:
    logging.warning("%s cannot be locked, as %s: see to it that no other run writes there", workdir, reason)

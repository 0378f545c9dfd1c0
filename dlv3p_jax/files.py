"""Writing files and folders whole or not at all, and locks that end with the process that holds them."""

import contextlib
import errno
import fcntl
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator

from etils import epath

_SUFFIX = ".unfinished"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}


class Locked(BlockingIOError):
    """Another process holds a lock; `holder` is what it wrote of itself, or ""."""

    def __init__(self, path: pathlib.Path, holder: str):
        super().__init__(errno.EWOULDBLOCK, f"held by {holder or 'another process'}", str(path))
        self.holder = holder


class NoLocks(OSError):
    """The file system has no locks; `strerror` says what it answered."""


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[epath.Path]:
    """A file to write to, which takes the place of `path` at the end, and is removed where that is not reached.

    Its name is this process's alone, so that two that write the same file at once each write it whole.

    Raises:
        OSError: it cannot be written; `filename` is `path` where the system names none.
    """
    path = epath.Path(path)
    unfinished = path.with_name(unfinished_name())
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)  # on a full disk, it takes what others could have
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)  # a write that fails does not say which file it was to
        raise


def unfinished_name() -> str:
    """A new name for what is not whole yet, in the folder where it will be; short, as names have a greatest length."""
    return f".{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}"


def remove_unfinished(folder: epath.PathLike) -> None:
    """Removes what processes that were killed left in `folder`; only for who holds a lock on all that is written there.

    What cannot be removed stays.
    """
    with contextlib.suppress(OSError):
        for leftover in pathlib.Path(folder).glob(f".*{_SUFFIX}"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    leftover.unlink()


@contextlib.contextmanager
def lock(path: epath.PathLike, wait: bool = False) -> Iterator[None]:
    """Holds the lock of the file `path`, which is made where it is missing and stays, and says in it who we are.

    It stays because one that is removed while another process waits to open it would be locked twice.

    Args:
        path: of the lock; its folder has to exist.
        wait: for whoever holds it.

    Raises:
        Locked: another process holds it, and `wait` is false.
        NoLocks: the file system has none.
        OSError: the file cannot be opened or written.
    """
    with open(path, "a+", encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            file.seek(0)
            raise Locked(pathlib.Path(path), file.read().strip()) from error
        except OSError as error:
            if error.errno in _NO_LOCKS:
                raise NoLocks(error.errno, error.strerror, str(path)) from error
            raise
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield

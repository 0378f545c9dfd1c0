"""Writing files and folders whole or not at all, and locks that end with the process that holds them."""

import contextlib
import errno
import fcntl
import glob
import json
import math
import os
import pathlib
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any

from absl import logging
from etils import epath

_SUFFIX, _FOLDER, _OLD = ".unfinished", ".unfinished-folder", ".old"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}


class Locked(BlockingIOError):
    """Another process holds a lock; `holder` is what it wrote of itself, or ""."""

    def __init__(self, path: pathlib.Path, holder: str):
        super().__init__(errno.EWOULDBLOCK, f"held by {holder or 'another process'}", str(path))
        self.holder = holder


class NoLocks(OSError):
    """The file system has no locks; `strerror` says what it answered."""


@contextlib.contextmanager
def naming(path: epath.PathLike) -> Iterator[None]:
    """Has an OSError name `path` where it names no file: a read or write that fails does not say of which."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[epath.Path]:
    """A file to write to, which takes the place of `path` at the end, and is removed where that is not reached.

    Its name is this process's alone, so that two that write the same file at once each write it whole.

    Raises:
        OSError: it cannot be written; `filename` is `path` where the system names none, or the unfinished one.
    """
    path = epath.Path(path) if "://" in os.fspath(path) else pathlib.Path(path)  # which needs no TensorFlow at all
    unfinished = path.with_name(unfinished_name())
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)  # on a full disk, it takes what others could have
        if isinstance(error, OSError) and error.errno is not None:
            if error.filename is None:  # a write that fails does not say which file it was to
                error.filename = str(path)
            elif str(error.filename) == str(unfinished):
                raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write(path: epath.PathLike, content: str | bytes) -> None:
    """Writes a file whole, text as UTF-8; see `replacing`."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: epath.PathLike, values: Any, **options: Any) -> None:
    """The same of values as JSON, with `json.dumps`'s options."""
    write(path, json.dumps(values, **{"indent": 2} | options) + "\n")


def try_to_write(path: epath.PathLike) -> None:
    """Writes something beside a file that a library could not write, which is gone at once.

    Raises:
        OSError: it could not be written, and why; it names the file.
    """
    try:
        with tempfile.TemporaryFile(dir=pathlib.Path(path).parent) as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def replacing_folder(folder: epath.PathLike) -> Iterator[pathlib.Path]:
    """A folder to write into, which takes the place of `folder` at the end, and is removed where that is not reached.

    Its name is this process's alone, so that of two that write the same folder at once the last has the place, whole.
    What processes that were killed left is removed, and what they had set aside brought back.

    Raises:
        OSError: it cannot be written.
    """
    folder = pathlib.Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = f".{glob.escape(folder.name)}."
    old = sorted([*folder.parent.glob(f"{beside}*{_OLD}"), *folder.parent.glob(f"{beside}{_OLD[1:]}")])
    if old and not folder.exists():  # killed between two renames
        with contextlib.suppress(OSError):  # another process was faster
            old.pop().rename(folder)
    for leftover in [*old, *folder.parent.glob(f".*{_FOLDER}"), *folder.parent.glob(f"{beside}{_SUFFIX[1:]}")]:
        _remove_unless_held(leftover)
    with _new_folder(folder.parent) as unfinished:
        yield unfinished
        _put(unfinished, folder)


@contextlib.contextmanager
def _new_folder(parent: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder, locked so that others see that we live, and removed at the end if it is still there."""
    while True:
        unfinished = parent / f".{os.getpid()}-{secrets.token_hex(4)}{_FOLDER}"
        unfinished.mkdir()
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # a file system without locks
                stack.enter_context(lock_folder(unfinished))
            if not unfinished.exists():  # it was taken for a leftover before it was locked
                continue
            try:
                yield unfinished
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
            return


def _put(unfinished: pathlib.Path, folder: pathlib.Path) -> None:
    """Renames a folder to where another may be, or another process may put one at this moment."""
    while True:
        aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{_OLD}")
        with contextlib.suppress(FileNotFoundError):
            folder.rename(aside)
        try:
            unfinished.rename(folder)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                continue
            if aside.exists() and not folder.exists():
                aside.rename(folder)
            raise
        finally:
            if folder.exists():
                shutil.rmtree(aside, ignore_errors=True)
        return


def _remove_unless_held(leftover: pathlib.Path) -> None:
    """Removes a folder that nobody holds a lock of; leaves it where there are no locks."""
    with contextlib.suppress(OSError), lock_folder(leftover):
        shutil.rmtree(leftover, ignore_errors=True)


def unfinished_name() -> str:
    """A new name for what is not whole yet, in the folder where it will be; short, as names have a greatest length."""
    return f".{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}"


def remove_unfinished(folder: epath.PathLike, older_than: float = 0) -> None:
    """Removes what processes that were killed left in `folder`; for who holds a lock on what is written there.

    What cannot be removed stays.

    Args:
        folder: where; not below it.
        older_than: seconds since it was last written to; where others write without the lock, more than they take.
    """
    with contextlib.suppress(OSError):
        for leftover in pathlib.Path(folder).glob(f".*{_SUFFIX}"):
            with contextlib.suppress(OSError):
                if older_than and time.time() - leftover.stat().st_mtime < older_than:
                    continue
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
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
    with _open_lock(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            file.seek(0)
            raise Locked(pathlib.Path(path), file.read().strip()) from error
        except OSError as error:
            if error.errno in _NO_LOCKS:
                raise NoLocks(error.errno, error.strerror, str(path)) from error
            raise
        if file.writable():
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
            file.flush()
        yield


@contextlib.contextmanager
def lock_folder(folder: epath.PathLike) -> Iterator[None]:
    """Holds the lock of a folder itself, which leaves nothing in it; does not wait.

    Raises:
        Locked: another process holds it.
        NoLocks: the file system has none.
        OSError: the folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Locked(pathlib.Path(folder), "") from error
        except OSError as error:  # whatever it is: NFS, for one, has other answers for folders
            raise NoLocks(error.errno, error.strerror, str(folder)) from error
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: epath.PathLike) -> IO[str]:
    """The file of a lock; to be read alone where it is another user's."""
    try:
        return open(path, "a+", encoding="utf-8", errors="replace")
    except PermissionError:
        if os.path.exists(path):
            return open(path, encoding="utf-8", errors="replace")
        raise


@contextlib.contextmanager
def lock_if_possible(path: epath.PathLike, waiting: str, seconds: float = math.inf) -> Iterator[bool]:
    """Holds `lock` of a file, waiting for whoever holds it; gives whether it does, as a file system may have none.

    Args:
        path: of the lock; its folder has to exist.
        waiting: what the log says where another process holds it.
        seconds: how long to wait at most, where a holder that is suspended is not to hold up this one; then without it.

    Raises:
        OSError: the file cannot be opened or written.
    """
    with contextlib.ExitStack() as stack:
        locked, end = False, None
        try:
            while not locked:
                try:
                    stack.enter_context(lock(path, wait=end == math.inf))
                    locked = True
                except Locked as error:
                    if end is None:
                        logging.info("%s", waiting)
                        end = time.monotonic() + seconds
                    elif time.monotonic() >= end:
                        logging.warning("%s is %s since %g s: going on without it", path, error.strerror, seconds)
                        break
                    time.sleep(min(seconds, 0.1))
        except NoLocks as error:
            logging.debug("%s: no lock (%s)", path, error.strerror)
        yield locked


def cache_folder() -> pathlib.Path:
    """Where what is fetched is kept: $DLV3P_CACHE, or ~/.cache/dlv3p_jax.

    Raises:
        OSError: where the home folder is, is not known.
    """
    try:
        return pathlib.Path(os.environ.get("DLV3P_CACHE") or "~/.cache/dlv3p_jax").expanduser().absolute()
    except RuntimeError as error:
        raise OSError("HOME is not set: set DLV3P_CACHE to a folder, which gets what is fetched") from error

"""Paths of this machine as etils has them, by which TFDS and Orbax read and write, mended in two methods.

For a file's size or time, etils asks for the names of its owner and group as well, and raises KeyError where there are
none, as in containers that run under any user id, and in shared folders (etils#790). And it takes brackets in the path
of a folder for a pattern: below `run [1]`, Orbax finds nothing of what it has just written, and no checkpoint is whole.
Where a folder cannot be read, or only half of it, it gives what it has found until then as if that were all.
"""

import functools
import os
import pathlib
import stat
from collections.abc import Callable, Iterator

from etils import epath
from etils.epath import backend, stat_utils


def mend() -> None:
    """Lets etils give the numbers of owners without names, as `ls` does, and take a folder's path as it is."""
    _replace(getattr(backend, "_OsPathBackend", None), "stat", _stat)
    _replace(type(epath.Path("/")), "glob", _glob)


def _replace(owner: type | None, name: str, mended: Callable) -> None:
    """Puts `mended`, which takes a method before its arguments, in place of that method; once."""
    method = getattr(owner, name, None)
    if method is None or hasattr(method, "mended"):
        return

    @functools.wraps(method)
    def replacement(self, *arguments, **keywords):
        return mended(self, method, *arguments, **keywords)

    replacement.mended = True  # type: ignore[attr-defined]
    setattr(owner, name, replacement)


def _stat(self, method: Callable, path) -> stat_utils.StatResult:
    try:
        return method(self, path)
    except KeyError:
        found = os.stat(path)
        return stat_utils.StatResult(
            is_directory=stat.S_ISDIR(found.st_mode),
            length=found.st_size,
            mtime=int(found.st_mtime),
            owner=str(found.st_uid),
            group=str(found.st_gid),
            mode=found.st_mode,
        )


def _glob(self, method: Callable, pattern: str) -> Iterator[epath.Path]:
    folder = os.fspath(self)
    if "://" in folder:
        return method(self, pattern)
    return (epath.Path(path) for path in pathlib.Path(folder).glob(pattern))

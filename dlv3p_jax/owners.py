"""Files whose owner or group has no name, as in containers that run under any user id, and on shared file systems.

etils, by which TFDS and Orbax ask for a file's size or time, asks for the names of its owner and group as well, and
raises KeyError where there are none (etils#790).
"""

import functools
import os
import stat

from etils.epath import backend, stat_utils


def allow_nameless() -> None:
    """Lets etils answer with the numbers of an owner and a group, as `ls` does, where they have no names."""
    of_this_machine = getattr(backend, "_OsPathBackend", None)
    if of_this_machine is None or getattr(of_this_machine.stat, "allows_nameless", False):
        return
    ask = of_this_machine.stat

    @functools.wraps(ask)
    def answer(self, path) -> stat_utils.StatResult:
        try:
            return ask(self, path)
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

    answer.allows_nameless = True  # type: ignore[attr-defined]
    of_this_machine.stat = answer

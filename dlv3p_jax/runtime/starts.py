"""How often a run was started without getting on, so that one that hangs at the same place is not started for ever.

A start is counted in WORKDIR/.starts.json when it begins, and taken back when it ends in order: done, told to leave, or
by an error that it told. What hangs, is killed, or loses another process stays counted, until a newer checkpoint is
there.
"""

import contextlib
import json
import os

from etils import epath

from dlv3p_jax.runtime import board, files

NAME = ".starts.json"
AGAIN = os.EX_TEMPFAIL  # 75: start the same command again
GIVE_UP = os.EX_SOFTWARE  # 70: that does not help
HANGS, KILLS = 3, 5  # starts without a newer checkpoint after which we give up: where one hangs, and before another


class GivenUp(RuntimeError):
    """Too many starts ended without a newer checkpoint; the message says so."""


class Start:
    """This start of the run in a workdir, counted; of several processes, the first writes and tells the others."""

    def __init__(self, workdir: epath.PathLike):
        """Counts it.

        Args:
          workdir: of the run, which exists.

        Raises:
          GivenUp: so many starts before this one were killed or hung that another is of no use.
          OSError: the workdir cannot be written.
        """
        self._workdir, self._newest = epath.Path(workdir), _newest(workdir)
        self._first = board.alone() or board.index() == 0
        if not self._first:
            self._before = int(board.wait_for("starts"))
            return
        before = _read(self._workdir / NAME)
        self._before = before["starts"] if before["newest"] == self._newest else 0
        if self._before >= KILLS:
            with contextlib.suppress(OSError):
                self.end_in_order(0)
            since = "a checkpoint" if self._newest < 0 else f"a checkpoint newer than step {self._newest}"
            raise GivenUp(
                f"{self._before} starts in a row were killed or hung before they saved {since}: their logs say why "
                "(memory, a device, the data). When that is mended, the same command goes on"
            )
        self._write(self._before + 1)
        if not board.alone():
            board.post("starts", str(self._before))

    def __enter__(self) -> "Start":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if error is None or not board.lost_connection(error):
            with contextlib.suppress(OSError):  # only the count is wrong, and how the run ends matters more
                self.end_in_order()

    def end_in_order(self, before: int | None = None) -> None:
        """Takes it back; `before` is how many are counted then, by default as many as before it."""
        if self._first:
            self._write(self._before if before is None else before)

    def code(self) -> int:
        """The exit code where this start hangs, or has lost another process: AGAIN, or GIVE_UP at the third time."""
        if self._before + 1 < HANGS or _newest(self._workdir) != self._newest:
            return AGAIN
        self.end_in_order(0)  # who starts it nonetheless has mended something
        return GIVE_UP

    def _write(self, starts: int) -> None:
        with files.replacing(self._workdir / NAME) as unfinished:
            unfinished.write_text(json.dumps({"newest": self._newest, "starts": starts}) + "\n", encoding="utf-8")


def _newest(workdir: epath.PathLike) -> int:
    latest = epath.Path(workdir) / "checkpoints" / "latest"
    names = [path.name for path in latest.iterdir()] if latest.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=-1)


def _read(path: epath.Path) -> dict[str, int]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"newest": int(found["newest"]), "starts": int(found["starts"])}
    except (OSError, ValueError, TypeError, KeyError):  # none yet, or not ours: only the count is lost
        return {"newest": -1, "starts": 0}

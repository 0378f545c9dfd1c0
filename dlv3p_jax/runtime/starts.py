"""How often a run was started without getting on, so that one that hangs at the same place is not started for ever.

A start is counted in WORKDIR/.starts.json when it begins, and taken back when it ends in order: done, told to leave, or
by an error that it told. What hangs, is killed, or loses another process stays counted, until a newer checkpoint is
there. Beside it are counted those that a disk's error ended, which passes by itself or, where a file or a limit is
meant, never.
"""

import contextlib
import json
import os
import time
from typing import Any

from etils import epath

from dlv3p_jax.runtime import board, files

NAME = ".starts.json"
AGAIN = os.EX_TEMPFAIL  # 75: start the same command again
GIVE_UP = os.EX_SOFTWARE  # 70: that does not help
HANGS, KILLS = 3, 5  # starts without a newer checkpoint after which we give up: where one hangs, and before another
AWAY, AWAY_SECONDS = 5, 3600  # and where a disk's error ended them: so many, over so long at least
_FIRST_WAIT, _LONGEST_WAIT = 15, 240  # seconds


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
        self._before = _read(self._workdir, self._newest)["starts"]
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
                self.end_in_order(done=error is None)

    def end_in_order(self, before: int | None = None, done: bool = False) -> None:
        """Takes it back; `before` is how many are counted then, by default as many as before it."""
        if self._first:
            self._write(self._before if before is None else before, done)

    def code(self) -> int:
        """The exit code where this start hangs, or has lost another process: AGAIN, or GIVE_UP at the third time."""
        if self._before + 1 < HANGS or _newest(self._workdir) != self._newest:
            return AGAIN
        self.end_in_order(0)  # who starts it nonetheless has mended something
        return GIVE_UP

    def _write(self, starts: int, done: bool = False) -> None:
        counted = _read(self._workdir, self._newest)
        _write(self._workdir, counted | {"starts": starts} | ({"away": []} if done else {}))


def away(workdir: epath.PathLike) -> tuple[int, int, float]:
    """Counts a start that a disk's error ends.

    Returns:
      The exit code, AGAIN, or GIVE_UP after AWAY such starts over AWAY_SECONDS without a newer checkpoint; how many
      there were, this one included; and how many seconds to wait before the next: none after the first, then ever more.
      Where the workdir itself is away, it is as if this were the first.
    """
    try:
        counted = _read(workdir, _newest(workdir))
        count, since = counted["away"] or (0, time.time())
        count += board.alone() or board.post("away", board.name())  # each start once, whoever was the first
        code = GIVE_UP if count >= AWAY and time.time() - since >= AWAY_SECONDS else AGAIN
        _write(workdir, counted | {"away": [count, since] if code == AGAIN else []})  # as in `code`
    except Exception:  # of the file system, or of another process that is gone with the board
        return AGAIN, 1, 0
    wait = min(_FIRST_WAIT * 2 ** (count - 2), _LONGEST_WAIT) if count > 1 and code == AGAIN else 0
    return code, count, wait


def _newest(workdir: epath.PathLike) -> int:
    latest = epath.Path(workdir) / "checkpoints" / "latest"
    names = [path.name for path in latest.iterdir()] if latest.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=-1)


def _read(workdir: epath.PathLike, newest: int) -> dict[str, Any]:
    """What is counted since checkpoint `newest`: {'newest', 'starts', 'away': [how many, since when] or []}."""
    try:
        found = json.loads((epath.Path(workdir) / NAME).read_text(encoding="utf-8"))
        if int(found["newest"]) == newest:
            away = [kind(value) for kind, value in zip((int, float), found.get("away", ()), strict=False)]
            return {"newest": newest, "starts": int(found["starts"]), "away": away if len(away) == 2 else []}
    except (OSError, ValueError, TypeError, KeyError):  # none yet, or not ours: only the count is lost
        pass
    return {"newest": newest, "starts": 0, "away": []}


def _write(workdir: epath.PathLike, counted: dict[str, Any]) -> None:
    files.write_json(epath.Path(workdir) / NAME, counted, indent=None)

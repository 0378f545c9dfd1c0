"""Leaving when told to: SIGTERM, which a cluster sends before it takes a machine away.

Where a run has nothing to lose, as while it starts or evaluates a step that is saved, it leaves at once. Else it asks
between two steps whether it has to leave, saves, and exits with EXIT_CODE, on which the scripts of launch/ start it
again. Several processes agree, so that all leave at the same step, whichever was told.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from dlv3p_jax.runtime import board

EXIT_CODE = os.EX_TEMPFAIL  # 75: the same command goes on, start me again
_LOOK_SECONDS = 0.2


class Preempted(Exception):
    """The run was told to leave; the message says what is saved."""


class Preemption:
    """Knows whether this process, or another of the run, was told to leave; one for each process.

    Attributes:
        told: whether this process was told.
        waiting_since: since when (`time.monotonic`) it is known here that the run has to leave, until the run hears it.
    """

    def __init__(self):
        self.told = False
        self.waiting_since: float | None = None
        self._changed = threading.Condition()
        self._asked = 0
        self._leave_at: int | None = None  # of how many times asked
        self._noticed = False
        self._whole: Callable[[], str | None] | None = _at_the_start

    def install(self, leave: Callable[[int, str], None]) -> None:
        """Takes over SIGTERM; call it in the main thread. More than one SIGTERM is as one.

        Args:
            leave: ends the process, and the others of its run, with an exit code and a line that says why (`ending`).
        """
        # Python runs a handler only when the main thread comes back from compiling or computing, so it does nothing.
        # What is written here beside it, a thread reads at once.
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(reading, leave), name="preemption", daemon=True).start()

    def reached(self) -> bool:
        """Whether to save and leave now. To be called equally often by all processes, at the same points of the run.

        From the first call on, the run has something to lose, and leaves through this, or where `nothing_to_lose`.
        """
        with self._changed:
            self._asked += 1
            if self._whole is _at_the_start:
                self._whole = None
            while self._noticed and self._leave_at is None:  # the others say how far they are
                self._changed.wait()
            leaving = self.told if board.alone() else self._leave_at is not None and self._asked >= self._leave_at
            if leaving:
                self.waiting_since = None
            return leaving

    @contextlib.contextmanager
    def nothing_to_lose(self, whole: Callable[[], str | None]) -> Iterator[None]:
        """Lets the process leave at once, wherever it is in the body, when `whole()` says that all is saved.

        Args:
            whole: is called in another thread; a line that says what is saved, or None as long as it is not.
        """
        with self._changed:
            before, self._whole = self._whole, whole
        try:
            yield
        finally:
            with self._changed:  # waits where the process is about to leave
                # A run that goes on may ask for the first time in here, while it evaluates: its start is over then.
                self._whole = None if before is _at_the_start and self._asked else before

    def look(self, posted: dict[str, str]) -> None:
        """Takes notice of what the processes of the run have posted on leaving (`board.read`); often, in one thread."""
        if "told" not in posted:
            return
        with self._changed:
            if not self._noticed:
                self._noticed = True
                if self.waiting_since is None:
                    self.waiting_since = time.monotonic()
                board.post(f"leaving/{board.index()}", str(self._asked))
            counts = [int(text) for key, text in posted.items() if key.isdigit()]
            if self._leave_at is None and len(counts) == board.count():
                self._leave_at = max(counts) + 1  # all have gone on to the step after the one that was asked for last
                self._changed.notify_all()

    def _listen(self, reading: int, leave: Callable[[int, str], None]) -> None:
        while signals := os.read(reading, 64):
            if signal.SIGTERM in signals and not self.told:
                self.waiting_since, self.told = time.monotonic(), True  # in this order: who hears it, ends the waiting
                threading.Thread(target=self._tell, args=(leave,), name="leaving", daemon=True).start()

    def _tell(self, leave: Callable[[int, str], None]) -> None:
        self._leave_at_once(leave)
        say("SIGTERM: saving and leaving after this step")
        if not board.alone():
            board.post("leaving/told", board.name())
        while True:  # it may come to where it has nothing to lose before it asks
            time.sleep(_LOOK_SECONDS)
            self._leave_at_once(leave)

    def _leave_at_once(self, leave: Callable[[int, str], None]) -> None:
        with self._changed:
            if self._whole is None:
                return
            saved = self._whole()
            if saved is not None:
                leave(EXIT_CODE, f"SIGTERM: {saved}")


def _at_the_start() -> str:
    return "nothing was done yet that could be lost; the same command goes on"


def say(message: str) -> None:
    """Writes a line to stderr, from any thread; where nobody reads it any more, there is nobody to tell."""
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), f"main: {message}\n".encode(errors="backslashreplace"))

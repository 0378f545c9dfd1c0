"""Ending a process that hangs: one that waits for another that lives but is stuck, which no limit of JAX's notices."""

import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Callable

from dlv3p_jax.runtime import ending, held, preemption

COMPILING_SECONDS = 3600
HELD_SECONDS = 60  # at least, in which native code may keep all of Python from running
ANSWER_SECONDS = 10  # after SIGTERM, for what takes no longer otherwise; a spot node of GKE has 15


class Watchdog:
    """A thread that ends the process, with the stacks of all threads, when it was not fed for too long.

    Time in which this thread itself did not run does not count: the process was suspended (SIGSTOP, docker pause).
    """

    def __init__(
        self,
        timeout: float,
        told: preemption.Preemption | None = None,
        code: Callable[[], int] = lambda: preemption.EXIT_CODE,
        compiling: float = COMPILING_SECONDS,
    ):
        """Watches inside of `with`.

        Args:
          timeout: seconds that may pass between two calls of `feed`; 0: any.
          told: knows whether the run has to leave, which its main thread has to hear in ANSWER_SECONDS, or twice the
            longest time between two feeds so far.
          code: the exit code for a process that hangs, which is asked for when it does.
          compiling: seconds after `feed(compiling=True)`, where this is more.
        """
        self._timeout, self._compiling = timeout, max(timeout, compiling)
        self._told, self._code = told, code
        self._over = threading.Event()
        self._longest = 0.0
        self._is_compiling = True

    def __enter__(self) -> "Watchdog":
        self._fed = time.monotonic()
        self.feed(compiling=True)
        watcher = None
        if self._timeout > 0 and sys.platform == "linux":  # here: what comes next may let no other thread run
            watcher = held.Held(max(self._timeout, HELD_SECONDS))
        threading.Thread(target=self._watch, args=[watcher], name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()

    def feed(self, compiling: bool = False) -> None:
        """Says that the process gets on, and whether what it does next is to compile, which may take long."""
        now = time.monotonic()
        if not self._is_compiling:
            self._longest = max(self._longest, now - self._fed)
        self._is_compiling, self._fed = compiling, now

    def _watch(self, watcher: held.Held | None) -> None:
        with contextlib.closing(watcher) if watcher is not None else contextlib.nullcontext():
            self._look(watcher)

    def _look(self, watcher: held.Held | None) -> None:
        asked = min(1, self._timeout / 4) if self._timeout > 0 else 1
        while True:
            before = time.monotonic()
            if self._over.wait(asked):
                return
            if watcher is not None:
                watcher.sign()
            now = time.monotonic()
            if now - before > asked + 1:  # we were suspended
                self._fed += now - before - asked
                continue
            seconds = self._compiling if self._is_compiling else self._timeout
            if self._timeout > 0 and now - self._fed > seconds:
                self._bark(f"no step for {seconds:.0f} s (--hang_timeout)", self._code())
            since = self._told.waiting_since if self._told is not None else None
            if since is not None and now - since > max(ANSWER_SECONDS, 2 * self._longest):
                self._bark(f"SIGTERM {now - since:.0f} s ago, and the run does not hear it", preemption.EXIT_CODE)

    def _bark(self, reason: str, code: int) -> None:
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        if code == preemption.EXIT_CODE:
            what = "the same command goes on from the newest checkpoint"
        else:
            what = "so were the starts before, without a newer checkpoint: to start again will not help"
        ending.leave(code, f"{reason}; above is where each thread hangs; {what}", in_order=False)

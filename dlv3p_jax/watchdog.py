"""Ending a process that hangs: one that waits for another that lives but is stuck, which no limit of JAX's notices."""

import faulthandler
import os
import sys
import threading
import time

import jax

from dlv3p_jax import preemption

SLOW_SECONDS = 3600  # for what is no step: compiling, restoring, saving, evaluating a batch


class Watchdog:
    """A thread that ends the process, with the stacks of all threads, when it was not fed for too long.

    The exit code is that of a preemption, on which the scripts of launch/ start a run again from its newest checkpoint.
    """

    def __init__(self, timeout: float, slow: float = SLOW_SECONDS):
        """Watches inside of `with`.

        Args:
          timeout: seconds that may pass between two calls of `feed`; 0: any.
          slow: seconds after `feed(slow=True)`, and at the beginning, where this is more.
        """
        self._timeout, self._slow = timeout, max(timeout, slow)
        self._over = threading.Event()

    def __enter__(self) -> "Watchdog":
        self.feed(slow=True)
        if self._timeout > 0:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()

    def feed(self, slow: bool = False) -> None:
        """Says that the process gets on, and whether what it does next may take longer than a step."""
        self._seconds = self._slow if slow else self._timeout
        self._fed = time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(min(1, self._timeout / 4)):
            # The first process ends last, as the others would follow the end of its coordinator with another exit code.
            grace = 20 if jax.process_count() > 1 and jax.process_index() == 0 else 0
            if time.monotonic() - self._fed > self._seconds + grace:
                self._bark()

    def _bark(self) -> None:
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        who = f"process {jax.process_index()} of {jax.process_count()}: " if jax.process_count() > 1 else ""
        print(
            f"main: {who}no step for {self._seconds:.0f} s (--hang_timeout); above is where each thread hangs. The "
            "same command goes on from the newest checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(preemption.EXIT_CODE)

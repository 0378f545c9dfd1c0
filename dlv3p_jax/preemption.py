"""Leaving when told to: SIGTERM, which a cluster sends before it takes a machine away.

Until a run has something to lose, it leaves at once. Afterwards it asks between two steps, and between two batches of
an evaluation, whether it has to leave, saves, and exits with EXIT_CODE, on which the scripts of launch/ start it again.
Several processes agree through JAX's preemption service, so that all leave at the same step, whichever was told.
"""

import os
import signal
import sys
import threading

from jax._src import distributed as jax_distributed  # the public part does not tell whether the service is on
from jax.experimental import multihost_utils

EXIT_CODE = os.EX_TEMPFAIL  # 75: preempted and saved, start me again


class Preempted(Exception):
    """The run was told to leave; the message says what is saved."""


class Preemption:
    """Knows whether this process, or another of the run, was told to leave; one for each process."""

    def __init__(self):
        self._told = threading.Event()
        self._first = threading.Lock()  # is taken by the first to notice, and never given back
        self._asked = 0

    def install(self) -> None:
        """Takes over SIGTERM; call it in the main thread, before `jax.distributed.initialize`, which takes it from us.

        More than one SIGTERM is as one.
        """
        # Python runs a handler only when the main thread comes back from compiling or computing. What it writes here, a
        # thread reads at once.
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.signal(signal.SIGTERM, lambda number, frame: self._tell())
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(reading,), name="preemption", daemon=True).start()

    def reached(self) -> bool:
        """Whether to save and leave now. To be called equally often by all processes, at the same points of the run.

        From the first call on, the run has something to lose, and leaves only through this.
        """
        self._asked += 1
        if jax_distributed.global_state.preemption_sync_manager is None:
            return self._told.is_set()
        return multihost_utils.reached_preemption_sync_point(self._asked)

    def _listen(self, reading: int) -> None:
        while signals := os.read(reading, 64):
            if signal.SIGTERM in signals:
                self._tell()

    def _tell(self) -> None:
        if not self._first.acquire(blocking=False):
            return
        if self._asked == 0:
            _say("SIGTERM: nothing was done yet that could be lost; the same command goes on")
            os._exit(EXIT_CODE)
        self._told.set()
        _say("SIGTERM: saving and leaving after this step")


def _say(message: str) -> None:
    os.write(sys.stderr.fileno(), f"main: {message}\n".encode())  # not print, which the signal may have interrupted

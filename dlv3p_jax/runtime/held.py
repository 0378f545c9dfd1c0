"""Ending a process whose threads cannot run, since native code holds Python's lock (the GIL): a small process watches.

A thread of ours could not, and the timer of `faulthandler` that can would also end a process that was suspended. The
watched process is shown (its stacks, by `faulthandler`) and killed, on which the scripts of launch/ start again.
"""

import faulthandler
import os
import signal
import subprocess
import sys

_SHOW = signal.SIGUSR2

# Its input are signs of life; time in which the watched process is stopped, or this one was, does not count.
_WATCHER = """
import os, select, signal, sys, time
watched, limit, waited = int(sys.argv[1]), float(sys.argv[2]), 0
while True:
    begin = time.monotonic()
    if select.select([0], [], [], 1)[0]:
        if not os.read(0, 4096):
            sys.exit()
        waited = 0
        continue
    with open(f"/proc/{watched}/stat") as file:
        stopped = file.read().rpartition(")")[2].split()[0] in "Tt"
    waited += not stopped and time.monotonic() - begin < 2
    if waited > limit:
        os.kill(watched, int(sys.argv[3]))
        if select.select([0], [], [], 2)[0]:  # the signal had native code return: it goes on
            continue
        os.write(2, f"main: native code held Python's lock for {waited} s (--hang_timeout); above is where; "
                    "killed. The same command goes on from the newest checkpoint\\n".encode())
        os.kill(watched, signal.SIGKILL)
        sys.exit()
"""


class Held:
    """A process that kills this one when there was no `sign` for long; Linux only."""

    def __init__(self, seconds: float):
        """Begins to watch; `seconds` is how long there may be no sign."""
        faulthandler.register(_SHOW, all_threads=True)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WATCHER, str(os.getpid()), str(seconds), str(int(_SHOW))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's signals are not for it
        )

    def sign(self) -> None:
        """Says that Python's threads run."""
        try:
            os.write(self._process.stdin.fileno(), b".")  # type: ignore[union-attr]
        except OSError:  # somebody ended it
            return

    def close(self) -> None:
        """Ends the watching."""
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()

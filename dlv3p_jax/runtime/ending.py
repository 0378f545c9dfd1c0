"""How the processes of one run end: one that fails, hangs or leaves ends the others soon, with its own exit code.

JAX alone would tell the others after a minute that one is gone, and abort them. Here whoever ends posts why, and a
thread of each process looks for that, whatever its main thread waits for.
"""

import atexit
import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from dlv3p_jax.runtime import board, preemption, starts

_LOOK_SECONDS = 0.3
_LAST_WORDS_SECONDS = 2  # in which process 0, which holds the board, waits for the others to have read it

_leaving = threading.Lock()  # is taken by the first thread that ends this process, and never given back
_over = threading.Event()
_handlers: list[Callable[[int], None]] = []  # of C, which Python must not free
_starts: list[starts.Start] = []  # this one, when it is counted


def leave(code: int, message: str, in_order: bool = True, heard: bool = False) -> NoReturn:
    """Ends this process at once, and so the others of its run, with an exit code; from any thread.

    Args:
      code: not 0.
      message: is printed here, and by the others with this process's name.
      in_order: the process was told to end, or tells an error; see `starts`.
      heard: it is the end of another process that we follow.
    """
    with _leaving:
        preemption.say(message)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        if in_order and _starts:
            with contextlib.suppress(Exception):  # only the count is wrong
                _starts[0].end_in_order()
        if not board.alone():
            telling = threading.Thread(target=_tell, args=(code, message, in_order, heard), daemon=True)
            telling.start()
            telling.join(_LAST_WORDS_SECONDS + 1)  # the board may be gone
        os._exit(code)


def listen(told: preemption.Preemption) -> None:
    """Begins to look for what other processes post; to be called when they have met. Alone, it does nothing."""
    if board.alone():
        return
    thread = threading.Thread(target=_listen, args=(told,), name="ending", daemon=True)
    thread.start()
    _outlive_aborts()

    def stop() -> None:
        # Before JAX shuts down, which is last: a thread that is in its client then would end the process.
        _over.set()
        thread.join(_LAST_WORDS_SECONDS)

    atexit.register(stop)


def count(start: starts.Start) -> None:
    """Has `start` decide between the exit codes where another process is lost, and hear of ends that are in order."""
    _starts[:] = [start]


def _code_of_loss() -> int:
    return _starts[0].code() if _starts else preemption.EXIT_CODE


@contextlib.contextmanager
def together(told: preemption.Preemption, heartbeat: Callable[[], float]) -> Iterator[None]:
    """Lets an error in the body end this process at once, where it is one of several, and so the others.

    An orderly end would wait for the others, who wait for us in the middle of a step. A process that lost its
    connection, on the other hand, waits for the word of the one that ended, or for JAX, which finds who is gone in
    `heartbeat()` seconds.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else "".join(traceback.format_exception(error))
        agreed = isinstance(error.__context__, preemption.Preempted)
        if board.alone() or code in (None, 0) or agreed:  # done, or saved, which all are together
            raise
        if board.lost_connection(error):
            _wait_for_word(told, heartbeat())
        if isinstance(code, int):
            leave(code, f"{board.name()} ends with exit code {code}")
        leave(1, f"{code.removeprefix('main: ')}\nmain: {board.name()} failed, which ends the others")


def _wait_for_word(told: preemption.Preemption, heartbeat: float) -> NoReturn:
    message = f"{board.name()} lost the connection to another"
    preemption.say(f"{message}; within {heartbeat:.0f} s it is known which is gone")
    going_on = f"{message}; the same command goes on"
    with told.nothing_to_lose(lambda: going_on):
        time.sleep(heartbeat + 10)  # the thread that listens or JAX ends us before
    leave(_code_of_loss(), going_on, in_order=False)


def _listen(told: preemption.Preemption) -> None:
    while not _over.wait(_LOOK_SECONDS):
        with contextlib.suppress(Exception):  # the board is gone with process 0, and JAX ends us
            ends = board.read("ends")
            if "how" in ends:
                code, message, in_order, who = json.loads(ends["how"])
                leave(code, f"{board.name()} ends with {who}: {message}", in_order, heard=True)
            told.look(board.read("leaving"))


def _tell(code: int, message: str, in_order: bool, heard: bool) -> None:
    with contextlib.suppress(Exception):
        if not heard:
            board.post("ends/how", json.dumps([code, message, in_order, board.name()]))
        board.post(f"ends/{board.index()}", "")
        deadline = time.monotonic() + _LAST_WORDS_SECONDS
        while board.index() == 0 and time.monotonic() < deadline:
            if len(board.read("ends")) > board.count():  # all of them, and how
                return
            time.sleep(0.05)


def _outlive_aborts() -> None:
    """Has this process end with an exit code where JAX aborts it, since another is gone.

    JAX's own way to be asked (`missed_heartbeat_callback`) cannot be used from Python: its argument has no type there.
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def aborted(number: int) -> None:
        going_on = "another process is gone, as JAX says above; the same command goes on"
        code = _code_of_loss()
        if code != preemption.EXIT_CODE:
            going_on = "another process is gone, and again before a newer checkpoint was saved; see its log"
        preemption.say(f"{board.name()}: {going_on}")
        os._exit(code)

    _handlers.append(aborted)
    ctypes.CDLL(None).signal(signal.SIGABRT, aborted)

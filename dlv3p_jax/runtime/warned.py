"""Warnings of several processes, each said once: by process 0, and by another only where process 0 has no such."""

import collections
import contextlib
import hashlib
import logging as stdlib_logging
import threading

from absl import logging

from dlv3p_jax.runtime import board

WAIT_SECONDS = 5  # for process 0 to come to where it warns too


def once(wait: float = WAIT_SECONDS) -> None:
    """Has the log show each warning once for all processes of the run, which have met; alone, it changes nothing.

    Args:
        wait: seconds after which a warning that process 0 has not said is shown by the process that has it.
    """
    if board.alone():
        return
    handler, counts = logging.get_absl_handler(), collections.Counter[str]()

    def say(record: stdlib_logging.LogRecord, key: str) -> None:
        said: dict[str, str] = {}
        with contextlib.suppress(Exception):  # the board is gone with process 0: better twice than never
            said = board.read("warned")
        if key not in said:
            handler.acquire()
            try:
                handler.emit(record)
            finally:
                handler.release()

    def show(record: stdlib_logging.LogRecord) -> bool:
        if record.levelno != stdlib_logging.WARNING:
            return True
        text = record.getMessage()
        counts[text] += 1  # the same may be said again later
        key = f"{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:16]}-{counts[text]}"
        if board.index() == 0:
            with contextlib.suppress(Exception):
                board.post(f"warned/{key}", "")
            return True
        later = threading.Timer(wait, say, (record, key))
        later.daemon = True
        later.start()
        return False

    handler.addFilter(show)

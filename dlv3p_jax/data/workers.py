"""A function over many items in worker processes, in order and in bounded memory."""

import collections
import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from dlv3p_jax.data.errors import DatasetError

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yields function(item) for every item, in order.

    At most 2 * workers + 1 results exist at a time, however slowly they are taken. Processes are spawned, as forking is
    unsafe once TensorFlow has started its threads, so `function` must be importable. They end with this process,
    whatever ends it.

    Args:
        function: what the workers run.
        items: what they run it on.
        workers: number of processes; 1 or less runs everything here.

    Raises:
        DatasetError: a worker was killed.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    pending = collections.deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise DatasetError("a worker process was killed, perhaps for want of memory; use fewer --workers") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process ends the others.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A killed parent cannot shut the pool down, and its workers would wait for work for ever.
    multiprocessing.parent_process().join()
    os._exit(1)

"""A function over many items in worker processes, in order and in bounded memory."""

import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TypeVar

from dlv3p_jax.data.errors import DatasetError

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
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
    pending: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
    try:
        for item in items:
            with _deferred_interrupt():
                pending.append(pool.submit(function, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise DatasetError("a worker process was killed, perhaps for want of memory; use fewer --workers") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[None]:
    """Holds Ctrl-C back while a process may be starting, which half started would print a traceback.

    A process that starts meanwhile inherits the blocked signal, so it never sees the Ctrl-C that a terminal sends to
    all: this process ends it. Blocking is not enough for this process, whose other threads may take the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived = []
    handler = signal.signal(signal.SIGINT, lambda *arguments: arrived.append(arguments))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, handler)
    if arrived and callable(handler):
        handler(*arrived[0])


def _start_worker() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A killed parent cannot shut the pool down, and its workers would wait for work for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

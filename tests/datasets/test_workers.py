import os

import pytest

from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.datasets.workers import ordered_map


def square_and_process(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def die(number: int) -> int:
    os._exit(9)


def test_order_processes_and_bounded_memory():
    taken = []

    def numbers():
        for number in range(60):
            taken.append(number)
            yield number

    results = ordered_map(square_and_process, numbers(), workers=2)
    first = next(results)
    assert len(taken) <= 5  # 2 * workers + 1 at a time
    values, processes = zip(first, *results, strict=True)
    assert values == tuple(number * number for number in range(60))
    assert os.getpid() not in processes


def test_one_worker_is_this_process():
    assert [process for _, process in ordered_map(square_and_process, range(3), workers=1)] == [os.getpid()] * 3


def test_a_killed_worker_is_told():
    with pytest.raises(DatasetError, match="a worker process was killed"):
        list(ordered_map(die, range(3), workers=2))

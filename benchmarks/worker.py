"""How a contestant of `benchmarks.compare` talks with it: lines of JSON on standard input and output.

    python -m benchmarks.worker benchmarks.torch_twin

Standard library only, because contestants run in whatever Python has their framework. The first line is the
specification (see `compare.specification`); each later one asks for a turn, `{"seconds": …}`, or for
`{"logits": FILE}`.
"""

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple


class Contestant(NamedTuple):
    """What a contestant's `setup(specification)` gives.

    Attributes:
        call: works through one batch and gives something to wait for.
        wait: waits until what `call` gave is there.
        platform: "cpu", "gpu" or "tpu".
        version: of the framework, for the report.
        logits: makes those of the batch, a float32 NumPy array `[B, H, W, classes]`; None where they say nothing.
        peak_bytes: the most memory of the device that was in use; None if unknown.
    """

    call: Callable[[], Any]
    wait: Callable[[Any], None]
    platform: str
    version: str
    logits: Callable[[], Any] | None = None
    peak_bytes: Callable[[], int | None] = lambda: None


def serve(module: str) -> None:
    """Answers `benchmarks.compare` until it closes our input; what the module's `setup` raises is told as an error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is not an answer

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    try:
        contestant = importlib.import_module(module).setup(json.loads(sys.stdin.readline()))
        for _ in range(3):
            contestant.wait(contestant.call())
    except ImportError as error:
        answer(missing=str(error))
        return
    except Exception as error:  # of any framework: the comparison goes on without it
        traceback.print_exc()
        answer(error=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")
        return
    answer(platform=contestant.platform, version=contestant.version)
    one = _seconds(contestant, 1)
    for line in sys.stdin:
        request = json.loads(line)
        if "logits" in request:
            answer(saved=_save(contestant, request["logits"]))
            continue
        calls = max(1, round(request["seconds"] / one))
        processor = time.process_time()
        one = _seconds(contestant, calls)
        answer(
            seconds=one,
            calls=calls,
            processor_seconds=time.process_time() - processor,
            peak_bytes=contestant.peak_bytes(),
        )


def _seconds(contestant: Contestant, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        result = contestant.call()
    contestant.wait(result)
    return (time.perf_counter() - start) / calls


def _save(contestant: Contestant, path: str) -> bool:
    if contestant.logits is None:
        return False
    import numpy as np

    np.save(path, contestant.logits())
    return True


if __name__ == "__main__":
    serve(sys.argv[1])

"""Contestants that take turns: their processes, the rounds, and what comes out of them."""

import contextlib
import datetime
import json
import os
import pathlib
import platform
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from dlv3p_jax.performance import timing
from dlv3p_jax.runtime import text

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
_PAUSE_SECONDS = 0.5  # threads that wait for more work by spinning have given up by then


class ContestantError(RuntimeError):
    """The comparison cannot be made; the message says who failed, and how."""


class Entry(NamedTuple):
    """Who takes part: a name, a module of this package with a `setup`, its Python, and what is told to it alone.

    `needs` says what to install where an import fails.
    """

    name: str
    module: str
    python: str
    settings: dict[str, Any]
    needs: str


class _Process:
    """A contestant's process, ready to take turns."""

    def __init__(self, entry: Entry, common: dict, environment: dict[str, str], start_seconds: float):
        ours = os.sched_getaffinity(0)
        try:
            # XLA takes a thread for every processor that it may run on; a process inherits which these are.
            os.sched_setaffinity(0, sorted(ours)[: common["threads"]])
            self._process = subprocess.Popen(
                [entry.python, "-m", "benchmarks.worker", entry.module],
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            raise ContestantError(f"{entry.name}: {entry.python} cannot be started ({error.strerror})") from error
        finally:
            os.sched_setaffinity(0, ours)
        self._name = entry.name
        self._send(common | entry.settings)
        start = time.perf_counter()
        ready = self._receive(start_seconds)
        if "missing" in ready:
            raise ContestantError(f"{entry.name}: {ready['missing']}: {entry.needs}")
        if "error" in ready:
            raise ContestantError(f"{entry.name}: {ready['error']}")
        self.start_seconds = time.perf_counter() - start
        self.platform, self.version = ready["platform"], ready["version"]

    def turn(self, seconds: float) -> dict:
        before = timing.processor_seconds()
        self._send({"seconds": seconds})
        answer = self._receive(60 + 20 * seconds)
        others = timing.share_of_others(before, timing.processor_seconds(), answer["processor_seconds"])
        return answer | {"share_of_others": others}

    def save_logits(self, path: pathlib.Path) -> bool:
        self._send({"logits": str(path)})
        return self._receive(600)["saved"]

    def end(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _send(self, message: dict) -> None:
        with contextlib.suppress(BrokenPipeError):  # `_receive` says why it is gone
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def _receive(self, seconds: float) -> dict:
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        if not ready:
            self._process.kill()
            self.end()
            raise ContestantError(f"{self._name}: no answer within {seconds:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise ContestantError(f"{self._name}: ended with exit code {code} (its own messages are above)")
        return json.loads(line)


def run(
    common: dict,
    entries: list[Entry],
    *,
    rounds: int,
    turn_seconds: float,
    fresh: bool | None,
    start_seconds: float,
    folder: pathlib.Path,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> dict:
    """Lets all contestants take turns; the first entry is ours.

    Args:
        common: what every contestant is told, see `compare.specification`.
        entries: who takes part; those that cannot be started are left out, and named in the report.
        rounds, turn_seconds: how many turns each takes, and about how long one lasts.
        fresh: each turn is a new process; None: if our own runs on an accelerator.
        start_seconds: how long a contestant may take to get ready.
        folder: for compile caches and logits.
        say: gets a line about what happens.

    Returns:
        What can be written as JSON: 'contestants' by name, with 'seconds' (`timing.spread`), 'pictures_per_second',
        'ratio' (`timing.spread` of theirs over ours, round by round), 'share_of_others', 'logits_difference' (the
        largest, in standard deviations of ours), and so on; 'fastest_torch'; 'absent'.

    Raises:
        ContestantError: ours cannot run, nobody else can, or they run on different kinds of devices.
    """
    environment = _environment(common["threads"], folder)
    living: dict[str, _Process] = {}
    turns: dict[str, list[dict]] = {}
    facts: dict[str, dict] = {}
    absent: dict[str, str] = {}

    def start(entry: Entry) -> _Process:
        say(f"{common['title']}: starting {entry.name}")
        process = _Process(entry, common, environment, start_seconds)
        facts.setdefault(entry.name, {"version": process.version, "start_seconds": process.start_seconds})
        return process

    try:
        ours = living[entries[0].name] = start(entries[0])
        fresh = ours.platform != "cpu" if fresh is None else fresh
        if fresh:
            living.pop(entries[0].name).end()
        for number in range(rounds):
            say(f"{common['title']}: round {number + 1} of {rounds}")
            for entry in entries:
                name = entry.name
                if name in absent or (fresh and number > 0 and _is_slow(name, turns)):
                    continue
                try:
                    process = living.get(name) or start(entry)
                    if process.platform != ours.platform:
                        process.end()
                        raise ContestantError(f"{name}: runs on {process.platform}, ours on {ours.platform}")
                    living[name] = process
                    if number == 0 and common["work"] != "train":  # which has changed the weights by now
                        facts[name]["has_logits"] = process.save_logits(folder / f"{name}.npy")
                    time.sleep(_PAUSE_SECONDS)
                    turns.setdefault(name, []).append(process.turn(turn_seconds))
                except ContestantError as error:
                    living.pop(name, None)
                    turns.pop(name, None)
                    if name == entries[0].name:
                        raise
                    absent[name] = str(error)
                    say(f"left out: {error}")
                if fresh and name in living:
                    living.pop(name).end()
    finally:
        for process in living.values():
            process.end()
    if len(turns) < 2:
        raise ContestantError("\n  ".join(["nobody is there to compare with:", *absent.values()]))
    report = {
        name: common[name] for name in ("title", "batch_size", "height", "width", "num_classes", "dtype", "model")
    }
    report |= {name: common[name] for name in ("threads", "scales", "flip")}
    return report | {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": platform.node(),
        "platform": ours.platform,
        "processes": "fresh" if fresh else "resident",
        "rounds": rounds,
        "contestants": _results(common, turns, facts, entries[0].name, folder),
        "fastest_torch": _fastest_torch(turns),
        "absent": absent,
    }


def _environment(threads: int, folder: pathlib.Path) -> dict[str, str]:
    """The same for all: threads, allocator, and compile caches that begin empty."""
    environment = dict(os.environ)
    environment |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    environment.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")  # as our Makefile has it
    environment |= {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
    }
    return environment


def _fastest_torch(turns: dict[str, list[dict]]) -> str | None:
    medians = {
        name: statistics.median(turn["seconds"] for turn in those)
        for name, those in turns.items()
        if name.startswith("torch ")
    }
    return min(medians, key=medians.get) if medians else None


def _is_slow(name: str, turns: dict[str, list[dict]]) -> bool:
    return name.startswith("torch ") and name != _fastest_torch(turns)


def _results(common, turns, facts, ours: str, folder: pathlib.Path) -> dict[str, dict]:
    import numpy as np

    our_turns = turns[ours]
    results = {}
    for name, those in turns.items():
        seconds = timing.spread([turn["seconds"] for turn in those])
        shares = [turn["share_of_others"] for turn in those if turn["share_of_others"] is not None]
        difference = None
        if name != ours and facts[name].get("has_logits"):
            expected = np.load(folder / f"{ours}.npy")
            difference = float(np.abs(np.load(folder / f"{name}.npy") - expected).max() / expected.std())
        results[name] = {
            "version": facts[name]["version"],
            "start_seconds": facts[name]["start_seconds"],
            "seconds": seconds,
            "pictures_per_second": common["batch_size"] / seconds["median"],
            "ratio": timing.spread(
                [theirs["seconds"] / mine["seconds"] for theirs, mine in zip(those, our_turns, strict=False)]
            ),
            "share_of_others": {"median": statistics.median(shares), "max": max(shares)} if shares else None,
            "peak_bytes": those[-1]["peak_bytes"],
            "logits_difference": difference,
        }
    return results


def to_text(report: dict) -> str:
    """The comparison as people read it."""
    head = "contestant pictures/s seconds spread theirs/ours spread others logits memory_GiB start_s"
    rows = [[word.replace("_", " ") for word in head.split()]]
    for name, result in report["contestants"].items():
        share, difference, peak = result["share_of_others"], result["logits_difference"], result["peak_bytes"]
        mark = " *" if name == report["fastest_torch"] else ""
        rows.append(
            [
                f"{name} ({result['version']}){mark}",
                f"{result['pictures_per_second']:.4g}",
                f"{result['seconds']['median']:.4g}",
                f"{result['seconds']['spread']:.0%}",
                f"{result['ratio']['median']:.3f}",
                f"{result['ratio']['spread']:.0%}",
                "" if share is None else f"{share['median']:.0%}",
                "" if difference is None else f"{difference:.1e}",
                "" if peak is None else f"{peak / 2**30:.1f}",
                f"{result['start_seconds']:.0f}",
            ]
        )
    model = report["model"]
    lines = [
        f"{report['title']}: {model['backbone']}, output stride {model['output_stride']}, {report['batch_size']} x "
        f"{report['height']}x{report['width']}, {report['dtype']}, on a {report['platform']} with {report['threads']} "
        f"threads, {report['processes']} processes, {report['rounds']} rounds, {report['date']}",
        text.table(rows),
        "theirs/ours: above 1, ours is faster. *: the fastest of PyTorch's variants. logits: the largest difference "
        "from ours, in their standard deviations. others: the share of the machine that other processes took.",
    ]
    return "\n".join([*lines, *(f"left out: {reason}" for reason in report["absent"].values())])

"""Measuring: times with their spread, a matrix product as yardstick, operations, memory, and what others took.

Nothing here knows the network; `workloads` makes what is measured.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

_LEAST_SECONDS = 0.2  # of one measurement, so that the clock and the start of a call do not count


class Compiled(NamedTuple):
    """A compiled program and the seconds that tracing it and compiling it took."""

    program: jax.stages.Compiled
    trace_seconds: float
    compile_seconds: float


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """{'median', 'min', 'max', 'spread', 'repeats'}; the spread is (max - min) / median."""
    median = statistics.median(values)
    return {
        "median": median,
        "min": min(values),
        "max": max(values),
        "spread": (max(values) - min(values)) / median,
        "repeats": len(values),
    }


def seconds_a_call(call: Callable[[], Any], calls: int) -> float:
    """The mean of `calls` calls made one after the other, their results waited for at the end only."""
    start = time.perf_counter()
    for _ in range(calls):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls


def measure(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds a call of several things, measured in turn: `repeats` rounds, in each of them all of them.

    The first call of each is not counted. Short calls are repeated within a measurement.
    """
    counts = {}
    for name, call in calls.items():
        jax.block_until_ready(call())
        counts[name] = max(1, round(_LEAST_SECONDS / seconds_a_call(call, 1)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds_a_call(call, counts[name]))
    return times


def matrix_product(dtype, size: int | None = None) -> tuple[Callable[[], jax.Array], float]:
    """The product of two square matrices on one device, as fast as it goes in `dtype`, and its number of operations.

    Args:
        dtype: of the matrices; float32 is multiplied in float32, as the network does.
        size: of the matrices; None: 2048 on a CPU, 8192 elsewhere.
    """
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    precision = jax.lax.Precision.DEFAULT if dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=precision))
    matrix = jnp.full((size, size), 0.01, dtype)
    return lambda: product(matrix), 2.0 * size**3


def count_operations(function: Callable, *arguments) -> float | None:
    """The additions and multiplications that XLA counts in a function before it changes anything; nothing is compiled.

    `arguments` may be `jax.ShapeDtypeStruct`s. A product of m x k by k x n counts 2 m k n, taps that see only padding
    count nothing, and a loop's body counts once. None where the backend does not count.
    """
    analysis = jax.jit(function).lower(*arguments).cost_analysis()
    return None if not analysis or "flops" not in analysis else float(analysis["flops"])


def compile_program(jitted: jax.stages.Wrapped, arguments: Sequence[Any]) -> Compiled:
    """Traces and compiles for `arguments`, and takes the time of both."""
    start = time.perf_counter()
    lowered = jitted.lower(*arguments)
    traced = time.perf_counter()
    program = lowered.compile()
    return Compiled(program, traced - start, time.perf_counter() - traced)


def compile_twice(jitted: jax.stages.Wrapped, arguments: Sequence[Any]) -> tuple[Compiled, Compiled]:
    """Compiles with an empty persistent cache, forgets all but that cache, and compiles again: (cold, cached).

    The cache is a temporary folder; where the user has one of his own, it is not touched.
    """
    settings = {
        "jax_enable_compilation_cache": True,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    names = (*settings, "jax_compilation_cache_dir")
    before = {name: getattr(jax.config, name) for name in names}
    with tempfile.TemporaryDirectory(prefix="dlv3p_jax_compilations_") as folder:
        try:
            for name, value in settings.items():
                jax.config.update(name, value)
            jax.config.update("jax_compilation_cache_dir", folder)
            compilation_cache.reset_cache()  # it looks at its settings only once
            cold = compile_program(jitted, arguments)
            jax.clear_caches()
            return cold, compile_program(jitted, arguments)
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()


def peak_memory(program: jax.stages.Compiled, devices: Iterable[jax.Device]) -> dict[str, Any]:
    """{'bytes', 'source'}: the most memory that was in use on any of the devices.

    'device': what the device says, of the whole process so far. 'compiler': where it says nothing, as CPUs do, what the
    compiler plans for one device: arguments, results and temporary arrays.
    """
    stats = [device.memory_stats() or {} for device in devices if device.process_index == jax.process_index()]
    if all("peak_bytes_in_use" in stat for stat in stats):
        return {"bytes": max(stat["peak_bytes_in_use"] for stat in stats), "source": "device"}
    plan = program.memory_analysis()
    assert plan is not None  # every compiler has one
    total = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes + plan.temp_size_in_bytes
    return {"bytes": total, "source": "compiler"}


def seconds_since_start() -> float | None:
    """Seconds since this process was started; None if unknown."""
    try:
        with open("/proc/self/stat", encoding="utf-8") as stat, open("/proc/uptime", encoding="utf-8") as uptime:
            started = int(stat.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
            return float(uptime.read().split()[0]) - started
    except (OSError, ValueError):
        return None


def processor_seconds() -> tuple[float, float] | None:
    """Seconds that this machine's processors have been busy, and have been there, since it started; None if unknown."""
    try:
        with open("/proc/stat", encoding="utf-8") as file:
            ticks = [int(number) for number in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    idle = ticks[3] + ticks[4]
    second = os.sysconf("SC_CLK_TCK")
    return (sum(ticks) - idle) / second, sum(ticks) / second


def watch_others() -> Callable[[], float | None]:
    """Gives what tells the share of the machine's processors that other processes have taken since, 0..1."""
    before, own_seconds = processor_seconds(), time.process_time()
    return lambda: share_of_others(before, processor_seconds(), time.process_time() - own_seconds)


def share_of_others(before, after, own_seconds: float) -> float | None:
    """The share of the machine's processors that other processes took between two `processor_seconds`, 0..1."""
    if before is None or after is None or after[1] <= before[1]:
        return None
    return max(0.0, (after[0] - before[0] - own_seconds) / (after[1] - before[1]))

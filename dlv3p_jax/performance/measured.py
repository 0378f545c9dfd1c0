"""How fast training, prediction, evaluation and input are here: `report` measures, `to_text` shows.

report("predict", config, (512, 1024), repeats=5)["programs"][0]["pictures_per_second"]
"""

import datetime
import os
from typing import Any

import jax
import jax.numpy as jnp

from dlv3p_jax import __version__
from dlv3p_jax.data import padding
from dlv3p_jax.performance import timing, workloads
from dlv3p_jax.runtime import configuration, sharding, text


def report(kind: str, config, size: tuple[int, int], repeats: int, compile_twice: bool = True) -> dict[str, Any]:
    """Measures 'train', 'predict' or 'evaluate' on made batches (for 'input' see `reading.report`).

    Args:
        kind: what to measure.
        config: a configuration.
        size: (height, width) of the pictures of 'predict' and 'evaluate'; 'train' takes crops of `config.crop_size`.
        repeats: how many times each program is measured, in turn with the others and with a matrix product.
        compile_twice: measure compiling with an empty persistent cache and with a filled one; else compile once, with
            the cache that JAX is set up with.

    Returns:
        What can be written as JSON: 'kind', 'date', 'version', 'jax', 'devices', 'model', …, 'product' and 'programs',
        each of them with 'name', 'batch_size', 'size', 'dtype', 'seconds' (see `timing.spread`; of a call),
        'pictures_per_second', 'pictures_per_second_per_device', 'teraflop_per_picture', 'teraflops_per_second',
        'share_of_product', 'memory' (see `timing.peak_memory`), 'compile'. 'evaluate' adds 'ratios'; a single program
        compiled once adds 'start_to_first_call_seconds', from the start of the process to the end of its first call.

    Raises:
        ValueError: configuration or mesh cannot be used.
    """
    config = workloads.prepare(config)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.space)
    others = timing.watch_others()
    variables = workloads.init_variables(config)
    if kind == "train":
        loads = [workloads.train(config, mesh, variables)]
    elif kind == "predict":
        loads = [workloads.predict(config, mesh, variables, size)]
    else:
        loads = _evaluations(config, mesh, variables, size)

    compiled = {load.name: _compile(load, compile_twice) for load in loads}
    product, product_operations = timing.matrix_product(jnp.dtype(config.model.dtype))
    calls = {load.name: load.repeatedly(compiled[load.name][0].program) for load in loads}
    memory, since_start = {}, None
    for name, call in calls.items():  # in order of size, as the device tells the most that was ever in use
        jax.block_until_ready(call())
        since_start = since_start or timing.seconds_since_start()
        memory[name] = timing.peak_memory(compiled[name][0].program, mesh.devices.flat)
    times = timing.measure(calls | {"product": product}, repeats)

    product_rate = product_operations / timing.spread(times["product"])["median"]
    on_cpu = mesh.devices.flat[0].platform == "cpu"  # where all devices are the same cores
    result = describe(kind, config) | {
        "devices": {
            "count": mesh.size,
            "kind": mesh.devices.flat[0].device_kind,
            "platform": mesh.devices.flat[0].platform,
            "mesh": dict(mesh.shape),
        },
        "model": configuration.to_dict(config)["model"],
        "num_classes": config.num_classes,
        "product": {
            "size": round((product_operations / 2) ** (1 / 3)),
            "dtype": config.model.dtype,
            "seconds": timing.spread(times["product"]),
            "teraflops_per_second": product_rate / 1e12,
        },
        "programs": [
            _program(load, times[load.name], memory[load.name], compiled[load.name], config, mesh.size)
            for load in loads
        ],
    }
    for program in result["programs"]:
        rate = program["teraflops_per_second"]
        peak = result["product"]["teraflops_per_second"] * (1 if on_cpu else mesh.size)
        program["share_of_product"] = None if rate is None else rate / peak
    if len(loads) == 1 and not compile_twice:
        result["start_to_first_call_seconds"] = since_start
    if kind == "evaluate":
        result["ratios"] = _evaluation_ratios(config, times)
    result["share_of_others"] = others()
    return result


def describe(kind: str, config) -> dict[str, Any]:
    """What every report begins with."""
    return {
        "kind": kind,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "jax": jax.__version__,
        "dataset": config.dataset,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _evaluations(config, mesh, variables, size) -> list[workloads.Workload]:
    """The forward passes at every scale, and the evaluations that consist of them."""
    padded = padding.padded_size(size, config.eval_size)
    scales = sorted({1.0, *workloads.scales_of(config)})
    passes = [workloads.predict(config, mesh, variables, padded, scale) for scale in scales]
    return passes + workloads.evaluations(config, mesh, variables, size)


def _compile(load: workloads.Workload, twice: bool) -> tuple[timing.Compiled, timing.Compiled | None]:
    """(what is run, the other one): compiled with the filled cache and without, or once."""
    if not twice:
        return timing.compile_program(load.jitted, load.arguments), None
    cold, cached = timing.compile_twice(load.jitted, load.arguments)
    return cached, cold


def _program(load, times, memory, compiled, config, num_devices) -> dict[str, Any]:
    seconds = timing.spread(times)
    rate = load.pictures / seconds["median"]
    operations = load.count_operations()
    run, cold = compiled
    if cold is None:
        compile_seconds = {"seconds": run.trace_seconds + run.compile_seconds}
    else:
        cold_seconds, cached_seconds = (c.trace_seconds + c.compile_seconds for c in (cold, run))
        compile_seconds = {
            "cold_seconds": cold_seconds,
            "cached_seconds": cached_seconds,
            "cached_over_cold": cached_seconds / cold_seconds,
            "of_it_tracing": [cold.trace_seconds, run.trace_seconds],
        }
    return {
        "name": load.name,
        "batch_size": load.pictures,
        "size": list(load.size),
        "dtype": config.model.dtype,
        "seconds": seconds,
        "pictures_per_second": rate,
        "pictures_per_second_per_device": rate / num_devices,
        "teraflop_per_picture": None if operations is None else operations / load.pictures / 1e12,
        "teraflops_per_second": None if operations is None else operations / seconds["median"] / 1e12,
        "memory": memory,
        "compile": compile_seconds,
    }


def _evaluation_ratios(config, times: dict[str, list[float]]) -> dict[str, dict[str, float | int]]:
    """Each evaluation over the forward passes that it consists of, round by round."""

    def passes(scales, views):
        names = ["predict" if scale == 1 else f"predict at {scale:g}" for scale in scales]
        return [views * sum(seconds) for seconds in zip(*(times[name] for name in names), strict=True)]

    forward = {
        "plain": passes((1.0,), 1),
        "flip": passes((1.0,), 2),
        "flip + scales": passes(workloads.scales_of(config), 2),
    }
    return {
        f"{name} over its forward passes": timing.spread(
            [whole / parts for whole, parts in zip(times[f"evaluate {name}"], seconds, strict=True)]
        )
        for name, seconds in forward.items()
    }


def to_text(result: dict[str, Any]) -> str:
    """The report as people read it."""
    return _input_text(result) if result["kind"] == "input" else _program_text(result)


def _program_text(result: dict[str, Any]) -> str:
    model, devices, product = result["model"], result["devices"], result["product"]
    head = "program pictures/s per_device spread batch HxW type TFLOP/s of_product memory_GiB compile_s cached_s"
    rows = [[word.replace("_", " ") for word in head.split()]]
    for program in result["programs"]:
        rate, share, seconds = program["teraflops_per_second"], program["share_of_product"], program["compile"]
        rows.append(
            [
                program["name"],
                f"{program['pictures_per_second']:.4g}",
                f"{program['pictures_per_second_per_device']:.4g}",
                f"{program['seconds']['spread']:.0%}",
                str(program["batch_size"]),
                "x".join(map(str, program["size"])),
                program["dtype"],
                "?" if rate is None else f"{rate:.3g}",
                "?" if share is None else f"{share:.0%}",
                f"{program['memory']['bytes'] / 2**30:.2f}",
                f"{seconds.get('cold_seconds', seconds.get('seconds')):.1f}",
                f"{seconds['cached_seconds']:.1f}" if "cached_seconds" in seconds else "",
            ]
        )
    places = ", ".join(f"{axis}={count}" for axis, count in devices["mesh"].items())
    lines = [
        f"{model['backbone']}, output stride {model['output_stride']}, {result['num_classes']} classes, "
        f"on {devices['count']} x {devices['kind']} (mesh: {places}), jax {result['jax']}, {result['date']}",
        text.table(rows),
        f"Medians of {result['product']['seconds']['repeats']} repeats; spread: (max - min) / median.",
        f"TFLOP/s: of the straightforward model, by the compiler's count; the product of two {product['dtype']} "
        f"matrices of {product['size']}x{product['size']} made {product['teraflops_per_second']:.3g} on one device.",
        "Memory: " + _MEMORY[result["programs"][0]["memory"]["source"]],
    ]
    lines += [
        f"{name}: {ratio['median']:.3f} (spread {ratio['spread']:.0%})"
        for name, ratio in result.get("ratios", {}).items()
    ]
    if result.get("start_to_first_call_seconds") is not None:
        lines.append(
            f"Its first call was done {result['start_to_first_call_seconds']:.1f} s after the process started."
        )
    return "\n".join([*lines, *_others(result)])


_MEMORY = {
    "device": "the most that was in use on a device so far, as the device says.",
    "compiler": "what the compiler plans for a device (arguments, results, temporary arrays); this one does not tell.",
}


def _input_text(result: dict[str, Any]) -> str:
    head = "input pictures/s per_core spread per_CPU_second"
    rows = [[word.replace("_", " ") for word in head.split()]]
    for program in result["programs"]:
        rows.append(
            [
                program["name"],
                f"{program['pictures_per_second']:.4g}",
                f"{program['pictures_per_second_per_core']:.4g}",
                f"{program['seconds']['spread']:.0%}",
                f"{program['pictures_per_cpu_second']:.4g}",
            ]
        )
    source, target = ("x".join(map(str, result[name])) for name in ("source_size", "crop_size"))
    lines = [
        f"{result['pictures']} from {source} to crops of {target}, {result['cores']} cores, {result['date']}",
        text.table(rows),
        "A CPU second is one of this process on one core, whatever else the machine does.",
    ]
    return "\n".join([*lines, *_others(result)])


def _others(result: dict[str, Any]) -> list[str]:
    share = result["share_of_others"]
    return [] if share is None else [f"Other processes took {share:.0%} of this machine's processors meanwhile."]

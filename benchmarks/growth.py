"""How time and memory grow with the picture, the batch, the devices and the views, as curves:

    python -m benchmarks.growth --config=configs/cityscapes_r50.py --output=docs/growth.png [--json=FILE]

on virtual devices of one CPU, which share its cores: their times say what a mesh costs, not what it brings. Memory is
what the compiler plans for one device. Needs matplotlib.
"""

import importlib.util
import json
import os
import pathlib
import sys

from absl import app, flags

from dlv3p_jax.runtime import arguments, cli

DEVICES = (1, 2, 4, 8)
SIDES = (1, 2, 3, 4)  # of a picture, in units
BATCHES = (1, 2, 4, 8)
VIEWS = {1: ((1.0,), False), 2: ((1.0,), True), 6: ((0.75, 1.0, 1.25), True), 10: ((0.5, 0.75, 1.0, 1.25, 1.5), True)}


def define_flags() -> None:
    """Defines the command's flags; not at import, since tests import this module beside others."""
    arguments.DEFINE_config("config", "A file of configs/; --config.KEY=VALUE changes one key.")
    flags.DEFINE_list("unit", ["128", "256"], "HEIGHT,WIDTH of the smallest picture.")
    flags.DEFINE_integer("repeats", 3, "How many times each is measured; the median counts.", lower_bound=1)
    flags.DEFINE_string("output", None, "The PNG that the curves go to.", required=True)
    flags.DEFINE_string("json", None, "A file that the figures go to.")


def measure(config, unit: tuple[int, int], repeats: int) -> dict[str, list[dict[str, float]]]:
    """{what grows: [{'x', 'seconds' of a call, 'bytes' on a device}, …]} of prediction, training and evaluation.

    Args:
        config: a configuration; crop, batches, mesh and views of it are not read.
        unit: (height, width) of the smallest picture, and of all where pictures do not grow.
        repeats: of every measurement.
    """
    import jax

    from dlv3p_jax.performance import timing, workloads
    from dlv3p_jax.runtime import sharding

    config = workloads.prepare(config)
    config.crop_size, config.eval_size = unit, None
    variables = workloads.init_variables(config)
    alone = sharding.make_mesh(1, 1)

    def run(x, load):
        program = timing.compile_program(load.jitted, load.arguments).program
        seconds = timing.spread(timing.measure({"call": load.repeatedly(program)}, repeats)["call"])["median"]
        memory = timing.peak_memory(program, jax.devices())["bytes"]
        print(f"{load.name} {x}: {seconds:.3f} s, {memory / 2**20:.0f} MiB", flush=True)
        return {"x": x, "seconds": seconds, "bytes": memory}

    def with_batch(batch_size):
        changed = config.copy_and_resolve_references()
        changed.batch_size = changed.eval.batch_size = batch_size
        return changed

    one, most = with_batch(1), with_batch(max(DEVICES))
    sizes = {side: tuple(side * length for length in unit) for side in SIDES}
    curves = {}
    curves["prediction of one picture: pixels"] = [
        run(height * width, workloads.predict(one, alone, variables, (height, width)))
        for height, width in sizes.values()
    ]
    curves["training step: pictures in the batch"] = [
        run(batch_size, workloads.train(with_batch(batch_size), alone, variables)) for batch_size in BATCHES
    ]
    curves[f"training step of {max(DEVICES)} pictures: devices"] = [
        run(count, workloads.train(most, sharding.make_mesh(count, 1), variables)) for count in DEVICES
    ]
    curves["evaluation of one picture: views"] = [
        run(count, workloads.evaluate_views(one, alone, variables, sizes[2], "evaluate", scales, flip))
        for count, (scales, flip) in VIEWS.items()
    ]
    return curves


def draw(curves: dict[str, list[dict[str, float]]], path: pathlib.Path) -> None:
    """Time and memory over what grows, both axes logarithmic; dashed: in proportion, or divided among devices."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(curves), 6), layout="constrained")
    for (name, points), (upper, lower) in zip(curves.items(), figure.subplots(2, len(curves)).T, strict=True):
        x = [point["x"] for point in points]
        power = -1 if name.endswith("devices") else 1
        for axes, key, unit, label in ((upper, "seconds", 1, "seconds"), (lower, "bytes", 2**20, "MiB a device")):
            y = [point[key] / unit for point in points]
            axes.plot(x, y, marker="o")
            axes.plot(x, [y[0] * (value / x[0]) ** power for value in x], linestyle="--", color="grey")
            axes.set(xscale="log", yscale="log", ylabel=label, xticks=x, xticklabels=[f"{value:,}" for value in x])
            for place in zip(x, y, strict=True):
                axes.annotate(f"{place[1]:.3g}", place, xytext=(4, -12), textcoords="offset points", fontsize=8)
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        upper.set_title(name, fontsize=10)
    figure.savefig(path, dpi=100)


def main(argv: list[str]) -> None:
    values = flags.FLAGS
    cli.require_config(argv)
    if importlib.util.find_spec("matplotlib") is None:  # before minutes of measuring
        sys.exit("growth: needs matplotlib: pip install matplotlib")

    for path in filter(None, (values.output, values.json)):
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    try:
        curves = measure(values.config, cli.parse_size("unit", values.unit), values.repeats)
    except ValueError as error:
        sys.exit(f"growth: {error}")
    if values.json is not None:
        pathlib.Path(values.json).write_text(json.dumps(curves, indent=2) + "\n", encoding="utf-8")
    draw(curves, pathlib.Path(values.output))


if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={max(DEVICES)}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    define_flags()
    app.run(main, flags_parser=cli.make_flags_parser("growth"))

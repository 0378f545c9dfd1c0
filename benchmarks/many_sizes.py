"""Evaluating photographs of as many sizes: a program for each size, few programs for all, and photographs of one size:

    python -m benchmarks.many_sizes --config=configs/cityscapes_r50.py [--pictures=200] [--config.eval.flip=True …]

Pictures are made (240x320 to 480x640; those of one size have as many pixels), two in a batch. Each way is a process of
its own without a compile cache: its first pass is cold. The last process has the programs of the last two ways, and
their batches take turns: warm, and with whatever else the machine does shared between them.
"""

import functools
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

from absl import app, flags

from dlv3p_jax.runtime import arguments, cli

WAYS = {"each size its own program": 0, "shared programs": None, "one size": 0}
WARM = "warm"


def define_flags() -> None:
    """Defines the command's flags; not at import, since tests import this module beside others."""
    arguments.DEFINE_config("config", "A file of configs/; --config.KEY=VALUE changes one key.")
    flags.DEFINE_integer("pictures", 200, "How many, each of another size.", lower_bound=1)
    flags.DEFINE_integer("alone", None, "Of them, how many are measured with a program each; all by default.")
    flags.DEFINE_enum("way", None, [*WAYS, WARM], "Measures this alone, in this process.")


def prepare(config, way: str, num_pictures: int) -> tuple[list[tuple[tuple, Callable[[], None]]], dict[str, float]]:
    """The batches, each as what its program is made for and a function that evaluates it; and what is known of them.

    Known are how many pictures and programs there are and the share of padding.
    """
    import jax
    import numpy as np

    from dlv3p_jax import models
    from dlv3p_jax.data import size_buckets
    from dlv3p_jax.evaluation.step import jit_eval_step
    from dlv3p_jax.evaluation.views import Views
    from dlv3p_jax.performance import workloads
    from dlv3p_jax.runtime import sharding

    config = workloads.prepare(config)
    config.eval_size, config.eval.batch_size = None, 2
    mesh, views, model = sharding.make_mesh(1, 1), Views.of(config.eval), models.build_model(config)
    variables = sharding.replicate(mesh, workloads.init_variables(config))
    rng = np.random.default_rng(0)
    if way == "one size":
        own = [(360, 480)] * num_pictures
    else:
        own = [tuple(size) for size in rng.integers((240, 320), (481, 641), (num_pictures, 2)).tolist()]
    limit = config.eval.buckets if WAYS[way] is None else WAYS[way]
    sizes = list(map(views.all_sizes, own))
    plan = size_buckets.batches(sizes, config.eval.batch_size, limit)
    steps = {rooms: jit_eval_step(config, mesh, model, rooms) for rooms in {bucket.view_rooms for bucket in plan}}

    def evaluate(bucket) -> None:
        shape = config.eval.batch_size, *bucket.room
        batch = {"image": np.zeros((*shape, 3), np.uint8), "label": np.zeros(shape, np.uint8)}
        given = [own[index] for index in bucket.indices]
        given += [(0, 0)] * (config.eval.batch_size - len(given))
        batch["size"] = np.array(given, np.int32)
        if bucket.view_rooms is not None:
            batch["view_sizes"] = views.sizes_of_each(given)
        jax.block_until_ready(steps[bucket.view_rooms](variables, sharding.put_batch(mesh, batch)))

    seen = sum(height * width for every in sizes for height, width in every[1:])
    rooms = [bucket.view_rooms or sizes[bucket.indices[0]][1:] for bucket in plan]
    computed = config.eval.batch_size * sum(height * width for room in rooms for height, width in room)
    batches = [((bucket.room, bucket.view_rooms), functools.partial(evaluate, bucket)) for bucket in plan]
    return batches, {"pictures": num_pictures, "programs": len(dict(batches)), "padding": computed / seen - 1}


def seconds(call: Callable[[], None]) -> float:
    """How long it takes."""
    start = time.monotonic()
    call()
    return time.monotonic() - start


def measure(config, way: str, num_pictures: int) -> dict[str, float]:
    """What is known of the batches, the seconds of a cold pass, and the peak of this process's memory in MiB."""
    batches, known = prepare(config, way, num_pictures)
    cold = sum(seconds(call) for _, call in batches)
    return {**known, "cold": cold, "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def measure_warm(config, num_pictures: int) -> dict[str, float]:
    """Seconds of a pass of the ways "shared programs" and "one size", whose batches take turns; all is compiled."""
    ways = ("shared programs", "one size")
    batches = [prepare(config, way, num_pictures)[0] for way in ways]
    for call in (call for some in batches for call in dict(some).values()):
        call()
    turns = itertools.zip_longest(*batches)
    taken = [[0.0 if batch is None else seconds(batch[1]) for batch in turn] for turn in turns]
    return dict(zip(ways, map(sum, zip(*taken, strict=True)), strict=True))


def in_a_process(way: str, num_pictures: int) -> dict[str, float]:
    """What this way measures in a process of its own, without a compile cache."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    command = [
        sys.executable,
        "-m",
        "benchmarks.many_sizes",
        *sys.argv[1:],
        f"--way={way}",
        f"--pictures={num_pictures}",
    ]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
    return json.loads(output.splitlines()[-1])


def main(argv: list[str]) -> None:
    cli.refuse_words(argv)
    values = flags.FLAGS
    if values.way is not None:
        warm = values.way == WARM
        config, number = values.config, values.pictures
        print(json.dumps(measure_warm(config, number) if warm else measure(config, values.way, number)), flush=True)
        return
    for way in WAYS:
        number = values.alone if way.startswith("each") and values.alone else values.pictures
        found = in_a_process(way, number)
        counts = f"{found['pictures']} pictures, {found['programs']} programs, padding {found['padding']:.1%}"
        print(f"{way}: {counts}, cold {found['cold'] / number:.3f} s a picture, {found['MiB']:.0f} MiB", flush=True)
    found = in_a_process(WARM, values.pictures)
    each = ", ".join(f"{way} {taken / values.pictures:.3f} s a picture" for way, taken in found.items())
    ratio = found["shared programs"] / found["one size"]
    print(f"warm, taking turns: {each}: {ratio:.2f} times as long", flush=True)


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=cli.make_flags_parser("many_sizes"))

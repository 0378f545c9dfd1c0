"""Evaluating photographs of as many sizes: a program for each size, few programs for all, and photographs of one size:

    python -m benchmarks.many_sizes --config=configs/cityscapes_r50.py [--pictures=200] [--config.eval.flip=True …]

Pictures are made (240x320 to 480x640; those of one size have as many pixels), two in a batch. Each way is a process of
its own without a compile cache: the first pass is cold, the second, of shared programs and of one size, warm.
"""

import json
import os
import resource
import subprocess
import sys
import time

from absl import app, flags

from dlv3p_jax.runtime import arguments, cli

WAYS = {"each size its own program": 0, "shared programs": None, "one size": 0}


def define_flags() -> None:
    """Defines the command's flags; not at import, since tests import this module beside others."""
    arguments.DEFINE_config("config", "A file of configs/; --config.KEY=VALUE changes one key.")
    flags.DEFINE_integer("pictures", 200, "How many, each of another size.", lower_bound=1)
    flags.DEFINE_integer("alone", None, "Of them, how many are measured with a program each; all by default.")
    flags.DEFINE_enum("way", None, list(WAYS), "Measures this alone, in this process.")


def measure(config, way: str, num_pictures: int) -> dict[str, float]:
    """Seconds of both passes, programs, the share of padding, and the peak of this process's memory in MiB."""
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

    def run() -> float:
        start = time.monotonic()
        for bucket in plan:
            shape = config.eval.batch_size, *bucket.room
            batch = {"image": np.zeros((*shape, 3), np.uint8), "label": np.zeros(shape, np.uint8)}
            given = [own[index] for index in bucket.indices]
            given += [(0, 0)] * (config.eval.batch_size - len(given))
            batch["size"] = np.array(given, np.int32)
            if bucket.view_rooms is not None:
                batch["view_sizes"] = views.sizes_of_each(given)
            jax.block_until_ready(steps[bucket.view_rooms](variables, sharding.put_batch(mesh, batch)))
        return time.monotonic() - start

    seen = sum(height * width for every in sizes for height, width in every[1:])
    rooms = [bucket.view_rooms or sizes[bucket.indices[0]][1:] for bucket in plan]
    computed = config.eval.batch_size * sum(height * width for room in rooms for height, width in room)
    return {
        "pictures": num_pictures,
        "programs": len({(bucket.room, bucket.view_rooms) for bucket in plan}),
        "padding": computed / seen - 1,
        "cold": run(),
        "warm": run(),
        "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main(argv: list[str]) -> None:
    cli.refuse_words(argv)
    values = flags.FLAGS
    if values.way is not None:
        print(json.dumps(measure(values.config, values.way, values.pictures)), flush=True)
        return
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    for way in WAYS:
        number = values.alone if way.startswith("each") and values.alone else values.pictures
        command = [sys.executable, "-m", "benchmarks.many_sizes", *sys.argv[1:], f"--way={way}", f"--pictures={number}"]
        output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
        found = json.loads(output.splitlines()[-1])
        seconds = f"cold {found['cold'] / number:.3f} and warm {found['warm'] / number:.3f} s a picture"
        counts = f"{found['pictures']} pictures, {found['programs']} programs, padding {found['padding']:.1%}"
        print(f"{way}: {counts}, {seconds}, {found['MiB']:.0f} MiB", flush=True)


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=cli.make_flags_parser("many_sizes"))

"""This project as a contestant of `benchmarks.compare`."""

import importlib.metadata

from benchmarks import worker


def setup(specification: dict) -> worker.Contestant:
    """Compiles the work that is asked for, with the weights that all contestants get."""
    import jax
    import numpy as np
    from flax import traverse_util

    from dlv3p_jax.performance import timing, workloads
    from dlv3p_jax.runtime import configuration, sharding

    config = configuration.read(specification["config"])
    mesh = sharding.make_mesh(1, 1)
    with np.load(specification["weights"]) as file:
        variables = traverse_util.unflatten_dict(dict(file), sep="/")
    size = (specification["height"], specification["width"])
    if specification["work"] == "train":
        work = workloads.train(config, mesh, variables, np.float32)
    elif specification["work"] == "predict":
        work = workloads.predict(config, mesh, variables, size)
    else:
        views = specification["scales"], specification["flip"]
        work = workloads.evaluate_views(config, mesh, variables, size, "evaluate", *views)
    call = work.repeatedly(timing.compile_program(work.jitted, work.arguments).program)

    def logits():
        forward = workloads.predict(config, mesh, variables, size)
        return np.asarray(forward.jitted(*forward.arguments))

    def peak_bytes():
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    platform = jax.devices()[0].platform
    version = f"jax {importlib.metadata.version('jax')}"
    return worker.Contestant(call, jax.block_until_ready, platform, version, logits, peak_bytes)

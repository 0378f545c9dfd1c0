"""Compiles one program for a TPU slice that is not here: what `planned` starts, in a process of its own for each.

    python -m dlv3p_jax.performance.compile_child REQUEST.json RESULT.json

A process may load Google's compiler once, and what it dies of is not to be ours.
"""

import dataclasses
import json
import math
import pathlib
import re
import sys
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from dlv3p_jax.performance import hlo, tpu, workloads
from dlv3p_jax.runtime import configuration, sharding, text

# What the compiler says of a program that is too large; units are binary.
_NEEDED = re.compile(r"(?:Used|\() ?([\d.]+)([KMGT])\)? (?:of|exceeds)")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def make_mesh(config, piece: tpu.Slice) -> Mesh:
    """The mesh of `config` over all chips of a slice.

    Raises:
        ValueError: it does not take all of them, or the compiler knows no such slice.
    """
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=piece.topology, **piece.topology_options
        )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"--topology={piece.name}: the compiler has no {piece.topology} ({text.first_line(error)})"
        ) from error
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.space, description.devices)
    if mesh.size < piece.num_chips:
        spaces, rest = divmod(piece.num_chips, config.mesh.data)
        hint = f", such as with --config.mesh.space={spaces}" if rest == 0 else ""
        raise ValueError(
            f"mesh.data={config.mesh.data} x mesh.space={config.mesh.space} are {mesh.size} of the {piece.num_chips} "
            f"chips of {piece.name}: use all of them{hint}, or plan for a smaller slice"
        )
    return mesh


def compile_program(config, mesh: Mesh, views: dict[str, Any] | None, size: tuple[int, int]) -> dict[str, Any]:
    """Compiles a training step, or an evaluation with `views`, for a mesh whose devices need not be here.

    Args:
        config: from `workloads.prepare`.
        mesh: of devices.
        views: {'scales': …, 'flip': …} of an evaluation; None: a training step.
        size: (height, width) of the evaluated pictures.

    Returns:
        What can be written as JSON: 'pictures', 'size', 'model_flops' (of all devices, in the straightforward model)
        and 'fits'. Where it fits, of one device: 'memory' (bytes by kind), 'flops', 'moved_bytes', 'collectives' (see
        `hlo.Collective`) and 'turns', which flops and bytes were multiplied by, as the compiler counts a loop's body
        once. Else 'needed_bytes', by the compiler, if it tells, and its 'message'.

    Raises:
        ValueError: the mesh does not divide the batch, or the configuration makes no program.
    """
    shapes = workloads.variable_shapes(config)
    if views is None:
        load = workloads.train(config, mesh, shapes)
    else:
        load = workloads.evaluate_views(config, mesh, shapes, size, "evaluate", **views)
    model_flops = load.count_operations()
    result = {"pictures": load.pictures, "size": list(load.size), "model_flops": model_flops}
    try:
        program = load.jitted.lower(*load.arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return result | {"fits": False, "needed_bytes": needed_bytes(str(error)), "message": text.first_line(error)}
    cost, listing = program.cost_analysis(), program.as_text()
    assert cost is not None and listing is not None  # which this compiler tells
    turns = config.accumulate_steps
    if views is not None:
        turns = 2 if views["flip"] else 1
        if config.eval.window is not None:
            turns = max(model_flops / (cost["flops"] * mesh.size), turns)
    return result | {
        "fits": True,
        "memory": memory_by_kind(load, program.memory_analysis(), mesh.size),
        "flops": cost["flops"] * turns,
        "moved_bytes": cost["bytes accessed"] * turns,
        "collectives": [dataclasses.asdict(item) for item in hlo.collectives(listing, round(turns))],
        "turns": turns,
    }


def memory_by_kind(load: workloads.Workload, stats, num_devices: int) -> dict[str, int]:
    """Bytes of one device: of the arguments by their shapes, of the rest by the compiler's analysis.

    The state lies on every device, a batch in parts. 'layout' is what arguments take beyond their shapes, since a TPU
    stores arrays in tiles. 'temporary' is all that lives only while the program runs: activations that are kept for the
    gradient, gradients and workspace.
    """
    state, batch, *_ = load.arguments
    if isinstance(state, dict):  # the variables of an evaluation
        kinds = {"parameters": state["params"], "batch_statistics": state["batch_stats"]}
    else:
        kinds = {
            "parameters": state.params,
            "batch_statistics": state.batch_stats,
            "optimizer": state.opt_state,
            "moving_average": state.ema,
        }
    memory = {name: _num_bytes(tree) for name, tree in kinds.items()}
    memory["pictures"] = math.ceil(_num_bytes(batch) / num_devices)
    memory["layout"] = max(stats.argument_size_in_bytes - sum(memory.values()), 0)
    memory["results"] = stats.output_size_in_bytes - stats.alias_size_in_bytes
    memory["temporary"] = stats.temp_size_in_bytes
    memory["program"] = stats.generated_code_size_in_bytes
    return memory


def needed_bytes(message: str) -> int | None:
    """The bytes that the compiler's message on a program that is too large says it needs; None if it does not."""
    found = [float(number) * _UNITS[unit] for number, unit in _NEEDED.findall(message)]
    return round(max(found)) if found else None


def _num_bytes(tree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def main(request_file: str, result_file: str) -> None:
    request = json.loads(pathlib.Path(request_file).read_text(encoding="utf-8"))
    try:
        config = workloads.prepare(configuration.read(request["config"]))
        mesh = make_mesh(config, tpu.find(request["slice"]))
        result = compile_program(config, mesh, request["views"], tuple(request["size"]))
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        result = {"error": text.first_line(error)}
    pathlib.Path(result_file).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

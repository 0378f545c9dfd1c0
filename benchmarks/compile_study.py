"""What compilers make of the network for accelerators that are not here, beside the straightforward network:

    python -m benchmarks.compile_study --config=configs/cityscapes_r50.py --config.model.dtype=bfloat16 --target=v5e-8

A TPU slice by its name needs libtpu (pip install '.[plan]'); a GPU, by a file with XLA's description of it
(`--target=h100_sxm.txtpb`), jax's CUDA plug-in (pip install jax-cuda12-plugin jax-cuda12-pjrt). Neither needs the
device. A training step for a TPU takes a quarter of an hour at full effort, whose cycles alone mean something, and two
minutes at low effort. A loop, over mirror images or to distort colours, counts as one turn of it.
"""

import collections
import os
import pathlib
import re
import sys

from absl import app, flags

from dlv3p_jax.runtime import arguments, cli, text

_TRANSPOSE = re.compile(
    r"^\s*%?(?:wrapped_transpose|transpose|\w*transpose_fusion|input_transpose\w*)[\w.]* = (.*?) fusion\("
)
# What `steps.make_train_step` and the network's modules call their parts, in the names of JAX's operations.
_PART = re.compile(
    r"/backbone/(?:jit\(core_fn\)/)?(stage\d)|/(backbone|aspp|decoder|auxiliary_head)/|[/(](distort|loss|optimizer)[/)]"
)


def define_flags() -> None:
    """Defines the command's flags; not at import, since tests import this module beside others."""
    arguments.DEFINE_config("config", "A file of configs/; --config.KEY=VALUE changes one key.")
    flags.DEFINE_string("target", None, "A TPU slice, such as v5e-8, or a file that describes a GPU.", required=True)
    flags.DEFINE_enum("kind", "train", ("train", "evaluate"), "Evaluation is with the views of the configuration.")
    flags.DEFINE_list("size", ["1024", "2048"], "HEIGHT,WIDTH of the evaluated pictures.")
    flags.DEFINE_enum("effort", "full", ("low", "full"), "Of the TPU's compiler.")
    flags.DEFINE_bool("parts", False, "Show the cycles of a training step for TPUs by part, forward and backward.")
    flags.DEFINE_bool("straightforward", True, "Compile the straightforward network too; of training only.")


def read_tpu(text: str) -> dict[str, float]:
    """Of a program compiled for TPUs: estimated millions of cycles, and MiB of what chips exchange, by kind."""
    from dlv3p_jax.performance import hlo

    cycles = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', text)))
    exchanged = {f"{item.kind} MiB": item.bytes / 2**20 for item in hlo.collectives(text)}
    return {"million cycles": cycles / 1e6} | exchanged


def read_parts(text: str) -> dict[str, float]:
    """Of a training step compiled for TPUs: estimated millions of cycles of each part, forward and backward.

    An instruction belongs to the part that the name of its root has; where several were fused, that is the last.
    """
    parts: collections.Counter[str] = collections.Counter()
    for line in text.splitlines():
        if cycles := re.search(r'"estimated_cycles":"(\d+)"', line):
            name = re.search(r'op_name="([^"]*)"', line)
            found = _PART.search(name[1]) if name else None
            where = name[1] if name else ""
            rest = "resizing of logits" if "DeepLabV3Plus" in where else "other"
            part = next(filter(None, found.groups())).replace("backbone", "stem") if found else rest
            way = ", backward" if "transpose(" in where else ", forward" if "jvp(" in where else ""
            parts[f"{part}{way}, million cycles"] += int(cycles[1]) / 1e6
    return dict(sorted(parts.items()))


def read_gpu(text: str, least_side: int = 8) -> dict[str, float]:
    """Of a program compiled for a GPU: convolutions, those with windows of `least_side` and more, MiB of transposes."""
    from dlv3p_jax.performance import hlo

    convolutions = [line for line in text.splitlines() if "__cudnn$conv" in line]
    windows = [re.search(r"window=\{size=(\d+)x(\d+)", line) for line in convolutions]
    large = [window for window in windows if window and max(map(int, window.groups())) >= least_side]
    transposed = collections.Counter()
    for line in text.splitlines():
        if found := _TRANSPOSE.match(line):
            transposed["bytes"] += hlo.result_bytes(found[1])
    return {
        "convolutions": len(convolutions),
        "picture-sized windows": len(large),
        "transposes MiB": transposed["bytes"] / 2**20,
    }


def study(
    config, mesh, kind: str, size: tuple[int, int], straight: bool, parts: bool = False
) -> dict[str, dict[str, float]]:
    """{'ours' (and 'straightforward'): what `read_tpu` or `read_gpu` reads, memory, operations} of a compiled program.

    Args:
        config: a configuration.
        mesh: of devices, which need not be here.
        kind: 'train' or 'evaluate'.
        size: (height, width) of evaluated pictures.
        straight: whether to compile the straightforward network's training step too.
        parts: whether to read `read_parts` too.
    """
    from dlv3p_jax.models import build_model
    from dlv3p_jax.performance import straightforward, workloads

    config = workloads.prepare(config)
    shapes = workloads.variable_shapes(config)
    if kind == "train":
        builds = {"straightforward": straightforward.build} if straight else {}
        loads = {
            name: workloads.train(config, mesh, shapes, build=build)
            for name, build in (builds | {"ours": build_model}).items()
        }
        turns = 1
    else:
        views = config.eval.scales, config.eval.flip
        loads = {"ours": workloads.evaluate_views(config, mesh, shapes, size, "evaluate", *views)}
        turns = 2 if config.eval.flip else 1  # the compiler counts the body of a loop once
    read = read_gpu if mesh.devices.flat[0].platform in ("gpu", "cuda") else read_tpu
    results = {}
    for name, load in loads.items():
        program = load.jitted.lower(*load.arguments).compile()
        results[name] = read(program.as_text())
        if parts:
            results[name] |= read_parts(program.as_text())
        results[name]["temporary MiB"] = program.memory_analysis().temp_size_in_bytes / 2**20
        if cost := program.cost_analysis():  # of programs for a GPU that is not here, nothing
            total = cost["flops"] * turns * mesh.size
            results[name]["TFLOP a device"] = total / mesh.size / 1e12
            results[name]["operations over the model's"] = total / load.count_operations()
    return results


def main(argv: list[str]) -> None:
    values = flags.FLAGS
    cli.require_config(argv)
    if values.config.accumulate_steps > 1 or values.config.eval.window is not None:
        raise app.UsageError(
            "accumulate_steps and eval.window are loops, of which compilers count one turn: leave them"
        )
    if values.effort == "low":
        os.environ["JAX_EXEC_TIME_OPTIMIZATION_EFFORT"] = "-1"
    from jax.experimental import topologies

    from dlv3p_jax.performance import compile_child, tpu
    from dlv3p_jax.runtime import sharding

    config = values.config
    try:
        size = cli.parse_size("size", values.size)
        if pathlib.Path(values.target).is_file():
            target = pathlib.Path(values.target).read_text(encoding="utf-8")
            gpu = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=target)
            mesh = sharding.make_mesh(1, 1, gpu.devices)
        else:
            mesh = compile_child.make_mesh(config, tpu.find(values.target))
        results = study(config, mesh, values.kind, size, values.straightforward, values.parts)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"compile_study: {error}")
    keys = list(dict.fromkeys(key for result in results.values() for key in result))
    rows = [[key, *(f"{result[key]:,.2f}" if key in result else "" for result in results.values())] for key in keys]
    print(text.table([[f"{values.kind} for {values.target}", *results], *rows]))


if __name__ == "__main__":
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", JAX_ENABLE_COMPILATION_CACHE="false")
    # Without a GPU nothing can be timed to choose kernels by; Triton's products have no Precision.HIGHEST.
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    )
    define_flags()
    app.run(main, flags_parser=cli.make_flags_parser("compile_study"))

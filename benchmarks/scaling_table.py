"""The table of the published recipes on TPU slices in docs/scaling.md:

    python -m benchmarks.scaling_table --results=docs/scaling_table.json

compiles those training steps that RESULTS lacks, which takes minutes each (pip install '.[plan]'), writes RESULTS after
each, and prints the table. With --only_print, it compiles none.
"""

import argparse
import json
import math
import pathlib

from dlv3p_jax.performance import planned, tpu, workloads
from dlv3p_jax.weights import published

RECIPES = ("cityscapes_r50", "cityscapes_r50_rmi", "cityscapes_r101", "cityscapes_r101_769", "voc_r50", "voc_r101")
SLICES = ("v5e-8", "v5e-16", "v4-32", "v6e-8", "v4-8")
HEAD = (
    "recipe",
    "slice",
    "batch",
    "mesh",
    "memory a chip",
    "TFLOP",
    "GB moved",
    "MB sent",
    "ms a step, estimate",
    "hours, estimate",
    "chip hours, estimate",
)


def make_config(recipe: str, piece: tpu.Slice):
    """A published recipe in bfloat16 on the first sensible mesh; where there is none, with a picture a chip."""
    config = published.config_of(recipe)
    config.model.dtype = "bfloat16"
    size, _ = planned.evaluated_size(config)
    try:
        meshes = planned.sensible_meshes(config, piece.num_chips, size)
    except ValueError:
        batch_size = math.lcm(config.batch_size, piece.num_chips)
        config.num_train_steps = config.num_train_steps * config.batch_size // batch_size
        config.batch_size = config.eval.batch_size = batch_size
        meshes = planned.sensible_meshes(config, piece.num_chips, size)
    config.mesh.data, config.mesh.space = meshes[0]
    return config, size


def compile_row(recipe: str, slice_name: str) -> dict:
    piece = tpu.find(slice_name)
    config, size = make_config(recipe, piece)
    config = workloads.prepare(config)
    trained = planned.training(config, piece, size, "low")
    return {"batch_size": config.batch_size, "usable_bytes": piece.chip.usable_bytes} | trained


def to_markdown(results: dict[str, dict]) -> str:
    """The table of what was compiled; rows that were not say so."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    for recipe in RECIPES:
        for name in SLICES:
            row = results.get(f"{recipe} {name}")
            cells = _cells(row) if row else ["", "", "not compiled", *[""] * (len(HEAD) - 5)]
            lines.append(f"| {' | '.join([f'`{recipe}`', name, *cells])} |")
    return "\n".join(lines)


def _cells(row: dict) -> list[str]:
    (program,), mesh = row["programs"], row["mesh"]
    place = [str(row["batch_size"]), f"{mesh['data']}x{mesh['space']}"]
    usable = f"of {row['usable_bytes'] / 2**30:.2f} GiB"
    if not program["fits"]:
        needed = planned.needed_bytes(program)
        size = "" if needed is None else f": {needed / 2**30:.2f} {usable}"
        return [*place, f"does not fit{size}", *[""] * (len(HEAD) - 5)]
    sent = sum(item["sent_bytes"] for item in program["collectives"])
    return [
        *place,
        f"{program['total_bytes'] / 2**30:.2f} {usable}",
        f"{program['flops'] / 1e12:.2f}",
        f"{program['moved_bytes'] / 1e9:.1f}",
        f"{sent / 1e6:.0f}",
        f"{1e3 * program['estimate']['total']:.1f}",
        f"{row['recipe']['hours']:.2f}",
        f"{row['recipe']['chip_hours']:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, required=True, help="a JSON file, begun or to be begun")
    parser.add_argument("--only_print", action="store_true", help="compile nothing")
    values = parser.parse_args()
    results = json.loads(values.results.read_text(encoding="utf-8")) if values.results.exists() else {}
    for name in () if values.only_print else SLICES:
        for recipe in RECIPES:
            key = f"{recipe} {name}"
            if key not in results:
                results[key] = compile_row(recipe, name)
                values.results.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(to_markdown(results))


if __name__ == "__main__":
    main()

"""A report of `planned` as people read it."""

from typing import Any

from dlv3p_jax.runtime import text

_EFFORTS = {
    "low": "The compiler made low effort. At full effort (--effort=full), as for a program that runs, operations and "
    "exchanges are the same, but memory can be a fifth more (docs/scaling.md).",
    "full": "The compiler made full effort, as for a program that runs.",
}
_ESTIMATES = (
    "Times are estimates, by a roofline: the larger of the compiler's operations at the chip's peak and its bytes "
    "moved at the memory's full bandwidth, and then the bytes sent at the links' full bandwidth, without latency. "
    "Programs that run are slower. Reading pictures, checkpoints and compiling are left out."
)
_KINDS = {
    "parameters": "parameters",
    "batch_statistics": "BatchNorm",
    "optimizer": "optimizer",
    "moving_average": "average",
    "pictures": "pictures",
    "layout": "layout",
    "results": "results",
    "temporary": "temporary",
    "program": "program",
}


def to_text(report: dict[str, Any]) -> str:
    """What `planned.report` or `planned.compare_meshes` returned; the first line says whether all of it fits."""
    lines = [_verdict(report), _head(report), ""]
    if "meshes" in report:
        lines += [_meshes(report), ""]
    else:
        programs = report["programs"]
        lines += [
            "Memory of a chip, MiB",
            _memory(report, programs),
            "temporary: activations kept for the gradient, gradients and workspace; layout: what arguments take beyond "
            "their shapes.",
            *_largest(report),
            "",
            "A run of each program, of a chip",
            _costs(programs),
            *_exchanges(programs),
            "",
            *_recipe(report),
        ]
    lines += [_ESTIMATES, _EFFORTS[report["effort"]]]
    lines += [f"! {line}" for line in report["warnings"]]
    return "\n".join(lines)


def _verdict(report: dict[str, Any]) -> str:
    name, batch = report["slice"]["name"], f"a batch of {report['batch_size']}"
    if "meshes" in report:
        best = report["meshes"][0]
        mesh = "data={data} x space={space}".format(**best["mesh"])
        fits = sum(candidate["programs"][0]["fits"] for candidate in report["meshes"])
        if not fits:
            return f"DOES NOT FIT: {batch} fits none of the {len(report['meshes'])} meshes of {name}."
        return f"FITS: {batch} fits {fits} of the {len(report['meshes'])} meshes of {name}; the best is {mesh}."
    lacking = [f"{p['name']} ({p['pictures']} pictures)" for p in report["programs"] if not p["fits"]]
    largest = (report["largest_batch"] or {}).get("pictures")
    if not lacking:
        most = "" if largest is None else f"; of training, batches of up to {largest} do (estimate)"
        return f"FITS: {batch} fits {name}{most}."
    smaller = f" Training fits with a batch of {largest} (estimate)." if largest and "train" in lacking[0] else ""
    return f"DOES NOT FIT: {name} has too little memory for {', '.join(lacking)}.{smaller}"


def _head(report: dict[str, Any]) -> str:
    piece, model = report["slice"], report["model"]
    places = "" if "meshes" in report else ", mesh: " + ", ".join(f"{axis}={n}" for axis, n in report["mesh"].items())
    parts = f" in {report['accumulate_steps']} parts" if report["accumulate_steps"] > 1 else ""
    return (
        f"{report['dataset']}, {model['backbone']}, {model['dtype']}, batch of {report['batch_size']}{parts} on "
        f"{piece['name']} ({piece['chips']} chips, {piece['topology']}{places}); jax {report['jax']}, libtpu "
        f"{report['libtpu']}, {report['date']}"
    )


def _memory(report: dict[str, Any], programs) -> str:
    usable = report["chip"]["usable_bytes"]
    kinds = [kind for kind in _KINDS if any(program.get("memory", {}).get(kind) for program in programs)]
    rows = [["", "HxW", "pictures", *(_KINDS[kind] for kind in kinds), "total", f"of {usable / 2**20:.0f}", "fits"]]
    for program in programs:
        row = [program["name"], "x".join(map(str, program["size"])), str(program["pictures"])]
        if program["fits"]:
            row += [_mib(program["memory"].get(kind, 0)) for kind in kinds]
            total = program["total_bytes"]
        else:
            row += ["?"] * len(kinds)
            total = program["needed_bytes"]
        row += ["?", "?"] if total is None else [_mib(total), f"{total / usable:.0%}"]
        rows.append([*row, "yes" if program["fits"] else "NO"])
    return text.table(rows)


def _largest(report: dict[str, Any]) -> list[str]:
    largest = report["largest_batch"]
    if largest is None:
        return []
    counts = [str(count) for count, _ in largest["compiled"]]
    if len(counts) == 1:
        return [f"No batch fits this mesh: {counts[0]} pictures are too many, and it takes no fewer."]
    lines = []
    if largest["growing_temporary_bytes"] is not None:
        lines.append(
            f"Of the step's temporary memory, {_mib(largest['growing_temporary_bytes'])} MiB grow with the pictures "
            "(activations), the rest does not."
        )
    fitting = "unknown" if largest["pictures"] is None else largest["pictures"]
    lines.append(
        f"Largest batch that fits this mesh: {fitting} pictures (estimate: the line through the memory of "
        f"{' and '.join(counts)}, both compiled)."
    )
    return lines


def _costs(programs) -> str:
    head = "|TFLOP|of the model|GB moved|MB sent|compute ms|memory ms|exchange ms|estimate ms|pictures/s|compiled in s"
    rows = [head.split("|")]
    for program in programs:
        if not program["fits"]:
            rows.append([program["name"], *["?"] * 9, f"{program['compile_seconds']:.0f}"])
            continue
        estimate = program["estimate"]
        sent = sum(item["sent_bytes"] for item in program["collectives"])
        rows.append(
            [
                program["name"],
                f"{program['flops'] / 1e12:.3f}",
                f"{program['chip_model_flops'] / 1e12:.3f}",
                f"{program['moved_bytes'] / 1e9:.2f}",
                f"{sent / 1e6:.1f}",
                *(f"{1e3 * estimate[kind]:.2f}" for kind in ("compute", "memory", "exchange", "total")),
                f"{program['pictures'] / estimate['total']:.0f}",
                f"{program['compile_seconds']:.0f}",
            ]
        )
    return text.table(rows)


def _exchanges(programs) -> list[str]:
    lines = []
    for program in programs:
        if collectives := program.get("collectives"):
            listed = (f"{item['count']} {item['kind']} of {_megabytes(item['bytes'])} MB" for item in collectives)
            lines.append(f"exchanges of {program['name']}: {', '.join(listed)}")
        if program.get("turns", 1) > 1:
            lines.append(
                f"{program['name']}: its loops are counted once by the compiler, so operations and bytes are times "
                f"{program['turns']:.3g} here"
            )
    return lines


def _recipe(report: dict[str, Any]) -> list[str]:
    recipe = report["recipe"]
    return [] if recipe is None else [f"Estimate for the whole recipe: {_recipe_text(recipe)}.", ""]


def _recipe_text(recipe: dict[str, Any]) -> str:
    text = f"{recipe['steps']} steps {recipe['train_hours']:.2f} h"
    if recipe["evaluation_hours"] is not None:
        text += f", {recipe['evaluations']} evaluations {recipe['evaluation_hours']:.2f} h"
    text += f", {recipe['chip_hours']:.1f} chip hours"
    return text if recipe["cost"] is None else f"{text}, {recipe['cost']:.2f} at the price given"


def _meshes(report: dict[str, Any]) -> str:
    rows = [["data x space", "fits", "memory MiB", "MB sent", "estimate ms", "whole recipe"]]
    for candidate in report["meshes"]:
        (program,), mesh = candidate["programs"], candidate["mesh"]
        row = [f"{mesh['data']} x {mesh['space']}", "yes" if program["fits"] else "NO"]
        if program["fits"]:
            row += [
                _mib(program["total_bytes"]),
                f"{sum(item['sent_bytes'] for item in program['collectives']) / 1e6:.1f}",
                f"{1e3 * program['estimate']['total']:.2f}",
                _recipe_text(candidate["recipe"]),
            ]
        else:
            row += ["?" if program["needed_bytes"] is None else _mib(program["needed_bytes"]), "?", "?", ""]
        rows.append(row)
    return "Training steps, the best mesh first\n" + text.table(rows)


def _megabytes(number: float) -> str:
    return f"{number / 1e6:.0f}" if number >= 1e8 else f"{number / 1e6:.2g}"


def _mib(number: float) -> str:
    return f"{number / 2**20:.0f}"

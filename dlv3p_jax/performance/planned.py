"""What a configuration needs on a TPU slice: `report` compiles it and sums up, `compare_meshes` tries several meshes.

report(config, tpu.find("v5e-8"), (1024, 2048), "low")["programs"][0]["estimate"]["total"]

What the compiler says is said as it is. Whatever is of time is an estimate, made by `tpu.estimate`.
"""

import datetime
import importlib.metadata
import math
from typing import Any

import jax

from dlv3p_jax import __version__
from dlv3p_jax.data import padding
from dlv3p_jax.performance import compile_process, hlo, tpu, workloads
from dlv3p_jax.runtime import configuration, sharding

# Of the data sets whose pictures are all alike, or all padded to config.eval_size.
_PICTURE_SIZES = {"cityscapes": (1024, 2048)}
_NUM_EVALUATED = {"cityscapes": 500, "voc2012": 1449}
_LARGEST_SPACE = 8
_FULL = {"low": 0.8, "full": 0.95}  # share of a chip's memory beyond which a program, when it runs, may not fit
_FEW_PICTURES_A_CHIP = 2


def report(
    config,
    piece: tpu.Slice,
    size: tuple[int, int],
    effort: str,
    all_views: bool = False,
    largest_batch: bool = True,
    price_per_chip_hour: float | None = None,
) -> dict[str, Any]:
    """Compiles the training step and the evaluation of a configuration for a slice.

    Args:
        config: a configuration.
        piece: the slice.
        size: (height, width) of the evaluated pictures, see `evaluated_size`.
        effort: see `compile_process.compile_for`.
        all_views: compile evaluation plain, with flip and with flip + scales too.
        largest_batch: compile the step with another batch too, which tells how memory grows.
        price_per_chip_hour: in whatever currency.

    Returns:
        What can be written as JSON: 'slice', 'mesh', 'effort', 'programs' (of `compile_child.compile_program`, with
        'total_bytes' and 'estimate', see `tpu.Estimate`), 'largest_batch', 'recipe', 'warnings'.

    Raises:
        ValueError: the mesh does not divide the batches or the heights.
        ValueError, RuntimeError: see `compile_process.compile_for`.
    """
    config = workloads.prepare(config, "tpu")
    _check_batches(config, piece, size)
    own_views = (tuple(config.eval.scales), config.eval.flip)
    named = workloads.named_views(config)
    views = {next((name for name, views in named.items() if views == own_views), "evaluate as configured"): own_views}
    if all_views:
        views |= named
    programs = [_compile(config, piece, "train", None, size, effort)]
    largest = None
    if largest_batch:
        largest = _largest_batch(config, piece, size, effort, programs[0])
    programs += [_compile(config, piece, name, settings, size, effort) for name, settings in views.items()]
    result = _describe(config, piece, effort) | {"programs": programs, "largest_batch": largest}
    result["recipe"] = recipe(config, piece, programs[:2], price_per_chip_hour)
    result["warnings"] = warnings(config, piece, programs, effort)
    return result


def _check_batches(config, piece: tpu.Slice, size: tuple[int, int]) -> None:
    """Before minutes of compiling; each program checks its own again."""
    shape = _mesh(config, piece)
    if math.prod(shape.values()) != piece.num_chips:
        return  # which is told where the slice's devices are laid out
    mesh = jax.sharding.AbstractMesh(tuple(shape.values()), tuple(shape))
    sharding.check_micro_batch(mesh, config.batch_size, config.accumulate_steps, config.crop_size[0])
    sharding.check_batch(mesh, config.eval.batch_size, size[0], "config.eval.batch_size")


def compare_meshes(
    config, piece: tpu.Slice, size: tuple[int, int], effort: str, price_per_chip_hour: float | None = None
) -> dict[str, Any]:
    """Compiles the training step for every sensible mesh of a slice, the best first: those that fit, by their estimate.

    Returns:
        As `report`, with 'meshes', a list of {'mesh', 'programs', 'recipe'}, in place of 'programs' and 'recipe'.

    Raises:
        ValueError: no mesh divides the batches; and as `report`.
    """
    config = workloads.prepare(config, "tpu")
    candidates = []
    for data, space in sensible_meshes(config, piece.num_chips, size):
        tried = config.copy_and_resolve_references()
        tried.mesh.data, tried.mesh.space = data, space
        candidates.append(training(tried, piece, size, effort, price_per_chip_hour))
    candidates.sort(key=lambda candidate: _rank(candidate["programs"][0]))
    best = config.copy_and_resolve_references()
    best.mesh.update(candidates[0]["mesh"])
    result = _describe(best, piece, effort) | {"meshes": candidates}
    return result | {"warnings": warnings(best, piece, candidates[0]["programs"], effort)}


def training(
    config, piece: tpu.Slice, size: tuple[int, int], effort: str, price_per_chip_hour: float | None = None
) -> dict[str, Any]:
    """The training step alone: {'mesh': …, 'programs': [it], 'recipe': …}, see `report`."""
    mesh = _mesh(config, piece)
    remark = f" on {mesh['data']}x{mesh['space']}"
    program = _compile(config, piece, "train", None, size, effort, remark)
    return {"mesh": mesh, "programs": [program], "recipe": recipe(config, piece, [program], price_per_chip_hour)}


def sensible_meshes(config, num_chips: int, size: tuple[int, int]) -> list[tuple[int, int]]:
    """(data, space) of the meshes of so many chips that divide the batches and the heights, the smallest space first.

    Raises:
        ValueError: there is none.
    """
    heights = (config.crop_size[0], size[0])
    found = []
    for space in (count for count in range(1, _LARGEST_SPACE + 1) if num_chips % count == 0):
        data = num_chips // space
        batches = (config.batch_size // config.accumulate_steps, config.eval.batch_size)
        if all(batch % data == 0 for batch in batches) and all(height % space == 0 for height in heights):
            found.append((data, space))
    if not found:
        raise ValueError(
            f"no mesh of {num_chips} chips, with mesh.space up to {_LARGEST_SPACE}, divides config.batch_size="
            f"{config.batch_size}, config.eval.batch_size={config.eval.batch_size} and the heights {heights[0]} and "
            f"{heights[1]}: take batches that are multiples of {num_chips}"
        )
    return found


def evaluated_size(config) -> tuple[tuple[int, int], str]:
    """The (height, width) that evaluation compiles for, as far as the configuration tells, and where it is from."""
    if config.dataset in _PICTURE_SIZES:
        size = padding.padded_size(_PICTURE_SIZES[config.dataset], config.eval_size)
        return size, f"the pictures of {config.dataset}"
    if config.eval_size is not None:
        return tuple(config.eval_size), "config.eval_size, taking no picture to be larger"
    return tuple(config.crop_size), "config.crop_size, for want of the pictures' own: give --size"


def recipe(config, piece: tpu.Slice, programs, price_per_chip_hour: float | None) -> dict[str, Any] | None:
    """Estimated hours and cost of the whole training; None where a program does not fit.

    `programs` are the training step and, if they are to count, the evaluation. These count where it is known how many
    pictures the data set has to evaluate.
    """
    if not all(program["fits"] for program in programs):
        return None
    seconds = config.num_train_steps * programs[0]["estimate"]["total"]
    evaluations, evaluation_seconds = 0, None
    if len(programs) > 1 and config.dataset in _NUM_EVALUATED:
        evaluations = math.ceil(config.num_train_steps / config.eval_every_steps)
        batches = math.ceil(_NUM_EVALUATED[config.dataset] / config.eval.batch_size)
        evaluation_seconds = evaluations * batches * programs[1]["estimate"]["total"]
    hours = (seconds + (evaluation_seconds or 0)) / 3600
    return {
        "steps": config.num_train_steps,
        "train_hours": seconds / 3600,
        "evaluations": evaluations,
        "evaluation_hours": None if evaluation_seconds is None else evaluation_seconds / 3600,
        "hours": hours,
        "chip_hours": hours * piece.num_chips,
        "cost": None if price_per_chip_hour is None else hours * piece.num_chips * price_per_chip_hour,
    }


def warnings(config, piece: tpu.Slice, programs, effort: str) -> list[str]:
    """What had better be changed, one line each."""
    lines = []
    for program in programs:
        advice = _less_memory(config, piece, program["name"])
        if not program["fits"]:
            needed = "" if program["needed_bytes"] is None else f": it needs {_gib(program['needed_bytes'])}"
            usable = _gib(piece.chip.usable_bytes)
            lines.append(f"{program['name']} does not fit{needed}, and a {piece.chip.name} has {usable}; take {advice}")
            continue
        share = program["total_bytes"] / piece.chip.usable_bytes
        if share > _FULL[effort]:
            check = "check with --effort=full, or " if effort == "low" else ""
            lines.append(f"{program['name']} takes {share:.0%} of a chip's memory: {check}take {advice}")
        estimate = program["estimate"]
        if estimate["exchange"] > max(estimate["compute"], estimate["memory"]):
            lines.append(f"{program['name']} exchanges longer than it computes: take a smaller slice or a larger batch")
    pictures = config.batch_size / piece.num_chips
    if pictures < _FEW_PICTURES_A_CHIP:
        lines.append(
            f"Pictures a chip: {pictures:g}. Its vector units are made for more at once, so that a larger batch, with "
            "its learning rate (docs/scaling.md), or a smaller slice costs less a picture"
        )
    if config.batch_size // config.accumulate_steps < configuration.FEW_PICTURES:
        lines.append(
            f"BatchNorm's statistics are of fewer than {configuration.FEW_PICTURES} pictures: scores are known to drop"
        )
    if config.model.dtype == "float32":
        lines.append("float32 products are six of bfloat16 on a TPU: --config.model.dtype=bfloat16 is much faster")
    return lines


def _less_memory(config, piece: tpu.Slice, name: str) -> str:
    space, data = 2 * config.mesh.space, _mesh(config, piece)["data"]
    choices = [f"--config.mesh.space={space}"] if piece.num_chips % space == 0 else []
    if name == "train":
        if not config.model.remat:
            choices.append("--config.model.remat=True")
        halves, rest = divmod(config.batch_size, 2 * config.accumulate_steps)
        if rest == 0 and halves >= 2 and halves % data == 0:
            choices.append(f"--config.accumulate_steps={2 * config.accumulate_steps}")
        if config.batch_size > data:
            choices.append("a smaller --config.batch_size")
    elif config.eval.batch_size > data:
        choices.append("a smaller --config.eval.batch_size")
    if config.model.dtype == "float32":
        choices.append("--config.model.dtype=bfloat16")
    choices.append("chips with more memory")
    return f"{', '.join(choices[:-1])} or {choices[-1]}" if len(choices) > 1 else choices[0]


def _describe(config, piece: tpu.Slice, effort: str) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "jax": importlib.metadata.version("jax"),
        "libtpu": importlib.metadata.version("libtpu"),
        "effort": effort,
        "slice": {"name": piece.name, "topology": piece.topology, "chips": piece.num_chips},
        "chip": piece.chip._asdict(),
        "mesh": _mesh(config, piece),
        "dataset": config.dataset,
        "num_classes": config.num_classes,
        "batch_size": config.batch_size,
        "accumulate_steps": config.accumulate_steps,
        "model": configuration.to_dict(config)["model"],
    }


def _mesh(config, piece: tpu.Slice) -> dict[str, int]:
    data = config.mesh.data if config.mesh.data > 0 else piece.num_chips // config.mesh.space
    return {"data": data, "space": config.mesh.space}


def _compile(config, piece, name, views, size, effort, suffix="") -> dict[str, Any]:
    program = compile_process.compile_for(config, piece, name, views, size, effort, suffix)
    if not program["fits"]:
        return program
    collectives = [hlo.Collective(**item) for item in program["collectives"]]
    sent_bytes = sum(item.sent_bytes for item in collectives)
    dtype = config.model.dtype
    estimate = tpu.estimate(program["flops"], program["moved_bytes"], sent_bytes, piece, dtype)
    return program | {
        "total_bytes": sum(program["memory"].values()),
        "chip_model_flops": program["model_flops"] / piece.num_chips,
        "estimate": estimate._asdict(),
    }


def _rank(program: dict[str, Any]) -> tuple:
    if program["fits"]:
        return (0, program["estimate"]["total"], program["total_bytes"])
    return (1, program["needed_bytes"] or math.inf)


def _largest_batch(config, piece: tpu.Slice, size, effort: str, program: dict[str, Any]) -> dict[str, Any]:
    """What two compiled batches tell, the configuration's and twice or half of it, taking memory to grow linearly."""
    unit = config.accumulate_steps * _mesh(config, piece)["data"]
    other = config.copy_and_resolve_references()
    other.batch_size = 2 * config.batch_size if program["fits"] else config.batch_size // 2 // unit * unit
    if other.batch_size < 2 * config.accumulate_steps:  # a mesh that takes no smaller batch
        points = [(config.batch_size, needed_bytes(program))]
        return {"compiled": points, "pictures": 0, "growing_temporary_bytes": None}
    second = _compile(other, piece, "train", None, size, effort, f" with a batch of {other.batch_size}")
    points = [(each["pictures"], needed_bytes(each)) for each in (program, second)]
    largest = largest_batch_of(points, unit, piece.chip.usable_bytes)
    temporary = None
    if program["fits"] and second["fits"]:
        difference = second["memory"]["temporary"] - program["memory"]["temporary"]
        temporary = difference / (other.batch_size - config.batch_size) * config.batch_size
    return {"compiled": points, "pictures": largest, "growing_temporary_bytes": temporary}


def needed_bytes(program: dict[str, Any]) -> float | None:
    """What a program needs of one chip's memory; None where it does not fit and the compiler does not say."""
    return program["total_bytes"] if program["fits"] else program["needed_bytes"]


def largest_batch_of(points, unit: int, usable_bytes: float) -> int | None:
    """The largest multiple of `unit` pictures that fits, on the line through two points (pictures, bytes a chip).

    0 if none does; None where the points make no line that rises.
    """
    (count1, bytes1), (count2, bytes2) = points
    if bytes1 is None or bytes2 is None or count1 == count2 or (bytes2 - bytes1) / (count2 - count1) <= 0:
        return None
    slope = (bytes2 - bytes1) / (count2 - count1)
    return max(math.floor((usable_bytes - bytes1) / slope + count1) // unit * unit, 0)


def _gib(number: float) -> str:
    return f"{number / 2**30:.2f} GiB"

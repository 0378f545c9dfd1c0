"""The comparison of two runs on the same pictures: one page, and whether they differ in words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from dlv3p_jax import bootstrap, charts, configuration, evaluations, events, page, reporting
from dlv3p_jax.evaluations import Evaluation, ReportError

_SIGNIFICANT = 0.05


def write_comparison(
    a: epath.PathLike, b: epath.PathLike, output: epath.PathLike = "comparison.html"
) -> tuple[str, epath.Path]:
    """Writes the page of two workdirs; returns what it says of the first evaluation that both have, and where it is.

    Raises:
      ReportError: a workdir cannot be reported, or the two were not evaluated alike on the same pictures.
    """
    workdirs, output = (epath.Path(a), epath.Path(b)), epath.Path(output)
    pairs = _pairs(workdirs)
    compared = [bootstrap.compare(*(e.pictures.counts for e in pair), pair[0].report["absent_class"]) for pair in pairs]
    first, report = pairs[0], pairs[0][0].report
    verdict = say(compared[0], len(first[0].pictures.ids))
    columns = {letter: (e.scores["IoU"], e.intervals["IoU"]) for letter, e in zip("AB", first, strict=True)}
    page.write(
        output,
        "comparison.html.j2",
        title=f"Two runs on {report['dataset']} {report['split']}",
        synthetic=report["synthetic"],
        dataset=report["dataset"],
        num_pictures=report["num_pictures"],
        split=report["split"],
        absent=reporting.ABSENT[report["absent_class"]],
        runs=[
            {"letter": letter, "workdir": workdir, "checkpoint": e.report["checkpoint"], "step": e.step}
            for letter, workdir, e in zip("AB", workdirs, first, strict=True)
        ],
        verdict=verdict,
        rows=[
            {"title": pair[0].title, "a": pair[0].scores["mIoU"], "b": pair[1].scores["mIoU"], "comparison": comparison}
            for pair, comparison in zip(pairs, compared, strict=True)
        ],
        permutations=f"{bootstrap.PERMUTATIONS:,}",
        chart=charts.intervals("classes", "IoU", report["class_names"], columns),
        classes=[
            {"name": name, "a": a_value, "b": b_value}
            for name, a_value, b_value in zip(report["class_names"], *(e.scores["IoU"] for e in first), strict=True)
        ],
        main_title=first[0].title,
        curves=reporting.draw_curves(
            {letter: events.read_scalars(workdir) for letter, workdir in zip("AB", workdirs, strict=True)}
        ),
        config=_config_differences(workdirs),
    )
    return verdict, output


def say(comparison: bootstrap.Comparison, num_pictures: int) -> str:
    """What a comparison means, in a sentence or two."""
    points, (lower, upper) = 100 * comparison.difference, (100 * bound for bound in comparison.interval)
    numbers = (
        f"{abs(points):.2f} points of mIoU (B - A = {points:+.2f}, 95 % interval {lower:+.2f} to {upper:+.2f}, "
        f"p = {comparison.p:.2g}, {num_pictures} pictures)"
    )
    if comparison.p < _SIGNIFICANT:
        better = "B is better than A" if points > 0 else "A is better than B"
        return f"The difference is real: {better} by {numbers}."
    few = " So few pictures can hardly tell." if num_pictures < 20 else ""
    return f"No real difference is seen: A and B differ by {numbers}, which chance alone may explain.{few}"


def _pairs(workdirs: Sequence[epath.Path]) -> list[tuple[Evaluation, Evaluation]]:
    """The evaluations that both have, the first run's first; they are of the same classes, pictures and labels."""
    a, b = ({e.name: e for e in evaluations.read(workdir)} for workdir in workdirs)
    for key, what in (("dataset", "data sets"), ("split", "splits"), ("class_names", "classes")):
        values = [next(iter(found.values())).report[key] for found in (a, b)]
        if values[0] != values[1]:
            raise ReportError(f"{workdirs[0]} and {workdirs[1]} are of different {what}: {_brief(*values)}")
    shared = [(a[name], b[name]) for name in a if name in b]
    if not shared:
        had = " and ".join(", ".join(e.title for e in found.values()) for found in (a, b))
        raise ReportError(f"{workdirs[0]} and {workdirs[1]} were not evaluated alike: {had}; evaluate both alike")
    for pair in shared:
        _check_same(pair, workdirs)
    return shared


def _check_same(pair: tuple[Evaluation, Evaluation], workdirs: Sequence[epath.Path]) -> None:
    for evaluation, workdir in zip(pair, workdirs, strict=True):
        if evaluation.pictures is None:
            path = workdir / "eval" / f"{evaluation.step}.{evaluation.name}.npz"
            raise ReportError(f"{path}, the counts of single pictures, is not there: evaluate {workdir} again")
    a, b = (evaluation.pictures for evaluation in pair)
    names = " and ".join(map(str, workdirs))
    if a.ids != b.ids:
        other = sorted({*a.ids} ^ {*b.ids})
        what = f"{other[0]} is only in one of them" if other else "their order differs"
        raise ReportError(f"{names} were evaluated on different pictures, {len(a.ids)} and {len(b.ids)}: {what}")
    changed = np.flatnonzero((a.counts[:, 1] != b.counts[:, 1]).any(axis=1))
    if len(changed):
        raise ReportError(
            f"{names} were evaluated with different labels of {len(changed)} pictures: {a.ids[changed[0]]}"
        )
    conventions = [evaluation.report["absent_class"] for evaluation in pair]
    if conventions[0] != conventions[1]:
        raise ReportError(f"{names} count absent classes differently: --absent_class={' and '.join(conventions)}")


def _brief(a, b) -> str:
    """Two values, or where both are lists the first items that differ."""
    if isinstance(a, list):
        if len(a) != len(b):
            return f"{len(a)} and {len(b)}"
        index = next(index for index, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
        return f"class {index} is {a[index]} and {b[index]}"
    return f"{a} and {b}"


def _config_differences(workdirs: Sequence[epath.Path]) -> list[dict[str, Any]] | None:
    """The keys that differ; None where a run has no config.json."""
    paths = [workdir / "config.json" for workdir in workdirs]
    if not all(path.exists() for path in paths):
        return None
    a, b = (configuration.to_dict(configuration.read(path)) for path in paths)
    return [{"key": key, "a": x, "b": y} for key, (x, y) in configuration.differences(a, b).items()]

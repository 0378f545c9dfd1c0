"""The comparison of two runs on the same pictures: one page, and whether they differ in words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from dlv3p_jax.evaluation import bootstrap, files, picture_scores
from dlv3p_jax.evaluation.files import Evaluation, ReportError
from dlv3p_jax.reporting import charts, html, run_page
from dlv3p_jax.runtime import configuration, events

_SIGNIFICANT = 0.05


def write_comparison(
    a: epath.PathLike, b: epath.PathLike, output: epath.PathLike | None = None
) -> tuple[str, epath.Path]:
    """Writes the page of two workdirs; returns what it says of the first evaluation that both have, and where it is.

    Args:
      a: the workdir of the first run.
      b: that of the second.
      output: the file to write; None: A/comparison.html.

    Raises:
      ReportError: a workdir cannot be reported, or the two were not evaluated alike on the same pictures.
    """
    workdirs = epath.Path(a), epath.Path(b)
    output = workdirs[0] / "comparison.html" if output is None else epath.Path(output)
    pairs = _pairs(*workdirs)
    compared = [_compare(*pair, *workdirs) for pair in pairs]
    first, report = pairs[0], pairs[0][0].report
    verdict = say(compared[0], report["num_pictures"])
    columns = {letter: (e.scores["IoU"], e.interval("IoU")) for letter, e in zip("AB", first, strict=True)}
    html.write(
        output,
        "comparison.html.j2",
        title=f"Two runs on {report['dataset']} {report['split']}",
        synthetic=report["synthetic"],
        dataset=report["dataset"],
        num_pictures=report["num_pictures"],
        split=report["split"],
        absent=run_page.ABSENT[report["absent_class"]],
        runs=[
            {"letter": letter, "workdir": workdir, "checkpoint": e.report["checkpoint"] or "unknown", "step": e.step}
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
        curves=run_page.draw_curves(
            {letter: events.read_scalars(workdir) for letter, workdir in zip("AB", workdirs, strict=True)}
        ),
        config=_config_differences(workdirs),
    )
    return verdict, output


def say(comparison: bootstrap.Comparison, num_pictures: int) -> str:
    """What a comparison means, in a sentence or two."""
    points, interval = 100 * comparison.difference, "no interval"
    if comparison.interval is not None:
        interval = "95 % interval {:+.2f} to {:+.2f}".format(*(100 * bound for bound in comparison.interval))
    numbers = (
        f"{abs(points):.2f} points of mIoU (B - A = {points:+.2f}, {interval}, "
        f"p = {comparison.p:.2g}, {num_pictures} pictures)"
    )
    if comparison.p < _SIGNIFICANT:
        better = "B is better than A" if points > 0 else "A is better than B"
        return f"The difference is real: {better} by {numbers}."
    few = " So few pictures can hardly tell." if num_pictures < 20 else ""
    return f"No real difference is seen: A and B differ by {numbers}, which chance alone may explain.{few}"


def _pairs(a: epath.Path, b: epath.Path) -> list[tuple[Evaluation, Evaluation]]:
    """The evaluations that both have, A's first; they are of the same data set, split and classes."""
    ours, theirs = ({e.name: e for e in files.read(workdir)} for workdir in (a, b))
    for key, what in (("dataset", "data sets"), ("split", "splits"), ("class_names", "classes")):
        values = [next(iter(found.values())).report[key] for found in (ours, theirs)]
        if values[0] != values[1]:
            raise ReportError(f"{a} and {b} are of different {what}: {_brief(*values)}")
    shared = [(ours[name], theirs[name]) for name in ours if name in theirs]
    if not shared:
        had = " and ".join(", ".join(e.title for e in found.values()) for found in (ours, theirs))
        raise ReportError(f"{a} and {b} were not evaluated alike: {had}; evaluate both alike")
    return shared


def _compare(ours: Evaluation, theirs: Evaluation, a: epath.Path, b: epath.Path) -> bootstrap.Comparison:
    """The two by their pictures, which have to be the same."""
    pictures, others = _pictures(ours, a), _pictures(theirs, b)
    if pictures.ids != others.ids:
        other = sorted({*pictures.ids} ^ {*others.ids})
        what = f"{other[0]} is only in one of them" if other else "their order differs"
        numbers = f"{len(pictures.ids)} and {len(others.ids)}"
        raise ReportError(f"{a} and {b} were evaluated on different pictures, {numbers}: {what}")
    changed = np.flatnonzero((pictures.counts[:, 1] != others.counts[:, 1]).any(axis=1))
    if len(changed):
        example = pictures.ids[changed[0]]
        raise ReportError(f"{a} and {b} were evaluated with different labels of {len(changed)} pictures: {example}")
    conventions = [evaluation.report["absent_class"] for evaluation in (ours, theirs)]
    if conventions[0] != conventions[1]:
        raise ReportError(f"{a} and {b} count absent classes differently: --absent_class={' and '.join(conventions)}")
    try:
        return bootstrap.compare(pictures.counts, others.counts, conventions[0])
    except ValueError as error:
        raise ReportError(f"{a} and {b} cannot be compared: {error}") from error


def _pictures(evaluation: Evaluation, workdir: epath.Path) -> picture_scores.PictureScores:
    if evaluation.pictures is None:
        path = workdir / "eval" / f"{evaluation.step}.{evaluation.name}.npz"
        raise ReportError(f"{path}, the counts of single pictures, is not there: evaluate {workdir} again")
    return evaluation.pictures


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

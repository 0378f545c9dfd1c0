"""The comparison of runs on the same pictures: one page, and whether they differ in words."""

import string
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from dlv3p_jax.data import viz
from dlv3p_jax.evaluation import bootstrap, files, picture_scores
from dlv3p_jax.evaluation.files import Evaluation, ReportError
from dlv3p_jax.reporting import cards, changes, charts, html, run_page
from dlv3p_jax.runtime import configuration, events

_SIGNIFICANT = 0.05


def write_comparison(
    workdirs: Sequence[epath.PathLike], output: epath.PathLike | None = None
) -> tuple[str, epath.Path]:
    """Writes the page of several workdirs; the first is A, and each other is compared with it.

    Args:
      workdirs: of two to six runs, of which each has a colour.
      output: the file to write; None: A/comparison.html.

    Returns:
      What it says of the first evaluation that all have, a line for each run but A, and where the page is.

    Raises:
      ReportError: a workdir cannot be reported, or two were not evaluated alike on the same pictures.
    """
    workdirs = [epath.Path(workdir) for workdir in workdirs]
    letters = string.ascii_uppercase[: len(workdirs)]
    output = workdirs[0] / "comparison.html" if output is None else epath.Path(output)
    shared = _shared(workdirs)
    compared = [
        [_compare(row[0], theirs, workdirs[0], workdir) for theirs, workdir in zip(row[1:], workdirs[1:], strict=True)]
        for row in shared
    ]
    first, report = shared[0], shared[0][0].report
    significant = _SIGNIFICANT / len(compared[0])
    verdicts = [
        say(comparison, report["num_pictures"], letter, significant)
        for letter, comparison in zip(letters[1:], compared[0], strict=True)
    ]
    find = changes.finder(first, workdirs[0])
    gained, lost = viz.free_colors(cards.palette(first[0]), 2)
    html.write(
        output,
        "comparison.html.j2",
        title=f"{len(workdirs)} runs on {report['dataset']} {report['split']}",
        synthetic=report["synthetic"],
        dataset=report["dataset"],
        num_pictures=report["num_pictures"],
        split=report["split"],
        absent=run_page.ABSENT[report["absent_class"]],
        runs=[
            {"letter": letter, "color": color, "workdir": workdir, "step": e.step}
            | {"checkpoint": e.report["checkpoint"] or "unknown"}
            for letter, color, workdir, e in zip(letters, charts.COLORS, workdirs, first, strict=False)
        ],
        verdicts=verdicts,
        significant=f"{significant:.2g}",
        rows=[
            {"title": row[0].title, "values": [e.scores["mIoU"] for e in row], "comparisons": comparisons}
            for row, comparisons in zip(shared, compared, strict=True)
        ],
        permutations=f"{bootstrap.PERMUTATIONS:,}",
        chart=charts.intervals(
            *("classes", "IoU", report["class_names"]),
            {letter: (e.scores["IoU"], e.interval("IoU")) for letter, e in zip(letters, first, strict=True)},
        ),
        classes=[
            {"name": name, "values": values}
            for name, *values in zip(report["class_names"], *(e.scores["IoU"] for e in first), strict=True)
        ],
        main_title=first[0].title,
        changes=[
            {"letter": letter} | changes.largest(first[0], theirs, letter, find, (gained, lost))
            for letter, theirs in zip(letters[1:], first[1:], strict=True)
        ],
        layers=changes.LAYERS,
        legend=cards.legend(first[0], {"only A is wrong": gained, "only the other is wrong": lost}),
        curves=run_page.draw_curves(
            {letter: events.read_scalars(workdir) for letter, workdir in zip(letters, workdirs, strict=True)}
        ),
        config=_config_differences(workdirs),
    )
    return "\n".join(verdicts), output


def say(
    comparison: bootstrap.Comparison, num_pictures: int, letter: str = "B", significant: float = _SIGNIFICANT
) -> str:
    """What a comparison of A with run `letter` means, in a sentence or two; `p` below `significant` is called real."""
    points, interval = 100 * comparison.difference, "no interval"
    if comparison.interval is not None:
        interval = "95 % interval {:+.2f} to {:+.2f}".format(*(100 * bound for bound in comparison.interval))
    numbers = (
        f"{abs(points):.2f} points of mIoU ({letter} - A = {points:+.2f}, {interval}, "
        f"p = {comparison.p:.2g}, {num_pictures} pictures)"
    )
    if comparison.p < significant:
        better = f"{letter} is better than A" if points > 0 else f"A is better than {letter}"
        return f"The difference is real: {better} by {numbers}."
    few = " So few pictures can hardly tell." if num_pictures < 20 else ""
    return f"No real difference is seen: A and {letter} differ by {numbers}, which chance alone may explain.{few}"


def _shared(workdirs: Sequence[epath.Path]) -> list[list[Evaluation]]:
    """The evaluations that all have, of each one a run, A's first; they are of one data set, split and classes."""
    found = [{e.name: e for e in files.read(workdir)} for workdir in workdirs]
    ours = found[0]
    for workdir, theirs in zip(workdirs[1:], found[1:], strict=True):
        both = f"{workdirs[0]} and {workdir}"
        for key, what in (("dataset", "data sets"), ("split", "splits"), ("class_names", "classes")):
            values = [next(iter(evaluations.values())).report[key] for evaluations in (ours, theirs)]
            if values[0] != values[1]:
                raise ReportError(f"{both} are of different {what}: {_brief(*values)}")
        if not ours.keys() & theirs.keys():
            had = " and ".join(", ".join(e.title for e in evaluations.values()) for evaluations in (ours, theirs))
            raise ReportError(f"{both} were not evaluated alike: {had}; evaluate both alike")
    names = [name for name in ours if all(name in theirs for theirs in found)]
    if not names:
        raise ReportError(f"no evaluation is in all of {', '.join(map(str, workdirs))}; evaluate all alike")
    return [[evaluations[name] for evaluations in found] for name in names]


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
    """The keys that differ, with the value of each run; None where a run has no config.json."""
    paths = [workdir / "config.json" for workdir in workdirs]
    if not all(path.exists() for path in paths):
        return None
    configs = [configuration.to_dict(configuration.read(path)) for path in paths]
    flat = [flatten_dict(config, sep=".") for config in configs]
    keys = {key: None for other in configs[1:] for key in configuration.differences(configs[0], other)}
    return [{"key": key, "values": [config.get(key) for config in flat]} for key in keys]

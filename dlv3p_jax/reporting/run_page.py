"""The report of a run: one page with its curves, scores, errors, pictures and circumstances."""

import datetime
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from flax.traverse_util import flatten_dict

from dlv3p_jax.configs import common
from dlv3p_jax.data import viz
from dlv3p_jax.evaluation import bootstrap, files
from dlv3p_jax.evaluation.files import Evaluation
from dlv3p_jax.reporting import cards, charts, html, mistakes
from dlv3p_jax.runtime import configuration, events, text

ABSENT = {
    "nan": "A class in neither labels nor predictions is n/a, and left out of the means.",
    "one": "A class in neither labels nor predictions counts as an IoU of 1, as PaddleSeg counts it.",
}
_UNKNOWN = "unknown (of an older version)"


def write_report(
    workdir: epath.PathLike, output: epath.PathLike | None = None, step: int | None = None, split: str | None = None
) -> epath.Path:
    """Writes the report of a run, and returns where: `output`, or WORKDIR/report.html, of a split report-SPLIT.html.

    Args:
      workdir: of the run.
      output: the file; it appears whole or not at all.
      step, split: of which evaluations; None: see `files.read`.

    Raises:
      ReportError: there is nothing to report, or a file is damaged.
    """
    workdir = epath.Path(workdir)
    name = "report.html" if split is None else f"report-{split}.html"
    output = workdir / name if output is None else epath.Path(output)
    found = files.read(workdir, step, split)
    main = found[0]
    damage: list[str] = []
    report, scalars = main.report, events.read_scalars(workdir, damage.append)
    damage += _cut_short(workdir, scalars, main.step)
    for line in damage:
        logging.warning("%s", line)
    (wrong,) = viz.free_colors(cards.palette(main), 1)
    html.write(
        output,
        "report.html.j2",
        title=f"DeepLabV3+ {_backbone(main)}on {report['dataset']} {report['split']}: "
        f"mIoU {text.percent(float(main.scores['mIoU']), ' %')}",
        synthetic=report["synthetic"],
        dataset=report["dataset"],
        split=report["split"],
        step=main.step,
        checkpoint=report["checkpoint"] or _UNKNOWN,
        num_pictures=report["num_pictures"],
        absent=ABSENT[report["absent_class"]],
        resamples=f"{bootstrap.RESAMPLES:,}",
        has_intervals=any(evaluation.intervals for evaluation in found),
        columns=[_column(evaluation) for evaluation in found],
        curves=draw_curves({"": scalars}),
        class_chart=charts.intervals(
            *("classes", "IoU", report["class_names"]),
            {evaluation.title: (evaluation.scores["IoU"], evaluation.interval("IoU")) for evaluation in found},
        ),
        classes=_classes(found),
        main_title=main.title,
        matrix=mistakes.shares(main.matrix).tolist() if mistakes.has_matrix(main) else None,
        confusions=mistakes.confusions(main),
        cells=mistakes.cells(main),
        doubts=mistakes.doubts(main),
        calibration=mistakes.reliability(main),
        pictures=mistakes.pictures(main, wrong),
        legend=cards.legend(main, {"wrong (a colour of no class)": wrong}),
        facts=[*_facts(found, scalars), *(("damaged", line) for line in damage)],
        config=_config(workdir),
    )
    return output


def write_after_run(workdir: epath.PathLike, step: int | None = None) -> None:
    """In process 0, writes the report of a run that is done and prints where.

    Whatever goes wrong is one line of warning. `step` is that of `write_report`.
    """
    if jax.process_index() > 0:
        return
    try:
        print(f"page: {write_report(workdir, step=step)}", flush=True)
    except Exception as error:
        logging.debug("The traceback of the warning below", exc_info=True)
        logging.warning("%s has no report.html: %s", workdir, error)


def draw_curves(runs: Mapping[str, Mapping[str, Sequence[events.Point]]]) -> list[str]:
    """SVGs of mIoU, loss and learning rate over the steps of one or several runs, `{name: events.read_scalars(…)}`.

    Of several, each keeps its colour in all charts.
    """
    drawn = []
    for name, title, tags in (
        ("miou", "mIoU on the evaluated split, %", {"eval/mIoU": "", "eval_ema/mIoU": "EMA"}),
        ("loss", "Loss", {"train/loss": "training", "eval/loss": "validation", "eval_ema/loss": "validation, EMA"}),
        ("rate", "Learning rate", {"train/learning_rate": ""}),
    ):
        lines = []
        for number, (run, scalars) in enumerate(runs.items()):
            for variant, (tag, words) in enumerate(tags.items()):
                points = scalars.get(tag, ())
                if len(points) > 1:
                    label = " ".join(filter(None, (run, words))) or "as trained"
                    steps, values = [point.step for point in points], [point.value for point in points]
                    lines.append(charts.Curve(label, steps, values, number if len(runs) > 1 else variant, variant))
        if lines:
            drawn.append(charts.curves(name, title, lines, percent=name == "miou"))
    return drawn


def _backbone(evaluation: Evaluation) -> str:
    model = evaluation.report["model"]
    return "" if model is None else f"{model['backbone']} "


def _cell(evaluation: Evaluation, name: str, index=...) -> dict[str, Any]:
    bounds = evaluation.interval(name)
    return {
        "value": float(evaluation.scores[name][index]),
        "interval": None if bounds is None or np.isnan(bounds[index]).any() else bounds[index].tolist(),
    }


def _column(evaluation: Evaluation) -> dict[str, Any]:
    names = ("mIoU", "accuracy", "mean_accuracy")
    return {"title": evaluation.title} | {name: _cell(evaluation, name) for name in names}


def _classes(found: Sequence[Evaluation]) -> list[dict[str, Any]]:
    report = found[0].report
    pixels = found[0].matrix.sum(1)
    colors = cards.palette(found[0])
    return [
        {
            "name": name,
            "color": cards.hex_color(colors[index]),
            "iou": [_cell(evaluation, "IoU", index) for evaluation in found],
            "accuracy": [_cell(evaluation, "class_accuracy", index) for evaluation in found],
            "share": pixels[index] / max(pixels.sum(), 1),
        }
        for index, name in enumerate(report["class_names"])
    ]


def _facts(found: Sequence[Evaluation], scalars: Mapping[str, Sequence[events.Point]]) -> list[tuple[str, str]]:
    report = found[0].report
    facts = [("trained", line) for line in _training(scalars)]
    for evaluation in found:
        then, seconds = evaluation.report, evaluation.report["seconds"]
        speed = f"{seconds:.1f} s, {then['num_pictures'] / seconds:.2f} pictures/s, with reading and compiling"
        circumstances = (then.get("date"), speed, then.get("devices"), then["checkpoint"])
        facts.append((f"evaluated, {evaluation.title}", "; ".join(filter(None, circumstances))))
        if evaluation.missing:
            unsaid = f"does not say {', '.join(evaluation.missing)}; absent_class was nan then"
            facts.append(("of an older version", f"{evaluation.title}: {unsaid}"))
    versions = ", ".join(f"{name} {version}" for name, version in report.get("versions", {}).items())
    return facts + [
        ("version", ", ".join(filter(None, (f"dlv3p_jax {report['version'] or _UNKNOWN}", versions)))),
        ("git revision", report.get("git_revision") or "unknown"),
    ]


def _cut_short(workdir: epath.Path, scalars: Mapping[str, Sequence[events.Point]], evaluated: int) -> list[str]:
    """A line where event files end more than an interval of logging before the step that was evaluated."""
    steps = sorted({point.step for points in scalars.values() for point in points})
    interval = max((after - before for before, after in itertools.pairwise(steps)), default=0)
    last = steps[-1] if steps else 0
    if last + interval >= evaluated or not any(workdir.glob("events.out.tfevents.*")):
        return []
    return [
        f"what {workdir} has logged ends at step {last}, before step {evaluated}, which was evaluated: an event file "
        "is cut short or gone, or not written yet"
    ]


def _training(scalars: Mapping[str, Sequence[events.Point]]) -> list[str]:
    """How long and how fast, in a line, if anything was logged."""
    points, speeds = scalars.get("train/loss"), scalars.get("train/pictures_per_second")
    if not points or not speeds:
        return []
    duration = datetime.timedelta(seconds=max(round(points[-1].time - points[0].time), 0))  # clocks may be wrong
    median = float(np.median([point.value for point in speeds]))
    return [
        f"{points[-1].step} steps; {duration} from the first log line to the last; {median:.2f} pictures/s (median)"
    ]


def _config(workdir: epath.Path) -> list[dict[str, Any]]:
    path = workdir / "config.json"
    if not path.exists():
        return []
    try:
        written = configuration.to_dict(configuration.read(path))
    except configuration.ConfigError as error:
        raise files.ReportError(str(error)) from error
    changed = configuration.differences(configuration.to_dict(common.get_config()), written)
    values = flatten_dict(written, sep=".")
    return [{"key": key, "value": json.dumps(value), "changed": key in changed} for key, value in values.items()]

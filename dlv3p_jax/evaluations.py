"""The files of evaluations in a workdir: written, and read again and checked."""

import dataclasses
import functools
import json
from typing import Any

import numpy as np
import PIL.Image
from absl import logging
from etils import epath

from dlv3p_jax import bootstrap, metrics, picture_scores

_HOW = "evaluate with python -m dlv3p_jax.main --mode=eval"

_KEYS = (
    "checkpoint",
    "dataset",
    "num_pictures",
    "seconds",
    "split",
    "synthetic",
    "version",
)  # and what Evaluation reads


class ReportError(ValueError):
    """There is nothing to report, or it cannot be read; the message names the file and says what to do."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation: `report` is its JSON, `pictures` what was kept of its pictures, None where that is absent.

    `name` is that of its files below WORKDIR/eval without the step, such as 'plain' or 'ema.scales-0.75-1-1.25-flip'.
    """

    name: str
    step: int
    report: dict[str, Any]
    pictures: picture_scores.PictureScores | None

    @property
    def is_ema(self) -> bool:
        return self.name.startswith("ema.")

    @property
    def title(self) -> str:
        """How it was evaluated, for people."""
        report, parts = self.report, []
        if report["flip"]:
            parts.append("flip")
        if report["scales"] != [1.0]:
            parts.append("scales " + ", ".join(f"{scale:g}" for scale in report["scales"]))
        if report["window"]:
            parts.append("window {}x{}".format(*report["window"]))
            if report["stride"]:
                parts.append("stride {}x{}".format(*report["stride"]))
        if report["average"] != "logits" and parts:
            parts.append(report["average"])
        if not parts:
            parts.append("plain")
        if report["eval_size"]:
            parts.append("padded {}x{}".format(*report["eval_size"]))
        return " + ".join(parts) + (" (EMA)" if self.is_ema else "")

    @functools.cached_property
    def matrix(self) -> np.ndarray:
        """int64 `[C, C]` [label, prediction]."""
        return np.array(self.report["confusion_matrix"], np.int64)

    @functools.cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """What `metrics.scores` says of the whole data set."""
        return metrics.scores(metrics.pixel_counts(self.matrix), self.report["absent_class"])

    @functools.cached_property
    def intervals(self) -> dict[str, np.ndarray] | None:
        """`bootstrap.intervals`; None where the single pictures were not kept."""
        if self.pictures is None:
            return None
        return bootstrap.intervals(self.pictures.counts, self.report["absent_class"])

    def interval(self, name: str) -> np.ndarray | None:
        """That of a score, (lower, upper) in the last axis, see `bootstrap.intervals`; None where there are none."""
        return None if self.intervals is None else self.intervals[name]


def write(
    folder: epath.Path,
    name: str,
    views: str,
    report: dict[str, Any],
    sheet: PIL.Image.Image,
    pictures: picture_scores.PictureScores,
) -> None:
    """Writes NAME.json and NAME.png, the same as NAME.VIEWS.*, and NAME.VIEWS.npz; each is whole or not there.

    What is overwritten of another run's checkpoint is logged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before, now = _checkpoint_in(folder / f"{name}.{views}.json"), report["checkpoint"]
    if before is not None and _run(before) != _run(now):
        logging.warning("%s/%s.%s.json was of %s, and is now of %s", folder, name, views, before, now)
    for stem in (name, f"{name}.{views}"):
        unfinished = folder / f".{stem}.unfinished"
        unfinished.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(folder / f"{stem}.json")
        with unfinished.open("wb") as file:
            sheet.save(file, format="PNG")
        unfinished.replace(folder / f"{stem}.png")
    picture_scores.write(folder / f"{name}.{views}.npz", pictures)


def _checkpoint_in(report: epath.Path) -> str | None:
    """The checkpoint that a report is of; None if there is no such report, or it does not say."""
    try:
        return json.loads(report.read_text(encoding="utf-8"))["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _run(checkpoint: str) -> str:
    """The workdir of a checkpoint of a run; of another, its own path."""
    return checkpoint.split("/checkpoints/")[0]


def read(workdir: epath.Path, step: int | None = None) -> list[Evaluation]:
    """The evaluations of one step, the simplest first and the averaged model's before the plain one's.

    Those of another run, model (its configuration), data set, split, classes or `absent_class` than the first's cannot
    stand beside it: they are left out, with a warning.

    Args:
      workdir: of a run.
      step: whose; None: of the best checkpoint where it was evaluated, else the last that was.

    Raises:
      ReportError: there are none, or a file is damaged.
    """
    folder = workdir / "eval"
    if not workdir.is_dir():
        raise ReportError(f"{workdir} is no folder: give the --workdir of a run")
    names = (
        [path.name.removesuffix(".json").partition(".") for path in folder.glob("*.json")] if folder.is_dir() else []
    )
    # What has no views in its name is the newest of the others once more.
    names = [(int(number), name) for number, _, name in names if number.isdigit() and name not in ("", "ema")]
    steps = sorted({number for number, _ in names})
    if not steps:
        raise ReportError(f"{folder} holds no evaluations: {_HOW} --workdir={workdir}")
    if step is None:
        best = workdir / "checkpoints" / "best"
        kept = [int(path.name) for path in best.iterdir() if path.name.isdigit()] if best.is_dir() else []
        step = max(set(kept) & set(steps) or steps)
    elif step not in steps:
        raise ReportError(f"step {step} of {workdir} was not evaluated: take one of {', '.join(map(str, steps))}")
    evaluations = [_read(folder / f"{step}.{name}.json", step, name) for number, name in names if number == step]
    evaluations.sort(key=_complexity)
    differences = [(e, _differences(evaluations[0], e)) for e in evaluations]
    left_out = "; ".join(f"{step}.{e.name}.json (another {', '.join(keys)})" for e, keys in differences if keys)
    if left_out:
        logging.warning("Left out beside %s/%s.%s.json: %s", folder, step, evaluations[0].name, left_out)
    return [e for e, keys in differences if not keys]


def _differences(a: Evaluation, b: Evaluation) -> list[str]:
    """What keeps two evaluations of one step from standing side by side."""
    keys = ("dataset", "split", "class_names", "model", "absent_class")
    differing = [key for key in keys if a.report[key] != b.report[key]]
    return differing if _run(a.report["checkpoint"]) == _run(b.report["checkpoint"]) else ["run", *differing]


def _complexity(evaluation: Evaluation):
    report = evaluation.report
    views = (len(report["scales"]), report["flip"], report["window"] is not None)
    return report["split"] != "val", not evaluation.is_ema, *views, evaluation.name


def _read(path: epath.Path, step: int, name: str) -> Evaluation:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        number = len(report["class_names"])
        if np.shape(report["confusion_matrix"]) != (number, number) or len(report["IoU"]) != number:
            raise ValueError(f"it is not of {number} classes throughout")
        evaluation = Evaluation(name, step, report, picture_scores.read(path.with_suffix(".npz")))
        _ = evaluation.title, evaluation.scores, report["model"]["backbone"], [report[key] for key in _KEYS]
    except picture_scores.PictureScoresError as error:
        raise ReportError(f"{error}: {_HOW} again, or remove it") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ReportError(f"{path} is damaged ({reason}): {_HOW} again, or remove it") from error
    pictures = evaluation.pictures
    if pictures is not None and not np.array_equal(
        pictures.counts.sum(0, dtype=np.int64), metrics.pixel_counts(evaluation.matrix)
    ):
        raise ReportError(f"{path} and the .npz beside it are not of one evaluation: {_HOW} again, or remove the .npz")
    return evaluation

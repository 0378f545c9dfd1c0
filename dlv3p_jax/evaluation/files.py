"""The files of evaluations in a workdir: written, and read again and checked."""

import contextlib
import dataclasses
import functools
import json
import os
import shlex
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import PIL.Image
from absl import logging
from etils import epath

from dlv3p_jax.data.pictures import encode
from dlv3p_jax.evaluation import bootstrap, metrics, picture_scores
from dlv3p_jax.evaluation.views import Views
from dlv3p_jax.runtime import disk_errors, files, sealing
from dlv3p_jax.runtime.errors import UserError

_HOW = "evaluate with python -m dlv3p_jax.main --mode=eval"

_KEYS = ("dataset", "num_pictures", "seconds", "split")  # and what Evaluation reads
# What the first versions did not write, and how it was then; None: not known.
_SINCE: dict[str, Any] = {"absent_class": "nan", "checkpoint": None, "model": None, "version": None}
_OF_DATA = ("dataset", "class_names", "num_pictures", "label_pixels")
_TOY = "toy_streets"  # the one data set of then that is synthetic
_OWN = "."  # in place of its path, so that a workdir may be moved and copied


def evaluation_name(config) -> str:
    """A name for how `config` evaluates, such as 'plain' or 'scales-0.75-1-1.25-flip-padded-512x512-train'.

    Two evaluations of the same name were made in the same way, but maybe of different data sets, or with another
    `absent_class`. The split is named where it is not 'val'.
    """
    parts = [Views.of(config.eval).name]
    if config.eval_size is not None:
        parts.append("padded-{}x{}".format(*config.eval_size))
    if config.eval_split != "val":
        parts.append(config.eval_split)
    return "-".join(parts)


class ReportError(UserError):
    """There is nothing to report, or it cannot be read; the message names the file and says what to do."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation: `report` is its JSON, `pictures` what was kept of its pictures, None where that is absent.

    `name` is that of its files below WORKDIR/eval without the step, such as 'plain' or 'ema.scales-0.75-1-1.25-flip'.
    `run` is the run that was evaluated: '.' for the workdir's own, another's path, or None where an older version did
    not say. `missing` are the keys of `report` that an older version did not write, which are as it was then, or None.
    """

    name: str
    step: int
    report: dict[str, Any]
    pictures: picture_scores.PictureScores | None
    run: str | None = _OWN
    missing: tuple[str, ...] = ()

    @property
    def is_ema(self) -> bool:
        return self.name.startswith("ema.")

    @property
    def title(self) -> str:
        """How it was evaluated, for people."""
        padded = self.report["eval_size"]
        parts = [Views.of(self.report).title, *(["padded {}x{}".format(*padded)] if padded else [])]
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

    The JSON has a seal, the digest of the .npz and the run: '.' where the checkpoint lies in the workdir that `folder`
    is of. Of several processes that write at once, each writes all before the next. What is overwritten of another
    run's checkpoint, or of other data, is logged.
    """
    png = encode(sheet)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder):
        before, now = _report_in(folder / f"{name}.{views}.json"), report | {"run": _run(report, folder.parent)}
        if before is not None and _run(before, folder.parent) != now["run"]:
            values = (before["checkpoint"], now["checkpoint"])
            logging.warning("%s/%s.%s.json was of %s, and is now of %s", folder, name, views, *values)
        if before is not None and (changed := [key for key in _OF_DATA if before.get(key) not in (None, now.get(key))]):
            logging.warning(
                "%s/%s.%s.json was of other data (another %s), which are now replaced", folder, name, views, changed[0]
            )
        now["pictures_sha256"] = picture_scores.write(folder / f"{name}.{views}.npz", pictures)
        text = json.dumps(sealing.seal(now), indent=2) + "\n"
        for stem in (name, f"{name}.{views}"):
            files.write(folder / f"{stem}.json", text)
            files.write(folder / f"{stem}.png", png)


@contextlib.contextmanager
def _alone_in(folder: epath.Path) -> Iterator[None]:
    """Lets one process at a time read or write there, as far as the file system can."""
    if "://" in str(folder):
        yield
        return
    waiting = f"Another process is at {folder}: waiting for it"
    with files.lock_if_possible(folder / ".lock", waiting, seconds=60) as locked:  # it takes a second, if it runs
        if locked:
            files.remove_unfinished(folder)
        yield


def _report_in(path: epath.Path) -> dict[str, Any] | None:
    """A report; None if there is none, or it does not say of which checkpoint it is."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return report if isinstance(report["checkpoint"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _run(report: dict[str, Any], workdir: epath.Path, was: Collection[str] = ()) -> str | None:
    """The run that a report is of, by the workdir of its checkpoint, or where it has none, by its own path.

    '.' for `workdir` itself, as well as for its paths of before, `was`; None if the report does not say.
    """
    if "run" in report or report.get("checkpoint") is None:
        return report.get("run")
    path = report["checkpoint"].split("/checkpoints/")[0]
    return _OWN if path in was or _spelled(path) == _spelled(str(workdir)) else path


def _spelled(path: str) -> str:
    return path if "://" in path else os.path.realpath(path)


def _paths_before(folder: epath.Path) -> set[str]:
    """The paths that a workdir had when an older version trained in it, which named them in the reports of training.

    None where any report names the workdir as it is now, which then was not moved.
    """
    reports = [report for report in map(_report_in, folder.glob("*.json")) if report and "run" not in report]
    if any(_run(report, folder.parent) == _OWN for report in reports):
        return set()
    trained = (report["checkpoint"] for report in reports if report.get("step"))  # converted weights have step 0
    return {path for path in trained if "/checkpoints/" not in path}


def read(workdir: epath.Path, step: int | None = None, split: str | None = None) -> list[Evaluation]:
    """The evaluations of one step, the simplest first.

    The averaged model's are before the plain one's, unless this is the best checkpoint and the plain model was better.

    Those of another run, model (its configuration), data set, split, classes or `absent_class` than the first's cannot
    stand beside it: they are left out, with a warning.

    Args:
      workdir: of a run.
      step: whose; None: of the best checkpoint where it was evaluated, else the last that was.
      split: of which; None: of val where it was evaluated, else of whichever was.

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
        raise ReportError(f"{folder} holds no evaluations: {_HOW} --workdir={shlex.quote(str(workdir))}")
    best = workdir / "checkpoints" / "best"
    if step is None:
        kept = [int(path.name) for path in best.iterdir() if path.name.isdigit()] if best.is_dir() else []
        step = max(set(kept) & set(steps) or steps)
    elif step not in steps:
        raise ReportError(f"step {step} of {workdir} was not evaluated: take one of {', '.join(map(str, steps))}")
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # it may only be read
            stack.enter_context(_alone_in(folder))
        evaluations = [_read(folder / f"{step}.{name}.json", step, name) for number, name in names if number == step]
    if split is not None:
        splits = sorted({e.report["split"] for e in evaluations})
        evaluations = [e for e in evaluations if e.report["split"] == split]
        if not evaluations:
            raise ReportError(
                f"step {step} of {workdir} was evaluated on {', '.join(splits)}, and not on {split}: "
                f"{_HOW} --workdir={shlex.quote(str(workdir))} --config.eval_split={split}"
            )
    if any(evaluation.run not in (_OWN, None) for evaluation in evaluations):
        was = _paths_before(folder)
        evaluations = [dataclasses.replace(e, run=_run(e.report, workdir, was)) for e in evaluations]
    plain_is_better = (best / str(step)).is_dir() and not (best / str(step) / "ema").is_dir()
    evaluations.sort(key=functools.partial(_order, plain_first=plain_is_better))
    older = "; ".join(f"{step}.{e.name}.json (without {', '.join(e.missing)})" for e in evaluations if e.missing)
    if older:
        logging.warning("Of an older version, in %s: %s", folder, older)
    differences = [(e, _differences(evaluations[0], e)) for e in evaluations]
    left_out = "; ".join(f"{step}.{e.name}.json (another {', '.join(keys)})" for e, keys in differences if keys)
    if left_out:
        logging.warning("Left out beside %s/%s.%s.json: %s", folder, step, evaluations[0].name, left_out)
    return [e for e, keys in differences if not keys]


def _differences(a: Evaluation, b: Evaluation) -> list[str]:
    """What keeps two evaluations of one step from standing side by side."""
    keys = ("dataset", "split", "class_names", "model", "absent_class")
    values = {"run": (a.run, b.run)} | {key: (a.report[key], b.report[key]) for key in keys}
    if a.report["split"] == b.report["split"] and a.report["dataset"] == b.report["dataset"]:
        values["labels"] = (a.report.get("label_pixels"), b.report.get("label_pixels"))
    return [key for key, (x, y) in values.items() if x != y and None not in (x, y)]


def _order(evaluation: Evaluation, plain_first: bool):
    report = evaluation.report
    views = Views.of(report)
    how = len(views.scales), views.flip, views.window is not None
    return report["split"] != "val", evaluation.is_ema == plain_first, *how, evaluation.name


def _read(path: epath.Path, step: int, name: str) -> Evaluation:
    try:
        report = sealing.unseal(json.loads(disk_errors.patiently(lambda: path.read_text(encoding="utf-8"))))
        missing = tuple(key for key in (*_SINCE, "synthetic") if key not in report)
        report = _SINCE | {"synthetic": report["dataset"] == _TOY} | report
        number = len(report["class_names"])
        if np.shape(report["confusion_matrix"]) != (number, number) or len(report["IoU"]) != number:
            raise ValueError(f"it is not of {number} classes throughout")
        pictures = picture_scores.read(path.with_suffix(".npz"), report.get("pictures_sha256"))
        run = _run(report, path.parent.parent)
        evaluation = Evaluation(name, step, report, pictures, run, missing)
        _ = evaluation.title, evaluation.scores, [report[key] for key in _KEYS]
        if report["model"] is not None:
            _ = report["model"]["backbone"]
    except picture_scores.PictureScoresError as error:
        if disk_errors.passing(error) is not None:
            raise ReportError(str(error)) from error
        raise ReportError(f"{error}: {_HOW} again, or remove it") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        if (words := disk_errors.passing(error)) is not None:
            raise ReportError(f"{path} cannot be read now: {words}") from error
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ReportError(f"{path} is damaged ({reason}): {_HOW} again, or remove it") from error
    if pictures is not None and not np.array_equal(
        pictures.counts.sum(0, dtype=np.int64), metrics.pixel_counts(evaluation.matrix)
    ):
        raise ReportError(f"{path} and the .npz beside it are not of one evaluation: {_HOW} again, or remove the .npz")
    return evaluation

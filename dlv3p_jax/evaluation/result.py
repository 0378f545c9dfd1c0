"""What an evaluation found: printed, described for its JSON, and doubted where labels or pixels look wrong."""

import dataclasses
from typing import Any

import jax
import numpy as np
import PIL.Image
from absl import logging
from etils import epath
from jax.sharding import Mesh

from dlv3p_jax.data import records
from dlv3p_jax.evaluation import metrics
from dlv3p_jax.evaluation.views import Views
from dlv3p_jax.runtime import configuration, provenance, sharding


class EvaluationError(RuntimeError):
    """What was evaluated is not what was asked for; the message has both numbers."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One evaluation: what `metrics.summarize` gave, and a contact sheet of some pictures, labels and predictions.

    `summary` has 'loss' too: the mean cross-entropy of the labelled pixels, by the weights of `loss.class_weights`.
    `title` says what was evaluated and how, and `path` is that of its files, without .json and .png. Of several
    processes, only process 0 has a sheet.
    """

    summary: dict[str, Any]
    sheet: PIL.Image.Image | None
    num_pictures: int
    seconds: float
    title: str
    path: epath.Path
    step: int


def print_result(result: Result, dataset: records.Dataset) -> None:
    """Process 0 prints what was evaluated and how, the per-class table, and where the report and the pictures lie."""
    if jax.process_index() > 0:
        return
    table = metrics.table(result.summary, dataset.class_names)
    print(f"\n{result.title}\n{table}\nreport: {result.path}.json\npictures: {result.path}.png", flush=True)


def describe(config, dataset: records.Dataset, mesh: Mesh, matrix: np.ndarray) -> dict[str, Any]:
    """What an evaluation's JSON says of how and on what it was made."""
    return (
        provenance.describe()
        | {
            "model": configuration.to_dict(config)["model"],
            "dataset": config.dataset,
            "synthetic": dataset.metadata["synthetic"],
            "split": config.eval_split,
            "num_pictures": dataset.num_pictures(config.eval_split),
            "num_pixels": int(matrix.sum()),
            "class_names": list(dataset.class_names),
            "palette": np.asarray(dataset.palette).tolist(),
            "eval_size": config.eval_size,
            "confusion_matrix": matrix.tolist(),
            "devices": sharding.describe(mesh),
        }
        | Views.of(config.eval).settings
    )


def check_pixels(matrix: np.ndarray, dataset: records.Dataset, split: str) -> None:
    """Holds the labelled pixels of each class against those that were counted when the data set was prepared."""
    counted, expected = matrix.sum(axis=1).tolist(), list(dataset.metadata["class_pixels"][split])
    if counted != expected:
        raise EvaluationError(
            f"{sum(counted)} labelled pixels of {dataset.title} {split} were counted, {counted} by class, but "
            f"{sum(expected)}, {expected}, when it was prepared: is {dataset.folder} damaged? Prepare it again"
        )


def warn_of_degenerate(matrix: np.ndarray, class_names, absent_class: str) -> None:
    """Says what usually means that labels or training went wrong: absent classes, and one answer to everything."""
    labelled, predicted = matrix.sum(axis=1) > 0, matrix.sum(axis=0) > 0
    absent = [name for name, seen in zip(class_names, labelled | predicted, strict=True) if not seen]
    missed = [name for name, there, found in zip(class_names, labelled, predicted, strict=True) if there and not found]
    if predicted.sum() == 1 and labelled.sum() > 1:
        logging.warning("Only one class is ever predicted: %s", class_names[int(np.argmax(predicted))])
    elif missed:
        logging.warning("Labelled but never predicted: %s", ", ".join(missed))
    if absent:
        how = "left out of the means" if absent_class == "nan" else "counted as an IoU of 1"
        logging.warning("In neither labels nor predictions, so %s: %s", how, ", ".join(absent))

"""What a model gets wrong and what it doubts, as the report's template takes it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dlv3p_jax.data import viz
from dlv3p_jax.evaluation import calibration, picture_scores
from dlv3p_jax.evaluation.files import Evaluation
from dlv3p_jax.reporting import cards, charts
from dlv3p_jax.runtime import text

_LARGEST_MATRIX = 40  # classes; of more, only the most frequent errors are shown
_CONFUSIONS = 10
_DOUBTS = 12


def has_matrix(main: Evaluation) -> bool:
    """Whether the confusion matrix is small enough to be shown."""
    return len(main.matrix) <= _LARGEST_MATRIX


def shares(matrix: np.ndarray) -> np.ndarray:
    """float64 `[C, C]`: of the pixels of a label, how many were predicted so."""
    return matrix / np.maximum(matrix.sum(1, keepdims=True), 1)


def confusions(main: Evaluation) -> list[dict[str, Any]]:
    """The most frequent errors."""
    names, of_label = main.report["class_names"], shares(main.matrix)
    wrong = main.matrix.sum() - np.trace(main.matrix)
    return [
        {
            "cell": f"{label}-{prediction}",
            "label": names[label],
            "prediction": names[prediction],
            "of_errors": main.matrix[label, prediction] / wrong,
            "of_label": of_label[label, prediction],
        }
        for label, prediction in picture_scores.largest_errors(main.matrix, _CONFUSIONS)
    ]


def cells(main: Evaluation) -> dict[str, Any]:
    """What a click on an error tells, by LABEL-PREDICTION: in words, and the pictures that have most of it."""
    if main.pictures is None or main.pictures.confused is None:
        return {}
    names, of_label = main.report["class_names"], shares(main.matrix)
    told = {}
    for cell in picture_scores.largest_errors(main.matrix, main.matrix.size if has_matrix(main) else _CONFUSIONS):
        label, prediction = cell
        share = text.percent(float(of_label[cell]), " %")
        most = zip(*(main.pictures.confused[part][cell].tolist() for part in range(2)), strict=True)
        told[f"{label}-{prediction}"] = {
            "text": f"{names[label]}, predicted as {names[prediction]}: {main.matrix[cell]:,} pixels, {share} of "
            f"{names[label]}. Most of it is in",
            "pictures": [
                {"anchor": f"picture-{index}", "text": f"{main.pictures.ids[index]} ({pixels:,} pixels)"}
                for pixels, index in most
                if pixels
            ],
        }
    return told


def doubts(main: Evaluation) -> list[dict[str, Any]]:
    """The labels of single pictures that the model finds least probable for their class, these first.

    By how far they are below what the class usually gets, as in confident learning (Northcutt et al., 2021): the lowest
    alone would be those of the classes that the model hardly knows.
    """
    pictures, names, colors = main.pictures, main.report["class_names"], cards.palette(main)
    if pictures is None or pictures.label_probability is None:
        return []
    found = calibration.doubts(pictures.label_probability, pictures.counts)
    usual = calibration.doubts(pictures.label_probability.sum(0, dtype=np.float64), pictures.counts.sum(0), 0)
    shown = {shown.index for shown in pictures.shown}
    order = np.argsort(found - usual, axis=None, kind="stable")[: min(_DOUBTS, np.count_nonzero(~np.isnan(found)))]
    return [
        {
            "id": pictures.ids[index],
            "anchor": f"picture-{index}" if index in shown else None,
            "label": names[label],
            "color": cards.hex_color(colors[label]),
            "probability": found[index, label],
            "usual": usual[label],
            "share": pictures.counts[index, 1, label] / pictures.counts[index, 1].sum(),
        }
        for index, label in zip(*(part.tolist() for part in np.unravel_index(order, found.shape)), strict=True)
    ]


def reliability(main: Evaluation) -> dict[str, Any] | None:
    """How sure the model is and how often right; None where that was not counted."""
    if main.pictures is None or main.pictures.calibration is None or not main.pictures.calibration[0].any():
        return None
    pixels, right, confidence = main.pictures.calibration.sum(1)
    gap = (confidence - right) / pixels
    return {
        "verdict": "about as sure as it is right" if abs(gap) < 0.005 else "too sure" if gap > 0 else "not sure enough",
        "chart": charts.reliability("calibration", "Right, by confidence", main.pictures.calibration),
        "error": calibration.calibration_error(main.pictures.calibration),
        "confidence": confidence / pixels,
        "right": right / pixels,
    }


def pictures(main: Evaluation, wrong: Sequence[int]) -> list[dict[str, Any]]:
    """The cards of the pictures that were kept, with errors in the colour `wrong`."""
    if main.pictures is None:
        return []
    number, scores = len(main.matrix), picture_scores.own_scores(main.pictures.counts)
    rows = []
    for shown in main.pictures.shown:
        label, prediction = (cards.classes_of(data) for data in (shown.label, shown.prediction))
        ignored, is_wrong = label >= number, label != prediction
        layers = {
            "errors": viz.marks_png(is_wrong, ignored, [wrong]),
            "prediction": shown.prediction,
            "label": shown.label,
        }
        pairs = np.stack([label, prediction], -1)[is_wrong & ~ignored]
        kinds, numbers = np.unique(pairs, axis=0, return_counts=True)
        cells = {f"{a}-{b}": n for (a, b), n in zip(kinds.tolist(), numbers.tolist(), strict=True)}
        what = f"{shown.kind}, own mIoU {text.percent(scores[shown.index], ' %')}"
        name = main.pictures.ids[shown.index]
        rows.append(cards.card(f"picture-{shown.index}", shown, name, what, layers, cells))
    return rows

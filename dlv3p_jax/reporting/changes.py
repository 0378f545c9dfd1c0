"""The pictures that gain and lose most from one run to another."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from dlv3p_jax.data import viz
from dlv3p_jax.evaluation import picture_scores
from dlv3p_jax.evaluation.files import Evaluation
from dlv3p_jax.reporting import cards
from dlv3p_jax.runtime import configuration

LAYERS = ("difference", "A", "other", "label")
_LISTED, _SHOWN = 5, 3  # pictures with the largest gains, and as many with the largest losses

Find = Callable[[int], picture_scores.Shown | None]


def largest(
    ours: Evaluation, theirs: Evaluation, letter: str, find: Find, colors: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """The pictures whose own mIoU gains most, and then those whose loses most.

    Args:
      ours, theirs: evaluations of the same pictures, with `pictures`.
      letter: of the other run.
      find: what `finder` gave.
      colors: where only ours is wrong, and where only theirs is.

    Returns:
      'rows' of all pictures, and 'cards' of those whose predictions were kept and that are at hand.
    """
    assert ours.pictures is not None and theirs.pictures is not None
    ids = ours.pictures.ids
    before, after = (picture_scores.own_scores(e.pictures.counts) for e in (ours, theirs) if e.pictures)
    change = after - before
    order = np.argsort(-change, kind="stable")[: np.count_nonzero(~np.isnan(change))]
    rows: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    for ends in (order[change[order] > 0], order[change[order] < 0][::-1]):
        rows += [
            {"id": ids[i], "a": before[i], "b": after[i], "difference": change[i]} for i in ends[:_LISTED].tolist()
        ]
        most = len(shown) + _SHOWN
        for index in ends.tolist():
            if len(shown) == most:
                break
            layers = _layers(ours, theirs, index, find, colors)
            if layers is not None and (picture := find(index)) is not None:
                what = f"{letter} - A = {100 * change[index]:+.1f} points of its own mIoU"
                shown.append(cards.card(f"{letter}-{index}", picture, ids[index], what, layers))
    return {"rows": rows, "cards": shown}


def _layers(
    ours: Evaluation, theirs: Evaluation, index: int, find: Find, colors: Sequence[Sequence[int]]
) -> dict[str, bytes] | None:
    """What lies over a picture; None where a prediction was not kept, or the picture is not at hand."""
    ours_png, theirs_png = (None if e.pictures is None else e.pictures.prediction(index) for e in (ours, theirs))
    if ours_png is None or theirs_png is None or (shown := find(index)) is None:
        return None
    label, a, b = (cards.classes_of(png) for png in (shown.label, ours_png, theirs_png))
    if not label.shape == a.shape == b.shape:
        return None
    ignored, is_a, is_b = label >= len(ours.matrix), label == a, label == b
    marks = viz.marks_png(np.select([is_b & ~is_a, is_a & ~is_b], [1, 2], 0), ignored, colors)
    return dict(zip(LAYERS, (marks, ours_png, theirs_png, shown.label), strict=True))


def finder(evaluations: Sequence[Evaluation], workdir: epath.Path) -> Find:
    """What gives a picture and its label by position: as a run kept them, or from the data of `workdir`'s run."""
    kept = {shown.index: shown for e in evaluations if e.pictures for shown in e.pictures.shown}
    pictures = evaluations[0].pictures
    source: list[Any] = []  # opened once, when it is first asked for

    def find(index: int) -> picture_scores.Shown | None:
        if index in kept:
            return kept[index]
        if not source:
            source.append(_open_split(workdir, evaluations[0].report["split"]))
        if source[0] is None or pictures is None or (png := pictures.prediction(index)) is None:
            return None
        try:
            record = source[0][index]
            if record["id"].decode() != pictures.ids[index]:
                return None
            shown = picture_scores.make_shown("", index, record, cards.classes_of(png), cards.palette(evaluations[0]))
        except (LookupError, OSError, ValueError) as error:
            logging.info("Picture %s is not shown: %s", pictures.ids[index], error)
            return None
        return kept.setdefault(index, shown)

    return find


def _open_split(workdir: epath.Path, split: str) -> Sequence[dict[str, bytes]] | None:
    """The records of a run's prepared split; None where they are not here, or TensorFlow is not."""
    try:
        config = configuration.read(workdir / "config.json")
        if not config.dataset or not (epath.Path(config.data_dir) / config.dataset).is_dir():
            return None
        from dlv3p_jax.data import records  # TensorFlow, which a page can do without

        return records.open_dataset(config.dataset, config.data_dir).source(split)
    except (ImportError, OSError, ValueError) as error:
        logging.info("Pictures are only those that the runs kept: %s", error)
        return None

"""Pictures in a page, under layers that a slider draws away: predictions, labels, and what is wrong."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image

from dlv3p_jax.data import viz
from dlv3p_jax.evaluation.files import Evaluation
from dlv3p_jax.evaluation.picture_scores import Shown
from dlv3p_jax.reporting import html


def hex_color(color: Sequence[int]) -> str:
    """A colour as style sheets have it."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def palette(evaluation: Evaluation) -> Sequence[Sequence[int]]:
    """The colours of the classes; those of Pascal VOC where an older version did not write any."""
    return evaluation.report.get("palette") or viz.palette(len(evaluation.matrix)).tolist()


def legend(evaluation: Evaluation, marks: Mapping[str, Sequence[int]]) -> list[tuple[str, str]]:
    """(what, colour) of the classes, of ignored pixels, and of `marks`, for the template."""
    classes = zip(evaluation.report["class_names"], palette(evaluation), strict=True)
    return [(name, hex_color(color)) for name, color in (*classes, ("ignored", viz.IGNORED), *marks.items())]


def classes_of(png: bytes) -> np.ndarray:
    """The class indices of a palette PNG, uint8 `[h, w]`."""
    return np.asarray(PIL.Image.open(io.BytesIO(png)))


def card(
    anchor: str, shown: Shown, name: str, what: str, layers: Mapping[str, bytes], cells: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """A picture for the template.

    Args:
        anchor: its place in the page, for links.
        shown: the picture and its label.
        name: its id.
        what: of it, before the id.
        layers: {what lies over it: PNG}.
        cells: the errors that it shows, by LABEL-PREDICTION, and how many pixels have each.
    """
    height, width = classes_of(shown.label).shape
    return {
        "anchor": anchor,
        "id": name,
        "what": what,
        "width": width,
        "height": height,
        "image": html.data_uri(shown.image, "image/jpeg"),
        "layers": {layer: html.data_uri(png, "image/png") for layer, png in layers.items()},
        "cells": cells or {},
    }

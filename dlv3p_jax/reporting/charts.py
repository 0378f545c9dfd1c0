"""Charts as SVG that lies inside a page: its text is text, in the page's font and colour, whichever these are."""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

COLORS = ("#2f7de1", "#e8830c", "#12a37a", "#d6459b", "#8a63d2", "#b59f00")  # seen on white and on black
_DASHES = ("-", "--", ":", "-.")  # so that lines in one place are all seen
_INK = "#010203"  # stands for the page's colour until the SVG is written
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dlv3p_jax",  # the same ids, and so the same page, of the same numbers
    "font.size": 9,
    "text.parse_math": False,  # a class may be called $
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), _INK
    ),
    "grid.alpha": 0.15,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


class Curve(NamedTuple):
    """A line over steps; `color` and `dashes` count from 0, and lines that belong together share one of them."""

    label: str
    steps: Sequence[int]
    values: Sequence[float]
    color: int
    dashes: int


def curves(name: str, title: str, lines: Sequence[Curve], percent=False) -> str:
    """Lines over steps, with a legend where there are several.

    Args:
        name: tells the SVG's ids from those of other charts in the page.
        title: above it.
        lines: what to draw.
        percent: whether values are fractions to be shown in per cent.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.4, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            axes.plot(
                line.steps,
                np.multiply(line.values, 100 if percent else 1),
                _DASHES[line.dashes % len(_DASHES)],
                color=COLORS[line.color % len(COLORS)],
                marker="o" if len(line.steps) <= 30 else None,
                markersize=3,
                linewidth=1.5,
                label=line.label,
            )
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("step")
        if len(lines) > 1:
            axes.legend()
        return _to_svg(figure, name, title)


def reliability(name: str, title: str, calibration: np.ndarray) -> str:
    """How often a model is right when it is so sure, and how many of the pixels these are.

    Args:
        name, title: see `curves`.
        calibration: float64 `[3, bins]` pixels, right ones and the sum of their confidence, by confidence.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.4, 3.4), layout="constrained")
        axes, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        pixels, right, confidence = calibration
        seen = pixels > 0
        axes.plot([0, 100], [0, 100], ":", color=_INK, linewidth=1, label="as sure as right")
        points = 100 * np.stack([confidence, right])[:, seen] / pixels[seen]
        axes.plot(*points, "o-", color=COLORS[0], markersize=4, linewidth=1.5, label="the model")
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_ylabel("right, %")
        axes.legend()
        edges = np.linspace(0, 100, len(pixels) + 1)
        below.bar(edges[:-1], 100 * pixels / max(pixels.sum(), 1), np.diff(edges), align="edge", color=COLORS[0])
        below.set_ylabel("pixels, %")
        below.set_xlabel("confidence, %")
        return _to_svg(figure, name, title)


def intervals(
    name: str, title: str, rows: Sequence[str], columns: Mapping[str, tuple[np.ndarray, np.ndarray | None]]
) -> str:
    """A dot for each row and column of scores, with its interval, in per cent.

    Args:
        name, title: see `curves`.
        rows: the R names.
        columns: {name: (fractions `[R]`, their intervals `[R, 2]` or None)}; NaN is not drawn.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 0.7 + len(rows) * (0.12 + 0.07 * len(columns))), layout="constrained")
        axes = figure.add_subplot()
        offsets = (np.arange(len(columns)) - (len(columns) - 1) / 2) * 0.22
        for (label, (values, bounds)), offset, color in zip(columns.items(), offsets, cycle(COLORS), strict=False):
            places = np.arange(len(rows)) + offset
            if bounds is not None:
                axes.hlines(places, *(100 * bounds.T), color=color, linewidth=1.5, alpha=0.6)
            axes.plot(100 * np.asarray(values), places, "o", color=color, markersize=4, label=label)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"{title}, %")
        if len(columns) > 1:
            figure.legend(loc="outside upper left", ncols=2)
        return _to_svg(figure, name, title)


def _to_svg(figure: Figure, name: str, title: str) -> str:
    file = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        # It measures with its own font, which lacks some scripts; who looks at the page has others.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
        FigureCanvasSVG(figure).print_svg(file, metadata=metadata)
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", text)
    for side in ("width", "height"):  # so that it is as wide as its place
        text = re.sub(rf' {side}="[\d.]+pt"', "", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)

"""Labels of outlines or run lengths of objects, as COCO's annotations have them, drawn as class indices."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlv3p_jax.data.errors import DatasetError

Outline = Sequence[Sequence[float]] | Mapping[str, Any]  # polygons x1, y1, x2, y2, … in pixels; or COCO's run lengths


def require_pycocotools(what: str) -> None:
    """Raises DatasetError where pycocotools is not installed; `what` has outlines."""
    if importlib.util.find_spec("pycocotools") is None:
        raise DatasetError(f"{what}: outlines are drawn with pycocotools: pip install 'dlv3p_jax[coco]'")


def draw(objects: Sequence[tuple[int, Outline]], size: tuple[int, int], background: int) -> np.ndarray:
    """The objects, as (class index, outline), over each other: the smaller an object, the further on top.

    Of two of one size, the later is on top. Returns uint8 `[*size]`, with the index `background` where no object is.

    Raises:
        DatasetError: an outline that is none, or is of another size; it says which of them.
    """
    from pycocotools import mask  # an optional extra

    height, width = size
    runs = []
    for number, (_, outline) in enumerate(objects, 1):
        try:
            runs.append(_run_lengths(mask, outline, height, width))
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"object {number}: {error}") from error
    label = np.full(size, background, np.uint8)
    for position in sorted(range(len(runs)), key=lambda each: -int(mask.area(runs[each]))):
        label[mask.decode(runs[position]).astype(bool)] = objects[position][0]
    return label


def _run_lengths(mask, outline: Outline, height: int, width: int):
    if not isinstance(outline, Mapping):
        if not all(isinstance(polygon, list | tuple) for polygon in outline):
            raise ValueError("give a list of polygons, each a list of x and y of its points")
        if not outline or any(len(polygon) < 6 or len(polygon) % 2 for polygon in outline):
            raise ValueError("a polygon has at least three points, x and y of each")
        for points in (np.reshape(np.array(polygon, float), (-1, 2)) for polygon in outline):
            # pycocotools walks along outlines: far ones fill the memory, and some crash it.
            far = ~(np.abs(points / (width, height) - 0.5) <= 1.5).all(1)
            if far.any():
                x, y = points[far][0]
                raise ValueError(f"a point at x={x:g}, y={y:g} is far outside of the picture, {width}x{height}")
        return mask.merge(mask.frPyObjects([list(map(float, polygon)) for polygon in outline], height, width))
    if list(outline["size"]) != [height, width]:
        raise ValueError(f"its run lengths are of size {list(outline['size'])}, the picture is {[height, width]}")
    counts = outline["counts"]
    if isinstance(counts, str | bytes):
        counts = _unpacked(counts if isinstance(counts, bytes) else counts.encode())
    if not all(isinstance(count, int) for count in counts):
        raise ValueError("its run lengths are no integers")
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ValueError(f"its run lengths add up to {sum(counts)}, the picture has {height * width} pixels")
    return mask.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width)


def _unpacked(packed: bytes) -> list[int]:
    """COCO's packed run lengths: digits of 5 bits, the lowest first, of differences to the last but one.

    pycocotools reads beyond the end of what is cut short.
    """
    counts: list[int] = []
    value = shift = 0
    for byte in packed:
        digit = byte - 48
        if not 0 <= digit < 64:
            raise ValueError("its run lengths are no packed ones")
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            if digit & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its run lengths are cut short")
    return counts

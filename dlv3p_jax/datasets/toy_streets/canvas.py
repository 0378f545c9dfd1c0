"""Anti-aliased shapes painted into a picture and its label at once: the pencil of `scenes`.

Only additions, products, quotients and square roots touch the numbers, all of them rounded the same way by IEEE 754,
and no sums whose order a processor may choose. Pictures are therefore the same, bit for bit, on every machine.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Point = tuple[float, float]  # in pixels, x to the right and y down
Pixels = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of the x and y of pixels, float32 [h, w]


@dataclasses.dataclass
class Canvas:
    """A picture being painted.

    Attributes:
        image: float32 [H, W, 3], light reflected, about 0..1.
        label: uint8 [H, W].
        noise: fields of smooth noise in -1..1, float32 [H, W], by the size of their grain in pixels.
    """

    image: np.ndarray
    label: np.ndarray
    noise: dict[int, np.ndarray]


class Shape(NamedTuple):
    """A box around a shape, and the signed distance of pixels to it, negative inside."""

    left: float
    top: float
    right: float
    bottom: float
    distance: Pixels


def new_canvas(rng: np.random.Generator, size: tuple[int, int]) -> Canvas:
    """An empty canvas of size (height, width)."""
    noise = {grain: smooth_noise(rng, size, grain) for grain in (1, 3, 6, 14, 40)}
    return Canvas(np.zeros((*size, 3), np.float32), np.full(size, 255, np.uint8), noise)


def smooth_noise(rng: np.random.Generator, size: tuple[int, int], grain: int) -> np.ndarray:
    """Value noise in -1..1, float32 of that size: random numbers every `grain` pixels, smoothly interpolated."""
    height, width = size
    grid = rng.random((height // grain + 2, width // grain + 2), np.float32) * 2 - 1
    if grain == 1:
        return grid[:height, :width]
    for axis, length in enumerate(size):
        position = (np.arange(length, dtype=np.float32) + np.float32(0.5)) / np.float32(grain)
        index = position.astype(np.int64)
        weight = position - index.astype(np.float32)
        weight = weight * weight * (3 - 2 * weight)
        weight = weight[:, None] if axis == 0 else weight
        grid = np.take(grid, index, axis) * (1 - weight) + np.take(grid, index + 1, axis) * weight
    return grid


def texture(canvas: Canvas, rng: np.random.Generator, grain: int) -> Pixels:
    """The noise of that grain, shifted at random so that no two objects share it."""
    field = canvas.noise[grain]
    down, right = rng.integers(0, field.shape)
    return lambda x, y: field[(y.astype(int) + down) % field.shape[0], (x.astype(int) + right) % field.shape[1]]


def polygon(points: Sequence[Point]) -> Shape:
    """A convex polygon; edges without length are left out."""
    edges = [(a, b) for a, b in zip(points, [*points[1:], points[0]], strict=True) if a != b]
    turn = 1.0 if sum(a[0] * b[1] - a[1] * b[0] for a, b in edges) > 0 else -1.0

    def distance(x, y):
        result = np.full(x.shape, -np.inf, np.float32)
        for (x0, y0), (x1, y1) in edges:
            dx, dy = x1 - x0, y1 - y0
            scale = turn / math.sqrt(dx * dx + dy * dy)
            result = np.maximum(result, np.float32(dy * scale) * (x - x0) - np.float32(dx * scale) * (y - y0))
        return result

    xs, ys = zip(*points, strict=True)
    return Shape(min(xs), min(ys), max(xs), max(ys), distance)


def ellipse(centre: Point, radii: Point) -> Shape:
    """With upright axes; its distance is about right."""
    (cx, cy), (rx, ry) = centre, radii

    def distance(x, y):
        u, v = (x - cx) / rx, (y - cy) / ry
        return (np.sqrt(u * u + v * v) - 1) * min(radii)

    return Shape(cx - rx, cy - ry, cx + rx, cy + ry, distance)


def capsule(start: Point, end: Point, radius: float) -> Shape:
    """A thick line with round ends."""
    (x0, y0), (dx, dy) = start, (end[0] - start[0], end[1] - start[1])

    def distance(x, y):
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / max(dx * dx + dy * dy, 1e-6), 0, 1)
        u, v = x - x0 - along * dx, y - y0 - along * dy
        return np.sqrt(u * u + v * v) - radius

    left, right, top, bottom = min(x0, end[0]), max(x0, end[0]), min(y0, end[1]), max(y0, end[1])
    return Shape(left - radius, top - radius, right + radius, bottom + radius, distance)


def draw(canvas: Canvas, shape: Shape, colour, label: int | None = None, opacity: float = 1.0) -> None:
    """Paints a shape in one colour [3], or in the colours [h, w, 3] that a function of the pixels gives.

    Pixels that the edge crosses are mixed; those with their centre inside take the label, unless it is None.
    """
    height, width = canvas.label.shape
    x0, x1 = max(int(shape.left) - 1, 0), min(int(shape.right) + 3, width)
    y0, y1 = max(int(shape.top) - 1, 0), min(int(shape.bottom) + 3, height)
    if x0 >= x1 or y0 >= y1:
        return
    window = (slice(y0, y1), slice(x0, x1))
    y, x = np.mgrid[window].astype(np.float32)
    distance = shape.distance(x, y)
    coverage = np.clip(0.5 - distance, 0, 1) * opacity
    image = canvas.image[window]
    image += coverage[..., None].astype(np.float32) * (
        np.asarray(colour(x, y) if callable(colour) else colour, np.float32) - image
    )
    if label is not None:
        canvas.label[window][distance < 0] = label

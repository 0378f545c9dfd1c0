"""Anti-aliased shapes painted into a picture and its label at once: the pencil of street_scenes.

Only additions, products, quotients and square roots touch the numbers, all of them rounded the same way by IEEE 754,
and no sums whose order a processor may choose. Pictures are therefore the same, bit for bit, on every machine.
"""

import dataclasses
import math

import numpy as np

Point = tuple[float, float]


@dataclasses.dataclass
class Canvas:
    """A picture being painted.

    Attributes:
        image: float32 [H, W, 3], light reflected, about 0..1.
        label: uint8 [H, W].
        x, y: float32 [H, W], where every pixel lies in the level frame: the picture before the camera was rolled.
            Shapes are given in that frame, in pixels, x to the right and y down.
        roll: (cosine, sine) of the camera's roll.
        noise: fields of smooth noise in -1..1, float32 [H, W], by the size of their grain in pixels.
    """

    image: np.ndarray
    label: np.ndarray
    x: np.ndarray
    y: np.ndarray
    roll: tuple[float, float]
    noise: dict[int, np.ndarray]


def new_canvas(rng: np.random.Generator, size: tuple[int, int], slope: float) -> Canvas:
    """An empty canvas of size (height, width) seen by a camera rolled by `slope` pixels a pixel."""
    height, width = size
    length = math.sqrt(1.0 + slope * slope)
    cosine, sine = 1.0 / length, slope / length
    dy, dx = np.meshgrid(np.arange(height) - height / 2, np.arange(width) - width / 2, indexing="ij")
    return Canvas(
        image=np.zeros((height, width, 3), np.float32),
        label=np.full((height, width), 255, np.uint8),
        x=(cosine * dx + sine * dy + width / 2).astype(np.float32),
        y=(cosine * dy - sine * dx + height / 2).astype(np.float32),
        roll=(cosine, sine),
        noise={grain: smooth_noise(rng, size, grain) for grain in (1, 3, 6, 14, 40)},
    )


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


def texture(canvas: Canvas, rng: np.random.Generator, window: tuple[slice, slice], grain: int) -> np.ndarray:
    """The noise of that grain in a window, shifted at random so that no two objects share it: [h, w], -1..1."""
    field = canvas.noise[grain]
    shift = rng.integers(0, field.shape)
    rows = (np.arange(window[0].start, window[0].stop) + shift[0]) % field.shape[0]
    columns = (np.arange(window[1].start, window[1].stop) + shift[1]) % field.shape[1]
    return field[rows[:, None], columns]


def window_of(canvas: Canvas, left: float, top: float, right: float, bottom: float) -> tuple[slice, slice] | None:
    """The part of the picture that holds a rectangle of the level frame; None where that is outside the picture."""
    height, width = canvas.label.shape
    cosine, sine = canvas.roll
    xs = [cosine * (x - width / 2) - sine * (y - height / 2) + width / 2 for x in (left, right) for y in (top, bottom)]
    ys = [sine * (x - width / 2) + cosine * (y - height / 2) + height / 2 for x in (left, right) for y in (top, bottom)]
    x0, x1 = max(int(min(xs)) - 1, 0), min(int(max(xs)) + 3, width)
    y0, y1 = max(int(min(ys)) - 1, 0), min(int(max(ys)) + 3, height)
    return (slice(y0, y1), slice(x0, x1)) if x0 < x1 and y0 < y1 else None


def paint(canvas: Canvas, window: tuple[slice, slice], distance, colour, label: int | None = None, opacity=1.0) -> None:
    """Lay a colour ([3] or [h, w, 3]) over the pixels of a window whose `distance` [h, w] to a shape is negative.

    Pixels that the edge crosses are mixed; those with their centre inside take the label, unless it is None.
    """
    coverage = np.clip(0.5 - distance, 0.0, 1.0) * opacity
    image = canvas.image[window]
    image += coverage[..., None].astype(np.float32) * (np.asarray(colour, np.float32) - image)
    if label is not None:
        canvas.label[window][distance < 0] = label


def polygon_distance(x: np.ndarray, y: np.ndarray, points: list[Point]) -> np.ndarray:
    """Signed distance to the edges of a convex polygon, negative inside. Edges without length are left out."""
    edges = [(a, b) for a, b in zip(points, points[1:] + points[:1], strict=True) if a != b]
    turn = 1.0 if sum(a[0] * b[1] - a[1] * b[0] for a, b in edges) > 0 else -1.0
    distance = np.full(x.shape, -np.inf, np.float32)
    for (x0, y0), (x1, y1) in edges:
        dx, dy = x1 - x0, y1 - y0
        scale = turn / math.sqrt(dx * dx + dy * dy)
        distance = np.maximum(distance, np.float32(dy * scale) * (x - x0) - np.float32(dx * scale) * (y - y0))
    return distance


def ellipse_distance(x: np.ndarray, y: np.ndarray, centre: Point, radii: Point) -> np.ndarray:
    """About the signed distance to an ellipse with upright axes, negative inside."""
    u, v = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1]
    return (np.sqrt(u * u + v * v) - 1) * min(radii)


def capsule_distance(x: np.ndarray, y: np.ndarray, start: Point, end: Point, radius: float) -> np.ndarray:
    """Signed distance to a line of that half-width with round ends, negative inside."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = np.clip(((x - start[0]) * dx + (y - start[1]) * dy) / max(dx * dx + dy * dy, 1e-6), 0, 1)
    u, v = x - start[0] - along * dx, y - start[1] - along * dy
    return np.sqrt(u * u + v * v) - radius


def draw_polygon(canvas: Canvas, points: list[Point], colour, label: int | None = None, opacity=1.0) -> None:
    """Paint a convex polygon in one colour."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    window = window_of(canvas, min(xs), min(ys), max(xs), max(ys))
    if window:
        paint(canvas, window, polygon_distance(canvas.x[window], canvas.y[window], points), colour, label, opacity)


def rectangle(left: float, top: float, right: float, bottom: float) -> list[Point]:
    """Its corners, for `draw_polygon`."""
    return [(left, bottom), (right, bottom), (right, top), (left, top)]


def draw_ellipse(canvas: Canvas, centre: Point, radii: Point, colour, label: int | None = None, opacity=1.0) -> None:
    """Paint an ellipse in one colour."""
    (cx, cy), (rx, ry) = centre, radii
    window = window_of(canvas, cx - rx, cy - ry, cx + rx, cy + ry)
    if window:
        paint(
            canvas, window, ellipse_distance(canvas.x[window], canvas.y[window], centre, radii), colour, label, opacity
        )


def draw_capsule(canvas: Canvas, start: Point, end: Point, radius: float, colour, label: int | None = None) -> None:
    """Paint a thick line with round ends in one colour."""
    xs, ys = (start[0], end[0]), (start[1], end[1])
    window = window_of(canvas, min(xs) - radius, min(ys) - radius, max(xs) + radius, max(ys) + radius)
    if window:
        paint(canvas, window, capsule_distance(canvas.x[window], canvas.y[window], start, end, radius), colour, label)

"""Houses along a street: facades with windows, doors and shops, in perspective."""

import dataclasses

import numpy as np

from dlv3p_jax.datasets.toy_streets.canvas import Canvas, draw_polygon, paint, polygon_distance, texture, window_of
from dlv3p_jax.datasets.toy_streets.objects import Camera, any_colour

BUILDING = 3


@dataclasses.dataclass
class Facade:
    """How the walls of one house look; lengths in metres."""

    height: float
    wall: np.ndarray  # [3]
    trim: np.ndarray  # [3], cornice and window frames
    panes: np.ndarray  # [8, 8, 3], colours of the windows, repeated
    cell: float  # from window to window
    storey: float
    window: tuple[float, float]  # half width and half height of a window, as parts of cell and storey
    ground: float  # height of the ground floor; 0: like the others
    shop: np.ndarray  # [3]
    grain: float  # how uneven the wall is
    phase: float


def new_facade(rng: np.random.Generator) -> Facade:
    """A house of any style: brick, plaster, glass, dark, pale; its storeys are low, as the pictures are."""
    kind = rng.random()
    wall = any_colour(rng, 0.2, 0.9, 0.3)
    if kind < 0.8:  # brick, sandstone, cream
        wall = np.array([1, rng.uniform(0.6, 0.9), rng.uniform(0.4, 0.75)]) * rng.uniform(0.4, 0.95)
        wall = wall.astype(np.float32)
    pane = any_colour(rng, 0.05, 0.35, 0.3) if rng.random() < 0.65 else any_colour(rng, 0.4, 0.95, 0.25)
    if np.abs(pane - wall).max() < 0.3:  # windows that do not show are of no use to anyone
        pane = wall * np.float32(0.3) if wall.max() > 0.4 else wall + np.float32(0.4)
    panes = pane * (1 + rng.uniform(-0.35, 0.35, (8, 8, 1)))
    panes = np.where(rng.random((8, 8, 1)) < rng.choice([0.0, 0.15]), any_colour(rng, 0.5, 1.0, 0.3), panes)
    glassy = rng.random() < 0.25
    return Facade(
        height=rng.uniform(3.5, 11),
        wall=wall,
        trim=np.clip(wall * rng.uniform(0.55, 1.5), 0, 1).astype(np.float32),
        panes=panes.astype(np.float32),
        cell=rng.uniform(1.1, 2.0),
        storey=rng.uniform(1.8, 2.6),
        window=(rng.uniform(0.38, 0.46), rng.uniform(0.3, 0.42))
        if glassy
        else (rng.uniform(0.2, 0.34), rng.uniform(0.22, 0.33)),
        ground=float(rng.choice([0.0, rng.uniform(2.0, 2.8)])),
        shop=any_colour(rng, 0.1, 0.9, 0.8),
        grain=float(rng.choice([0.03, 0.12, 0.25])),
        phase=rng.uniform(0, 8),
    )


def facade_colour(facade: Facade, along, up, across_scale, up_scale, noise) -> np.ndarray:
    """Colours of points of a wall.

    Args:
        facade: its style.
        along, up: metres along the wall and above the ground, [h, w].
        across_scale, up_scale: pixels per metre in these directions, numbers or [h, w].
        noise: [h, w] in -1..1.

    Returns:
        float32 [h, w, 3].
    """
    across_scale, up_scale = np.float32(across_scale), np.float32(up_scale)
    course = np.abs(up / 0.3 - np.floor(up / 0.3) - 0.5) * 0.3 * up_scale  # pixels from a joint of the masonry
    joint = np.clip(1.1 - course, 0, 1) * np.clip(0.1 * up_scale - 0.8, 0, 1)
    colour = facade.wall * (1 + facade.grain * noise - 0.3 * joint)[..., None]

    def lay(mask, over):
        nonlocal colour
        colour = colour + np.clip(mask, 0, 1)[..., None] * (over - colour)

    column, row = (along + facade.phase) / facade.cell, (up - facade.ground) / facade.storey
    i, j = np.floor(column), np.floor(row)
    u, v = np.abs(column - i - 0.5), np.abs(row - j - 0.55)
    inside = np.minimum(
        (facade.window[0] - u) * facade.cell * across_scale, (facade.window[1] - v) * facade.storey * up_scale
    )
    inside = np.minimum(inside, (facade.height - 0.3 - up) * up_scale)
    inside = np.where(row < 0, -9.0, inside)
    lay(inside + 1.2, facade.trim)
    bars = np.minimum((np.abs(column - i - 0.5) * facade.cell - 0.03) * across_scale, inside + 0.3)
    lay(bars, facade.panes[i.astype(np.int64) % 8, j.astype(np.int64) % 8])
    if facade.ground:
        u = np.abs(column / 1.5 - np.floor(column / 1.5) - 0.5)
        inside = np.minimum((0.42 - u) * 1.5 * facade.cell * across_scale, (0.72 * facade.ground - up) * up_scale)
        lay(np.minimum(inside, (up - 0.3) * up_scale) + 0.5, facade.panes[2, 3] * 0.8)
        lay(0.5 + (0.12 * facade.ground - np.abs(up - 0.86 * facade.ground)) * up_scale, facade.shop)
    lay(0.5 + (up - facade.height + 0.35) * up_scale, facade.trim)
    return colour


def draw_front(canvas: Canvas, camera: Camera, rng: np.random.Generator, facade: Facade, x0, x1, z) -> None:
    """A wall that faces the camera, from x0 to x1 at depth z, perhaps under a gable."""
    (left, bottom), (right, top) = camera.project(x0, 0, z), camera.project(x1, facade.height, z)
    scale = camera.focal / z
    if rng.random() < 0.3:
        roof = any_colour(rng, 0.1, 0.5, 0.4)
        peak = (left + right) / 2, top - min(rng.uniform(1.5, 3.5), 0.5 * (x1 - x0)) * scale
        draw_polygon(canvas, [(left - 1, top), (right + 1, top), peak], camera.seen(roof, z), BUILDING)
    window = window_of(canvas, left, top, right, bottom)
    if not window:
        return
    x, y = canvas.x[window], canvas.y[window]
    distance = polygon_distance(x, y, [(left, bottom), (right, bottom), (right, top), (left, top)])
    noise = texture(canvas, rng, window, 3)
    along, up = (x - left) / scale, (bottom - y) / scale
    colour = facade_colour(facade, along, up, scale, scale, noise) * np.float32(camera.shade(0, 1))
    paint(canvas, window, distance, camera.seen(colour, z), BUILDING)


def draw_side(canvas: Canvas, camera: Camera, rng: np.random.Generator, facade: Facade, x, z0, z1) -> None:
    """A wall along the street, at x from depth z0 to z1."""
    corners = [camera.project(x, up, z) for up, z in ((0, z0), (0, z1), (facade.height, z1), (facade.height, z0))]
    xs, ys = [p[0] for p in corners], [p[1] for p in corners]
    window = window_of(canvas, min(xs), min(ys), max(xs), max(ys))
    if not window:
        return
    px, py = canvas.x[window], canvas.y[window]
    distance = polygon_distance(px, py, corners)
    scale = np.clip((px - camera.vanishing[0]) / x, camera.focal / z1, camera.focal / z0)  # pixels per metre of height
    depth = camera.focal / scale
    up = camera.height - (py - camera.vanishing[1]) / scale
    noise = texture(canvas, rng, window, 3)
    colour = facade_colour(facade, depth, up, np.abs(x) * scale / depth, scale, noise)
    colour = colour * np.float32(camera.shade(1 if x > 0 else -1, 0))
    paint(canvas, window, distance, camera.seen(colour, depth[..., None]), BUILDING)


def draw_row(
    canvas: Canvas, camera: Camera, rng: np.random.Generator, x: float, blocks: list[tuple[float, float]]
) -> None:
    """Houses from (z0, z1) to (z0, z1) along the building line x, far ones first; the ends that show are drawn too."""
    for z0, z1 in sorted(blocks, reverse=True):
        facade = new_facade(rng)
        if z0 > 2:
            away = x + (14 if x > 0 else -14)
            draw_front(canvas, camera, rng, facade, min(x, away), max(x, away), z0)
        draw_side(canvas, camera, rng, facade, x, max(z0, 0.8), z1)

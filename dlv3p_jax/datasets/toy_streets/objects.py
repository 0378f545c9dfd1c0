"""What stands in a street: houses, trees, poles, cars and people, drawn at their place in the world."""

from typing import NamedTuple

import numpy as np

from dlv3p_jax.datasets.toy_streets.canvas import Canvas, Point, Shape, capsule, draw, ellipse, polygon, texture

BUILDING, TREE, POLE, CAR, PERSON = 3, 4, 5, 6, 7


class Camera(NamedTuple):
    """A pinhole camera above a flat ground; the world is X to the right, Y up from the ground, Z ahead, in metres.

    Attributes:
        focal: focal length in pixels.
        height: of the camera above the ground, in metres.
        vanishing: (x, y) in the picture where lines along Z meet; y is the horizon.
        haze: colour [3] into which distance fades.
        haze_distance: metres at which half of a colour is lost.
        sun: from the left, -1..1: which faces are bright.
    """

    focal: float
    height: float
    vanishing: Point
    haze: np.ndarray
    haze_distance: float
    sun: float

    def project(self, x: float, y: float, z: float) -> Point:
        scale = self.focal / z
        return self.vanishing[0] + x * scale, self.vanishing[1] + (self.height - y) * scale

    def seen(self, colour: np.ndarray, z) -> np.ndarray:
        """A colour [..., 3] as it looks from z metres away (a number, or an array [..., 1])."""
        return colour + (self.haze - colour) * (z / (z + self.haze_distance))


def any_colour(rng: np.random.Generator, low: float, high: float, saturation: float) -> np.ndarray:
    """A grey in low..high with a random tint, float32 [3] in 0.02..1."""
    tint = rng.uniform(-1, 1, 3)
    return np.clip(rng.uniform(low, high) * (1 + saturation * tint), 0.02, 1).astype(np.float32)


def vivid_colour(rng: np.random.Generator) -> np.ndarray:
    """A saturated colour of any hue, float32 [3]: one channel high, one low, one between."""
    return rng.permutation([rng.uniform(0.6, 1.0), rng.uniform(0.1, 0.8), rng.uniform(0.03, 0.2)]).astype(np.float32)


def draw_shadow(canvas: Canvas, camera: Camera, x: float, z: float, half_width: float, half_depth: float) -> None:
    """Darken the ground under something, without changing its label."""
    near, far = (camera.project(x, 0, z + depth) for depth in (-half_depth, half_depth))
    radii = (half_width * camera.focal / z + 1, (near[1] - far[1]) / 2 + 1)
    draw(canvas, ellipse(((near[0] + far[0]) / 2, (near[1] + far[1]) / 2), radii), np.zeros(3), opacity=0.5)


def draw_house(canvas: Canvas, camera: Camera, rng: np.random.Generator, x0: float, x1: float, z0, z1) -> None:
    """A house between two depths: a wall that faces the camera, from x0 to x1, and one along the street, at x0.

    Its storeys are low, as the pictures are.
    """
    height, cell, storey = rng.uniform(3.5, 11), rng.uniform(1.1, 2), rng.uniform(1.8, 2.6)
    half_width, half_height = rng.uniform(0.2, 0.46), rng.uniform(0.22, 0.42)  # of windows, as parts of these
    wall = any_colour(rng, 0.2, 0.9, 0.3)
    if rng.random() < 0.8:  # brick, sandstone, cream
        wall = np.array([1, rng.uniform(0.6, 0.9), rng.uniform(0.4, 0.75)], np.float32) * np.float32(
            rng.uniform(0.4, 0.95)
        )
    pane = any_colour(rng, 0.05, 0.35, 0.3) if rng.random() < 0.65 else any_colour(rng, 0.4, 0.95, 0.25)
    if np.abs(pane - wall).max() < 0.3:  # windows that do not show are of no use to anyone
        pane = wall * np.float32(0.3) if wall.max() > 0.4 else wall + np.float32(0.4)
    trim = wall * np.float32(rng.uniform(0.55, 1.3))
    grain, rough = rng.choice([0.03, 0.12, 0.25]), texture(canvas, rng, 3)

    def draw_wall(start: Point, end: Point, shade: float) -> None:
        (xa, za), (xb, zb) = start, end

        def colours(px, py):
            if za == zb:
                scale = along_scale = np.full_like(px, camera.focal / za)  # pixels per metre
                along = (px - camera.vanishing[0]) / scale
            else:
                scale = np.clip((px - camera.vanishing[0]) / xa, camera.focal / zb, camera.focal / za)
                along, along_scale = camera.focal / scale, abs(xa) * scale * scale / camera.focal
            up = camera.height - (py - camera.vanishing[1]) / scale
            u, v = along / cell, up / storey
            beside = (half_width - np.abs(u - np.floor(u) - 0.5)) * cell * along_scale
            above = np.minimum((half_height - np.abs(v - np.floor(v) - 0.55)) * storey, height - 0.5 - up) * scale
            inside = np.minimum(beside, above)  # pixels from the edge of a window
            colour = wall * (1 + grain * rough(px, py)[..., None])
            for mask, over in ((inside + 1.2, trim), (inside, pane), (0.5 + (up - height + 0.35) * scale, trim)):
                colour = colour + np.clip(mask, 0, 1)[..., None] * (over - colour)
            return camera.seen(colour * np.float32(shade), (camera.focal / scale)[..., None])

        corners = ((xa, 0, za), (xb, 0, zb), (xb, height, zb), (xa, height, za))
        draw(canvas, polygon([camera.project(*corner) for corner in corners]), colours, BUILDING)

    if z0 > 2:
        draw_wall((x0, z0), (x1, z0), 0.8)
    draw_wall((x0, max(z0, 0.8)), (x0, z1), 0.8 + 0.2 * camera.sun * np.sign(x0))


def draw_tree(canvas: Canvas, camera: Camera, rng: np.random.Generator, x: float, z: float) -> None:
    """A trunk under a crown of several ragged lobes of leaves."""
    height, width, scale = rng.uniform(2.8, 6), rng.uniform(2.6, 4.4), camera.focal / z
    low, foot = height * rng.uniform(0.15, 0.45), camera.project(x, 0, z)
    top = (foot[0] + rng.uniform(-0.4, 0.4) * scale, foot[1] - (low + 0.3 * height) * scale)
    half, bark = max(rng.uniform(0.12, 0.28) * scale, 1.7), camera.seen(any_colour(rng, 0.08, 0.4, 0.25), z)
    draw_shadow(canvas, camera, x, z, width / 2, 0.25 * width)
    draw(canvas, capsule(foot, top, half), bark, TREE)
    draw(canvas, capsule((foot[0] - 0.4 * half, foot[1]), (top[0] - 0.4 * half, top[1]), 0.4 * half), bark * 1.4)
    lobes = []
    for _ in range(rng.integers(4, 9)):
        rx, ry = width * rng.uniform(0.2, 0.38), (height - low) * rng.uniform(0.22, 0.38)
        middle = (x + rng.uniform(-1, 1) * (width / 2 - rx), low + ry + rng.random() * (height - low - 2 * ry))
        lobes.append(ellipse(camera.project(*middle, z), (rx * scale, ry * scale)))
    fine, leaves, lumps = (texture(canvas, rng, grain) for grain in (1, 3, 6))
    leaf = any_colour(rng, 0.2, 0.7, 0.5) * np.array([1, rng.uniform(0.8, 1.2), 0.7], np.float32)  # of all seasons

    def ragged(px, py):
        distance = np.minimum.reduce([lobe.distance(px, py) for lobe in lobes])
        return distance + min(0.12 * width * scale, 3.5) * (0.6 * leaves(px, py) + 0.7 * lumps(px, py))

    def colours(px, py):
        light = 0.7 + 0.3 * (foot[1] - py) / (height * scale)
        spots = light + 0.7 * leaves(px, py) + 0.25 * lumps(px, py) + 0.4 * fine(px, py)
        return camera.seen(leaf * np.clip(spots, 0.15, 1.8)[..., None], z)

    sides = (foot[0] - 0.7 * width * scale, foot[0] + 0.7 * width * scale)
    draw(canvas, Shape(sides[0], foot[1] - 1.1 * height * scale, sides[1], foot[1], ragged), colours, TREE)


def draw_pole(canvas: Canvas, camera: Camera, rng: np.random.Generator, x: float, z: float) -> None:
    """A banded pole, bare or with a sign."""
    (foot, bottom), scale = camera.project(x, 0, z), camera.focal / z
    half, is_sign = max(rng.uniform(0.15, 0.22) * scale, 3), rng.random() < 0.3
    top = bottom - (rng.uniform(1.9, 3) if is_sign else rng.uniform(3, 6)) * scale
    metal = camera.seen(any_colour(rng, 0.5, 0.95, 0.08), z)
    second = camera.seen(vivid_colour(rng) if rng.random() < 0.6 else np.full(3, 0.06, np.float32), z)

    def colours(px, py):
        across, is_odd = (px - foot) / half + 0.3 * camera.sun, np.floor((bottom - py) / (2.2 * half)) % 2 == 1
        return np.where(is_odd[..., None], second, metal) * np.clip(1.35 - across * across, 0.25, None)[..., None]

    draw_shadow(canvas, camera, x, z, 0.4, 0.3)
    corners = [(foot - half, bottom), (foot + half, bottom), (foot + half, top), (foot - half, top)]
    draw(canvas, polygon(corners), colours, POLE)
    radius = max(rng.uniform(0.3, 0.5) * scale, 4)
    for size, label in ((radius, POLE), (0.7 * radius, None)) if is_sign else ():
        draw(canvas, ellipse((foot, top), (size, size)), camera.seen(any_colour(rng, 0.3, 0.9, 0.9), z), label)


def draw_person(canvas: Canvas, camera: Camera, rng: np.random.Generator, x: float, z: float) -> None:
    """A standing or walking person: legs, arms, a torso with a strap, a head, perhaps a bag."""
    (x0, y0), size = camera.project(x, 0, z), camera.focal / z * rng.uniform(0.88, 1.08)
    side = 1 if rng.random() < 0.5 else -1
    skin, hair = (
        np.array([1.0, 0.76, 0.62], np.float32) * np.float32(rng.uniform(0.3, 0.95)),
        any_colour(rng, 0.05, 0.3, 0.3),
    )
    shirt, trousers, bag = (vivid_colour(rng) * np.float32(rng.uniform(0.5, 1)) for _ in range(3))
    if rng.random() < 0.4:
        trousers = any_colour(rng, 0.06, 0.3, 0.3)
    stride, girth, swing = rng.uniform(0.06, 0.36), rng.uniform(0.19, 0.26), rng.uniform(-0.1, 0.32)
    reach, hand = girth + swing, rng.uniform(0.8, 1.3)

    def limb(u0, v0, u1, v1, radius, colour):  # in metres, v up from the ground
        start, end = ((x0 + side * u * size, y0 - v * size) for u, v in ((u0, v0), (u1, v1)))
        draw(canvas, capsule(start, end, radius * size), camera.seen(colour, z), PERSON)

    draw_shadow(canvas, camera, x, z, 0.5, 0.3)
    limb(-0.12, 1.36, -reach, 0.85, 0.075, shirt * 0.8)
    for foot in (-stride, stride):
        limb(0.3 * foot, 0.86, foot, 0.1, 0.115, trousers * (1 + foot))
        limb(foot, 0.07, foot + 0.1, 0.06, 0.075, hair)
    limb(0, 0.94, 0, 1.22, girth, shirt)
    limb(-0.1, 0.96, -0.1, 1.26, 0.07, bag)
    limb(0.17, 1.31, reach, hand, 0.08, shirt * 0.9)
    limb(reach, hand, reach, hand - 0.05, 0.07, skin)
    if rng.random() < 0.25:
        limb(reach, 0.6, reach + 0.1, 0.6, 0.17, bag)
    limb(0.02, 1.57, 0.02, 1.63, 0.14, hair)
    if rng.random() < 0.75:  # not from behind
        limb(0.04, 1.55, 0.04, 1.58, 0.1, skin)


def draw_prism(canvas: Canvas, camera: Camera, low: tuple, high: tuple, colour, glass=None) -> None:
    """A part of a car, with a pane of `glass` let into each of its faces.

    Args:
        low, high: (x0, x1, y, z0, z1) of its floor and of its ceiling, in metres.
    """
    floor, ceiling = (
        [camera.project(x, y, z) for x, z in ((x0, z0), (x1, z0), (x1, z1), (x0, z1))]
        for x0, x1, y, z0, z1 in (low, high)
    )
    faces = [(ceiling, 1.1)]
    for i, light in enumerate((0.8, 0.8 - 0.2 * camera.sun, 0.8, 0.8 + 0.2 * camera.sun)):
        faces.append(([floor[i], floor[i - 3], ceiling[i - 3], ceiling[i]], light))
    for quad, light in faces:
        if sum(a[0] * b[1] - a[1] * b[0] for a, b in zip(quad, [*quad[1:], quad[0]], strict=True)) > -2:
            continue  # turned away, or seen edge-on
        draw(canvas, polygon(quad), camera.seen(colour * np.float32(light), low[3]), CAR)
        if glass is not None:
            x, y = (sum(point[axis] for point in quad) / 4 for axis in (0, 1))
            pane = [(x + 0.8 * (u - x), y + 0.7 * (v - y)) for u, v in quad]
            draw(canvas, polygon(pane), camera.seen(glass * np.float32(light), low[3]))


def draw_car(canvas: Canvas, camera: Camera, rng: np.random.Generator, x: float, z: float, along: bool) -> None:
    """A car whose nearest middle is at (x, z), headed along the street or across it."""
    length, width, waist, roof = (rng.uniform(*span) for span in ((3.5, 5), (1.65, 1.9), (0.85, 1.1), (1.4, 2.2)))
    body = any_colour(rng, 0.05, 0.9, 0.06) if rng.random() < 0.7 else any_colour(rng, 0.15, 0.5, 0.7)
    glass, rubber = any_colour(rng, 0.04, rng.choice([0.3, 0.8]), 0.3), np.full(3, 0.05, np.float32)
    start, end = rng.permutation([1.0, rng.uniform(0.1, 0.8)])  # the bonnet and the boot
    dx, dz = (width, length) if along else (length, width)
    x0, x1, z0, z1 = x - dx / 2, x + dx / 2, z, z + dz
    short, long = (0.05, -0.05, 0.2, -0.2), (start, -end, start + 0.45, -end - 0.45)  # the cabin's floor and roof
    (a, b, c, d), (e, f, g, h) = (short, long) if along else (long, short)
    draw_shadow(canvas, camera, x, z + dz / 2, dx / 2 + 0.3, dz / 2 + 0.3)
    draw_prism(canvas, camera, (x0, x1, 0.05, z0 + 0.1, z1), (x0, x1, 0.4, z0 + 0.1, z1), rubber)
    draw_prism(canvas, camera, (x0, x1, 0.28, z0, z1), (x0, x1, waist, z0 + 0.05, z1), body)
    cabin = (x0 + a, x1 + b, waist, z0 + e, z1 + f), (x0 + c, x1 + d, roof, z0 + g, z1 + h)
    draw_prism(canvas, camera, *cabin, body, glass)
    scale, lamp = camera.focal / z0, [0.95, 0.95, 0.85] if start == 1 else [0.85, 0.1, 0.1]
    wheel = (0.12, 0.15) if along else (0.8, 0.35)  # from the corner, and its radius
    for left, right in ((x0, 1), (x1, -1)):
        hub = camera.project(left + right * wheel[0], 0.33, z0)
        draw(canvas, ellipse(hub, (wheel[1] * scale, 0.33 * scale)), rubber, CAR)
        if not along:
            draw(canvas, ellipse(hub, (0.2 * scale, 0.2 * scale)), camera.seen(body * 0.5 + 0.3, z0))
        draw(canvas, ellipse(camera.project(left + right * 0.25, 0.72, z0), (0.17 * scale, 0.11 * scale)), lamp)

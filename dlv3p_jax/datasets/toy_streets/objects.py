"""What stands in a street: cars, people, trees, poles and odd things, drawn at their place in the world."""

import dataclasses

import numpy as np

from dlv3p_jax.datasets.toy_streets.canvas import (
    Canvas,
    Point,
    draw_capsule,
    draw_ellipse,
    draw_polygon,
    ellipse_distance,
    paint,
    polygon_distance,
    rectangle,
    texture,
    window_of,
)

TREE, POLE, CAR, PERSON, VOID = 4, 5, 6, 7, 255


@dataclasses.dataclass
class Camera:
    """A pinhole camera above a flat ground; the world is X to the right, Y up from the ground, Z ahead, in metres.

    Attributes:
        focal: focal length in pixels.
        height: of the camera above the ground, in metres.
        vanishing: (x, y) in the level frame where lines along Z meet; y is the horizon.
        haze: colour [3] into which distance fades.
        haze_distance: metres at which half of a colour is lost.
        sun: (from the left, from the front), -1..1: which faces are bright.
    """

    focal: float
    height: float
    vanishing: Point
    haze: np.ndarray
    haze_distance: float
    sun: tuple[float, float]

    def project(self, x: float, y: float, z: float) -> Point:
        scale = self.focal / z
        return self.vanishing[0] + x * scale, self.vanishing[1] + (self.height - y) * scale

    def seen(self, colour: np.ndarray, z) -> np.ndarray:
        """A colour [..., 3] as it looks from z metres away (a number, or an array [..., 1])."""
        return colour + (self.haze - colour) * (z / (z + self.haze_distance))

    def shade(self, towards_left: float, towards_front: float) -> float:
        """Brightness of an upright face with that normal."""
        return 0.8 + 0.2 * (towards_left * self.sun[0] + towards_front * self.sun[1])


def any_colour(rng: np.random.Generator, low: float, high: float, saturation: float) -> np.ndarray:
    """A grey in low..high with a random tint, float32 [3] in 0.02..1."""
    tint = rng.uniform(-1, 1, 3)
    return np.clip(rng.uniform(low, high) * (1 + saturation * tint), 0.02, 1).astype(np.float32)


def vivid_colour(rng: np.random.Generator) -> np.ndarray:
    """A saturated colour of any hue, float32 [3]: one channel high, one low, one between."""
    return rng.permutation([rng.uniform(0.7, 1.0), rng.uniform(0.1, 0.8), rng.uniform(0.03, 0.2)]).astype(np.float32)


def draw_shadow(canvas: Canvas, camera: Camera, x0: float, x1: float, z0: float, z1: float, darkness: float) -> None:
    """Darken the ground under something, without changing its label."""
    (left, bottom), (right, top) = camera.project(x0, 0, z0), camera.project(x1, 0, z1)
    middle, radii = ((left + right) / 2, (bottom + top) / 2), (abs(right - left) / 2 + 1, abs(bottom - top) / 2 + 1)
    window = window_of(canvas, middle[0] - radii[0], middle[1] - radii[1], middle[0] + radii[0], middle[1] + radii[1])
    if window:
        distance = ellipse_distance(canvas.x[window], canvas.y[window], middle, radii)
        paint(canvas, window, distance / (0.3 * min(radii) + 1) + 0.5, canvas.image[window] * 0.25, opacity=darkness)


def draw_tree(canvas: Canvas, camera: Camera, rng: np.random.Generator, x: float, z: float, size: float = 1.0) -> None:
    """A trunk and a crown of several ragged lobes of leaves, or a bush without a trunk; `size` is relative."""
    bush = rng.random() < 0.15
    height, width = (
        (rng.uniform(0.9, 1.7), rng.uniform(1.5, 3.0)) if bush else (rng.uniform(3.2, 6), rng.uniform(2.6, 4.4))
    )
    height, width = size * height, size * width
    scale = camera.focal / z
    foot = camera.project(x, 0, z)
    draw_shadow(canvas, camera, x - width / 2, x + width / 2, z - 0.2 * width, z + 0.3 * width, rng.uniform(0.2, 0.7))
    low = 0.0 if bush else height * rng.uniform(0.25, 0.45)
    if not bush:
        bark = camera.seen(any_colour(rng, 0.08, 0.4, 0.25), z)
        half, top = max(rng.uniform(0.12, 0.28) * scale, 1.7), foot[1] - (low + 0.3 * height) * scale
        lean = foot[0] + rng.uniform(-0.4, 0.4) * scale
        root, twig = (foot[0] - 1.2 * half, foot[1]), (lean - 0.7 * half, top)
        trunk = [root, (foot[0] + 1.2 * half, foot[1]), (lean + 0.7 * half, top), twig]
        draw_polygon(canvas, trunk, bark, TREE)
        draw_capsule(canvas, (foot[0] - 0.4 * half, foot[1]), (lean - 0.3 * half, top), 0.4 * half, bark * 1.4)
    box = (foot[0] - 0.7 * width * scale, foot[1] - 1.1 * height * scale, foot[0] + 0.7 * width * scale, foot[1])
    window = window_of(canvas, *box)
    if not window:
        return
    px, py = canvas.x[window], canvas.y[window]
    distance: np.ndarray = np.full(px.shape, np.inf, np.float32)
    for _ in range(rng.integers(4, 9)):
        rx, ry = width * rng.uniform(0.2, 0.38), (height - low) * rng.uniform(0.22, 0.38)
        lobe_x = foot[0] + rng.uniform(-1, 1) * (width / 2 - rx) * scale
        lobe_y = foot[1] - rng.uniform(low + ry, height - ry if height - ry > low + ry else low + ry + 0.01) * scale
        distance = np.minimum(distance, ellipse_distance(px, py, (lobe_x, lobe_y), (rx * scale, ry * scale)))
    if bush:
        distance = np.maximum(distance, py - foot[1])
    fine, leaves, lumps = (texture(canvas, rng, window, grain) for grain in (1, 3, 6))
    distance = distance + min(0.12 * width * scale, 3.5) * (0.6 * leaves + 0.7 * lumps)
    kind = rng.random()
    if kind < 0.6:  # green, light to dark
        leaf = rng.uniform(0.2, 0.65) * np.array([rng.uniform(0.4, 1.0), 1.0, rng.uniform(0.15, 0.7)])
    elif kind < 0.85:  # autumn
        leaf = rng.uniform(0.3, 0.8) * np.array([1.0, rng.uniform(0.35, 0.85), rng.uniform(0.1, 0.45)])
    else:  # blossom, dust, dusk
        leaf = any_colour(rng, 0.2, 0.75, 0.3)
    light = 1 - 0.35 * (py - box[1]) / (box[3] - box[1]) - 0.12 * camera.sun[0] * (px - foot[0]) / (width * scale)
    spots = light + 0.7 * leaves + 0.25 * lumps + 0.4 * fine
    colour = leaf.astype(np.float32) * np.clip(spots, 0.15, 1.8)[..., None]
    paint(canvas, window, distance, camera.seen(colour, z), TREE)


def draw_pole(canvas: Canvas, camera: Camera, rng: np.random.Generator, x: float, z: float, inwards: float) -> None:
    """A pole, bare or with a lamp, traffic lights or signs; `inwards` (1 or -1) is where the road lies."""
    scale = camera.focal / z
    foot = camera.project(x, 0, z)
    half = max(rng.uniform(0.15, 0.22) * scale, 3)
    kind = rng.choice(["bare", "bare", "lamp", "lights", "sign"])
    height = rng.uniform(3, 6) if kind in ("bare", "lamp") else rng.uniform(1.9, 3)
    top = foot[1] - height * scale
    metal = second = camera.seen(any_colour(rng, 0.5, 0.95, 0.08), z)
    if rng.random() < 0.9:  # banded
        second = camera.seen(vivid_colour(rng) if rng.random() < 0.6 else np.full(3, 0.06, np.float32), z)
    draw_shadow(canvas, camera, x - 0.4, x + 0.4, z - 0.3, z + 0.3, 0.5)
    extent = (foot[0] - half, top, foot[0] + half, foot[1])
    window = window_of(canvas, *extent)
    if window:
        px, py = canvas.x[window], canvas.y[window]
        across, bands = (px - foot[0]) / half, np.floor((foot[1] - py) / (2.2 * half))
        light = np.clip(1.35 - 1.0 * np.square(across + 0.3 * camera.sun[0]), 0.25, None)[..., None]
        colour = np.where((bands % 2 == 1)[..., None], second, metal) * light
        paint(canvas, window, polygon_distance(px, py, rectangle(*extent)), colour, POLE)
    if kind == "lamp":
        end = (foot[0] + inwards * rng.uniform(0.8, 2.0) * scale, top - rng.uniform(0, 0.4) * scale)
        draw_capsule(canvas, (foot[0], top), end, max(0.7 * half, 2), metal, POLE)
        glow = camera.seen(any_colour(rng, 0.3, 1.0, 0.2), z)
        draw_ellipse(canvas, end, (max(0.45 * scale, 3), max(0.2 * scale, 1.8)), glow, POLE)
    elif kind == "lights":
        wide, tall = max(0.22 * scale, 2.5), max(0.95 * scale, 8)
        box = rectangle(foot[0] - wide, top, foot[0] + wide, top + tall)
        draw_polygon(canvas, box, camera.seen(any_colour(rng, 0.03, 0.2, 0.2), z), POLE)
        lit = rng.integers(3)
        for i, lamp in enumerate(((0.9, 0.1, 0.1), (0.95, 0.7, 0.1), (0.1, 0.85, 0.4))):
            glow = np.array(lamp, np.float32) * (1.0 if i == lit else 0.25)
            draw_ellipse(canvas, (foot[0], top + (i + 0.5) * tall / 3), (0.6 * wide, 0.6 * wide), glow)
    elif kind == "sign":
        radius = max(rng.uniform(0.3, 0.5) * scale, 4)
        face, edge = (camera.seen(any_colour(rng, 0.3, 0.9, 0.9), z) for _ in range(2))
        middle = (foot[0], top + 0.6 * radius)
        if rng.random() < 0.5:
            draw_ellipse(canvas, middle, (radius, radius), edge, POLE)
            draw_ellipse(canvas, middle, (0.7 * radius, 0.7 * radius), face)
        else:
            wide, tall = radius * rng.uniform(0.8, 1.5), radius * rng.uniform(0.6, 1.1)
            for part, colour, label in ((1.0, edge, POLE), (0.75, face, None)):
                w, h = part * wide, part * tall
                plate = rectangle(middle[0] - w, middle[1] - h, middle[0] + w, middle[1] + h)
                draw_polygon(canvas, plate, colour, label)


def draw_person(canvas: Canvas, camera: Camera, rng: np.random.Generator, x: float, z: float) -> None:
    """A standing or walking person seen from anywhere: legs or a skirt, a torso, arms, a head, perhaps a bag."""
    scale = camera.focal / z
    x0, y0 = camera.project(x, 0, z)
    size = scale * rng.uniform(0.88, 1.08)
    side = 1 if rng.random() < 0.5 else -1

    def at(u: float, v: float) -> Point:
        return x0 + side * u * size, y0 - v * size

    skin = camera.seen(np.array([1.0, 0.76, 0.62], np.float32) * np.float32(rng.uniform(0.3, 0.95)), z)
    shirt, trousers, bag = (camera.seen(vivid_colour(rng) * np.float32(rng.uniform(0.5, 1)), z) for _ in range(3))
    hair, shoes = (camera.seen(any_colour(rng, 0.05, 0.3, 0.3), z) for _ in range(2))
    if rng.random() < 0.4:
        trousers = camera.seen(any_colour(rng, 0.06, 0.3, 0.3), z)
    draw_shadow(canvas, camera, x - 0.5, x + 0.5, z - 0.3, z + 0.3, 0.6)
    stride = rng.uniform(0.06, 0.36)
    hips, shoulders, girth = 0.86, 1.36, rng.uniform(0.19, 0.26)
    lean = rng.uniform(-0.03, 0.06)
    swing = rng.uniform(-0.1, 0.32)
    draw_capsule(canvas, at(lean - 0.12, shoulders), at(-girth - swing, 0.85), 0.075 * size, shirt * 0.8, PERSON)
    for foot, light in ((-stride, 0.8), (stride * 0.9, 1.0)):
        draw_capsule(canvas, at(0.3 * foot, hips), at(foot, 0.1), 0.115 * size, trousers * light, PERSON)
        draw_capsule(canvas, at(foot, 0.07), at(foot + 0.1, 0.06), 0.075 * size, shoes, PERSON)
    if rng.random() < 0.3:
        hem, wide = rng.uniform(0.35, 0.6), rng.uniform(0.26, 0.36)
        draw_polygon(canvas, [at(-0.2, 1.0), at(0.2, 1.0), at(wide, hem), at(-wide, hem)], trousers, PERSON)
    if rng.random() < 0.3:
        draw_capsule(canvas, at(lean - 0.22, 1.2), at(lean - 0.22, 1.0), 0.14 * size, bag, PERSON)
    draw_capsule(canvas, at(0, hips + 0.08), at(lean, shoulders - 0.14), girth * size, shirt, PERSON)
    if rng.random() < 0.3:  # stripes
        second = any_colour(rng, 0.6, 0.95, 0.4) if shirt.max() < 0.6 else any_colour(rng, 0.05, 0.3, 0.9)
        for up in (0.95, 1.13, 1.31):
            draw_capsule(canvas, at(lean - 0.17, up), at(lean + 0.17, up), 0.045 * size, camera.seen(second, z))
    draw_capsule(canvas, at(-0.08, hips + 0.1), at(lean - 0.1, shoulders - 0.1), 0.07 * size, shirt * 0.75)
    elbow = at(girth + 0.5 * swing + 0.02, 1.08)
    draw_capsule(canvas, at(lean + 0.17, shoulders - 0.05), elbow, 0.08 * size, shirt * 0.9, PERSON)
    hand = at(girth + swing, rng.uniform(0.8, 1.3))
    draw_capsule(canvas, elbow, hand, 0.07 * size, shirt * 0.9, PERSON)
    draw_ellipse(canvas, hand, (0.075 * size, 0.075 * size), skin, PERSON)
    if rng.random() < 0.25:
        draw_capsule(canvas, at(girth + swing, 0.6), at(girth + swing + 0.1, 0.6), 0.17 * size, bag, PERSON)
    draw_ellipse(canvas, at(lean + 0.02, 1.6), (0.135 * size, 0.17 * size), hair, PERSON)
    if rng.random() < 0.75:
        draw_ellipse(canvas, at(lean + 0.03 + rng.uniform(0, 0.04), 1.56), (0.1 * size, 0.12 * size), skin, PERSON)


def draw_prism(canvas: Canvas, camera: Camera, low: tuple, high: tuple, colour, label, glass=None) -> None:
    """A box that may taper upwards, with panes of `glass` let into its upright faces.

    Args:
        low, high: (x0, x1, y, z0, z1) of its floor and of its ceiling, in metres.
    """
    corners = []
    for x0, x1, y, z0, z1 in (low, high):
        corners.append([camera.project(x, y, z) for x, z in ((x0, z0), (x1, z0), (x1, z1), (x0, z1))])
    z = low[3]
    faces: list[tuple[list[Point], float, tuple[Point, ...]]] = [(corners[1], 1.15, ())]
    for i, normal in enumerate(((0, 1), (-1, 0), (0, -1), (1, 0))):
        j = (i + 1) % 4
        quad = [corners[0][i], corners[0][j], corners[1][j], corners[1][i]]
        spans = ((0.08, 0.92),) if normal[0] == 0 else ((0.07, 0.47), (0.53, 0.93))
        faces.append((quad, camera.shade(*normal), spans if glass is not None else ()))
    for quad, light, panes in faces:
        area = sum(a[0] * b[1] - a[1] * b[0] for a, b in zip(quad, quad[1:] + quad[:1], strict=True))
        if area > -2:  # turned away, or seen edge-on
            continue
        window = window_of(canvas, *(f(p[i] for p in quad) for f in (min, max) for i in (0, 1)))
        if not window:
            continue
        px, py = canvas.x[window], canvas.y[window]
        bottom, top = max(p[1] for p in quad), min(p[1] for p in quad)
        gloss = np.clip(1.3 - 0.7 * (py - top) / (bottom - top + 1), 0.5, 1.3)[..., None] * np.float32(light)
        paint(canvas, window, polygon_distance(px, py, quad), camera.seen(colour * gloss, z), label)
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = quad
        for start, end in panes:
            points = []
            for u, v in ((start, 0.12), (end, 0.12), (end, 0.85), (start, 0.85)):
                left, right = (ax + v * (dx - ax), ay + v * (dy - ay)), (bx + v * (cx - bx), by + v * (cy - by))
                points.append((left[0] + u * (right[0] - left[0]), left[1] + u * (right[1] - left[1])))
            draw_polygon(canvas, points, camera.seen(glass * np.float32(0.6 + 0.4 * light), z))


def draw_car(canvas: Canvas, camera: Camera, rng: np.random.Generator, x: float, z: float, along: bool) -> None:
    """A car, estate or van whose nearest middle is at (x, z), headed along the street or across it."""
    van = rng.random() < 0.2
    length, width = (rng.uniform(4.5, 6), 2.0) if van else (rng.uniform(3.5, 4.7), rng.uniform(1.65, 1.85))
    waist, roof = (1.1, rng.uniform(1.9, 2.5)) if van else (rng.uniform(0.85, 1.0), rng.uniform(1.4, 1.7))
    body = any_colour(rng, 0.05, 0.9, 0.06) if rng.random() < 0.7 else any_colour(rng, 0.15, 0.5, 0.7)
    glass = any_colour(rng, 0.04, 0.3, 0.3) if rng.random() < 0.7 else any_colour(rng, 0.3, 0.8, 0.2)
    rubber = np.full(3, rng.uniform(0.02, 0.08), np.float32)
    front = rng.random() < 0.5  # whether the bonnet is on the near side (along) or on the left
    bonnet, boot = (0.15, 0.05) if van else (rng.uniform(0.9, 1.2), rng.uniform(0.1, 0.8))
    start, end = (bonnet, boot) if front else (boot, bonnet)
    if along:
        x0, x1, z0, z1 = x - width / 2, x + width / 2, z, z + length
        floor, ceiling = (
            (x0 + 0.04, x1 - 0.04, waist, z0 + start, z1 - end),
            (x0 + 0.2, x1 - 0.2, roof, z0 + start + 0.45, z1 - end - 0.45),
        )
    else:
        x0, x1, z0, z1 = x - length / 2, x + length / 2, z, z + width
        floor, ceiling = (
            (x0 + start, x1 - end, waist, z0 + 0.04, z1 - 0.04),
            (x0 + start + 0.5, x1 - end - 0.5, roof, z0 + 0.2, z1 - 0.2),
        )
    draw_shadow(canvas, camera, x0 - 0.3, x1 + 0.3, z0 - 0.4, z1, 0.9)
    draw_prism(
        canvas,
        camera,
        (x0 + 0.1, x1 - 0.1, 0.12, z0 + 0.15, z1 - 0.15),
        (x0 + 0.1, x1 - 0.1, 0.4, z0 + 0.15, z1 - 0.15),
        rubber,
        CAR,
    )
    near = camera.focal / z0
    if along:
        for left in (x0, x1 - 0.3):
            tyre = [
                camera.project(u, v, z0 + 0.1)
                for u, v in ((left, 0), (left + 0.3, 0), (left + 0.3, 0.45), (left, 0.45))
            ]
            draw_polygon(canvas, tyre, rubber, CAR)
    draw_prism(canvas, camera, (x0, x1, 0.28, z0, z1), (x0 + 0.03, x1 - 0.03, waist, z0 + 0.05, z1 - 0.05), body, CAR)
    draw_prism(canvas, camera, floor, ceiling, body, CAR, glass)
    hub = any_colour(rng, 0.2, 0.8, 0.05)
    for distance in (0.8, length - 0.8):
        if along:
            if x0 < 0 < x1:
                continue
            face, depth = (x0 if x0 > 0 else x1), z0 + distance
            centre, edge = camera.project(face, 0.33, depth), camera.project(face, 0.33, depth - 0.34)
            radii = (abs(edge[0] - centre[0]), 0.34 * camera.focal / depth)
        else:
            centre, radii = camera.project(x0 + distance, 0.33, z0), (0.35 * near, 0.35 * near)
        if radii[0] > 0.8:
            draw_ellipse(canvas, centre, radii, rubber, CAR)
            draw_ellipse(canvas, centre, (0.55 * radii[0], 0.55 * radii[1]), camera.seen(hub, z0))
    lamp = np.array([0.95, 0.95, 0.85] if front else [0.85, 0.1, 0.1], np.float32)
    if along:
        for u in (x0 + 0.25, x1 - 0.25):
            draw_ellipse(canvas, camera.project(u, 0.72, z0), (0.19 * near, 0.11 * near), lamp)
        plate = [camera.project(x + u, v, z0) for u, v in ((-0.27, 0.42), (0.27, 0.42), (0.27, 0.57), (-0.27, 0.57))]
        draw_polygon(canvas, plate, any_colour(rng, 0.7, 0.95, 0.1))
    else:
        for u in (x0 + 0.12, x1 - 0.12):
            draw_ellipse(canvas, camera.project(u, 0.7, z0), (0.13 * near, 0.1 * near), lamp)


def draw_odd_thing(canvas: Canvas, camera: Camera, rng: np.random.Generator, x: float, z: float) -> None:
    """Something of no class, labelled void: a bin, a ball, a crate or a barrier."""
    colours = [camera.seen(any_colour(rng, 0.1, 0.9, 0.8), z) for _ in range(2)]
    kind = rng.integers(3)
    draw_shadow(canvas, camera, x - 0.6, x + 0.6, z - 0.3, z + 0.5, 0.6)
    if kind == 0:
        radius = rng.uniform(0.3, 0.6)
        scale = camera.focal / z * radius
        draw_ellipse(canvas, camera.project(x, radius, z), (scale, scale), colours[0], VOID)
        draw_ellipse(canvas, camera.project(x, radius, z), (0.4 * scale, scale), colours[1])
        return
    half, height = (
        (rng.uniform(0.25, 0.45), rng.uniform(0.8, 1.2))
        if kind == 1
        else (rng.uniform(0.6, 1.3), rng.uniform(0.5, 0.9))
    )
    draw_prism(
        canvas,
        camera,
        (x - half, x + half, 0, z, z + half),
        (x - half, x + half, height, z, z + half),
        colours[0],
        VOID,
    )
    band = [camera.project(x + u * half, v * height, z) for u, v in ((-1, 0.6), (1, 0.6), (1, 0.8), (-1, 0.8))]
    draw_polygon(canvas, band, colours[1])

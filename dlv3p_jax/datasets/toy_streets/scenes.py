"""toy_streets: synthetic street scenes with their labels, drawn from (split, index) alone. NumPy only.

No class has a colour of its own: roads, skies, walls, cars and clothes share theirs, and lighting changes them all.
What tells classes apart is shape, texture and what stands next to what.
"""

import numpy as np

from dlv3p_jax.datasets.toy_streets.buildings import draw_front, draw_row, new_facade
from dlv3p_jax.datasets.toy_streets.canvas import Canvas, draw_ellipse, draw_polygon, new_canvas, texture
from dlv3p_jax.datasets.toy_streets.objects import (
    VOID,
    Camera,
    any_colour,
    draw_car,
    draw_odd_thing,
    draw_person,
    draw_pole,
    draw_tree,
)

CLASS_NAMES = ("road", "pavement", "sky", "building", "tree", "pole", "car", "person")
PALETTE = (
    (128, 64, 128),
    (244, 35, 232),
    (70, 130, 180),
    (70, 70, 70),
    (107, 142, 35),
    (153, 153, 153),
    (0, 0, 142),
    (220, 20, 60),
)
SIZE = (128, 192)  # height, width
NUM_PICTURES = {"train": 400, "val": 60}
ROAD, PAVEMENT, SKY = 0, 1, 2


def draw_scene(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture at `index` of a split; the same on every machine.

    Args:
        split: "train" or "val".
        index: 0..NUM_PICTURES[split] - 1.

    Returns:
        image uint8 [H, W, 3] and label uint8 [H, W] (an index into CLASS_NAMES, or 255), of SIZE.

    Raises:
        ValueError: there is no such picture.
    """
    if not 0 <= index < NUM_PICTURES.get(split, 0):
        raise ValueError(f"toy_streets has no picture {index} in split {split!r}; it has {NUM_PICTURES}")
    seed = np.random.SeedSequence([20_240, list(NUM_PICTURES).index(split), index])
    rng = np.random.Generator(np.random.PCG64(seed))
    canvas = new_canvas(rng, SIZE, slope=rng.uniform(-0.05, 0.05))
    height, width = SIZE
    camera = Camera(
        focal=width * rng.uniform(0.8, 1.1),
        height=rng.uniform(0.95, 1.5),
        vanishing=(width * rng.uniform(0.2, 0.8), height * rng.uniform(0.34, 0.54)),
        haze=any_colour(rng, 0.35, 0.9, 0.15),
        haze_distance=float(rng.choice([150, 300, 600])),
        sun=(rng.uniform(-1, 1), rng.uniform(-1, 1)),
    )
    kerbs = (-rng.uniform(0.9, 3), rng.uniform(0.9, 3))
    walls = (kerbs[0] - rng.uniform(2.5, 5), kerbs[1] + rng.uniform(2.5, 5))
    end = rng.uniform(14, 32) if rng.random() < 0.4 else 70.0
    rows = [street_side(rng, end) for _ in walls]
    draw_sky(canvas, camera, rng)
    draw_ground(canvas, camera, rng, kerbs, rows, end)
    draw_far_end(canvas, camera, rng, end)
    for x, (blocks, gaps) in zip(walls, rows, strict=True):
        for z0, z1 in gaps:
            for _ in range(rng.integers(0, 2)):
                away = rng.uniform(3, 9)
                draw_tree(canvas, camera, rng, x + (away if x > 0 else -away), rng.uniform(0.6, 1) * (z1 - z0) + z0)
        draw_row(canvas, camera, rng, x, blocks)
    cast_shadows(canvas, camera, rng)
    for _, draw, *arguments in sorted(street_things(rng, kerbs, walls, end), key=lambda thing: -thing[0]):
        draw(canvas, camera, rng, *arguments)
    draw_borders(canvas, rng)
    return expose(canvas, rng), canvas.label


def street_side(rng: np.random.Generator, end: float) -> tuple[list, list]:
    """Houses and gaps (side streets, squares) along one side of the street, each from z0 to z1 in metres."""
    blocks: list[tuple[float, float]] = []
    gaps: list[tuple[float, float]] = []
    z = rng.uniform(-10, 6)
    while z < end - 3:
        length = min(rng.uniform(6, 18), end - z)
        if z + length > 2.5:
            (gaps if rng.random() < 0.22 else blocks).append((z, z + length))
        z += length
    return blocks, gaps


def draw_sky(canvas: Canvas, camera: Camera, rng: np.random.Generator) -> None:
    """A gradient from the zenith to the horizon, clear, cloudy, overcast, at dusk or at night."""
    top, low = {
        0: (np.array([0.3, 0.5, 0.85]) * rng.uniform(0.75, 1.15), np.array([0.65, 0.8, 0.95])),
        1: (any_colour(rng, 0.45, 0.95, 0.06), any_colour(rng, 0.55, 1.0, 0.06)),
        2: (
            any_colour(rng, 0.25, 0.6, 0.3),
            np.array([rng.uniform(0.7, 1), rng.uniform(0.4, 0.7), rng.uniform(0.25, 0.6)]),
        ),
        3: (any_colour(rng, 0.08, 0.2, 0.4), any_colour(rng, 0.15, 0.4, 0.3)),
        4: (any_colour(rng, 0.3, 0.7, 0.2), any_colour(rng, 0.3, 0.8, 0.2)),
    }[rng.choice(5, p=[0.48, 0.36, 0.06, 0.03, 0.07])]
    down = np.clip(canvas.y / camera.vanishing[1], 0, 1)[..., None]
    top, low = top.astype(np.float32), low.astype(np.float32)
    sky = top + (low - top) * down
    clouds = np.clip((canvas.noise[40] + 0.4 * canvas.noise[14] + rng.uniform(-0.7, 0.3)) * rng.uniform(0.5, 2), 0, 1)
    sky = sky + clouds[..., None] * (any_colour(rng, 0.3, 1.0, 0.08) - sky) * float(rng.choice([0.0, 0.5, 0.9]))
    canvas.image[:] = sky
    canvas.label[:] = SKY


def draw_ground(canvas: Canvas, camera: Camera, rng: np.random.Generator, kerbs, rows, end: float) -> None:
    """Road with its markings, pavements with kerbs and slabs, and the mouths of side streets."""
    below = canvas.y - camera.vanishing[1]
    ground = below > camera.focal * camera.height / 200
    depth = camera.focal * camera.height / np.maximum(below, 0.5)
    across = (canvas.x - camera.vanishing[0]) * depth / camera.focal
    scale = camera.focal / depth  # pixels per metre across; along the street it is scale * camera.height / depth
    along_scale = scale * camera.height / depth
    road = (across > kerbs[0]) & (across < kerbs[1])
    side = np.where(across < (kerbs[0] + kerbs[1]) / 2, 0, 1)
    for i, (_, gaps) in enumerate(rows):
        for z0, z1 in gaps:
            if rng.random() < 0.7:
                road |= (side == i) & (depth > z0 + 1.5) & (depth < z1 - 1.5)
    if end < 60:
        road |= (depth > end - 9) & (depth < end - 2.5)
    tone = any_colour(rng, 0.2, 0.42, 0.05)
    paving = tone * np.float32(rng.uniform(1.3, 1.6))
    if rng.random() < 0.75:
        paving = any_colour(rng, 0.55, 0.85, 0.1) * np.array([1.1, 1.0, rng.uniform(0.7, 1.0)], np.float32)
    full = (slice(0, SIZE[0]), slice(0, SIZE[1]))
    fine, patches, stains = (texture(canvas, rng, full, grain) for grain in (1, 6, 40))
    asphalt = tone * (1 + 0.22 * fine + 0.08 * patches + 0.1 * stains)[..., None]
    # Slabs: joints every so many metres across and along, as far as they can be seen.
    slab, joint, parity = rng.uniform(0.5, 1.0), np.zeros_like(across), np.zeros_like(across)
    for metres, per_metre in ((across, scale), (depth, along_scale)):
        offset = np.abs(metres / slab - np.floor(metres / slab) - 0.5) * slab * per_metre
        parity = parity + np.floor(metres / slab)
        joint = np.maximum(joint, np.clip(1.2 - offset, 0, 1) * np.clip(slab * per_metre / 3 - 1, 0, 1))
    chequer = rng.uniform(0.1, 0.25) * np.clip(slab * along_scale / 2 - 1, 0, 1) * (parity % 2)
    slabs = paving * (1 + 0.03 * fine + 0.05 * stains - chequer - rng.uniform(0.45, 0.65) * joint)[..., None]
    colour = np.where(road[..., None], asphalt, slabs)

    def lay(mask, over):
        nonlocal colour
        colour = colour + np.clip(mask, 0, 1)[..., None] * (over - colour)

    stone = np.clip(paving * float(rng.choice([0.55, 1.35])), 0, 1)
    white = any_colour(rng, 0.7, 1.0, 0.1) if rng.random() < 0.8 else np.array([0.9, 0.75, 0.25], np.float32)
    wear = rng.uniform(0.6, 1.0) + 0.3 * patches
    for kerb in kerbs:
        outside = np.abs(across - kerb) if kerb > 0 else np.abs(kerb - across)
        beside = (outside < 0.35) & ~road
        lay(beside * np.clip(0.3 * scale, 0, 1), stone)
        if rng.random() < 0.3:
            lay(road * wear * np.clip((0.08 - np.abs(across - 0.92 * kerb)) * scale + 0.5, 0, 1), white)
    lanes = int(rng.integers(1, 4))
    dash = rng.uniform(2, 4)
    for lane in range(1, lanes):
        line = kerbs[0] + (kerbs[1] - kerbs[0]) * lane / lanes
        painted = (depth / dash + lane) % 2 < 1 if rng.random() < 0.75 else True
        lay(road * painted * wear * np.clip((0.1 - np.abs(across - line)) * scale + 0.5, 0, 1), white)
    if rng.random() < 0.3:  # a zebra crossing
        start = rng.uniform(4, 12)
        bars = (
            ((across / 0.5) % 2 < 1) & (depth > start) & (depth < start + 3) & (across > kerbs[0]) & (across < kerbs[1])
        )
        lay(bars * wear, white)
    colour = camera.seen(colour, np.minimum(depth, 100)[..., None])
    canvas.image[ground] = colour[ground]
    canvas.label[ground] = np.where(road, ROAD, PAVEMENT)[ground]


def draw_far_end(canvas: Canvas, camera: Camera, rng: np.random.Generator, end: float) -> None:
    """What closes the view: houses across a T-junction, or woods and roofs far away."""
    if end < 60:
        x = -40.0
        while x < 40:
            facade, length = new_facade(rng), rng.uniform(7, 16)
            if rng.random() < 0.75:
                draw_front(canvas, camera, rng, facade, x, x + length, end)
            else:
                for _ in range(2):
                    draw_tree(canvas, camera, rng, x + rng.uniform(0, length), end, 1.6)
            x += length
        return
    for _ in range(rng.integers(2, 6)):
        x = rng.uniform(-60, 60)
        if rng.random() < 0.5:
            draw_front(canvas, camera, rng, new_facade(rng), x, x + rng.uniform(8, 20), rng.uniform(50, 75))
        else:
            for _ in range(2):
                draw_tree(canvas, camera, rng, x + rng.uniform(0, 20), 45.0, 3.0)


def cast_shadows(canvas: Canvas, camera: Camera, rng: np.random.Generator) -> None:
    """Shadows of houses and trees that are themselves out of sight, over the ground only."""
    lit = canvas.image.copy()
    for _ in range(rng.integers(0, 4)):
        z, x = rng.uniform(3, 14), rng.uniform(-8, 8)
        wide, deep, slant = rng.uniform(1, 5), rng.uniform(0.7, 4), rng.uniform(-3, 3)
        quad = [
            camera.project(a, 0, b)
            for a, b in ((x, z), (x + wide, z), (x + wide + slant, z + deep), (x + slant, z + deep))
        ]
        draw_polygon(canvas, quad, np.zeros(3), opacity=rng.uniform(0.2, 0.6))
    ground = canvas.label <= PAVEMENT
    canvas.image[~ground] = lit[~ground]


def street_things(rng: np.random.Generator, kerbs, walls, end: float) -> list[tuple]:
    """What stands in the street: (depth, draw, *place)."""
    things: list[tuple] = []
    reach = min(end - 4, 15)
    for side, (kerb, wall) in enumerate(zip(kerbs, walls, strict=True)):
        inwards = 1 if side == 0 else -1
        pavement = sorted((kerb, wall))
        if rng.random() < 0.5:
            z, gap = rng.uniform(4, 9), rng.uniform(5, 9)
            while z < reach:
                things.append((z, draw_tree, kerb - inwards * 0.9, z))
                z += gap
        for _ in range(rng.integers(0, 3)):
            z = rng.uniform(2.8, 5.5)
            things.append((z, draw_pole, kerb - inwards * rng.uniform(0.3, 0.8), z, inwards))
        if rng.random() < 0.35:
            z = rng.uniform(3.5, 7)
            for _ in range(rng.integers(1, 3)):
                things.append((z, draw_car, kerb + inwards * 1.1, z, True))
                z += rng.uniform(5.5, 8)
        for _ in range(rng.integers(0, 2)):
            z = rng.uniform(2.6, 5)
            things.append((z, draw_person, rng.uniform(*pavement), z))
        if rng.random() < 0.15:
            z = rng.uniform(3, 6)
            things.append((z, draw_odd_thing, rng.uniform(*pavement), z))
    if rng.random() < 0.35:
        z = rng.uniform(4, 9)
        things.append((z, draw_car, rng.uniform(*kerbs) * 0.5, z, True))
    if rng.random() < 0.3:
        z = rng.uniform(4, 8)
        things.append((z, draw_car, rng.uniform(-5, 5), z, False))
    for _ in range(rng.integers(0, 3)):
        z = rng.uniform(2.8, 5)
        things.append((z, draw_person, rng.uniform(*kerbs), z))
    return things


def draw_borders(canvas: Canvas, rng: np.random.Generator) -> None:
    """Void that belongs to the camera: the bonnet of its own car, a black edge."""
    height, width = SIZE
    if rng.random() < 0.25:
        middle = (width * rng.uniform(0.3, 0.7), height * rng.uniform(1.1, 1.2))
        radii = (width * rng.uniform(0.5, 0.9), height * rng.uniform(0.2, 0.27))
        paint = any_colour(rng, 0.03, 0.7, 0.3)
        draw_ellipse(canvas, middle, radii, paint, VOID)
        draw_ellipse(canvas, middle, (0.8 * radii[0], 0.75 * radii[1]), np.minimum(paint * 1.4, 1))
    if rng.random() < 0.15:
        edge = rng.integers(2, 6)
        for part in ((slice(0, edge),), (slice(height - edge, height),), (slice(None), slice(0, edge))):
            if rng.random() < 0.6:
                canvas.image[part], canvas.label[part] = 0.02, VOID


def expose(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """From light to a camera's uint8 picture: gradient, tint, contrast, blur, noise."""
    height, width = SIZE
    image = canvas.image
    x, y = (canvas.x - width / 2) / width, (canvas.y - height / 2) / height
    gain = rng.uniform(0.8, 1.12) * (1 + rng.uniform(-0.3, 0.3) * x + rng.uniform(-0.2, 0.2) * y)
    image = np.clip(image * gain[..., None] * (1 + rng.uniform(-0.07, 0.07, 3).astype(np.float32)), 0, 1.2)
    curve = rng.uniform(-0.2, 0.2)  # towards darker or lighter middle tones
    image = image + curve * image * (1 - image)
    soft = rng.uniform(0, 0.1)  # weight of a neighbour in a 3-tap kernel
    for axis in (0, 1):
        length = image.shape[axis]
        before, after = np.maximum(np.arange(length) - 1, 0), np.minimum(np.arange(length) + 1, length - 1)
        image = image * (1 - 2 * soft) + soft * (np.take(image, before, axis) + np.take(image, after, axis))
    grain = rng.integers(0, 256, (2, *image.shape), np.uint8).astype(np.float32)
    image = image * 255 + (grain[0] + grain[1] - 255) * rng.uniform(0.01, 0.03)
    return np.floor(np.clip(image, 0, 255) + 0.5).astype(np.uint8)

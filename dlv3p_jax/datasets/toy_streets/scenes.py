"""toy_streets: synthetic street scenes with their labels, drawn from (split, index) alone. NumPy only.

No class has a colour of its own: roads, skies, walls, cars and clothes share theirs, and lighting changes them all.
What tells classes apart is shape, texture and what stands next to what.
"""

import numpy as np

from dlv3p_jax.datasets.toy_streets import objects
from dlv3p_jax.datasets.toy_streets.canvas import Canvas, draw, ellipse, new_canvas, texture
from dlv3p_jax.datasets.toy_streets.objects import Camera, any_colour

_CLASSES = {
    "road": (128, 64, 128),
    "pavement": (244, 35, 232),
    "sky": (70, 130, 180),
    "building": (70, 70, 70),
    "tree": (107, 142, 35),
    "pole": (153, 153, 153),
    "car": (0, 0, 142),
    "person": (220, 20, 60),
}
CLASS_NAMES, PALETTE = tuple(_CLASSES), tuple(_CLASSES.values())
SIZE = (128, 192)  # height, width
NUM_PICTURES = {"train": 400, "val": 60}
ROAD, PAVEMENT, SKY, VOID = 0, 1, 2, 255


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
    seed = np.random.SeedSequence([20_261, list(NUM_PICTURES).index(split), index])
    rng = np.random.Generator(np.random.PCG64(seed))
    canvas = new_canvas(rng, SIZE)
    height, width = SIZE
    camera = Camera(
        focal=width * rng.uniform(0.8, 1.1),
        height=rng.uniform(0.95, 1.5),
        vanishing=(width * rng.uniform(0.2, 0.8), height * rng.uniform(0.34, 0.54)),
        haze=any_colour(rng, 0.35, 0.9, 0.15),
        haze_distance=rng.choice([150, 300, 600]),
        sun=rng.uniform(-1, 1),
    )
    kerbs = (-rng.uniform(0.9, 3), rng.uniform(0.9, 3))
    end = rng.uniform(14, 32) if rng.random() < 0.4 else 70.0
    draw_sky(canvas, camera, rng)
    draw_ground(canvas, camera, rng, kerbs)
    draw_houses(canvas, camera, rng, kerbs, end)
    for z, draw_thing, x, *more in sorted(things(rng, kerbs, end), key=lambda thing: -thing[0]):
        draw_thing(canvas, camera, rng, x, z, *more)
    if rng.random() < 0.3:  # the bonnet of the camera's own car
        middle, radii = (width * rng.uniform(0.3, 0.7), 1.15 * height), (0.7 * width, height * rng.uniform(0.22, 0.32))
        draw(canvas, ellipse(middle, radii), any_colour(rng, 0.03, 0.7, 0.3), VOID)
    return expose(canvas, rng), canvas.label


def draw_sky(canvas: Canvas, camera: Camera, rng: np.random.Generator) -> None:
    """A gradient from the zenith to the horizon, blue or of any colour, with clouds."""
    top, low = np.array([0.3, 0.5, 0.85]) * rng.uniform(0.75, 1.15), np.array([0.65, 0.8, 0.95])
    if rng.random() < 0.5:
        top, low = any_colour(rng, 0.2, 0.95, 0.15), any_colour(rng, 0.3, 1.0, 0.15)
    down = np.clip(np.arange(SIZE[0]) / camera.vanishing[1], 0, 1)[:, None, None]
    sky = top + (low - top) * down
    clouds = np.clip((canvas.noise[40] + 0.4 * canvas.noise[14] + rng.uniform(-0.7, 0.3)) * rng.uniform(0.5, 2), 0, 1)
    sky = sky + clouds[..., None] * (any_colour(rng, 0.3, 1.0, 0.08) - sky) * rng.choice([0.0, 0.5, 0.9])
    canvas.image[:], canvas.label[:] = sky, SKY


def draw_ground(canvas: Canvas, camera: Camera, rng: np.random.Generator, kerbs: tuple[float, float]) -> None:
    """Road with its markings, and pavements of slabs behind kerbs."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)
    below = y - camera.vanishing[1]
    ground = below > camera.focal * camera.height / 200
    depth = camera.focal * camera.height / np.maximum(below, 0.5)
    across, scale = (x - camera.vanishing[0]) * depth / camera.focal, camera.focal / depth  # metres, pixels per metre
    road = (across > kerbs[0]) & (across < kerbs[1])
    tone = any_colour(rng, 0.2, 0.42, 0.05)
    paving = tone * np.float32(1.4)
    if rng.random() < 0.75:
        paving = any_colour(rng, 0.55, 0.85, 0.1) * np.array([1.1, 1.0, rng.uniform(0.7, 1.0)], np.float32)
    fine, patches, stains = (texture(canvas, rng, grain)(x, y) for grain in (1, 6, 40))
    asphalt = tone * (1 + 0.22 * fine + 0.08 * patches + 0.1 * stains)[..., None]
    slab, joint = rng.uniform(0.5, 1.0), np.zeros_like(x)
    for metres, per_metre in ((across, scale), (depth, scale * camera.height / depth)):
        offset = np.abs(metres / slab - np.floor(metres / slab) - 0.5) * slab * per_metre  # pixels from a joint
        joint = np.maximum(joint, np.clip(1.2 - offset, 0, 1) * np.clip(slab * per_metre / 3 - 1, 0, 1))
    slabs = paving * (1 + 0.03 * fine + 0.05 * stains - rng.uniform(0.45, 0.65) * joint)[..., None]
    kerb = np.minimum(np.abs(across - kerbs[0]), np.abs(across - kerbs[1])) < 0.35
    slabs = np.where(kerb[..., None], np.clip(paving * rng.choice([0.55, 1.35]), 0, 1), slabs)

    white = any_colour(rng, 0.7, 1.0, 0.1) if rng.random() < 0.8 else np.array([0.9, 0.75, 0.25], np.float32)
    line, dash = rng.uniform(*kerbs), rng.uniform(2, 4)
    painted = (depth / dash % 2 < 1) * np.clip((0.1 - np.abs(across - line)) * scale + 0.5, 0, 1)
    if rng.random() < 0.3:  # a zebra crossing
        start = rng.uniform(4, 12)
        painted = np.maximum(painted, ((across / 0.5) % 2 < 1) & (depth > start) & (depth < start + 3))
    asphalt = asphalt + np.clip(painted * (0.8 + 0.3 * patches), 0, 1)[..., None] * (white - asphalt)
    colour = camera.seen(np.where(road[..., None], asphalt, slabs), np.minimum(depth, 100)[..., None])
    canvas.image[ground] = colour[ground]
    canvas.label[ground] = np.where(road, ROAD, PAVEMENT)[ground]


def draw_houses(canvas: Canvas, camera: Camera, rng: np.random.Generator, kerbs, end: float) -> None:
    """Houses and gaps with trees across the end of the street and along both of its sides, far ones first."""
    x = -40.0
    while x < 40:
        length = rng.uniform(7, 16)
        if rng.random() < (0.75 if end < 60 else 0.4):
            objects.draw_house(canvas, camera, rng, x, x + length, end, end + 1)
        else:
            objects.draw_tree(canvas, camera, rng, x + length / 2, end)
        x += length
    for side, kerb in zip((-1, 1), kerbs, strict=True):
        wall, z, blocks = kerb + side * rng.uniform(2.5, 5), rng.uniform(-10, 6), []
        while z < end - 3:
            blocks.append((z, min(z + rng.uniform(6, 18), end)))
            z = blocks[-1][1]
        for z0, z1 in reversed([block for block in blocks if block[1] > 2.5]):
            if rng.random() < 0.78:
                objects.draw_house(canvas, camera, rng, wall, wall + side * 14, z0, z1)
            elif rng.random() < 0.5:
                objects.draw_tree(canvas, camera, rng, wall + side * rng.uniform(3, 9), (z0 + 3 * z1) / 4)


def things(rng: np.random.Generator, kerbs: tuple[float, float], end: float) -> list[tuple]:
    """What stands in the street: (depth, draw, x, …)."""
    found: list[tuple] = []
    for side, kerb in zip((-1, 1), kerbs, strict=True):
        if rng.random() < 0.5:
            z = rng.uniform(4, 9)
            while z < min(end - 4, 15):
                found.append((z, objects.draw_tree, kerb + side * 0.9))
                z += rng.uniform(5, 9)
        for _ in range(rng.integers(0, 3)):
            found.append((rng.uniform(2.8, 7), objects.draw_pole, kerb + side * rng.uniform(0.3, 0.8)))
        if rng.random() < 0.35:  # parked
            found.append((rng.uniform(3.5, 7), objects.draw_car, kerb - side * 1.1, True))
        if rng.random() < 0.5:
            found.append((rng.uniform(2.6, 5), objects.draw_person, kerb + side * rng.uniform(0, 3)))
    if rng.random() < 0.35:
        found.append((rng.uniform(4, 9), objects.draw_car, rng.uniform(*kerbs) * 0.5, True))
    if rng.random() < 0.3:
        found.append((rng.uniform(4, 8), objects.draw_car, rng.uniform(-5, 5), False))
    for _ in range(rng.integers(0, 3)):
        found.append((rng.uniform(2.8, 5), objects.draw_person, rng.uniform(*kerbs)))
    return found


def expose(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """From light to a camera's uint8 picture: gradient, tint, blur, noise."""
    y, x = (np.arange(side, dtype=np.float32) / side - 0.5 for side in SIZE)
    gain = rng.uniform(0.8, 1.12) * (1 + rng.uniform(-0.3, 0.3) * x + rng.uniform(-0.2, 0.2) * y[:, None])
    image = canvas.image * gain[..., None] * (1 + np.float32(rng.uniform(-0.07, 0.07, 3)))
    soft = rng.uniform(0, 0.1)  # weight of a neighbour in a 3-tap kernel
    for axis in (0, 1):
        image = image + soft * (np.roll(image, 1, axis) + np.roll(image, -1, axis) - 2 * image)
    grain = rng.integers(0, 256, (2, *image.shape), np.uint8).astype(np.float32)
    image = image * 255 + (grain[0] + grain[1] - 255) * rng.uniform(0.01, 0.03)
    return np.floor(np.clip(image, 0, 255) + 0.5).astype(np.uint8)

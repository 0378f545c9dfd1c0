"""The drawn streets: the same everywhere, what they hold, and that colour and position alone do not give them away."""

import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from threadpoolctl import threadpool_limits

from dlv3p_jax.datasets.toy_streets import scenes as street_scenes
from dlv3p_jax.datasets.toy_streets.scenes import CLASS_NAMES, NUM_PICTURES, PALETTE, SIZE, draw_scene

VOID = 255


@pytest.fixture(scope="module")
def pictures() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Some pictures of either split: images [N, H, W, 3] and labels [N, H, W]."""
    scenes = {split: [draw_scene(split, i) for i in range(number)] for split, number in (("train", 60), ("val", 30))}
    return {split: tuple(np.stack(part) for part in zip(*some, strict=True)) for split, some in scenes.items()}


def test_shapes_types_and_values(pictures):
    assert len(CLASS_NAMES) == len(PALETTE) == len(set(PALETTE)) == 8
    assert NUM_PICTURES["train"] >= 200
    assert NUM_PICTURES["val"] >= 50
    for images, labels in pictures.values():
        assert images.shape[1:] == (*SIZE, 3)
        assert labels.shape[1:] == SIZE
        assert images.dtype == labels.dtype == np.uint8
        assert set(np.unique(labels)) == {*range(len(CLASS_NAMES)), VOID}


def test_no_such_picture():
    for split, index in (("train", NUM_PICTURES["train"]), ("val", -1), ("test", 0)):
        with pytest.raises(ValueError, match=f"no picture {index} in split '{split}'"):
            draw_scene(split, index)


def test_a_scene_is_the_same_in_another_process():
    scenes = (("train", 3), ("val", 3))
    here = [zlib.crc32(part.tobytes()) for scene in scenes for part in draw_scene(*scene)]
    program = (
        "import zlib; from dlv3p_jax.datasets.toy_streets.scenes import draw_scene\n"
        f"print([zlib.crc32(part.tobytes()) for scene in {scenes} for part in draw_scene(*scene)])"
    )
    root = Path(street_scenes.__file__).parents[3]
    there = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True).stdout
    assert there.strip() == str(here)


def test_scenes_differ(pictures):
    seen = {zlib.crc32(image.tobytes()) for images, _ in pictures.values() for image in images}
    assert len(seen) == sum(len(images) for images, _ in pictures.values())
    seen = {zlib.crc32(label.tobytes()) for _, labels in pictures.values() for label in labels}
    assert len(seen) == sum(len(labels) for _, labels in pictures.values())


def test_every_class_is_there_often_enough(pictures):
    least = {"pole": 0.01, "person": 0.015, "car": 0.05, "tree": 0.06}
    for _, labels in pictures.values():
        shares = np.bincount(labels.ravel(), minlength=256) / labels.size
        for name, share in zip(CLASS_NAMES, shares, strict=False):
            assert least.get(name, 0.05) <= share < 0.4, name
        assert 0.005 < shares[VOID] < 0.06
        assert all(np.mean(np.any(labels == c, axis=(1, 2))) > 0.5 for c in range(len(CLASS_NAMES)))


def test_labels_lie_on_the_image(pictures):
    """The image changes more across the labels' boundaries than across the same boundaries moved by two pixels."""
    images, labels = pictures["val"]
    change = np.abs(np.diff(images.astype(np.float64), axis=2)).sum(-1)[:, 4:-4, 4:-4]

    def mean_change(dy: int, dx: int) -> float:
        moved = np.roll(labels, (dy, dx), (1, 2))
        return change[(moved[:, :, 1:] != moved[:, :, :-1])[:, 4:-4, 4:-4]].mean()

    straight = mean_change(0, 0)
    for shift in ((0, 2), (0, -2), (3, 0), (-3, 0)):
        assert straight > 1.15 * mean_change(*shift), shift


@pytest.mark.parametrize("degree", [1, 2])
def test_colour_and_position_do_not_give_the_class_away(pictures, degree):
    """Logistic regression on (r, g, b, x, y), and on these with their squares and products, stays under 0.45."""

    def samples(split: str, number: int) -> tuple[np.ndarray, np.ndarray]:
        images, labels = pictures[split]
        n, y, x = np.unravel_index(np.random.default_rng(0).integers(0, labels.size, number), labels.shape)
        features = np.concatenate([images[n, y, x] / 255, np.stack([y / SIZE[0], x / SIZE[1]], 1)], 1)
        valid = labels[n, y, x] != VOID
        return features[valid], labels[n, y, x][valid]

    model = make_pipeline(PolynomialFeatures(degree), StandardScaler(), LogisticRegression(tol=1e-2, max_iter=200))
    with threadpool_limits(1):  # threads that wait for each other take tens of times as long on a busy machine
        model.fit(*samples("train", 8_000))
    features, labels = samples("val", 20_000)
    predictions = model.predict(features)
    ious = [
        np.sum((predictions == c) & (labels == c)) / np.sum((predictions == c) | (labels == c))
        for c in range(len(CLASS_NAMES))
    ]
    assert 0.2 < np.mean(ious) < 0.45

"""Geometry on the host against what PaddleSeg recorded and against OpenCV."""

import dataclasses

import cv2
import numpy as np
import pytest
import recordings
import tensorflow as tf

from dlv3p_jax.data import augment


def crop_of(image, label, scaled, offset, crop_size, mirrored=False, **turned):
    arguments = [tf.constant(value, tf.int32) for value in (scaled, offset)]
    cropped, labels = augment.resample_crop(
        tf.constant(image), tf.constant(label), *arguments, crop_size, tf.constant(mirrored), 255, **turned
    )
    return cropped.numpy(), labels.numpy()


def nearly_equal(ours, theirs):
    """uint8 pictures after truncation: rounding in the last bit may move a value that lies on an integer by one."""
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    return difference.max() <= 1 and (difference > 0).mean() < 0.02


@pytest.fixture(scope="module")
def recorded(shared):
    with np.load(shared / "parity" / "transforms.npz") as arrays:
        return dict(arrays)


def test_geometry_and_the_padding_of_evaluation_are_those_recorded_from_paddleseg(shared):
    recordings.hold(recordings.geometry(shared))


def test_scaled_pictures_are_paddlesegs(recorded):
    image, label = recorded["image"], recorded["label"]
    scales = sorted({key.split("/")[1] for key in recorded if key.startswith("resize/")}, key=float)
    assert scales
    for scale in scales:
        expected = recorded[f"resize/{scale}/image"]
        size = expected.shape[:2]
        assert size == tuple(round(side * float(scale)) for side in label.shape)
        ours, ours_label = crop_of(image.astype(np.uint8), label.astype(np.uint8), size, (0, 0), size)
        assert nearly_equal(ours, np.floor(expected).astype(np.uint8)), scale
        np.testing.assert_array_equal(ours_label, recorded[f"resize/{scale}/label"])


def test_padded_crops_are_paddlesegs(recorded):
    image, label = recorded["image"].astype(np.uint8), recorded["label"].astype(np.uint8)
    expected = recorded["padcrop/image"]
    ours, ours_label = crop_of(image, label, label.shape, recorded["padcrop/offset_yx"], expected.shape[:2])
    np.testing.assert_array_equal(ours, np.floor(expected).astype(np.uint8))
    np.testing.assert_array_equal(ours_label, recorded["padcrop/label"])


@pytest.mark.parametrize("scaled", [(37, 53), (53, 90), (80, 61), (129, 200), (106, 180), (1, 1)])
def test_a_crop_is_a_crop_of_the_whole_scaled_picture(scaled):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (53, 90, 3), np.uint8)
    label = rng.integers(0, 20, (53, 90), np.uint8)
    whole = cv2.resize(image.astype(np.float32), scaled[::-1], interpolation=cv2.INTER_LINEAR)
    whole_label = cv2.resize(label, scaled[::-1], interpolation=cv2.INTER_NEAREST)
    crop_size = (48, 64)
    padding = [(0, max(crop - side, 0)) for crop, side in zip(crop_size, scaled, strict=True)]
    whole = np.pad(np.floor(whole).astype(np.uint8), [*padding, (0, 0)], constant_values=127)
    whole_label = np.pad(whole_label, padding, constant_values=255)
    y, x = (max(side - crop, 0) // 2 for crop, side in zip(crop_size, scaled, strict=True))
    ours, ours_label = crop_of(image, label, scaled, (y, x), crop_size)
    assert nearly_equal(ours, whole[y : y + 48, x : x + 64])
    np.testing.assert_array_equal(ours_label, whole_label[y : y + 48, x : x + 64])
    mirrored, mirrored_label = crop_of(image, label, scaled, (y, x), crop_size, mirrored=True)
    np.testing.assert_array_equal(mirrored, ours[:, ::-1])
    np.testing.assert_array_equal(mirrored_label, ours_label[:, ::-1])


@pytest.mark.parametrize("scaled", [(65, 110), (91, 154), (67, 113)])  # 1.25 and 1.75 times the size, and neither
def test_crops_are_the_same_wherever_they_begin(scaled):
    rng = np.random.default_rng(2)
    image, label = rng.integers(0, 256, (52, 88, 3), np.uint8), rng.integers(0, 20, (52, 88), np.uint8)
    whole = np.floor(cv2.resize(image.astype(np.float32), scaled[::-1], interpolation=cv2.INTER_LINEAR))
    whole_label = cv2.resize(label, scaled[::-1], interpolation=cv2.INTER_NEAREST)
    height, width = 9, 20
    for step in range(12):  # from one corner to the other, at the beginning and the end of periods and between
        y, x = (last * step // 11 for last in (scaled[0] - height, scaled[1] - width))
        ours, ours_label = crop_of(image, label, scaled, (y, x), (height, width))
        assert nearly_equal(ours, whole[y : y + height, x : x + width]), (y, x)
        np.testing.assert_array_equal(ours_label, whole_label[y : y + height, x : x + width])


CROP = augment.Crop((8, 8), min_scale=0.5, max_scale=2.0, scale_step=0.25, flip=True, ignore_label=255)


def draw(seeds, **changes):
    settings, side = dataclasses.replace(CROP, **changes), 24
    columns = np.broadcast_to(np.arange(side, dtype=np.uint8) * 10, (side, side))
    image = np.stack([columns, columns.T, np.zeros_like(columns)], -1)
    label = np.zeros((side, side), np.uint8)
    crop = tf.function(lambda seed: augment.random_crop(tf.constant(image), tf.constant(label), seed, settings))
    return [[part.numpy() for part in crop(tf.constant([7, seed], tf.int64))] for seed in seeds]


def test_random_crops_depend_on_their_seed_alone():
    first, again, other = draw([3])[0], draw([3])[0], draw([4])[0]
    np.testing.assert_array_equal(first[0], again[0])
    assert (first[0] != other[0]).any()


def test_scale_flip_and_position_are_uniform():
    crops = [image.astype(int) for image, _ in draw(range(1400))]
    slopes = np.array([image[4, 1:, 0] - image[4, :-1, 0] for image in crops]).mean(axis=1)
    assert abs((slopes < 0).mean() - 0.5) < 0.05  # mirrored half of the time
    # 24 x 10 grey levels over 24 x scale pixels: the slope tells the scale. Seven scales, equally likely.
    scales = 10 / np.abs(slopes)
    nearest = np.array([min(np.arange(0.5, 2.01, 0.25), key=lambda step, s=s: abs(step - s)) for s in scales])
    _, counts = np.unique(nearest, return_counts=True)
    assert len(counts) == 7 and (np.abs(counts / 1400 - 1 / 7) < 0.04).all()
    starts = np.array([image[0, 0, 1] for image, step in zip(crops, nearest, strict=True) if step == 1.0]) // 10
    assert set(starts) == set(range(17))  # every offset of an 8-pixel crop in 24 pixels


def test_small_pictures_are_padded_at_the_bottom_and_right():
    image, label = draw([0], size=(60, 50), min_scale=1.0, max_scale=1.0, flip=False)[0]
    assert (image[24:] == 127).all() and (image[:, 24:] == 127).all() and (label[24:] == 255).all()
    assert (label[:24, :24] == 0).all() and (image[:24, :24, 2] == 0).all()


def test_labels_keep_their_values():
    rng = np.random.default_rng(1)
    image, label = rng.integers(0, 256, (20, 30, 3), np.uint8), rng.choice([3, 10], (20, 30)).astype(np.uint8)
    for scaled in [(11, 17), (55, 71)]:
        assert set(np.unique(crop_of(image, label, scaled, (0, 0), (64, 64))[1])) == {3, 10, 255}


def test_crops_are_turned_about_their_centre():
    rng = np.random.default_rng(3)
    image, label = rng.integers(0, 256, (30, 40, 3), np.uint8), rng.integers(0, 20, (30, 40), np.uint8)
    straight = crop_of(image, label, (30, 40), (3, 9), (16, 16))
    for quarters in (-1, 1, 2):  # whose pixels lie on pixels
        turned = crop_of(image, label, (30, 40), (3, 9), (16, 16), angle=tf.constant(quarters * np.pi / 2, tf.float64))
        for ours, expected in zip(turned, straight, strict=True):
            apart = np.abs(ours.astype(int) - np.rot90(expected, -quarters))
            assert apart.max() <= 1 and (apart > 0).mean() < 0.02

    smooth = cv2.resize(rng.integers(0, 256, (4, 5, 3), np.uint8), (40, 30), interpolation=cv2.INTER_CUBIC)
    ours, ours_label = crop_of(smooth, label, (45, 80), (0, 0), (45, 80), angle=tf.constant(0.5, tf.float64))
    whole, whole_label = crop_of(smooth, label, (45, 80), (0, 0), (45, 80))
    matrix = cv2.getRotationMatrix2D((39.5, 22.0), -np.rad2deg(0.5), 1.0)  # OpenCV's pixel centres lie at whole numbers
    expected = cv2.warpAffine(whole, matrix, (80, 45), flags=cv2.INTER_LINEAR, borderValue=[augment.PADDING] * 3)
    inside = cv2.erode(cv2.warpAffine(np.ones((45, 80), np.uint8), matrix, (80, 45)), np.ones((5, 5))) > 0
    assert np.abs(ours.astype(int) - expected)[inside].max() <= 4  # which interpolates twice
    outside = cv2.dilate(cv2.warpAffine(np.ones((45, 80), np.uint8), matrix, (80, 45)), np.ones((5, 5))) == 0
    assert (ours[outside] == 127).all() and (ours_label[outside] == 255).all() and outside.sum() > 100
    expected = cv2.warpAffine(whole_label, matrix, (80, 45), flags=cv2.INTER_NEAREST, borderValue=255)
    assert (ours_label == expected)[inside].mean() > 0.8 and set(np.unique(ours_label)) <= {*range(20), 255}


def test_angles_and_vertical_flips_are_as_likely_as_they_should_be():
    crops = draw(range(600), min_scale=1.0, max_scale=1.0, flip=False, rotation=30.0, vertical_flip=0.25)
    images = np.array([image.astype(int) for image, _ in crops])[:, :, :, :2]
    right, down = (images[:, 4, 6] - images[:, 4, 2]) / 40, (images[:, 6, 4] - images[:, 2, 4]) / 40
    flipped = down[:, 1] < 0
    assert abs(flipped.mean() - 0.25) < 0.05
    angles = np.rad2deg(np.arctan2(right[:, 0], right[:, 1])) - 90
    assert np.abs(angles).max() < 32 and abs(np.median(angles)) < 4 and abs((np.abs(angles) < 15).mean() - 0.5) < 0.06
    expected = draw(range(600), min_scale=1.0, max_scale=1.0, flip=False)
    upright = draw(range(600), min_scale=1.0, max_scale=1.0, flip=False, vertical_flip=0.25)
    for (image, label), (plain, plain_label), is_flipped in zip(upright, expected, flipped, strict=True):
        step = -1 if is_flipped else 1  # nothing else is drawn otherwise
        assert (image == plain[::step]).all() and (label == plain_label[::step]).all()


def draw_labels(label, seeds, **changes):
    settings = dataclasses.replace(CROP, min_scale=1.0, max_scale=1.0, **changes)
    image = np.repeat(label[..., None], 3, axis=-1)
    crop = tf.function(lambda seed: augment.random_crop(tf.constant(image), tf.constant(label), seed, settings))
    return [crop(tf.constant([7, seed], tf.int64))[1].numpy() for seed in seeds]


def test_crops_with_too_much_of_one_class_are_drawn_again_ten_times():
    label = np.zeros((40, 40), np.uint8)
    label[:20, :20] = 1
    label[20:] = np.where(np.arange(40) % 2, 255, 0)  # half of it counts nowhere

    def share(crop):
        counts = np.bincount(crop[crop != 255])
        return counts.max() / counts.sum()

    plain = draw_labels(label, range(300), flip=False)
    crops = draw_labels(label, range(300), flip=False, max_class_share=0.75)
    too_much, shares = np.array([share(crop) >= 0.75 for crop in plain]), np.array([share(crop) for crop in crops])
    assert all((crop == before).all() for crop, before, much in zip(crops, plain, too_much, strict=True) if not much)
    places = [label[y : y + 8, x : x + 8] for y in range(33) for x in range(33)]
    again = np.mean([share(crop) >= 0.75 for crop in places])
    assert 0.8 < again < 0.95 and abs((shares >= 0.75).mean() - again**11) < 0.1
    same = np.full((40, 40), 255, np.uint8)  # where none will do, the last is taken
    assert all((crop == 255).all() for crop in draw_labels(same, range(3), max_class_share=0.5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_class_share": 1.5}, "augment.max_class_share=1.5: .* 0 to 1"),
        ({"rotation": -3.0}, "augment.rotation=-3.0: .* 0 to 180"),
        ({"vertical_flip": 2.0}, "augment.vertical_flip=2.0: .* 0 to 1"),
    ],
)
def test_values_outside_their_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CROP, **changes)


@pytest.mark.parametrize(
    ("values", "message"), [((2.0, 0.5, 0.25), "in order"), ((0.5, 2.0, 0.4), "divide"), ((0.5, 2.0, -1.0), "negative")]
)
def test_bad_scales_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        augment.Crop((8, 8), *values, flip=True, ignore_label=255)


def test_scale_steps_are_paddlesegs():
    np.testing.assert_allclose(CROP.scales, np.linspace(0.5, 2.0, 7))
    assert dataclasses.replace(CROP, scale_step=0).scales == []

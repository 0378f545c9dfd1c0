"""Views and windows against PaddleSeg's recorded numbers and against NumPy and OpenCV."""

import functools
import json
import re

import jax
import numpy as np
import pytest
import recordings
from formula import KERNELS, MODEL, VARIABLES, expected_scores, resize, slide, softmax

from dlv3p_jax.configs import common
from dlv3p_jax.data import colors
from dlv3p_jax.evaluation import grey_levels
from dlv3p_jax.evaluation.views import Views, predict_logits

# Against PaddleSeg.


# The rest of what is recorded takes long to compile and is measured for docs/equivalence.md.
@pytest.mark.parametrize(
    ("file", "case", "beside"),
    [
        ("tta_r18", "ms", True),
        ("tta_r18", "slide", False),
        ("tta_legacy_r18", "flip", False),
        ("tta_legacy_r18", "ms_flip", False),
    ],
)
def test_views_of_paddleseg(shared, file, case, beside):
    recordings.hold(recordings.views(shared, file, case, beside))


# Against NumPy.


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"flip": True},
        {"scales": (0.5, 1.3), "flip": True},
        {"average": "legacy"},
        {"scales": (0.5, 1.3, 1.0), "flip": True, "average": "legacy"},
        {"window": (8, 9), "stride": (5, 4)},
        {"window": (8, 9), "stride": (8, 9)},
        {"window": (6, 30), "stride": (5, 20)},  # as high as no picture, wider than it
        {"window": (8, 9), "stride": (5, 4), "scales": (0.75, 2.0), "flip": True},
    ],
)
def test_views_against_numpy(settings):
    images = np.random.default_rng(1).normal(size=(2, 13, 22, 3)).astype(np.float32)
    result = jax.jit(lambda images: predict_logits(MODEL, VARIABLES, images, Views(**settings)))(images)
    expected = np.stack([expected_scores(image, **settings) for image in images])
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


OWN = [(13, 22), (1, 1), (9, 22), (13, 5), (8, 9)]


@pytest.mark.parametrize(
    "settings",
    [
        {"flip": True},
        {"scales": (0.5, 1.3, 1.0), "flip": True},
        {"scales": (0.5, 1.3, 1.0), "flip": True, "average": "legacy"},
        {"scales": (0.5, 1.3), "flip": True, "average": "probabilities"},
        {"resize": (40, 17), "align_corners": True},
        {"window": (8, 9), "stride": (5, 4), "scales": (0.75, 2.0), "flip": True},
        {"window": (6, 30), "stride": (5, 20), "align_corners": True},
    ],
)
def test_pictures_of_several_sizes_in_one_batch_are_looked_at_as_if_alone(settings):
    levels = np.random.default_rng(1).integers(0, 256, (len(OWN), 15, 24, 3), dtype=np.uint8)
    images, views = np.asarray(colors.normalize(levels)), Views(**settings)
    sizes = np.array([views.all_sizes(size) for size in OWN], np.int32)
    rooms = [tuple(side + 3 for side in room) for room in sizes[:, 1:].max(0).tolist()]
    result = jax.jit(lambda *arrays: predict_logits(MODEL, VARIABLES, arrays[0], views, arrays[1], rooms))(
        images, sizes
    )
    for image, scores, (height, width) in zip(images, result, OWN, strict=True):
        expected = predict_logits(MODEL, VARIABLES, image[None, :height, :width], views)[0]
        np.testing.assert_allclose(scores[:height, :width], expected, rtol=1e-4, atol=2e-5)


def test_windows_overlap_by_a_third_unless_a_stride_is_given():
    images = np.random.default_rng(1).normal(size=(1, 13, 22, 3)).astype(np.float32)
    default, given = (predict_logits(MODEL, VARIABLES, images, Views(window=(9, 12), stride=s)) for s in (None, (6, 8)))
    np.testing.assert_array_equal(default, given)


@pytest.mark.parametrize("window", [(13, 22), (1000, 1000)])
def test_a_window_that_holds_the_picture_changes_nothing(window):
    images = np.random.default_rng(1).normal(size=(1, 13, 22, 3)).astype(np.float32)
    whole = predict_logits(MODEL, VARIABLES, images)
    np.testing.assert_array_equal(predict_logits(MODEL, VARIABLES, images, Views(window=window)), whole)


def test_a_view_keeps_a_pixel_at_least():
    images = np.random.default_rng(1).normal(size=(1, 4, 4, 3)).astype(np.float32)
    assert np.isfinite(predict_logits(MODEL, VARIABLES, images, Views(scales=(0.01,)))).all()


# MMSegmentation's.


def aligned(scores, height, width):
    """Bilinear, with the centres of the corner pixels onto each other: along one side, then along the other."""
    for axis, target in ((0, height), (1, width)):
        at = np.linspace(0, scores.shape[axis] - 1, target)
        interpolate = functools.partial(np.interp, at, np.arange(scores.shape[axis]))
        scores = np.apply_along_axis(interpolate, axis, scores)
    return scores


def test_the_sizes_of_views_are_those_that_mmsegmentation_recorded(shared):
    for name, settings in (("r18", {}), ("r18_align_slide", {}), ("r50_ade20k_resized", {"resize": (128, 512)})):
        arrays = np.load(shared / "parity" / "mmseg" / f"predict_{name}.npz")
        size = tuple(arrays["image"].shape[:2])
        assert Views(**settings).sizes(size) == [tuple(arrays["size"])]
        if "scales" in arrays:
            views = Views(scales=arrays["scales"].tolist(), **settings)
            np.testing.assert_array_equal(views.sizes(size), arrays["sizes"])


@pytest.mark.parametrize(
    ("sizes", "settings"),
    [
        ([(7, 11), (20, 33)], {"scales": (0.5, 1.5), "flip": True}),
        ([(17, 29)], {"resize": (40, 17), "align_corners": True}),
        ([(8, 14), (17, 29)], {"scales": (0.5, 1.0), "resize": (40, 17), "flip": True}),
        ([(7, 11), (20, 33)], {"scales": (0.5, 1.5), "window": (9, 10), "stride": (5, 4), "align_corners": True}),
    ],
)
def test_views_of_mmsegmentation_against_numpy_and_opencv(sizes, settings):
    """Every view is made of the picture's 8 bits; its logits are brought back, and become probabilities there."""
    image = np.random.default_rng(1).integers(0, 256, (13, 22, 3), dtype=np.uint8)
    views = Views(average="probabilities", **settings)
    normalized = (image / 127.5 - 1).astype(np.float32)
    result = jax.jit(lambda images: predict_logits(MODEL, VARIABLES, images, views))(normalized[None])[0]
    found = []
    for size in sizes:
        for step in (1, -1)[: 1 + views.flip]:
            view = resize(image, *size)[:, ::step].astype(np.float32) / 127.5 - 1
            logits = slide(view, views.window, views.stride) if views.window else MODEL.numpy(KERNELS, view)
            back = aligned if views.align_corners else resize
            found.append(softmax(back(np.ascontiguousarray(logits[:, ::step]), 13, 22)))
    np.testing.assert_allclose(result, np.mean(found, axis=0), atol=1e-5)


@pytest.mark.parametrize(
    "sizes", [((64, 96), (32, 48)), ((60, 90), (128, 192)), ((97, 130), (49, 65)), ((5, 4), (1, 1))]
)
def test_8_bits_are_resized_to_the_grey_levels_of_opencv(sizes):
    size, target = sizes
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    np.testing.assert_array_equal(grey_levels.resize(image[None], target)[0], resize(image, *target))
    every = np.arange(256, dtype=np.uint8).reshape(1, 1, 256, 1)
    np.testing.assert_array_equal(colors.grey_levels(colors.normalize(every)), every)


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("average", {"average": "mean"}),
        ("scales", {"scales": ()}),
        ("scales", {"scales": (1.0, 0.0)}),
        ("scales", {"scales": ("large",)}),
        ("scales", {"scales": (float("nan"),)}),
        ("resize", {"resize": (64,)}),
        ("resize", {"resize": (64, 64), "average": "legacy"}),
        ("window", {"window": (64,)}),
        ("window", {"window": (64, 0)}),
        ("window", {"window": (None,)}),  # what --config.eval.window=None becomes
        ("window", {"window": (64.5, 64)}),
        ("stride", {"stride": (32, 32)}),  # without a window
        ("stride", {"window": (64, 64), "stride": (65, 64)}),
        ("stride", {"window": (64, 64), "stride": (64, 65)}),
        ("stride", {"window": (64, 64), "stride": (0, 64)}),
    ],
)
def test_views_that_make_no_sense_are_refused(key, settings):
    config = common.get_config()
    config.eval.update(settings)
    for make in (lambda: Views(**settings), lambda: Views.of(config.eval)):
        with pytest.raises(ValueError, match="^" + re.escape(f"eval.{key}={settings[key]!r}")):
            make()


@pytest.mark.parametrize(
    ("settings", "name", "title"),
    [
        ({}, "plain", "plain"),
        ({"average": "legacy"}, "plain", "plain"),
        ({"flip": True}, "flip", "flip"),
        (
            {"scales": [0.75, 1.0], "flip": True, "average": "legacy"},
            "scales-0.75-1-flip-legacy",
            "flip + scales 0.75, 1 + legacy",
        ),
        ({"align_corners": True}, "aligned", "aligned corners"),
        (
            {"resize": [128, 512], "average": "probabilities"},
            "resize-128-512-probabilities",
            "resized to fit 128x512 + probabilities",
        ),
        ({"window": [32, 48], "stride": [16, 24]}, "window-32-48-stride-16-24", "window 32x48 + stride 16x24"),
    ],
)
def test_names_and_titles_of_views(settings, name, title):
    views = Views(**settings)
    assert (views.name, views.title) == (name, title)
    assert Views.of(json.loads(json.dumps(views.settings))) == views
    assert {"resize", "align_corners"}.isdisjoint(Views().settings)  # of which earlier revisions know nothing

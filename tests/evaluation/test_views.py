"""Views and windows against PaddleSeg's recorded numbers and against NumPy and OpenCV."""

import dataclasses
import json
import re

import equivalence
import jax
import numpy as np
import pytest
from formula import MODEL, VARIABLES, expected_scores

from configs import common
from dlv3p_jax.evaluation.views import Views, predict_logits

# Against PaddleSeg.


# The rest of what is recorded takes long to compile and is measured for docs/equivalence.md.
@pytest.mark.parametrize(
    ("file", "case"),
    [("tta_r18", "ms"), ("tta_r18", "slide"), ("tta_legacy_r18", "flip"), ("tta_legacy_r18", "ms_flip")],
)
def test_views_of_paddleseg(shared, file, case):
    equivalence.hold(equivalence.views(shared, file, case))


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


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("average", {"average": "mean"}),
        ("scales", {"scales": ()}),
        ("scales", {"scales": (1.0, 0.0)}),
        ("scales", {"scales": ("large",)}),
        ("scales", {"scales": (float("nan"),)}),
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
        ({"window": [32, 48], "stride": [16, 24]}, "window-32-48-stride-16-24", "window 32x48 + stride 16x24"),
    ],
)
def test_names_and_titles_are_those_of_earlier_revisions(settings, name, title):
    views = Views(**settings)
    assert (views.name, views.title) == (name, title)
    assert Views.of(json.loads(json.dumps(dataclasses.asdict(views)))) == views

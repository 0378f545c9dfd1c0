"""Prediction of picture files in batches: what comes out does not depend on sizes, batches, devices or neighbours."""

import dataclasses

import jax
import ml_collections
import numpy as np
import pytest
import tiny
from absl import logging
from drawn import draw_picture
from PIL import Image

from dlv3p_jax.data.example import Problem
from dlv3p_jax.evaluation.views import Views, predict_logits
from dlv3p_jax.inference import predictor
from dlv3p_jax.inference.finding import find_pictures
from dlv3p_jax.runtime import sharding

SIZES = ((32, 48), (20, 24), (32, 48), (32, 48), (20, 24))


@pytest.fixture(scope="module")
def network():
    """A tiny network whose classes all occur, and its variables."""
    model = tiny.Tiny(3)
    variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32), train=False)
    return model, jax.tree.map(lambda leaf: leaf * 5, variables)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number, size in enumerate(SIZES):
        Image.fromarray(draw_picture(rng, *size)).save(folder / f"{number}.png")
    return find_pictures([folder])[0]


def predict(network, pictures, mesh=None, done=(), probabilities=False, picture_range=None, **changes) -> dict:
    """Results by the names of pictures."""
    model, variables = network
    config = tiny.make_config("nowhere", num_classes=3, **changes)
    config, mesh = ml_collections.FrozenConfigDict(config), mesh or sharding.make_mesh(1, 1)
    results = predictor.predict_pictures(config, model, variables, pictures, mesh, done, probabilities, picture_range)
    return {result.id if isinstance(result, Problem) else result.picture.name: result for result in results}


def expected_scores(network, picture, **views) -> np.ndarray:
    """Of one picture alone, without anything of what is tested here."""
    model, variables = network
    normalized = np.float32(Image.open(picture.path))[None] / 127.5 - 1
    return np.asarray(predict_logits(model, variables, normalized, Views(**views)))[0]


def test_batches_over_devices_change_nothing(network, pictures, caplog):
    """Three pictures of one size and two of another, two at a time, rounded up to three for as many devices."""
    with caplog.at_level(logging.INFO):
        results = predict(network, pictures, sharding.make_mesh(3, 1))
    assert "Predicting 5 pictures by 2 programs" in caplog.text
    assert "Compiled for 32x48 pixels (height x width), 3 at a time: 0.0 GiB of memory" in caplog.text
    assert sorted(results) == ["0", "1", "2", "3", "4"]
    classes = set()
    for picture in pictures:
        result = results[picture.name]
        np.testing.assert_array_equal(result.image, Image.open(picture.path))
        np.testing.assert_array_equal(result.label, expected_scores(network, picture).argmax(-1))
        assert result.label.dtype == np.uint8 and result.probabilities is None
        classes |= set(np.unique(result.label))
    assert classes == {0, 1, 2}


def test_all_sizes_through_one_program(network, pictures, caplog):
    with caplog.at_level(logging.INFO):
        results = predict(network, pictures, **{"eval.buckets": 1, "eval.scales": (0.5, 1.0), "eval.flip": True})
    assert "Predicting 5 pictures by 1 program," in caplog.text
    for picture in pictures:
        expected = expected_scores(network, picture, scales=(0.5, 1.0), flip=True)
        np.testing.assert_array_equal(results[picture.name].label, expected.argmax(-1))


@pytest.mark.parametrize("average", ["logits", "legacy"])
def test_probabilities_are_those_of_the_views(network, pictures, average):
    views = {"scales": (0.5, 1.0), "flip": True, "average": average}
    results = predict(
        network, pictures[1:2], probabilities=True, **{f"eval.{key}": value for key, value in views.items()}
    )
    scores = expected_scores(network, pictures[1], **views).astype(np.float64)
    if average == "logits":
        scores = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    result = results["1"]
    assert result.probabilities.dtype == np.float16 and result.probabilities.shape == (20, 24, 3)
    np.testing.assert_allclose(result.probabilities, scores, atol=3e-4)
    np.testing.assert_array_equal(result.label, scores.argmax(-1))


def test_what_is_done_keeps_its_place_so_that_the_others_come_out_to_the_same_bits(network, pictures, caplog):
    whole = predict(network, pictures, probabilities=True, **{"eval.batch_size": 4})
    caplog.clear()
    with caplog.at_level(logging.INFO):
        rest = predict(network, pictures, done={"0", "1", "4"}, probabilities=True, **{"eval.batch_size": 4})
    assert "Predicting 2 pictures by 1 program," in caplog.text and "3 are there already" in caplog.text
    assert "32x48 pixels (height x width), 3 at a time" in caplog.text  # not 2, which would be another program
    assert "20x24" not in caplog.text
    assert sorted(rest) == ["2", "3"]
    for name, result in rest.items():
        assert result.probabilities.tobytes() == whole[name].probabilities.tobytes()


@pytest.mark.parametrize("num_programs", [16, 1])
def test_pictures_too_large_for_the_memory_cost_only_themselves(network, pictures, monkeypatch, num_programs):
    monkeypatch.setattr(predictor, "_free_memory", lambda mesh: 25_000)  # 14,000 bytes are needed, or 45,000
    results = predict(network, pictures, **{"eval.batch_size": 1, "eval.buckets": num_programs})
    assert [name for name, result in results.items() if isinstance(result, Problem)] == ["0", "2", "3"]
    assert "0.png: 32x48 pixels (height x width), 1 at a time, take 0.0 GiB" in results["0"].message
    assert "--window=HEIGHT,WIDTH" in results["0"].message

    def refuse(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm")

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)  # as TPUs do
    results = predict(network, pictures)
    assert all("take more memory than the device has" in result.message for result in results.values())


def test_what_cannot_be_read_leaves_its_neighbours_alone(network, pictures, tmp_path):
    """The first of a batch has a whole header and no pixels; another is no longer there."""
    cut = tmp_path / "cut.png"
    cut.write_bytes(pictures[0].path.read_bytes()[:100])
    broken = [dataclasses.replace(pictures[1], path=tmp_path / "gone.png"), dataclasses.replace(pictures[0], path=cut)]
    results = predict(network, [*broken, pictures[2]], **{"eval.batch_size": 2})
    assert [type(results[name]) for name in ("0", "1", "2")] == [Problem, Problem, predictor.Prediction]
    np.testing.assert_array_equal(results["2"].label, expected_scores(network, pictures[2]).argmax(-1))


@pytest.mark.parametrize("suffix", ["tif", "jpg", "png"])
def test_turned_pictures_have_the_size_that_they_are_shown_with(network, tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(draw_picture(np.random.default_rng(0), 20, 24)).save(tmp_path / f"0.{suffix}", exif=exif)
    result = predict(network, find_pictures([tmp_path])[0])["0"]
    assert isinstance(result, predictor.Prediction) and result.label.shape == (24, 20)


def test_what_is_dropped_of_pictures_is_said_and_a_range_is_kept(network, tmp_path, caplog):
    picture = draw_picture(np.random.default_rng(0), 20, 24)
    Image.fromarray(picture).convert("RGBA").save(tmp_path / "0.png")
    Image.fromarray(picture[..., 0].astype(np.uint16) * 16).save(tmp_path / "1.png")
    Image.fromarray(picture[..., 0]).save(tmp_path / "2.png")
    files = find_pictures([tmp_path])[0]
    with caplog.at_level(logging.INFO):
        results = predict(network, files)
        assert "0.png: PNG with alpha read as RGB, alpha dropped" in caplog.text
        assert "1.png: 16-bit PNG read as 8-bit RGB" in caplog.text
        assert "--picture_range=0,4095" in caplog.text  # for 12-bit values are nearly black
        caplog.clear()
        ranged = predict(network, files, picture_range=(0, 4080))
        assert "--picture_range" not in caplog.text
    assert results["1"].image.max() <= 4080 >> 8
    np.testing.assert_array_equal(ranged["1"].image, ranged["2"].image)
    np.testing.assert_array_equal(ranged["1"].label, results["2"].label)

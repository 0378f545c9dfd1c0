"""The model as a Python object: its labels are those of predict_logits and of the predict command."""

import concurrent.futures
import functools
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from drawn import draw_picture, draw_variables, make_config, save_checkpoint
from PIL import Image
from raw_pictures import png

import dlv3p_jax
from dlv3p_jax import Segmenter
from dlv3p_jax.data import viz
from dlv3p_jax.evaluation.views import Views, predict_logits
from dlv3p_jax.inference.picture_like import as_array
from dlv3p_jax.models import build_model
from dlv3p_jax.weights import checkpoint_reading, published

SIZE = (40, 56)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workdir")
    names = [f"thing {index}" for index in range(19)]
    save_checkpoint(folder, make_config(), checkpoint_reading.describe_classes(names, viz.palette(19), 255))
    return folder


@pytest.fixture(scope="module")
def segmenter(workdir) -> Segmenter:
    return Segmenter.from_checkpoint(workdir)


@pytest.fixture
def image() -> np.ndarray:
    return draw_picture(np.random.default_rng(0), *SIZE)


def expected_scores(image, **views) -> np.ndarray:
    """The mean over the views, float64 `[H, W, C]`."""
    config = make_config()
    predict = jax.jit(functools.partial(predict_logits, build_model(config), views=Views(**views)))
    return np.asarray(predict(draw_variables(config), np.float32(image)[None] / 127.5 - 1), np.float64)[0]


def softmax(logits) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_labels_probabilities_and_overlay(segmenter, image):
    logits = expected_scores(image)
    labels = segmenter(image)
    assert labels.dtype == np.int32 and labels.shape == SIZE
    np.testing.assert_array_equal(labels, logits.argmax(-1))
    assert len(np.unique(labels)) > 3
    probabilities = segmenter.probabilities(image)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, softmax(logits), rtol=1e-4, atol=1e-6)
    overlay = segmenter.overlay(image, alpha=0.25)
    np.testing.assert_allclose(overlay, 0.75 * image + 0.25 * viz.palette(19)[labels], atol=0.5)
    assert segmenter.classes[3] == "thing 3" and segmenter.palette.shape == (19, 3)


def test_paths_and_pil_images_are_seen_as_viewers_show_them(segmenter, image, tmp_path):
    labels = segmenter(image)
    turned = Image.fromarray(np.rot90(image).copy())  # quarter turn to the left, which the tag takes back
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    for picture in (tmp_path / "turned.png", str(tmp_path / "turned.png"), Image.open(tmp_path / "turned.png")):
        np.testing.assert_array_equal(segmenter(picture), labels)
    grey = image[..., 0]
    np.testing.assert_array_equal(segmenter(Image.fromarray(grey)), segmenter(np.stack([grey] * 3, -1)))


def test_views_are_given_when_loading_or_later(segmenter, workdir, image):
    later = segmenter.with_views(scales=(0.5,))
    np.testing.assert_array_equal(later(image), expected_scores(image, scales=(0.5,)).argmax(-1))
    assert segmenter.config.eval.scales == (1.0,)
    ours, theirs = (jax.tree.leaves(each._variables) for each in (segmenter, later))
    assert [leaf.unsafe_buffer_pointer() for leaf in ours] == [leaf.unsafe_buffer_pointer() for leaf in theirs]
    legacy = Segmenter.from_checkpoint(workdir, flip=True, average="legacy").probabilities(image)
    np.testing.assert_allclose(legacy, expected_scores(image, flip=True, average="legacy"), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="stride"):
        segmenter.with_views(stride=(8, 8))
    before = segmenter.config.to_dict()
    segmenter.with_views(window=(16, 16), average="legacy")
    assert segmenter.config.to_dict() == before  # what `save_pretrained` writes
    assert segmenter.with_views(flip=True).config.eval.window is None


def test_pictures_are_padded_as_in_evaluation(workdir, image):
    config = make_config({"eval_size": (64, 48)})
    padded = np.zeros((64, 56, 3))
    padded[: SIZE[0]] = image
    padded[SIZE[0] :] = 127.5  # 0 after normalisation
    expected = expected_scores(padded).argmax(-1)[: SIZE[0]]
    np.testing.assert_array_equal(Segmenter.from_checkpoint(workdir, config)(image), expected)


def test_threads_may_share_one(segmenter):
    images = [draw_picture(np.random.default_rng(seed), 24 + 8 * (seed % 2), 32) for seed in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        together = list(threads.map(segmenter, images))
    for image, labels in zip(images, together, strict=True):
        np.testing.assert_array_equal(labels, segmenter(image))


def test_nothing_is_compiled_after_warm_up(segmenter, caplog):
    picture = draw_picture(np.random.default_rng(0), 16, 24)
    with jax.log_compiles():
        segmenter.warm_up((16, 24))
        assert "Compiling" in caplog.text
        caplog.clear()
        segmenter(picture)
    assert "Compiling" not in caplog.text


def test_a_batch_is_what_each_picture_is_alone(segmenter, image):
    pictures = [image, draw_picture(np.random.default_rng(1), 33, 47), image[::-1]]
    for found, picture in zip(segmenter(pictures, batch_size=3), pictures, strict=True):
        assert np.mean(found == segmenter(picture)) > 0.999  # batches of another size round otherwise


def test_lists_and_stacks_of_pictures_come_back_in_their_order(segmenter, image, tmp_path, monkeypatch):
    rooms = []

    def predict(images, asked):
        rooms.append([seen.shape[:2] for seen in images])
        return [seen if asked == "probabilities" else seen[..., 0] % 19 for seen in images]

    monkeypatch.setattr(segmenter, "_predict", predict)
    Image.fromarray(image).save(tmp_path / "image.png")
    small = draw_picture(np.random.default_rng(1), 16, 24)
    found = segmenter([image, small, tmp_path / "image.png", image[:33]], batch_size=2)
    for labels, picture in zip(found, (image, small, image, image[:33]), strict=True):
        np.testing.assert_array_equal(labels, picture[..., 0] % 19)
    assert rooms == [[SIZE, SIZE], [(33, 56)] * 2, [(16, 24)] * 2]  # the last two are filled up
    stack = np.stack([image, image[::-1]])
    np.testing.assert_array_equal(segmenter.probabilities(stack), stack)
    assert [overlay.shape for overlay in segmenter.overlay((small,))] == [(16, 24, 3)] and segmenter([]) == []
    for wrong, message in (([image, 3], r"int64 \[\] is no picture"), (image[None, :0], "is no picture")):
        with pytest.raises(ValueError, match=message):
            segmenter(wrong)
    with pytest.raises(ValueError, match="batch_size=0"):
        segmenter(image, batch_size=0)


def test_features_are_what_the_classifier_makes_logits_of(segmenter):
    picture = draw_picture(np.random.default_rng(2), 33, 47)
    found = segmenter.features(picture)
    shapes = {"stage1": (9, 12, 64), "stage2": (5, 6, 128), "stage3": (3, 3, 256), "stage4": (3, 3, 512)}
    shapes |= {"aspp": (3, 3, 32), "decoder": (9, 12, 256)}
    assert {name: array.shape for name, array in found.items()} == shapes
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    with pytest.raises(ValueError, match="is no picture"):
        segmenter.features(np.stack([picture, picture]))
    classifier = segmenter._variables["params"]["decoder"]["classifier"]
    logits = found["decoder"] @ np.asarray(classifier["kernel"])[0, 0] + np.asarray(classifier["bias"])
    whole = np.array(jax.image.resize(logits, (33, 47, 19), "linear"))
    assert np.mean(whole.argmax(-1) == segmenter(picture)) > 0.9  # which resizes otherwise at the border


def test_pictures_of_many_sizes_share_programs(segmenter, caplog):
    """Rather than one, of 20 MiB and more, for each size that ever comes."""
    rng = np.random.default_rng(0)
    pictures = [draw_picture(rng, *size) for size in rng.integers(33, 65, (12, 2)).tolist()]
    with jax.log_compiles():
        labels = list(map(segmenter, pictures))
    assert caplog.text.count("Compiling on_mesh") + caplog.text.count("Compiling jit(on_mesh)") <= 1
    for picture, found in list(zip(pictures, labels, strict=True))[:2]:
        np.testing.assert_array_equal(found, expected_scores(picture).argmax(-1))


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4), np.uint8), "uint8 \\[4, 4\\] is no picture: give uint8 \\[height, width, 3\\]"),
        (np.zeros((4, 4, 3), np.float32), "an array of float32 \\[4, 4, 3\\] is no picture"),
        (np.zeros((0, 4, 3), np.uint8), "is no picture"),
        ("nowhere.png", "nowhere.png: cannot be read"),
        (Image.new("I", (4, 4)), "mode I has no known range"),
        (Image.new("F", (4, 4)), "mode F has no known range"),
    ],
)
def test_what_is_no_picture_is_told(segmenter, picture, message):
    with pytest.raises(ValueError, match=message):
        segmenter(picture)


def test_a_path_and_a_pil_image_of_16_bits_are_one_picture(image, tmp_path, monkeypatch):
    """The range of the data that the checkpoint was trained on goes with it."""
    grey = image[..., 0].astype(np.uint16)
    meta = checkpoint_reading.describe_classes(
        [f"thing {index}" for index in range(19)], viz.palette(19), 255, (0, 2550)
    )
    save_checkpoint(tmp_path / "ranged", make_config(), meta)
    ranged = Segmenter.from_checkpoint(tmp_path / "ranged")
    assert ranged.with_views(flip=True).picture_range == (0, 2550)
    for values, picture_range in ((grey * 257, None), (grey * 10, ranged.picture_range)):
        Image.fromarray(values).save(tmp_path / "16.png")
        Image.fromarray(values).save(tmp_path / "16.tif")
        pictures = [tmp_path / "16.png", tmp_path / "16.tif", Image.open(tmp_path / "16.png"), Image.fromarray(values)]
        for picture in pictures:
            np.testing.assert_array_equal(as_array(picture, picture_range), np.stack([grey] * 3, -1))
    floats = Image.fromarray(values.astype(np.float32))
    np.testing.assert_array_equal(as_array(floats, (0, 2550)), np.stack([grey] * 3, -1))
    rows = [row.astype(">u2").tobytes() for row in image.astype(np.uint16) * 10]
    (tmp_path / "colors.png").write_bytes(png(16, 2, rows, image.shape[1]))
    np.testing.assert_array_equal(as_array(tmp_path / "colors.png", (0, 2550)), image)
    with pytest.raises(ValueError, match=r"colors\.png.*path"):
        as_array(Image.open(tmp_path / "colors.png"), (0, 2550))
    monkeypatch.setattr(ranged, "_predict", lambda seen, asked: seen)
    for method in (ranged, ranged.probabilities):
        np.testing.assert_array_equal(method(tmp_path / "16.png"), np.stack([grey] * 3, -1))


def test_a_truncated_pil_image_and_a_wrong_alpha_are_told(segmenter, image, tmp_path):
    Image.fromarray(image).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"cut\.png: damaged or truncated"):
        segmenter(Image.open(tmp_path / "cut.png"))
    with pytest.raises(ValueError, match="alpha = 50"):
        segmenter.overlay(image, alpha=50)


def test_a_published_model_goes_by_its_name(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"'cityscapes_r5' is .* mean cityscapes_r50\?\): there are cityscapes_r50,"):
        Segmenter.from_pretrained("cityscapes_r5")
    with pytest.raises(ValueError, match="resnet50_vd.*no published model"):
        Segmenter.from_pretrained("resnet50_vd")  # a backbone
    with pytest.raises(ValueError, match="did you mean mmseg/r50_ade20k_160k"):
        Segmenter.from_pretrained("mmseg/r50_ade20k_16k")
    monkeypatch.setattr(published, "fetch", lambda name: tmp_path / f"{name}.pdparams")
    with pytest.raises(ValueError, match="voc_r50.pdparams"):
        Segmenter.from_pretrained("voc_r50")


def test_the_package_imports_without_jax_and_the_segmenter_without_tensorflow(workdir):
    script = """
import sys
import dlv3p_jax
assert "jax" not in sys.modules
segmenter = dlv3p_jax.Segmenter.from_checkpoint(sys.argv[1])
assert segmenter.classes[0] == "thing 0"
assert "tensorflow" not in sys.modules, "tensorflow"
"""
    process = subprocess.run([sys.executable, "-c", script, workdir], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    with pytest.raises(AttributeError, match="no attribute 'Segmentor'"):
        dlv3p_jax.Segmentor  # noqa: B018


def test_a_forked_process_is_refused_and_does_not_hang(segmenter, image):
    """As gunicorn --preload and multiprocessing's "fork" make them."""
    uses = (lambda: segmenter(image), lambda: segmenter.with_views(flip=True), lambda: Segmenter.from_checkpoint("w"))
    for use in uses:
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            signal.alarm(30)  # which ends one that hangs
            try:
                use()
            except ValueError as error:
                os.write(writing, str(error).encode())
            os._exit(0)
        os.close(writing)
        with open(reading) as file:
            message = file.read()
        assert os.waitpid(child, 0)[1] == 0
        assert f"process {child} was forked from process {os.getpid()}" in message and "spawn" in message

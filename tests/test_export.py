"""Exported models: that they are the network, alone and at every size that they take, and how wrong exports end."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys

import cv2
import drawn
import jax
import ml_collections
import numpy as np
import onnxruntime
import pytest
from PIL import Image

from dlv3p_jax.data import colors
from dlv3p_jax.inference.export import folders, onnx, programs, sizes, write
from dlv3p_jax.models import variable_shapes
from dlv3p_jax.runtime import configuration, files
from dlv3p_jax.weights.trained import TrainedModel

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
SIZE = (48, 80)
# Basic blocks with a stage on sub-images, bottlenecks with aligned corners; fewer of both than any real backbone has.
NETWORK = {"num_classes": 4, "blocks": (1, 1, 1, 2), "multi_grid": (1, 2), "channels": 16, "dropout": 0.1}
BASIC = NETWORK | {"bottleneck": False, "output_stride": 8, "rates": (1, 4), "align_corners": False}
BOTTLENECKS = NETWORK | {"bottleneck": True, "output_stride": 16, "rates": (1, 3), "align_corners": True}
PLAIN_STEM = BASIC | {"mmseg": "plain"}
DEEP_STEM = BOTTLENECKS | {"mmseg": "deep", "output_stride": 8}
# What TensorFlow alone makes of a SavedModel: neither this program nor JAX can be imported.
TENSORFLOW = """
import sys
sys.modules["jax"] = sys.modules["dlv3p_jax"] = None
import numpy as np, tensorflow as tf
signatures = tf.saved_model.load(sys.argv[1]).signatures
images = np.load(sys.argv[2])
outputs = signatures["serving_default"](image=images) | signatures["logits"](image=images)
np.savez(sys.argv[3], **outputs)
"""


def make_trained(network) -> TrainedModel:
    """A network with drawn weights and statistics. Its configuration is not that of the network."""
    model, config, rng = drawn.make_network(**network), drawn.make_config(num_classes=4), np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            return np.float32(rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape))
        return np.float32(rng.uniform(0.5, 1, leaf.shape) * (1 if path[-1].key in ("scale", "var") else 0.3))

    palette = rng.integers(0, 256, (4, 3)).astype(np.uint8)
    variables, names = jax.tree.map_with_path(draw, variable_shapes(model)), ("floor", "wall", "lamp", "cat")
    return TrainedModel(ml_collections.FrozenConfigDict(config), model, variables, names, palette, "drawn", None, "", 0)


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    return make_trained(BASIC)


def pictures(height: int, width: int) -> np.ndarray:
    """Three, uint8 [3, height, width, 3]."""
    rng = np.random.default_rng(1)
    return np.stack([drawn.draw_picture(rng, height, width) for _ in range(3)])


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, images):
    return model.apply(variables, images, train=False)


def expected(trained, images) -> np.ndarray:
    return np.asarray(apply(trained.model, trained.variables, np.float32(images) / 127.5 - 1))


def assert_equal(outputs, logits) -> None:
    """Rounding aside. What is drawn has several classes, and few pixels are undecided."""
    np.testing.assert_allclose(outputs["logits"], logits, rtol=0, atol=1e-5 * np.abs(logits).max())
    assert outputs["labels"].dtype == np.uint8 and len(np.unique(logits.argmax(-1))) > 1
    assert np.mean(np.asarray(outputs["labels"]) != logits.argmax(-1)) < 1e-4


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_programs_of_other_platforms_are_the_network(trained, platform):
    """In the forms of their platforms, run on this one; in the file, a program chooses among these and that of CPUs."""
    images = pictures(*SIZE)
    run = jax.jit(functools.partial(programs.predict_on, platform, trained.model))
    assert_equal(run(trained.variables, images), expected(trained, images))


def test_stablehlo(trained, tmp_path):
    comparison = write.export(trained, "stablehlo", tmp_path / "stablehlo", SIZE)  # runs it for two pictures
    assert comparison.equal_labels > 0.9999 and comparison.largest_logit_difference < 1e-5
    exported = jax.export.deserialize(bytearray((tmp_path / "stablehlo" / "model.stablehlo").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert [str(shape) for shape in exported.in_avals] == ["uint8[batch,48,80,3]"]


def test_one_stablehlo_file_serves_all_pictures_up_to_its_size(trained, tmp_path):
    comparison = write.export(trained, "stablehlo", tmp_path / "stablehlo", (64, 96), up_to=True)
    assert comparison.sizes == ((64, 96), (33, 49)) and comparison.equal_labels > 0.9999
    description = json.loads((tmp_path / "stablehlo" / "model.json").read_text())
    assert description["size"] == {"name": "size", "dtype": "int32", "shape": ["batch", 2]}
    call = jax.export.deserialize(bytearray((tmp_path / "stablehlo" / "model.stablehlo").read_bytes())).call
    sizes = np.array([SIZE, (33, 50)], np.int32)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    for index, (height, width) in enumerate(sizes):
        inside = (slice(index, index + 1), slice(height), slice(width))
        images[inside] = pictures(height, width)[:1]
    outputs = jax.jit(call)(images, sizes)
    for index, (height, width) in enumerate(sizes):
        inside = (slice(index, index + 1), slice(height), slice(width))
        assert_equal({name: values[inside] for name, values in outputs.items()}, expected(trained, images[inside]))


def test_savedmodel_in_tensorflow_alone(trained, tmp_path):
    write.export(trained, "savedmodel", tmp_path / "savedmodel", SIZE)
    images = pictures(*SIZE)
    np.save(tmp_path / "images.npy", images)
    paths = [tmp_path / name for name in ("savedmodel", "images.npy", "outputs.npz")]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
    subprocess.run([sys.executable, "-c", TENSORFLOW, *map(str, paths)], check=True, cwd=tmp_path, env=environment)
    assert_equal(np.load(tmp_path / "outputs.npz"), expected(trained, images))


@pytest.mark.parametrize(
    ("network", "sizes"),
    [
        (BASIC, (SIZE, (51, 37))),
        (BOTTLENECKS, ((39, 50),)),
        (PLAIN_STEM, (SIZE, (51, 37))),
        (DEEP_STEM, ((39, 50),)),
    ],
)
def test_onnx_of_any_size(network, sizes, tmp_path):
    trained = make_trained(network)
    onnx.write(trained.model, trained.variables, tmp_path, None, None)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert [value.shape for value in session.get_inputs()] == [["batch", "height", "width", 3]]
    for size in sizes:
        images = pictures(*size)
        labels, logits = session.run(["labels", "logits"], {"image": images})
        assert_equal({"labels": labels, "logits": logits}, expected(trained, images))
    of_opencv = cv2.dnn.readNetFromONNX(str(tmp_path / "model.onnx"))
    of_opencv.setInput(images, "image")
    labels, logits = of_opencv.forward(["labels", "logits"])
    assert_equal({"labels": labels, "logits": logits}, expected(trained, images))


def test_the_description_says_what_a_user_needs(trained, tmp_path):
    trained = dataclasses.replace(trained, picture_range=(0, 4095))
    comparison = write.export(trained, "onnx", tmp_path / "onnx", SIZE)
    description = json.loads((tmp_path / "onnx" / "model.json").read_text())
    assert description["input"]["shape"] == ["batch", *SIZE, 3]
    assert description["outputs"]["logits"]["shape"] == ["batch", *SIZE, 4]
    assert description["classes"] == ["floor", "wall", "lamp", "cat"]
    assert description["picture_range"] == [0, 4095]
    assert description["palette"] == trained.palette.tolist()
    assert description["model"]["align_corners"] is False and description["checkpoint"] == "drawn"
    assert description["comparison"]["equal_labels"] == comparison.equal_labels > 0.999

    images = pictures(*SIZE)
    mean, std = (np.float32(description["normalization"][key]) for key in ("mean", "std"))
    np.testing.assert_allclose((images / np.float32(255) - mean) / std, colors.normalize(images), atol=1e-6)
    its_own = dataclasses.replace(trained, model=trained.model.clone(mean=(0, 51, 255), std=(51, 102, 255)))
    normalization = write._describe(its_own, "onnx", SIZE, "", comparison)["normalization"]
    assert normalization == {"inside": True, "mean": [0, 0.2, 1], "std": [0.2, 0.4, 1]}

    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    with pytest.raises(Exception, match="Expected: 48"):
        session.run(None, {"image": images[:, :-1]})


def test_a_model_that_is_not_the_network_is_not_written(trained, tmp_path, monkeypatch):
    other = jax.tree.map(np.array, trained.variables)
    other["params"]["decoder"]["classifier"]["bias"] += np.float32([0, 0, 0, 1])
    writes = onnx.write
    monkeypatch.setattr(onnx, "write", lambda model, variables, *rest: writes(model, other, *rest))
    with pytest.raises(write.ExportError, match=r"onnx: only \d+\.\d+% of the labels"):
        write.export(trained, "onnx", tmp_path / "onnx", SIZE)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_refused(trained, tmp_path):
    variables = jax.tree.map(np.array, trained.variables)
    variables["params"]["decoder"]["classifier"]["bias"][1] = np.nan
    with pytest.raises(write.ExportError, match="not finite"):
        write.export(dataclasses.replace(trained, variables=variables), "onnx", tmp_path / "onnx", SIZE)


def test_a_folder_appears_whole_or_not_at_all_and_only_exports_are_replaced(tmp_path):
    folder = tmp_path / "onnx"
    with files.replacing_folder(folder) as unfinished:
        (unfinished / "model.json").write_text('{"producer": "dlv3p_jax"}')
        assert not folder.exists()
    folders.check(tmp_path / "onnx", "onnx")
    with pytest.raises(KeyError), files.replacing_folder(folder) as unfinished:
        (unfinished / "half").touch()
        raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] == ["onnx", "model.json"]
    folder.rename(tmp_path / ".onnx.old")  # killed between two renames
    with pytest.raises(KeyError), files.replacing_folder(folder):
        assert (folder / "model.json").exists()
        raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] == ["onnx", "model.json"]
    with files.replacing_folder(folder) as unfinished:
        (unfinished / "model.json").write_text('["no description"]')
    with pytest.raises(ValueError, match="onnx exists and is no export"):
        folders.check(tmp_path / "onnx", "onnx")


def run(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "dlv3p_jax.export", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def test_the_command(tmp_path):
    workdir, output, picture = tmp_path / "workdir", tmp_path / "out", tmp_path / "picture.png"
    drawn.save_checkpoint(workdir, drawn.make_config({"model.dtype": "bfloat16", "eval.resize": (66, 80)}))
    Image.fromarray(pictures(60, 90)[0]).save(picture)

    process = run(f"--checkpoint={workdir}", f"--output={output}", "--format=onnx", "--dynamic", f"--picture={picture}")
    assert process.returncode == 0, process.stderr
    assert "sees each picture once, whole and as it is" in process.stderr
    assert "scores are of pictures made to fit 66x80 first" in process.stderr
    assert f"onnx: {output / 'onnx'}\n  compared on {picture}, at 60x90 and 31x45: 100.0000% of" in process.stdout
    assert sorted(path.name for path in output.rglob("*")) == ["model.json", "model.onnx", "onnx"]
    assert json.loads((output / "onnx" / "model.json").read_text())["model"]["dtype"] == "float32"

    config = drawn.make_config({"eval_size": (33, 40), "crop_size": (96, 96)})
    configuration.write(config, workdir / "config.json")
    process = run(f"--checkpoint={workdir}", f"--output={output}", "--format=savedmodel", "--version=1")
    assert process.returncode == 0, process.stderr
    assert "33x40 (height x width): eval_size" in process.stderr and "trained on crops of 96x96" in process.stderr
    description = json.loads((output / "savedmodel" / "1" / "model.json").read_text())
    assert description["input"]["shape"] == ["batch", 33, 40, 3] and description["size_from"].startswith("eval_size")


def test_without_a_size_it_is_that_of_the_evaluation(tmp_path, data_dir):
    config = drawn.make_config({"dataset": "image_folder", "data_dir": str(data_dir), "eval_size": None}, num_classes=3)
    assert sizes.evaluated_at(config) == ((40, 56), "the most frequent of image_folder val")  # 3 of 5 pictures
    config.eval_size = (64, 96)
    assert sizes.evaluated_at(config)[0] == (64, 96)
    config.update({"eval_size": None, "eval": {"resize": (32, 80)}})
    size, origin = sizes.evaluated_at(config)
    assert size == (32, 45) and "eval.resize" in origin  # 40x56, by 32 / 40
    config.data_dir = str(tmp_path)
    with pytest.raises(ValueError, match="--height and --width.*not prepared"):
        sizes.evaluated_at(config)


@pytest.mark.parametrize(("size", "said"), [((96, 128), 0), ((192, 256), 0), ((56, 56), 1), ((96, 1024), 1)])
def test_a_size_far_from_the_training_crops_is_told(size, said):
    remark = sizes.remark(size, drawn.make_config({"crop_size": (96, 128)}))
    assert (remark is not None) == said and (not said or "96x128" in remark and "{}x{}".format(*size) in remark)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format=onnx", "--height=64"], "give both of --height and --width"),
        (["--format=onnx", "--height=64", "--width=64", "--version=1"], "--version is for --format=savedmodel"),
        (["--format=tflite", "--height=64", "--width=64"], "--format=tflite: choose from stablehlo, savedmodel, onnx"),
        (["--format=onnx,stablehlo", "--dynamic"], "--dynamic means something else"),
        (["--format=savedmodel", "--dynamic"], "--dynamic is for --format=onnx or stablehlo"),
        (["--format=onnx", "--dynamic", "--width=64"], "leave out --height and --width"),
    ],
)
def test_wrong_flags(arguments, message, tmp_path):
    process = run("--checkpoint=absent", f"--output={tmp_path}", *arguments)
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert message in process.stderr + process.stdout


def test_a_missing_package_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(folders.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(ValueError, match=r"--format=onnx needs onnxruntime: pip install '.\[export\]'"):
        folders.check(tmp_path / "onnx", "onnx")
    folders.check(tmp_path / "savedmodel", "savedmodel")

"""Picture files to label files: what is found, what is written, and that the official score is the evaluation's."""

import ast
import functools
import json
import pathlib
import shutil
import subprocess
import sys

import drawn
import jax
import numpy as np
import pytest
from drawn import draw_picture, make_config, save_checkpoint
from PIL import Image

from dlv3p_jax.data import classes, viz
from dlv3p_jax.datasets.cityscapes import make_builder
from dlv3p_jax.datasets.preparing import prepare_dataset
from dlv3p_jax.evaluation import evaluator
from dlv3p_jax.evaluation.views import Views, predict_logits
from dlv3p_jax.models import build_model
from dlv3p_jax.runtime import configuration
from dlv3p_jax.training import steps
from dlv3p_jax.weights import checkpoint_reading, checkpoints

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
VAL = [("frankfurt", 294), ("frankfurt", 576), ("munster", 19)]


def write(path: pathlib.Path, values, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(path, **options)


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory) -> pathlib.Path:
    """Three pictures to validate on and one to train on, as distributed; no label is a truck, bus or what follows."""
    source, rng = tmp_path_factory.mktemp("cs"), np.random.default_rng(0)
    for split, frames in {"train": [("aachen", 19)], "val": VAL}.items():
        for city, frame in frames:
            name = f"{city}_000000_{frame:06d}"
            ids = np.kron(rng.integers(0, 27, (6, 8)), np.ones((8, 8))).astype(np.uint8)
            write(source / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", draw_picture(rng, 48, 64))
            write(source / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", ids)
    return source


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
    """An untrained network, saved as training saves one."""
    folder = tmp_path_factory.mktemp("workdir")
    save_checkpoint(folder, make_config())
    return folder


def run(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "dlv3p_jax.predict", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


@functools.cache
def forward(workdir, **views):
    """The network of `workdir`, compiled once for each size."""
    variables = checkpoint_reading.read_variables(checkpoint_reading.find(workdir))
    return jax.jit(functools.partial(predict_logits, build_model(make_config()), variables, views=Views(**views)))


def expected_label(workdir, image, **views) -> np.ndarray:
    """The prediction for one picture of its own size, without anything of the program that is tested here."""
    return np.asarray(forward(workdir, **views)(np.float32(image)[None] / 127.5 - 1))[0].argmax(-1)


def official_score(source, predictions) -> dict:
    """What cityscapesscripts, the benchmark's own program, says of a folder of predictions."""
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official

    args = official.args
    args.predictionPath, args.predictionWalk = str(predictions), None
    args.evalInstLevelScore, args.JSONOutput, args.quiet = False, False, True
    labels = sorted(map(str, (source / "gtFine" / "val").glob("*/*_gtFine_labelIds.png")))
    return official.evaluateImgLists([official.getPrediction(args, label) for label in labels], labels, args)


def test_the_official_score_of_the_written_label_ids_is_that_of_the_evaluation(cityscapes, workdir, tmp_path):
    data = tmp_path / "data"
    prepare_dataset("cityscapes", functools.partial(make_builder, source=cityscapes), data, overwrite=False)
    evaluator.evaluate_checkpoint(make_config({"data_dir": str(data)}), workdir)
    report = json.loads((workdir / "eval" / "0.json").read_text())

    output = tmp_path / "out"
    process = run(f"--checkpoint={workdir}", f"--output={output}", "--label_ids", cityscapes / "leftImg8bit" / "val")
    assert process.returncode == 0, process.stderr
    files = sorted(path.relative_to(output).as_posix() for path in output.glob("*/**/*") if path.is_file())
    names = [f"{city}/{city}_000000_{frame:06d}_leftImg8bit" for city, frame in VAL]
    assert files == [f"labels/{name}.png" for name in names] + [f"overlays/{name}.jpg" for name in names]

    result = official_score(cityscapes, output / "labels")
    assert abs(result["averageScoreClasses"] - report["mIoU"]) < 1e-4
    scores = [result["classScores"][name] for name in classes.CITYSCAPES.names]
    np.testing.assert_allclose(scores, np.array(report["IoU"], float), atol=1e-4)
    assert np.sum(np.array(scores) > 0) > 2 and np.any(np.isnan(scores))  # hits, and classes that are nowhere
    with Image.open(output / "labels" / f"{names[0]}.png") as label:
        ids = np.asarray(label)
        assert set(np.unique(ids)) <= set(classes.CITYSCAPES_IDS.tolist())
        colors = {entry.id: entry.color for entry in classes.CITYSCAPES_LABELS}
        assert label.mode == "P" and tuple(np.asarray(label.convert("RGB"))[0, 0]) == colors[ids[0, 0]]


def test_every_picture_that_can_be_read_is_predicted_and_the_others_are_listed(workdir, tmp_path):
    rng, source, output = np.random.default_rng(1), tmp_path / "in put", tmp_path / "out"
    image = draw_picture(rng, 32, 48)
    write(source / "a" / "1.png", image)
    write(source / "b" / "1.png", image[:, ::-1])
    write(source / "b" / "weed (27).png", np.dstack([image, image[..., 0]]))  # with alpha
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned clockwise when it is shown
    write(source / "turned.jpg", image, quality=95, exif=turned)
    write(source / "cmyk.jpg", Image.fromarray(image).convert("CMYK"), quality=95)
    write(source / "grey.png", image[..., 0])
    (source / "damaged.png").write_bytes((source / "a" / "1.png").read_bytes()[:-300])
    (source / "cut.jpg").write_bytes((source / "cmyk.jpg").read_bytes()[: (source / "cmyk.jpg").stat().st_size // 2])
    (source / "empty.jpg").write_bytes(b"")
    (source / "notes.txt").write_text("no picture")

    overrides = [f"--config.{key}={value}" for key, value in drawn.SETTINGS.items()]
    process = run(
        *("--config=configs/common.py", *overrides, f"--checkpoint={workdir}", f"--output={output}"),
        *("--flip", "--scales=0.5,1.0", source, tmp_path / "absent.jpg"),
    )
    assert process.returncode == 1 and "Traceback" not in process.stderr
    message = process.stderr[process.stderr.index("predict: what could not be predicted:") :]
    wrong = (tmp_path / "absent.jpg", source / "cut.jpg", source / "damaged.png", source / "empty.jpg")  # as given
    assert [line.split(":")[0] for line in message.splitlines()[1:]] == [f"  {path}" for path in wrong]
    assert "6 pictures" in process.stdout and f"labels: {output / 'labels'}" in process.stdout
    shares = [line.split() for line in process.stdout.splitlines() if line[-3:-2] == "."]
    assert shares and abs(sum(float(share[-1]) for share in shares) - 100) < 0.1
    colors = ["#" + bytes(color).hex() for color in classes.CITYSCAPES.palette]
    assert all(colors[classes.CITYSCAPES.names.index(" ".join(name))] == color for *name, color, _ in shares)

    names = [path.relative_to(output / "labels").as_posix() for path in sorted((output / "labels").rglob("*.png"))]
    assert names == [f"{name}.png" for name in ("a/1", "b/1", "b/weed (27)", "cmyk", "grey", "turned")]
    views = {"scales": (0.5, 1.0), "flip": True}
    for name, pixels in (("a/1", image), ("b/1", image[:, ::-1]), ("grey", np.dstack([image[..., 0]] * 3))):
        label = np.asarray(Image.open(output / "labels" / f"{name}.png"))
        np.testing.assert_array_equal(label, expected_label(workdir, pixels, **views))
        overlay = np.asarray(Image.open(output / "overlays" / f"{name}.jpg"), float)
        expected = viz.overlay(pixels, label, classes.CITYSCAPES.palette)
        assert np.abs(overlay - expected).mean() < 12 < np.abs(overlay - pixels).mean()
    assert Image.open(output / "labels" / "turned.png").size == (32, 48)


def test_voc_submission(workdir, tmp_path, monkeypatch):
    """A checkpoint of 21 classes: the 19 of the fixture, and two that never win."""
    config = make_config({"dataset": "voc2012"}, num_classes=21)
    variables = checkpoint_reading.read_variables(checkpoint_reading.find(workdir))
    head = variables["params"]["decoder"]["classifier"]
    head["kernel"] = np.pad(head["kernel"], [(0, 0)] * 3 + [(0, 2)])
    head["bias"] = np.pad(head["bias"], (0, 2), constant_values=-1e6)
    with checkpoints.Checkpoints(tmp_path / "workdir") as saved:
        saved.save_best(steps.create_train_state(config, variables), 0.5)
    configuration.write(config, tmp_path / "workdir" / "config.json")
    images = {
        name: draw_picture(np.random.default_rng(2), *size)
        for name, size in {"2008_1": (40, 60), "2008_2": (64, 33)}.items()
    }
    for name, image in images.items():
        write(tmp_path / "JPEGImages" / f"{name}.png", image)

    output = tmp_path / "out"
    monkeypatch.setenv("HOME", str(tmp_path))
    process = run(
        *("--checkpoint=~/workdir", f"--output={output}", "--submission=voc", "--pad_to=64,64"),
        tmp_path / "JPEGImages",
    )
    assert process.returncode == 0, process.stderr
    assert "Predicting 2 pictures by 1 program," in process.stderr and "which changes their labels" in process.stderr
    folder = output / "results" / "VOC2012" / "Segmentation" / "comp6_test_cls"
    assert sorted(path.name for path in folder.iterdir()) == ["2008_1.png", "2008_2.png"]
    for name, image in images.items():
        height, width = image.shape[:2]
        padded = np.full((64, 64, 3), 127.5)
        padded[:height, :width] = image
        label = Image.open(folder / f"{name}.png")
        np.testing.assert_array_equal(np.asarray(label), expected_label(workdir, padded)[:height, :width])
        assert label.mode == "P" and label.getpalette()[: 3 * 21] == viz.palette(21).ravel().tolist()


# What each of several command lines says, a line of Python each, in one process, and whether JAX was imported for it.
MESSAGES = """
import ast, sys
from absl import app, flags
from dlv3p_jax.runtime import cli
from dlv3p_jax import predict
for line in sys.stdin:
    flags.FLAGS.unparse_flags()
    for name in ("checkpoint", "output", "submission", "window", "stride", "scales", "pad_to"):
        flags.FLAGS[name].value = None
    try:
        predict.main(cli.make_flags_parser("predict")(["predict", *ast.literal_eval(line)]))
    except (SystemExit, app.UsageError) as stopped:
        print(repr((str(stopped), "jax" in sys.modules)))
    except ValueError as error:  # which cli.run answers
        print(repr((f"predict: {error}", "jax" in sys.modules)))
"""


def test_wrong_commands_end_in_one_message(workdir, tmp_path):
    picture, output, checkpoint = tmp_path / "1.png", f"--output={tmp_path}/out", f"--checkpoint={workdir}"
    write(picture, np.zeros((8, 8, 3), np.uint8))
    cases = [
        ([output, str(picture)], "give --checkpoint"),
        ([checkpoint, output], "give the pictures"),
        ([checkpoint, output, "--pad_to=x", str(picture)], "predict: --pad_to=x: give whole numbers, HEIGHT,WIDTH"),
        ([checkpoint, output, "--pad_to=64", str(picture)], "predict: --pad_to=64: give whole numbers, HEIGHT,WIDTH"),
        ([checkpoint, output, "--window=64,64", "--stride=a,b", str(picture)], "predict: --stride=a,b: give whole"),
        ([checkpoint, output, "--window=0,64", str(picture)], "predict: --window=0,64: give whole numbers"),
        ([checkpoint, output, "--scales=1,x", str(picture)], "predict: --scales=1,x: give positive numbers"),
        ([checkpoint, output, "--batch_size=0", str(picture)], "predict: flag --batch_size=0"),
        (
            [checkpoint, f"--output={picture}/out", str(picture)],
            f"predict: --output={picture}/out: {picture} is a file",
        ),
        (["--checkpoint=voc_50", output, str(picture)], "predict: --checkpoint=voc_50: no such file or folder, and no"),
        ([checkpoint, output, "/no/such.png"], "predict: what could not be predicted:\n  /no/such.png: no such file"),
        (
            [checkpoint, output, str(tmp_path / "*.jpg")],
            f"predict: what could not be predicted:\n  {tmp_path}/*.jpg: no",
        ),
    ]
    late = ([checkpoint, output, "--submission=voc", str(picture)], "predict: --submission=voc is for the classes of")
    process = subprocess.run(
        [sys.executable, "-c", MESSAGES],
        input="\n".join(repr(line) for line, _ in [*cases, late]),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    *early, last = map(ast.literal_eval, process.stdout.splitlines())
    for (line, message), (said, imported) in zip(cases, early, strict=True):
        assert said.startswith(message) and not imported, (line, said)
    assert last[0].startswith(f"{late[1]} Pascal VOC, of which there are 21; this checkpoint has 19")
    assert not (tmp_path / "out").exists()


def test_the_devices_are_those_of_this_machine_not_of_the_one_that_trained(workdir, tmp_path):
    trained = tmp_path / "trained"
    shutil.copytree(workdir, trained)
    configuration.write(make_config({"mesh.data": 64}), trained / "config.json")
    write(tmp_path / "picture.png", draw_picture(np.random.default_rng(0), 32, 48))
    process = run(f"--checkpoint={trained}", f"--output={tmp_path / 'out'}", tmp_path / "picture.png")
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "out" / "labels" / "picture.png").exists()

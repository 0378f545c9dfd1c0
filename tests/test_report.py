"""The pages of a run and of two: in a browser that has no network, and what is refused."""

import concurrent.futures
import errno
import io
import json
import os
import re
import shutil
import struct
import subprocess
import types

import numpy as np
import pytest
import warm
from clu import metric_writers
from etils import epath
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.util import tensor_util

from dlv3p_jax.configs import common
from dlv3p_jax.data import viz
from dlv3p_jax.evaluation import calibration, files, metrics, picture_scores
from dlv3p_jax.evaluation.files import ReportError
from dlv3p_jax.reporting import charts, comparison_page, mistakes, run_page
from dlv3p_jax.runtime import configuration, disk_errors, events, provenance

NAMES = ("road", "<b>wall</b> & $x$", "lamp", "absent")
SIZE = (30, 64)  # of pictures
VIEWS = {"plain": {}, "flip": {"flip": True}, "scales-0.5-1-flip": {"flip": True, "scales": [0.5, 1.0]}}


def make_pictures(quality, number=12, seed=0):
    """Labels and predictions of `number` pictures that show three classes; the quality varies from 0 to twice it."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.integers(0, 3, (number, *SIZE[:1], SIZE[1] // 16)), 16, axis=2).astype(np.uint8)
    right = rng.random(labels.shape) < np.linspace(0, 2 * quality, number)[:, None, None]
    predictions = np.where(right, labels, (labels + 1) % 3).astype(np.uint8)
    labels[:, -2:] = 255
    return labels, predictions


def sure(labels, predictions, confidence=0.75):
    """What `calibration.sum_probabilities` sums, of a model always as sure; what it does not predict has 0.1."""
    known, right = labels < len(NAMES), labels == predictions
    probability = np.where(right, confidence, 0.1)
    place = int(confidence * calibration.BINS)
    confident = np.zeros((len(labels), 2, calibration.BINS), np.int32)
    confident[:, :, place] = np.stack([known, known & right], 1).sum((2, 3))
    of_label = [(probability * (labels == index)).sum((1, 2)) for index in range(len(NAMES))]
    return {
        "label_probability": np.stack(of_label, 1).astype(np.float32),
        "confident": confident,
        "confidence": (confident[:, 0] * confidence).astype(np.float32),
    }


def write_evaluation(workdir, name, step, quality, labels=None, ids=None, number=12, sealed=False, **changes):
    """What the evaluator writes, of made pictures; as version 1 did, without a seal, unless `sealed`."""
    ours, predictions = make_pictures(quality, number)
    labels = ours if labels is None else labels
    matrices = np.array(metrics.confusion_matrices(labels, predictions, len(NAMES)))
    collector = picture_scores.Collector([SIZE] * len(labels), len(NAMES))
    collector.add(range(len(labels)), {"matrices": matrices} | sure(labels, predictions), lambda: predictions)
    report = metrics.to_json(metrics.summarize(matrices.sum(0)))
    report |= provenance.describe() | dict(checkpoint=f"{workdir}/checkpoints/best/{step}", step=step, synthetic=True)
    report |= dict(dataset="made", split="val", num_pictures=len(labels), class_names=list(NAMES), seconds=2.0)
    report |= dict(model={"backbone": "resnet18_vd"}, devices="1 x cpu", palette=viz.palette(len(NAMES)).tolist())
    report |= dict(scales=[1.0], flip=False, window=None, stride=None, average="logits", eval_size=None)
    report |= dict(absent_class="nan", confusion_matrix=matrices.sum(0).tolist()) | changes
    shown = []
    for kind, index in collector.choose():
        image, label = io.BytesIO(), io.BytesIO()
        Image.fromarray(np.full((*SIZE, 3), 128, np.uint8)).save(image, "JPEG")
        Image.fromarray(labels[index]).save(label, "PNG")
        record = dict(image=image.getvalue(), label=label.getvalue())
        prediction = collector.predictions[index]
        shown.append(picture_scores.make_shown(kind, index, record, prediction, viz.palette(len(NAMES))))
    ids = ids or [f"town/{index}<i>" for index in range(len(labels))]
    folder = epath.Path(workdir) / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = collector.finish(ids, shown, viz.palette(len(NAMES)))
    if sealed:
        files.write(folder, str(step), name, report, Image.new("RGB", (1, 1)), pictures)
        return
    picture_scores.write(folder / f"{step}.{name}.npz", pictures)
    for stem in (str(step), f"{step}.{name}"):
        (folder / f"{stem}.json").write_text(json.dumps(report))


def make_run(folder, quality=0.4):
    for index, (name, changes) in enumerate(VIEWS.items()):
        write_evaluation(folder, name, 40, quality + 0.02 * index, **changes)
    write_evaluation(folder, "plain", 60, 0.2)
    (folder / "checkpoints" / "best" / "40").mkdir(parents=True)
    config = common.get_config()
    config.learning_rate = 0.123
    configuration.write(config, epath.Path(folder / "config.json"))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with three evaluations of the best checkpoint, step 40, and one of a later."""
    folder = make_run(tmp_path_factory.mktemp("run"))
    for first in (0, 30):  # it was killed after step 40, and went on from 30
        writer = metric_writers.create_default_writer(str(folder), asynchronous=False)
        for step in range(first + 10, 41 if first == 0 else 61, 10):
            speed = {"train/pictures_per_second": 7.0, "train/learning_rate": 0.1}
            writer.write_scalars(step, {"train/loss": 100 * first + step} | speed)
            writer.write_scalars(step, {"eval/mIoU": step / 100})
        writer.write_images(
            first, {"eval/sheet": np.random.default_rng(0).integers(0, 255, (1, 300, 300, 3), np.uint8)}
        )
        writer.flush()
        writer.close()
    return folder


@pytest.fixture(scope="module")
def page_of(browser):
    """Opens a file as a reader would; whatever the page asks for or complains of is an error."""
    contexts = []

    def open_page(path, width=390, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        troubles = []
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "request", lambda asked: troubles.append(asked.url) if not asked.url.startswith(("file:", "data:")) else 0
        )
        page.goto(f"file://{path}")
        return page, troubles

    yield open_page
    for context in contexts:
        context.close()


def cell_pixels(workdir):
    """How many pixels of each picture are road and predicted as wall."""
    labels, predictions = make_pictures(0.4)
    return ((labels == 0) & (predictions == 1)).sum((1, 2))


def is_dark(color):
    return sum(map(int, re.findall(r"\d+", color)[:3])) < 3 * 80


def test_the_report_on_a_phone_and_in_the_dark(run, page_of):
    path = run_page.write_report(run)
    assert path == epath.Path(run) / "report.html" and path.stat().length < 500_000
    page, troubles = page_of(path)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert not is_dark(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert "made is synthetic" in page.inner_text(".note")
    assert page.locator("b, i").count() == 0  # names are text
    for chart in page.locator("svg").all():
        assert chart.bounding_box()["width"] > 300
        assert chart.locator("text").first.evaluate("x => getComputedStyle(x).fill") == "rgb(28, 36, 48)"
    titles = [chart.get_attribute("aria-label") for chart in page.locator("svg").all()]
    assert titles == ["mIoU on the evaluated split, %", "Loss", "Learning rate", "IoU", "Right, by confidence"]
    assert "<b>wall</b> & $x$" in page.locator("svg").nth(3).text_content()

    # Each figure is that of the JSON, its interval around it; a class that occurs nowhere has none.
    rows = [row.locator("th, td").all_inner_texts() for row in page.locator("#classes tbody tr").all()]
    reports = [json.loads((run / "eval" / f"40.{name}.json").read_text()) for name in VIEWS]
    assert page.locator("#classes thead tr").nth(1).locator("th").all_inner_texts()[:3] == [
        *("plain", "flip", "flip + scales 0.5, 1"),
    ]
    for index, name in enumerate(NAMES):
        assert rows[index][0] == name
        for cell, report in zip(rows[index][1:4], reports, strict=True):
            value = report["IoU"][index]
            if value is None:
                assert cell.strip() == "n/a"
                continue
            shown, lower, upper = map(float, re.fullmatch(r"([\d.]+) \[([\d.]+), ([\d.]+)\]", cell).groups())
            assert shown == pytest.approx(100 * value, abs=0.005) and lower < shown < upper
    assert "7.00 pictures/s" in page.inner_text("main") and "60 steps" in page.inner_text("main")
    assert not page.get_by_text("draws of as many pictures").is_visible()
    for summary in page.locator("summary").all():
        summary.click()
    assert page.get_by_text("draws of as many pictures").is_visible()
    assert "n/a, and left out of the means" in page.inner_text("main")
    assert page.locator("tr.changed").all_inner_texts() == ["learning_rate\n0.123"]

    # Pictures: the worst first; the slider uncovers, the choice changes what covers.
    captions = page.locator("figcaption").all_inner_texts()
    scores = [float(re.search(r"own mIoU ([\d.]+) %", caption)[1]) for caption in captions]
    kinds = [caption.split(",")[0] for caption in captions]
    assert kinds[:9] == ["worst"] * 3 + ["typical"] * 3 + ["best"] * 3 and {*kinds[9:]} <= {"doubted", "confused"}
    assert scores[:9] == sorted(scores[:9]) and "town/0<i>" in captions[0]
    swipe = page.locator(".swipe").first
    slider, over = swipe.locator("input"), swipe.locator(".over[data-of=errors]")
    assert over.evaluate("x => getComputedStyle(x).clipPath") == "inset(0px 0px 0px 0%)"
    box = swipe.bounding_box()
    slider.click(position={"x": box["width"] * 0.8, "y": 5})
    covered = float(re.search(r"([\d.]+)%", over.evaluate("x => getComputedStyle(x).clipPath"))[1])
    assert 75 < covered < 85
    slider.press("ArrowLeft")
    assert over.evaluate("x => getComputedStyle(x).clipPath") == f"inset(0px 0px 0px {covered - 1:g}%)"
    page.get_by_label("label", exact=True).check(force=True)
    assert not over.is_visible() and swipe.locator(".over[data-of=label]").is_visible()
    assert swipe.locator("img").first.evaluate("x => x.complete && x.naturalWidth") == SIZE[1]

    # Of an error, the pictures that have it; of a label that is doubted, its picture with the label over it.
    pictures = files.read(epath.Path(run))[0].pictures
    page.locator(".matrix [data-cell='0-1']").click()
    assert page.locator(".over[data-of=errors]:visible").count() > 0  # whatever was there before
    assert "road, predicted as <b>wall</b> & $x$: " in page.inner_text("#cell")
    most = [pictures.ids[index] for index in np.argsort(-cell_pixels(run), kind="stable")[:3]]
    assert re.findall(r"(town/\d+<i>) \(", page.inner_text("#cell")) == most
    shown = page.locator("figure:visible")
    cells = [json.loads(each) for each in shown.evaluate_all("all => all.map((figure) => figure.dataset.cells)")]
    assert cells and all(each["0-1"] > 0 for each in cells)
    page.get_by_text("Show all pictures").click()
    assert page.locator("figure:visible").count() == len(captions)
    first, *_ = (row.locator("th, td").all_inner_texts() for row in page.locator("#doubts tbody tr").all())
    doubts = calibration.doubts(pictures.label_probability, pictures.counts)
    usual = pictures.label_probability.sum(0) / pictures.counts[:, 1].sum(0)
    index, label = np.unravel_index(np.nanargmin(doubts - usual), doubts.shape)
    assert (first[0], first[1], first[2]) == (pictures.ids[index], NAMES[label], f"{100 * doubts[index, label]:.2f}")
    page.locator("#doubts a").first.click()
    assert page.locator(f"#picture-{index} .over[data-of=label]").is_visible()
    right = reports[0]["accuracy"]
    assert f"(ECE, the mean distance of the two) is {100 * abs(0.75 - right):.2f} %" in page.inner_text("main")

    page, more = page_of(path, 1200, "dark")
    assert page.evaluate("document.documentElement.scrollWidth") == 1200
    assert is_dark(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert page.locator("svg text").first.evaluate("x => getComputedStyle(x).fill") == "rgb(230, 234, 240)"
    assert troubles == more == []


def test_curves_of_a_run_that_was_killed_are_those_of_what_counts(run):
    scalars = events.read_scalars(epath.Path(run))
    assert [(point.step, point.value) for point in scalars["train/loss"]] == [
        *((10, 10.0), (20, 20.0), (30, 30.0), (40, 3040.0), (50, 3050.0), (60, 3060.0)),
    ]


def write_events(path, steps, start, tag="train/loss"):
    """An event file as TensorFlow writes it, of scalars that are their steps; added to what is there."""
    with path.open("ab") as file:
        for index, step in enumerate(steps):
            event = Event(step=step, wall_time=start + index)
            value = event.summary.value.add(tag=tag, tensor=tensor_util.make_tensor_proto(float(step)))
            value.metadata.plugin_data.plugin_name = "scalars"
            data = event.SerializeToString()
            for part in (struct.pack("<Q", len(data)), data):
                file.write(part + struct.pack("<I", masked_crc32c(part)))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([(200, (10, 20, 30)), (190, (40, 50))], (10, 20, 30, 40, 50)),  # the clock of the second host is behind
        ([(200, (10, 20, 30)), (190, (30, 40, 50)), (180, (60,))], (10, 20, 30, 40, 50, 60)),
        ([(100, (10, 20, 30, 40)), (110, (50, 60)), (120, (30, 40))], (10, 20, 30, 40)),  # from an older checkpoint
        ([(100, (70, 80)), (110, (90, 100))], (70, 80, 90, 100)),  # the first file was removed
        ([(100, (10, 20)), (110, (10, 20, 30))], (10, 20, 30)),  # begun anew
    ],
)
def test_curves_follow_the_steps_where_clocks_do_not(files, expected, tmp_path):
    for time, steps in files:
        write_events(tmp_path / f"events.out.tfevents.{time}.host.1.0.v2", steps, time)
    points = events.read_scalars(epath.Path(tmp_path))["train/loss"]
    assert [point.step for point in points] == list(expected)
    newest = max(files)
    assert [point.time for point in points if point.step == newest[1][0]] == [newest[0]]


def test_an_evaluation_that_both_files_hold_follows_the_order_of_the_losses(tmp_path):
    """Killed in the evaluation of step 20, made up for by a host whose clock is behind."""
    for time, losses, evaluated in ((200, (10, 20), (20,)), (190, (30, 40), (20, 40))):
        path = tmp_path / f"events.out.tfevents.{time}.host.1.0.v2"
        write_events(path, losses, time)
        write_events(path, evaluated, time, "eval/mIoU")
    scalars = events.read_scalars(epath.Path(tmp_path))
    assert {tag: [point.step for point in points] for tag, points in scalars.items()} == {
        "train/loss": [10, 20, 30, 40],
        "eval/mIoU": [20, 40],
    }


def test_a_damaged_event_file_is_named_in_the_log_and_on_the_page(run, tmp_path, caplog):
    write_evaluation(tmp_path, "plain", 4, 0.4)
    path = tmp_path / "events.out.tfevents.1.host.1.0.v2"
    write_events(path, range(10, 70, 10), 1)
    data = bytearray(path.read_bytes())
    record = len(data) // 6
    data[2 * record] ^= 1 << 5  # the length of the third
    path.write_bytes(data)
    assert f"{path} is damaged at byte {2 * record}" in run_page.write_report(tmp_path).read_text()
    assert f"{path} is damaged" in caplog.text
    assert [point.step for point in events.read_scalars(epath.Path(tmp_path))["train/loss"]] == [10, 20]


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_what_cannot_be_read_now_is_not_called_damaged(run, tmp_path, monkeypatch, suffix):
    write_evaluation(tmp_path, "plain", 4, 0.4)
    (tmp_path / "eval" / "4.plain.npz").touch()

    def away(path, *arguments, **options):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(disk_errors, "WAITS", ())
    monkeypatch.setattr(type(epath.Path()), "read_text" if suffix == ".json" else "read_bytes", away)
    with pytest.raises(ReportError, match=rf"4\.plain\{suffix} cannot be read now: Input/output error") as caught:
        run_page.write_report(tmp_path)
    assert "damaged" not in str(caught.value) and "remove" not in str(caught.value)


@pytest.mark.parametrize(("step", "said"), [(38, False), (60, True)])
def test_curves_that_end_long_before_the_evaluation_are_told(run, tmp_path, caplog, step, said):
    """A file that is cut short at a record's end looks whole by itself."""
    write_evaluation(tmp_path, "plain", step, 0.4)
    write_events(tmp_path / "events.out.tfevents.1.host.1.0.v2", (10, 20, 30), 1)
    for text in (run_page.write_report(tmp_path).read_text(), caplog.text):
        assert (f"ends at step 30, before step {step}" in text) == said


def test_curves_of_a_file_that_ends_in_the_middle(run, tmp_path):
    (source, _) = sorted(run.glob("events*"))
    data = source.read_bytes()
    for end in (len(data) - 1, len(data) // 2, 40, 5):
        (tmp_path / source.name).write_bytes(data[:end])
        points = events.read_scalars(epath.Path(tmp_path)).get("train/loss", [])
        assert [point.step for point in points] == [10, 20, 30, 40][: len(points)]
    assert not points


def test_another_step_and_another_file(run, tmp_path):
    path = run_page.write_report(run, tmp_path / "sub" / "page.html", step=60)
    text = path.read_text()
    assert "Step 60" in text and "flip + scales" not in text
    with pytest.raises(ReportError, match="step 50 of .* was not evaluated: take one of 40, 60"):
        run_page.write_report(run, step=50)


FIRST = ("absent_class", "checkpoint", "model", "version", "synthetic")  # what the first versions did not write


@pytest.mark.parametrize("missing", [(), FIRST])
def test_a_run_of_an_older_version_is_reported_without_pictures(missing, run, tmp_path, caplog):
    (tmp_path / "eval").mkdir()
    for name in ("40.plain.json", "40.json"):
        report = json.loads((run / "eval" / name).read_text())
        for key in ("devices", "git_revision", "versions", "date", "palette", *missing):
            del report[key]
        (tmp_path / "eval" / name).write_text(json.dumps(report))
    text = run_page.write_report(tmp_path).read_text()
    assert "Calibration" not in text and "doubts" not in text
    assert "There are no intervals and pictures here" in text and "<figure" not in text and "Training" not in text
    assert ">None" not in text and ("does not say absent_class, checkpoint," in text) == bool(missing)
    assert ("40.plain.json (without absent_class, checkpoint," in caplog.text) == bool(missing)
    write_evaluation(tmp_path, "flip", 40, 0.4, flip=True, sealed=True)  # and beside one of today, if of one run
    assert len(files.read(epath.Path(tmp_path))) == (2 if missing else 1)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("move", [os.rename, shutil.copytree])
def test_a_workdir_that_was_moved_or_copied_keeps_its_evaluations_together(sealed, move, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    write_evaluation(run, "plain", 4, 0.4, sealed=sealed, checkpoint=str(run))  # as training says it
    write_evaluation(run, "window-8-8", 4, 0.4, sealed=sealed, window=[8, 8], checkpoint=f"{run}/checkpoints/best/4")
    write_evaluation(run, "flip-legacy", 4, 0.4, sealed=sealed, flip=True, checkpoint="/elsewhere/checkpoints/best/4")
    move(run, other)
    write_evaluation(other, "flip", 4, 0.4, sealed=True, flip=True)
    assert [found.name for found in files.read(epath.Path(other))] == ["plain", "window-8-8", "flip"]
    (tmp_path / "link").symlink_to(other)
    write_evaluation(other, "flip", 4, 0.4, sealed=True, flip=True, checkpoint=f"{tmp_path}/link/checkpoints/best/4")
    assert len(files.read(epath.Path(other))) == 3


def test_evaluations_that_are_written_at_once_do_not_mix(tmp_path):
    """Two of one step, by other views, share STEP.json and STEP.png; a reader sees each whole."""
    colors = {"plain": 10, "flip": 200}
    scores = picture_scores.PictureScores(("a",), np.zeros((1, 3, 2), np.int32), ())

    def write(views):
        for _ in range(20):
            sheet = Image.new("L", (300, 300), colors[views])
            files.write(epath.Path(tmp_path), "4", views, {"checkpoint": "x", "views": views}, sheet, scores)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(write, colors))
    for stem in ("4", "4.plain", "4.flip"):
        report = json.loads((tmp_path / f"{stem}.json").read_text())
        assert Image.open(tmp_path / f"{stem}.png").getpixel((0, 0)) == colors[report["views"]]
    names = {f"{stem}.{kind}" for stem in ("4", "4.plain", "4.flip") for kind in ("json", "png")}
    assert {path.name for path in tmp_path.iterdir()} == names | {"4.plain.npz", "4.flip.npz", ".lock"}


def test_the_averaged_model_comes_first(tmp_path):
    write_evaluation(tmp_path, "plain", 4, 0.3)
    write_evaluation(tmp_path, "ema.plain", 4, 0.4)
    write_evaluation(tmp_path, "flip-train", 4, 0.4, flip=True, split="train")
    assert [found.title for found in files.read(epath.Path(tmp_path))] == ["plain (EMA)", "plain"]
    assert run_page.write_report(tmp_path, split="train") == epath.Path(tmp_path) / "report-train.html"
    assert "pictures of train" in (tmp_path / "report-train.html").read_text()
    with pytest.raises(ReportError, match="was evaluated on train, val, and not on test: .* --config.eval_split=test"):
        run_page.write_report(tmp_path, split="test")


def test_evaluations_of_something_else_are_left_out_and_named(tmp_path, caplog):
    number = {"class_names": list("abcde"), "IoU": [1.0] * 5, "confusion_matrix": np.eye(5, dtype=int).tolist()}
    others = {
        "run": {"checkpoint": "/elsewhere/checkpoints/best/4"},
        "dataset": {"dataset": "other"},
        "split": {"split": "train"},
        "class_names": {"class_names": ["road", "dog", "lamp", "absent"]},
        "model": {"model": {"backbone": "resnet18_vd", "output_stride": 16}},
        "absent_class": {"absent_class": "one"},
        "run, dataset, class_names": number | {"checkpoint": "/elsewhere/model", "dataset": "other"},
    }
    write_evaluation(tmp_path, "plain", 4, 0.4)
    write_evaluation(tmp_path, "flip", 4, 0.4, flip=True, checkpoint=f"{tmp_path}/checkpoints/latest/4")
    for index, changes in enumerate(others.values()):
        write_evaluation(tmp_path, f"flip-{index}", 4, 0.4, flip=True, **changes)
    (tmp_path / "eval" / "4.flip-6.npz").unlink()  # its counts are of four classes
    run_page.write_report(tmp_path)
    (message,) = [record.getMessage() for record in caplog.records]
    left_out = dict(re.findall(r"(4\.flip-\d\.json) \(another (.*?)\)", message))
    assert left_out == {f"4.flip-{index}.json": why for index, why in enumerate(others)}
    assert [found.name for found in files.read(epath.Path(tmp_path))] == ["plain", "flip"]


def test_a_single_picture_is_reported_without_intervals(tmp_path):
    write_evaluation(tmp_path, "plain", 4, 0.4, number=1)
    text = run_page.write_report(tmp_path).read_text()
    assert "no interval; accuracy" in text and 'class="interval"' not in text
    verdict, path = comparison_page.write_comparison([tmp_path, tmp_path], tmp_path / "page.html")
    assert "points of mIoU (B - A = +0.00, no interval, p = 1" in verdict and "<td>n/a</td>" in path.read_text()


def test_pictures_without_a_labelled_pixel_have_no_scores_and_cannot_be_compared(tmp_path):
    write_evaluation(tmp_path, "plain", 4, 0.4, labels=np.full((12, *SIZE), 255, np.uint8))
    text = run_page.write_report(tmp_path).read_text()
    assert "made val: mIoU n/a</title>" in text and '<div class="figure">n/a</div>' in text
    with pytest.raises(ReportError, match="cannot be compared: no pixel of the pictures is labelled"):
        comparison_page.write_comparison([tmp_path, tmp_path], tmp_path / "page.html")


def damage_json(folder):
    (folder / "eval" / "40.plain.json").write_text('{"mIoU": 0.5')


def change_json(**changes):
    def change(folder):
        path = folder / "eval" / "40.plain.json"
        report = {k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not ...}
        path.write_text(json.dumps(report))

    return change


def damage_npz(folder):
    path = folder / "eval" / "40.plain.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
    path.write_bytes(data)


def no_npz(folder):
    (folder / "eval" / "40.plain.npz").write_bytes(b"")


def other_npz(folder):
    write_evaluation(folder / "other", "plain", 40, 0.1)
    (folder / "other" / "eval" / "40.plain.npz").rename(folder / "eval" / "40.plain.npz")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_json, r"eval/40\.plain\.json is damaged \(Expecting .*: evaluate .*--mode=eval again, or remove it"),
        (change_json(class_names=["a"]), r"40\.plain\.json is damaged \(it is not of 1 classes throughout\)"),
        (change_json(flip=...), r"40\.plain\.json is damaged \(it lacks 'flip'\)"),
        (change_json(dataset=...), r"40\.plain\.json is damaged \(it lacks 'dataset'\)"),
        (damage_npz, r"eval/40\.plain\.npz is damaged \(.*: evaluate .* again, or remove it"),
        (no_npz, r"eval/40\.plain\.npz is damaged"),
        (other_npz, r"40\.plain\.json and the \.npz beside it are not of one evaluation"),
    ],
)
def test_damaged_files_are_named(damage, message, tmp_path):
    write_evaluation(tmp_path, "plain", 40, 0.4)
    damage(tmp_path)
    with pytest.raises(ReportError, match=message) as caught:
        run_page.write_report(tmp_path)
    assert "\n" not in str(caught.value) and not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("confidence", "verdict"), [(0.802, "about as sure as it is right"), (0.9, "too sure"), (0.7, "not sure enough")]
)
def test_the_page_says_whether_a_model_is_too_sure(confidence, verdict):
    counts = np.zeros((3, calibration.BINS))
    counts[:, int(confidence * calibration.BINS)] = 1000, 800, 1000 * confidence  # pixels, right ones, confidence
    main = types.SimpleNamespace(pictures=types.SimpleNamespace(calibration=counts))
    assert mistakes.reliability(main)["verdict"] == verdict


def test_a_workdir_without_evaluations_is_told(tmp_path):
    with pytest.raises(ReportError, match="nowhere is no folder: give the --workdir of a run"):
        run_page.write_report(tmp_path / "nowhere")
    (tmp_path / "my run").mkdir()
    for _ in range(2):  # without and with the folder
        with pytest.raises(
            ReportError, match="eval holds no evaluations: evaluate with python -m dlv3p_jax.main --mode.*'.*/my run'"
        ):
            run_page.write_report(tmp_path / "my run")
        (tmp_path / "my run" / "eval").mkdir(exist_ok=True)


def test_a_report_that_fails_at_the_end_of_a_run_is_a_warning(tmp_path, caplog, capsys):
    run_page.write_after_run(tmp_path)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{tmp_path} has no report.html: " in caplog.text and not capsys.readouterr().out


def test_two_runs_side_by_side(run, page_of, tmp_path):
    better = make_run(tmp_path / "b", quality=0.5)
    verdict, path = comparison_page.write_comparison([run, better], tmp_path / "page.html")
    reports = [json.loads((workdir / "eval" / "40.plain.json").read_text()) for workdir in (run, better)]
    points = 100 * (reports[1]["mIoU"] - reports[0]["mIoU"])
    assert verdict.startswith(f"The difference is real: B is better than A by {points:.2f} points of mIoU (B - A = +")
    for scheme in ("light", "dark"):
        page, troubles = page_of(path, 390, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert is_dark(page.evaluate("getComputedStyle(document.body).backgroundColor")) == (scheme == "dark")
        assert page.inner_text("#verdict") == verdict and not troubles
    rows = [row.split("\t") for row in page.locator("table").first.locator("tbody tr").all_inner_texts()]
    assert [row[0] for row in rows] == ["plain", "flip", "flip + scales 0.5, 1"]
    assert rows[0][1:4] == [f"{100 * report['mIoU']:.2f}" for report in reports] + [f"{points:+.2f}"]
    assert "They are the same." in page.inner_text("main")
    # The pictures that change most, as both kept them; what only one gets wrong.
    before, after = (picture_scores.own_scores(files.read(epath.Path(w))[0].pictures.counts) for w in (run, better))
    changes = [row.split("\t") for row in page.locator(".changes tbody tr").all_inner_texts()]
    largest = np.argsort(before - after, kind="stable")[0]
    assert changes[0] == [
        *(f"town/{largest}<i>", f"{100 * before[largest]:.2f}", f"{100 * after[largest]:.2f}"),
        f"{100 * (after - before)[largest]:+.2f}",
    ]
    assert page.locator("figcaption").first.inner_text().endswith(f"town/{largest}<i>")

    # Of three runs, each has its colour in all charts, and each but the first its own sentence.
    three, path = comparison_page.write_comparison([run, better, run], tmp_path / "three.html")
    starts = [line.partition(":")[0] for line in three.splitlines()]
    assert starts == ["The difference is real", "No real difference is seen"]
    page, troubles = page_of(path, 1200)
    for letter, color in zip("ABC", charts.COLORS, strict=False):
        assert color in page.locator(".card", has_text=f"{letter}: ").first.inner_html()
    loss = charts.COLORS[2]  # of C, which is the run that logged
    curve = page.locator("svg[aria-label='Learning rate']").inner_html()
    assert loss in curve and charts.COLORS[1] not in curve and not troubles

    same, path = comparison_page.write_comparison([run, run])  # beside the first run
    assert path == epath.Path(run) / "comparison.html" and path.exists()
    path.unlink()
    assert same.startswith("No real difference is seen: A and B differ by 0.00 points of mIoU")
    assert same.endswith("So few pictures can hardly tell.")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("plain", {"dataset": "other"}, "are of different data sets: made and other"),
        ("plain", {"split": "test"}, "are of different splits: val and test"),
        (
            "plain",
            {"class_names": ["road", "dog", "lamp", "absent"]},
            "different classes: class 1 is <b>wall.* and dog",
        ),
        ("plain", {"ids": list("abcdefghijkl")}, "on different pictures, 12 and 12: a is only in one of them"),
        ("plain", {"labels": make_pictures(0.4, seed=1)[0]}, "with different labels of 12 pictures: town/0"),
        ("plain", {"absent_class": "one"}, "count absent classes differently: --absent_class=nan and one"),
        ("flip", {"flip": True}, "were not evaluated alike: plain and flip; evaluate both alike"),
    ],
)
def test_runs_that_cannot_be_compared_are_told_apart(name, changes, message, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    write_evaluation(a, "plain", 4, 0.4)
    write_evaluation(b, name, 8, 0.4, **changes)
    with pytest.raises(ReportError, match=message) as caught:
        comparison_page.write_comparison([a, b], tmp_path / "page.html")
    assert str(caught.value).startswith(f"{a} and {b} ") and "\n" not in str(caught.value)


def test_runs_without_single_pictures_cannot_be_compared(tmp_path):
    write_evaluation(tmp_path, "plain", 4, 0.4)
    (tmp_path / "eval" / "4.plain.npz").unlink()
    with pytest.raises(ReportError, match=r"eval/4\.plain\.npz, the counts of single pictures, is not there"):
        comparison_page.write_comparison([tmp_path, tmp_path], tmp_path / "page.html")


COMMAND = """
import sys
from dlv3p_jax.runtime import cli
from dlv3p_jax import report
assert not {"jax", "matplotlib", "tensorflow"} & set(sys.modules)
report.define_flags()
try:
    cli.run(report.main, "report")
finally:
    assert "tensorflow" not in sys.modules
"""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--compare", "{run}", "{run}", "--output={out}"], 0, "No real difference is seen"),
        (["--workdir={out}"], 1, "report: {out} is no folder"),
        (["--compare", "{run}"], 1, "report: --compare takes two to six workdirs"),
        (["--workdir={run}", "{run}"], 1, "report: unexpected argument"),
        ([], 1, "report: give --workdir=WORKDIR"),
    ],
)
def test_the_command(arguments, code, message, run, tmp_path):
    names = {"run": run, "out": tmp_path / "page.html"}
    arguments = [argument.format(**names) for argument in arguments]
    process = subprocess.run(
        [*warm.ANEW, "-c", COMMAND, *arguments], capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": ""}
    )
    assert process.returncode == code, process.stderr
    assert message.format(**names) in process.stdout + process.stderr and "Traceback" not in process.stderr
    assert (tmp_path / "page.html").exists() == (code == 0)

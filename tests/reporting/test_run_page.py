"""The page of a run: in a browser that has no network, and which evaluations it is of."""

import json
import re
import types

import numpy as np
import pytest
from etils import epath
from made_runs import NAMES, SIZE, VIEWS, make_pictures, write_evaluation

from dlv3p_jax.evaluation import calibration, files
from dlv3p_jax.evaluation.files import ReportError
from dlv3p_jax.reporting import mistakes, run_page


def test_the_report_on_a_phone_and_in_the_dark(logged_run, page_of):
    path = run_page.write_report(logged_run)
    assert path == epath.Path(logged_run) / "report.html" and path.stat().length < 500_000
    page = page_of(path)
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
    reports = [json.loads((logged_run / "eval" / f"40.{name}.json").read_text()) for name in VIEWS]
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
    pictures = files.read(epath.Path(logged_run))[0].pictures
    page.locator(".matrix [data-cell='0-1']").click()
    assert page.locator(".over[data-of=errors]:visible").count() > 0  # whatever was there before
    assert "road, predicted as <b>wall</b> & $x$: " in page.inner_text("#cell")
    labels, predictions = make_pictures(0.4)
    pixels = ((labels == 0) & (predictions == 1)).sum((1, 2))
    most = [pictures.ids[index] for index in np.argsort(-pixels, kind="stable")[:3]]
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

    page = page_of(path, 1200, "dark")
    assert page.locator("svg text").first.evaluate("x => getComputedStyle(x).fill") == "rgb(230, 234, 240)"


def test_another_step_and_another_file(logged_run, tmp_path):
    path = run_page.write_report(logged_run, tmp_path / "sub" / "page.html", step=60)
    text = path.read_text()
    assert "Step 60" in text and "flip + scales" not in text
    with pytest.raises(ReportError, match="step 50 of .* was not evaluated: take one of 40, 60"):
        run_page.write_report(logged_run, step=50)


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
        "labels": {"label_pixels": [1.0, 2.0, 3.0, 4.0]},
        "run, dataset, class_names": number | {"checkpoint": "/elsewhere/model", "dataset": "other"},
    }
    write_evaluation(tmp_path, "plain", 4, 0.4)
    write_evaluation(tmp_path, "flip", 4, 0.4, flip=True, checkpoint=f"{tmp_path}/checkpoints/latest/4")
    for index, changes in enumerate(others.values()):
        write_evaluation(tmp_path, f"flip-{index}", 4, 0.4, flip=True, **changes)
    (tmp_path / "eval" / "4.flip-7.npz").unlink()  # its counts are of four classes
    run_page.write_report(tmp_path)
    (message,) = [record.getMessage() for record in caplog.records]
    left_out = dict(re.findall(r"(4\.flip-\d\.json) \(another (.*?)\)", message))
    assert left_out == {f"4.flip-{index}.json": why for index, why in enumerate(others)}
    assert [found.name for found in files.read(epath.Path(tmp_path))] == ["plain", "flip"]


def test_a_single_picture_is_reported_without_intervals(tmp_path):
    write_evaluation(tmp_path, "plain", 4, 0.4, number=1)
    text = run_page.write_report(tmp_path).read_text()
    assert "no interval; accuracy" in text and 'class="interval"' not in text


def test_pictures_without_a_labelled_pixel_have_no_scores(tmp_path):
    write_evaluation(tmp_path, "plain", 4, 0.4, labels=np.full((12, *SIZE), 255, np.uint8))
    text = run_page.write_report(tmp_path).read_text()
    assert "made val: mIoU n/a</title>" in text and '<div class="figure">n/a</div>' in text


@pytest.mark.parametrize(
    ("confidence", "verdict"), [(0.802, "about as sure as it is right"), (0.9, "too sure"), (0.7, "not sure enough")]
)
def test_the_page_says_whether_a_model_is_too_sure(confidence, verdict):
    counts = np.zeros((3, calibration.BINS))
    counts[:, int(confidence * calibration.BINS)] = 1000, 800, 1000 * confidence  # pixels, right ones, confidence
    main = types.SimpleNamespace(pictures=types.SimpleNamespace(calibration=counts))
    assert mistakes.reliability(main)["verdict"] == verdict

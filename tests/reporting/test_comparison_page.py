"""The page that compares runs: in a browser that has no network, and which runs cannot be compared."""

import json

import numpy as np
import pytest
from etils import epath
from made_runs import SIZE, make_pictures, make_run, write_evaluation

from dlv3p_jax.evaluation import files, picture_scores
from dlv3p_jax.evaluation.files import ReportError
from dlv3p_jax.reporting import charts, comparison_page


def test_two_runs_side_by_side(logged_run, page_of, tmp_path):
    better = make_run(tmp_path / "b", quality=0.5)
    verdict, path = comparison_page.write_comparison([logged_run, better], tmp_path / "page.html")
    reports = [json.loads((workdir / "eval" / "40.plain.json").read_text()) for workdir in (logged_run, better)]
    points = 100 * (reports[1]["mIoU"] - reports[0]["mIoU"])
    assert verdict.startswith(f"The difference is real: B is better than A by {points:.2f} points of mIoU (B - A = +")
    for scheme in ("light", "dark"):
        page = page_of(path, 390, scheme)
        assert page.inner_text("#verdict") == verdict
    rows = [row.split("\t") for row in page.locator("table").first.locator("tbody tr").all_inner_texts()]
    assert [row[0] for row in rows] == ["plain", "flip", "flip + scales 0.5, 1"]
    assert rows[0][1:4] == [f"{100 * report['mIoU']:.2f}" for report in reports] + [f"{points:+.2f}"]
    assert "They are the same." in page.inner_text("main")
    # The pictures that change most, as both kept them; what only one gets wrong.
    kept = [files.read(epath.Path(workdir))[0].pictures for workdir in (logged_run, better)]
    before, after = (picture_scores.own_scores(pictures.counts) for pictures in kept)
    changes = [row.split("\t") for row in page.locator(".changes tbody tr").all_inner_texts()]
    largest = np.argsort(before - after, kind="stable")[0]
    assert changes[0] == [
        *(f"town/{largest}<i>", f"{100 * before[largest]:.2f}", f"{100 * after[largest]:.2f}"),
        f"{100 * (after - before)[largest]:+.2f}",
    ]
    assert page.locator("figcaption").first.inner_text().endswith(f"town/{largest}<i>")

    # Of three runs, each has its colour in all charts, and each but the first its own sentence.
    three, path = comparison_page.write_comparison([logged_run, better, logged_run], tmp_path / "three.html")
    starts = [line.partition(":")[0] for line in three.splitlines()]
    assert starts == ["The difference is real", "No real difference is seen"]
    page = page_of(path, 1200)
    for letter, color in zip("ABC", charts.COLORS, strict=False):
        assert color in page.locator(".card", has_text=f"{letter}: ").first.inner_html()
    loss = charts.COLORS[2]  # of C, which is the run that logged
    curve = page.locator("svg[aria-label='Learning rate']").inner_html()
    assert loss in curve and charts.COLORS[1] not in curve

    same, path = comparison_page.write_comparison([logged_run, logged_run])  # beside the first run
    assert path == epath.Path(logged_run) / "comparison.html" and path.exists()
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


def test_runs_of_one_picture_are_compared_without_an_interval(tmp_path):
    write_evaluation(tmp_path, "plain", 4, 0.4, number=1)
    verdict, path = comparison_page.write_comparison([tmp_path, tmp_path], tmp_path / "page.html")
    assert "points of mIoU (B - A = +0.00, no interval, p = 1" in verdict and "<td>n/a</td>" in path.read_text()


def test_runs_without_a_labelled_pixel_cannot_be_compared(tmp_path):
    write_evaluation(tmp_path, "plain", 4, 0.4, labels=np.full((12, *SIZE), 255, np.uint8))
    with pytest.raises(ReportError, match="cannot be compared: no pixel of the pictures is labelled"):
        comparison_page.write_comparison([tmp_path, tmp_path], tmp_path / "page.html")


def test_runs_without_single_pictures_cannot_be_compared(tmp_path):
    write_evaluation(tmp_path, "plain", 4, 0.4)
    (tmp_path / "eval" / "4.plain.npz").unlink()
    with pytest.raises(ReportError, match=r"eval/4\.plain\.npz, the counts of single pictures, is not there"):
        comparison_page.write_comparison([tmp_path, tmp_path], tmp_path / "page.html")

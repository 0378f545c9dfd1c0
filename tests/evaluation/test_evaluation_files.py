"""The files of evaluations in one workdir: moved, copied, and written at once."""

import concurrent.futures
import json
import os
import shutil

import numpy as np
import pytest
from etils import epath
from made_runs import write_evaluation
from PIL import Image

from dlv3p_jax.evaluation import files, picture_scores


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


def test_what_takes_the_place_of_an_evaluation_of_other_data_is_told(tmp_path, caplog):
    scores, sheet = picture_scores.PictureScores(("a",), np.zeros((1, 3, 2), np.int32), ()), Image.new("L", (9, 9))
    report = {"checkpoint": "x", "dataset": "mine", "num_pictures": 1, "label_pixels": [3.0, 1.0]}
    for changes in ({}, {}, {"label_pixels": [1.0, 3.0]}, {"dataset": "other"}):
        report |= changes
        files.write(epath.Path(tmp_path), "4", "plain", report, sheet, scores)
        said = f"{tmp_path}/4.plain.json was of other data (another {next(iter(changes), None)})"
        assert (said in caplog.text) == bool(changes)

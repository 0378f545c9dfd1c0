"""Predictions into a folder: killed runs, changed pictures, and folders that hold something else."""

import dataclasses
import errno
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from drawn import draw_picture
from PIL import Image

from dlv3p_jax import models
from dlv3p_jax.inference import folder_record, folder_run, outputs, predictor
from dlv3p_jax.inference.finding import Picture, find_pictures
from dlv3p_jax.runtime import configuration, files, sharding
from dlv3p_jax.training import steps
from dlv3p_jax.weights import checkpoint_reading, checkpoints, trained

# The command, with the tiny network; where DIE_AT is N, it is killed when the Nth file that Pillow saves is half there.
MAIN = """
import os, signal
import tiny
from PIL import Image
from dlv3p_jax.runtime import cli
from dlv3p_jax.weights import trained
from dlv3p_jax import models, predict

models.build_model = tiny.build_model
save, left = Image.Image.save, int(os.environ.get("DIE_AT", 0))

def save_or_die(image, path, *arguments, **options):
    global left
    save(image, path, *arguments, **options)
    left -= 1
    if left == 0:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

Image.Image.save = save_or_die
cli.run(predict.main, "predict")
"""
SIZES = ((32, 48), (20, 24), (32, 48), (32, 48), (20, 24), (32, 48))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
    folder, config = tmp_path_factory.mktemp("workdir"), tiny.make_config("nowhere", num_classes=3)
    model = tiny.build_model(config)
    variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32), train=False)
    variables = jax.tree.map(lambda leaf: leaf * 5, variables)  # so that all classes occur
    meta = checkpoint_reading.describe_classes(["floor", "wall", "lamp"], [[1, 2, 3], [4, 5, 6], [7, 8, 9]], 255)
    with checkpoints.Checkpoints(folder, meta=meta) as saved:
        saved.save_best(steps.create_train_state(config, variables), 0.5)
    configuration.write(config, folder / "config.json")
    return folder


@pytest.fixture(scope="module")
def load(workdir):
    """Loads the trained model, with changes to its configuration."""

    def load(**changes) -> trained.TrainedModel:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(models, "build_model", tiny.build_model)
            return trained.load_checkpoint(None, workdir, changes)

    return load


@pytest.fixture
def source(tmp_path) -> pathlib.Path:
    folder, rng = tmp_path / "source", np.random.default_rng(0)
    folder.mkdir()
    for number, size in enumerate(SIZES):
        Image.fromarray(draw_picture(rng, *size)).save(folder / f"{number}.png")
    return folder


def predict(trained, source, output, **options):
    return folder_run.write_predictions(trained, find_pictures([source])[0], sharding.make_mesh(), output, **options)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Without the lock, which says whose it was."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != folder_run.LOCK]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def times(folder: pathlib.Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob("*/*") if path.is_file()}


def changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    """The names of pictures of which an output was written anew."""
    return {pathlib.Path(path).stem for path in after if after[path] != before.get(path)}


def names_of(record: pathlib.Path) -> list[str]:
    return [json.loads(line)["name"] for line in record.read_text().splitlines()[1:]]


def test_a_killed_run_goes_on_where_it_stopped_and_ends_as_if_it_had_not(workdir, load, source, tmp_path):
    """Two pictures at a time, size by size: it is killed while it writes the label of the fourth."""
    pixels, problems = predict(load(**{"eval.batch_size": 2}), source, tmp_path / "whole", probabilities=True)
    assert not problems

    output, environment = tmp_path / "killed", os.environ | {"PYTHONPATH": f"{pathlib.Path(__file__).parents[1]}"}
    command = [sys.executable, "-c", MAIN, f"--checkpoint={workdir}", f"--output={output}", "--probabilities"]
    command += ["--batch_size=2", str(source)]
    options = {"cwd": pathlib.Path(__file__).parents[2], "capture_output": True, "text": True}
    process = subprocess.run(command, env=environment | {"DIE_AT": "8"}, **options)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert names_of(output / "predict.jsonl") == ["0", "2", "3"]
    assert list((output / "labels").glob(".*.unfinished")) and not (output / "labels" / "5.png").exists()
    before = times(output)

    process = subprocess.run(command, env=environment, **options)
    assert process.returncode == 0, process.stderr
    assert "Predicting 3 pictures by 2 programs" in process.stderr and "3 are there already" in process.stderr
    assert changed(before, times(output)) == {"1", "4", "5"}
    assert contents(output) == contents(tmp_path / "whole")
    assert names_of(output / "predict.jsonl") == ["0", "1", "2", "3", "4", "5"]
    shares = {line.split()[0]: float(line.split()[-1]) for line in process.stdout.splitlines() if "#" in line}
    expected = dict(zip(["floor", "wall", "lamp"], 100 * pixels / pixels.sum(), strict=True))
    assert shares == pytest.approx({name: share for name, share in expected.items() if share}, abs=0.006)
    assert pixels.sum() == sum(height * width for height, width in SIZES) and np.count_nonzero(pixels) > 1


def test_only_what_changed_is_made_again(load, source, tmp_path):
    trained, output = load(), tmp_path / "out"
    predict(trained, source, output)
    before = times(output)
    Image.open(source / "0.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(source / "1.png")
    (output / "overlays" / "3.jpg").unlink()
    (source / "2.png").rename(source / "6.png")
    pixels, problems = predict(trained, source, output)
    assert changed(before, times(output)) == {"1", "3", "6"} and not problems
    assert names_of(output / "predict.jsonl") == ["2", "0", "1", "3", "4", "5", "6"]  # 2 is there, but not of this run
    assert pixels.sum() == sum(Image.open(path).width * Image.open(path).height for path in source.iterdir())
    predict(trained, source, output, probabilities=True)
    assert len(list((output / "probabilities").iterdir())) == 6
    before = times(output)
    predict(dataclasses.replace(trained, source="elsewhere"), source, output)  # the same weights
    assert not changed(before, times(output))


def test_what_was_made_otherwise_is_refused_unless_it_may_be_overwritten(load, source, tmp_path):
    trained, output = load(), tmp_path / "out"
    predict(trained, source, output)
    before = contents(output)
    with pytest.raises(ValueError, match="made otherwise:\n  views.flip: False then, True now\n.*or --overwrite"):
        predict(load(**{"eval.flip": True}), source, output)
    other = dataclasses.replace(trained, variables=jax.tree.map(lambda leaf: -leaf, trained.variables), source="mine")
    with pytest.raises(ValueError, match="checkpoint: '.*/0, step 0' then, 'mine' now\n  weights: "):
        predict(other, source, output)
    moved = source.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="labels/0.png is of .*/source/0.png, and would now be of .*/moved/0.png"):
        predict(trained, moved, output)
    assert contents(output) == before
    predict(other, moved, output, overwrite=True)
    assert contents(output)["labels/0.png"] != before["labels/0.png"]
    predict(other, moved, output)  # what goes on now is the new one
    (output / "predict.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="predict.jsonl is no record of predictions, or damaged: give"):
        predict(other, moved, output)


def test_a_full_disk_is_told_with_the_file_and_leaves_whole_files_only(load, source, tmp_path, monkeypatch):
    def fill(file, header):
        saved.append(file)
        if len(saved) == 3:
            file.write(b"a part of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, header)

    write, saved, output = np.lib.format.write_array_header_1_0, [], tmp_path / "out"
    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", fill)
    with pytest.raises(OSError, match="No space left on device: '.*probabilities/3.npy'"):
        predict(load(), source, output, probabilities=True)
    assert names_of(output / "predict.jsonl") == ["0", "2"]
    assert {path.name for path in (output / "probabilities").iterdir()} == {"0.npy", "2.npy"}


def test_a_record_of_videos_says_nothing_of_pictures(load, source, tmp_path):
    trained, output = load(), tmp_path / "out"
    ledger = folder_record.Ledger(output, folder_record.describe(trained, False), overwrite=False)
    (output / "labels").mkdir(parents=True)
    ledger.begin({output / "videos" / "a.mp4": tmp_path / "a.mp4"})
    ledger.add(output / "videos" / "a.mp4", np.zeros(3, np.int64))
    (output / "labels" / "0.png").write_bytes(b"the user's own")
    with pytest.raises(ValueError, match="labels/0.png is there already, and nothing in"):
        predict(trained, source, output)
    predict(trained, source, output, overwrite=True)
    entries = folder_record.read_record(output, folder_record.describe(trained, False))
    assert list(entries)[0] == "./videos/a.mp4" and "0" in entries


def test_probabilities_that_do_not_fit_say_so(tmp_path):
    """And are no fault of their picture: NumPy writes into a file without saying why it could not."""
    picture = Picture(tmp_path / "a.png", "a")
    place = outputs.files_of([picture], tmp_path / "out", None, True)["a"]
    image, probabilities = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32, 2), np.float16)
    prediction, palette = predictor.Prediction(picture, image, image[..., 0], probabilities), np.zeros((2, 3), np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: .*probabilities/a\.npy") as refused:
            outputs.write(place, prediction, palette, outputs.label_values(2, palette, False, None))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refused.value.errno == errno.EFBIG


def test_a_picture_whose_name_is_too_long_for_its_outputs_costs_only_itself(load, source, tmp_path):
    name = "0" * 251
    os.rename(source / "0.png", source / f"{name}.png")
    shutil.copy(source / "1.png", source / f"{name}.bmp")  # so that the outputs of both have two extensions
    _, problems = predict(load(), source, tmp_path / "out")
    assert len(problems) == 2
    for problem, extension in zip(problems, ("bmp", "png"), strict=True):
        assert f"{name}.{extension}: its outputs cannot be written (File name too long)" in problem.message
    assert names_of(tmp_path / "out" / "predict.jsonl") == ["1", "2", "3", "4", "5"]


def test_a_picture_where_a_folder_has_to_be_is_a_problem_of_its_own(load, source, tmp_path):
    shutil.move(source / "2.png", source / "b.jpg")
    (source / "b.png").mkdir()
    shutil.copy(source / "3.png", source / "b.png" / "c.png")
    pixels, problems = predict(load(), source, tmp_path / "out")
    assert len(problems) == 1 and "its outputs cannot be written" in problems[0].message
    assert len(names_of(tmp_path / "out" / "predict.jsonl")) == 6


def test_a_second_command_in_one_folder_is_refused_while_the_first_lives(load, source, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    with files.lock(output / folder_run.LOCK):
        with pytest.raises(ValueError, match=f"{output} is in use by another predict .process {os.getpid()} on"):
            predict(load(), source, output)
        assert [path.name for path in output.iterdir()] == [folder_run.LOCK]


def test_labels_that_predict_did_not_write_are_not_written_over(load, source, tmp_path):
    (source / "labels").mkdir()
    (source / "labels" / "2.png").write_text("by hand")
    with pytest.raises(ValueError, match=f"{source}/labels/2.png is there already.*--overwrite"):
        folder_run.write_predictions(load(), find_pictures([source], source)[0], sharding.make_mesh(), source)
    assert (source / "labels" / "2.png").read_text() == "by hand" and not (source / "overlays").exists()


def test_labels_of_one_name_are_no_submission(source, tmp_path):
    (source / "a").mkdir()
    (source / "0.png").rename(source / "a" / "1.png")
    pictures = find_pictures([source])[0]
    with pytest.raises(ValueError, match="/source/1.png and .*/source/a/1.png would both be 1.png in the submission"):
        outputs.files_of(pictures, tmp_path, "voc", False)

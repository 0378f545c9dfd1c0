"""COCO's annotations: files as COCO, Roboflow and CVAT lay them out, and outlines drawn over each other."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dlv3p_jax import prepare as command
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.datasets import coco, outlines
from dlv3p_jax.datasets.preparing import prepare_dataset

mask = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
HEIGHT, WIDTH = 8, 10
CATEGORIES = [{"id": 7, "name": "car"}, {"id": 3, "name": "tall tree", "supercategory": "plant"}]
SQUARE = [[2, 1, 6, 1, 6, 5, 2, 5]]  # columns 2..5, rows 1..4


def annotation(number, image, category, segmentation):
    return {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": 0}


def write(folder, split, json_name, pictures, annotations, **changes):
    """Two pictures, or as many as there are ids, named by the split, and the JSON file of their annotations."""
    images = []
    for number in (1, 2):
        path = folder / pictures / f"{split}{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([number, *map(ord, split)])
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)).save(path)
        images.append({"id": 10 * number, "file_name": path.name, "height": HEIGHT, "width": WIDTH})
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES} | changes
    (folder / json_name).parent.mkdir(parents=True, exist_ok=True)
    (folder / json_name).write_text(json.dumps(content))


@pytest.fixture
def source(tmp_path):
    """As COCO itself."""
    runs = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    runs[4:, 4:] = 1  # 24 pixels, over a square of 16
    packed = mask.encode(runs)
    flat = runs.ravel(order="F")
    counts = np.diff(np.flatnonzero(np.diff(flat, prepend=2, append=2))).tolist()
    annotations = [
        annotation(1, 10, 7, SQUARE),
        annotation(2, 10, 3, {"size": [HEIGHT, WIDTH], "counts": [0, *counts] if flat[0] else counts}),
        annotation(3, 20, 3, {"size": [HEIGHT, WIDTH], "counts": packed["counts"].decode()}),
    ]
    folder = tmp_path / "coco"
    write(folder, "train", "annotations/instances_train2017.json", "train2017", annotations)
    write(folder, "val", "annotations/instances_val2017.json", "val2017", annotations[:1])
    (folder / "annotations/captions_train2017.json").write_text("{}")
    return folder


def prepare(source, data_dir, **options):
    def make(folder):
        return coco.make_builder(folder, source, name="mine", **options)

    return prepare_dataset("mine", make, data_dir, overwrite=False)


def labels(dataset, split):
    return {record["id"]: np.asarray(Image.open(io.BytesIO(record["label"]))) for record in dataset.source(split)}


def test_polygons_and_run_lengths_become_indices(source, tmp_path):
    dataset, _ = prepare(source, tmp_path / "data")
    assert (dataset.name, dataset.class_names) == ("mine", ["background", "tall tree", "car"])
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[4:, 4:] = 1
    only_trees = expected.copy()
    expected[1:5, 2:6] = 2  # the car is smaller, so it is on top, though it came first
    found = labels(dataset, "train")
    np.testing.assert_array_equal(found[b"train1"], expected)
    np.testing.assert_array_equal(found[b"train2"], only_trees)
    assert (labels(dataset, "val")[b"val2"] == 0).all()  # which has no object


@pytest.mark.parametrize(
    ("files", "pictures"),
    [
        (
            {"train": "train/_annotations.coco.json", "val": "valid/_annotations.coco.json"},
            ("train", "valid"),
        ),  # Roboflow
        ({"train": "annotations/train.json", "val": "annotations/val.json"}, ("images/train", "images/val")),
        ({"train": "train.json", "val": "val.json"}, ("images", "images")),
    ],
)
def test_layouts_of_other_tools(tmp_path, files, pictures):
    for (split, name), folder in zip(files.items(), pictures, strict=True):
        write(tmp_path, split, name, folder, [annotation(1, 10, 7, SQUARE)])
    dataset = coco.make_builder(tmp_path / "data", tmp_path, name="mine").survey(tmp_path)
    assert dataset.metadata["class_pixels"] == dict.fromkeys(("train", "val"), [2 * HEIGHT * WIDTH - 16, 0, 16])


def test_files_are_named_where_they_are_called_otherwise(tmp_path):
    for split in ("one", "two"):
        write(tmp_path, split, f"labels/{split}.json", "images", [annotation(1, 10, 7, SQUARE)])
    with pytest.raises(DatasetError, match=r"no train split \(looked for annotations/instances_train.*--splits"):
        prepare(tmp_path, tmp_path / "data")
    dataset, _ = prepare(tmp_path, tmp_path / "data", splits=["train=labels/one.json", "val=labels/two.json"])
    assert dataset.splits == ("train", "val") and dataset.num_pictures("val") == 2
    with pytest.raises(DatasetError, match="--splits=val=none.json: write NAME=FILE"):
        prepare(tmp_path, tmp_path / "other", splits=["val=none.json"])


IMAGE = {"id": 1, "file_name": "val1.jpg", "height": HEIGHT, "width": WIDTH}
RUNS = {"size": [HEIGHT, WIDTH], "counts": [10, 20]}
PACKED = "01800000000000008"  # of a diagonal


@pytest.mark.parametrize(
    ("annotations", "changes", "message"),
    [
        ([annotation(5, 10, 7, [[1, 2, 3, 4]])], {}, "val2017.json, image 10: object 1: a polygon has at least three"),
        ([annotation(5, 10, 7, [])], {}, 'val2017.json: annotation 5 has no "segmentation", only a box'),
        ([annotation(5, 10, 7, RUNS)], {}, "image 10: object 1: its run lengths add up to 30, the picture has 80"),
        (
            [annotation(5, 10, 7, RUNS | {"size": [9, 9]})],
            {},
            "its run lengths are of size .9, 9., the picture is .8, 10",
        ),
        ([annotation(5, 10, 7, RUNS | {"counts": "junk~~"})], {}, "image 10: object 1: "),
        ([annotation(5, 10, 7, RUNS | {"counts": PACKED[:-1]})], {}, "image 10: object 1: its run lengths add up to"),
        (
            [annotation(5, 10, 7, RUNS | {"counts": PACKED + "Q"})],
            {},
            "image 10: object 1: its run lengths are cut short",
        ),
        ([annotation(5, 10, 7, RUNS | {"counts": ["a"]})], {}, "image 10: object 1: its run lengths are no integers"),
        ([annotation(5, 10, 7, [1, 2, 3, 4, 5, 6])], {}, "image 10: object 1: give a list of polygons"),
        ([annotation(5, 10, 7, [[1, 2, 3, float("nan"), 5, 6]])], {}, "object 1: a point at x=3, y=nan is far outside"),
        ([annotation(5, 10, 7, [[1, 2, 1e9, 2, 5, 6]])], {}, r"object 1: a point at x=1e\+09, y=2 is far outside of"),
        (
            [],
            {"images": [IMAGE] * 2},
            '"id" of "images": each has',
        ),
        ([], {"categories": [*CATEGORIES, CATEGORIES[0]]}, '"id" of "categories": each has one of its own'),
        ([], {"images": [IMAGE | {"file_name": None}]}, '"file_name" None: give a path'),
        (
            [],
            {"images": [IMAGE | {"height": "x"}]},
            "\"height\" 'x': give pixels",
        ),
        ([3], {}, r"val2017.json: annotations\[0\] is 3, and no object"),
        ([annotation(5, 11, 7, SQUARE)], {}, 'val2017.json: annotation 5 has the "image_id" 11, which is not there'),
        ([annotation(5, 10, 1, SQUARE)], {}, 'val2017.json: annotation 5 has the "category_id" 1, which is not there'),
        ([{"id": 1}], {}, r'val2017.json: annotations\[0\] has no "image_id"'),
        (
            [],
            {"categories": CATEGORIES[:1]},
            'val2017.json: its "categories" are others than those of .*train2017.json',
        ),
        ([], {"categories": None}, 'val2017.json: no list "categories"'),
        (
            [],
            {"images": [{"id": 1, "file_name": "gone.jpg", "height": 8, "width": 10}]},
            "val2017.json: gone.jpg is in none",
        ),
        (
            [],
            {"images": [{"id": 1, "file_name": "val1.jpg", "height": 9, "width": 10}]},
            r"image 1 says \(9, 10\), but .*val1",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_file_and_key(source, tmp_path, annotations, changes, message):
    write(source, "val", "annotations/instances_val2017.json", "val2017", annotations, **changes)
    with pytest.raises(DatasetError, match=message):
        prepare(source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_two_files_of_one_split_and_files_that_are_no_json(source, tmp_path):
    (source / "annotations/instances_train2014.json").write_text("{")
    with pytest.raises(
        DatasetError, match="train2014.json, .*train2017.json: say which it is with --splits=train=FILE"
    ):
        prepare(source, tmp_path / "data")
    (source / "annotations/instances_train2017.json").unlink()
    with pytest.raises(DatasetError, match="train2014.json: no JSON"):
        prepare(source, tmp_path / "data")


def test_without_pycocotools_it_is_said(source, tmp_path, monkeypatch):
    monkeypatch.setattr(outlines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DatasetError, match=r"pip install 'dlv3p_jax\[coco\]'"):
        prepare(source, tmp_path / "data")


def test_the_command_says_how_to_train(source, tmp_path):
    flags = ["--dataset=coco", f"--source={source}", f"--data_dir={tmp_path / 'data'}", "--workers=1", "--name=cars"]
    done = subprocess.run([sys.executable, "-m", command.__name__, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--config=configs/image_folder.py" in done.stdout and "--config.dataset=cars" in done.stdout

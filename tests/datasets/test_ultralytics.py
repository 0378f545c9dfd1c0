"""Data sets as Ultralytics' documentation lays them out: masks, and outlines in text files."""

import io

import numpy as np
import pytest
import yaml
from PIL import Image

from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.datasets import ultralytics
from dlv3p_jax.datasets.preparing import prepare_dataset

HEIGHT, WIDTH = 8, 10
NAMES = {0: "person", 1: "car"}
LARGE = "1 0 0 1 0 1 1 0 1\n"  # all of the picture
SMALL = "0 0.2 0.25 0.6 0.25 0.6 0.75 0.2 0.75\n"  # columns 2..5, rows 2..5


def write_picture(folder, name):
    path = folder / "images" / f"{name}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([*map(ord, name)])
    Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)).save(path)


def write_yaml(folder, **changes):
    described = {"path": str(folder), "train": "images/train", "val": "images/val", "names": NAMES} | changes
    (folder / "data.yaml").write_text(yaml.safe_dump({key: value for key, value in described.items() if value}))


@pytest.fixture
def outlined(tmp_path):
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    folder = tmp_path / "yolo"
    for name, rows in (("train/a", SMALL + LARGE), ("train/sub/b", SMALL), ("train/c", None), ("val/v", LARGE)):
        write_picture(folder, name)
        label = folder / "labels" / f"{name}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        if rows is not None:
            label.write_text(rows)
    write_yaml(folder)
    return folder


@pytest.fixture
def masked(tmp_path):
    folder = tmp_path / "masks_of_mine"
    for name in ("train/a", "val/v"):
        write_picture(folder, name)
        mask = folder / "masks" / f"{name}.png"
        mask.parent.mkdir(parents=True)
        Image.fromarray(np.tile(np.uint8([0, 1, 255, 1, 0]), (HEIGHT, 2))).save(mask)
    write_yaml(folder, masks_dir="masks")
    return folder


def prepare(source, data_dir):
    def make(folder):
        return ultralytics.make_builder(folder, source, name="mine")

    return prepare_dataset("mine", make, data_dir, overwrite=False)


def labels(dataset, split):
    return {record["id"]: np.asarray(Image.open(io.BytesIO(record["label"]))) for record in dataset.source(split)}


def test_outlines_are_drawn_with_a_background_after_the_classes(outlined, tmp_path):
    dataset, made_by = prepare(outlined, tmp_path / "data")
    assert dataset.class_names == ["person", "car", "background"]
    small = np.zeros((HEIGHT, WIDTH), bool)
    small[2:6, 2:6] = True
    found = labels(dataset, "train")
    np.testing.assert_array_equal(found[b"a"], np.where(small, 0, 1))  # the smaller is on top, whichever came first
    np.testing.assert_array_equal(found[b"sub/b"], np.where(small, 0, 2))
    assert (found[b"c"] == 2).all() and any("1 pictures have no file of outlines" in text for text in made_by.remarks)

    (outlined / "labels/train/a.txt").write_text(SMALL)
    (outlined / "labels/val/v.txt").write_text(SMALL)
    write_yaml(outlined, names=["person"])  # of one class, the background comes first
    dataset, _ = prepare(outlined / "data.yaml", tmp_path / "one")
    assert dataset.class_names == ["background", "person"]
    np.testing.assert_array_equal(labels(dataset, "train")[b"a"], small)


def test_masks_lie_where_masks_dir_says(masked, tmp_path):
    dataset, _ = prepare(masked, tmp_path / "data")
    assert dataset.class_names == ["person", "car"]
    assert dataset.metadata["class_pixels"] == dict.fromkeys(("train", "val"), [4 * HEIGHT, 4 * HEIGHT])
    assert dataset.metadata["ignored_pixels"] == dict.fromkeys(("train", "val"), 2 * HEIGHT)

    write_yaml(
        masked, path=None, train="../images/train", val=["./images/val"]
    )  # as Roboflow writes it, without masks_dir
    assert prepare(masked, tmp_path / "again")[0].metadata["class_pixels"] == dataset.metadata["class_pixels"]
    write_yaml(masked, masks_dir="masks", label_mapping={0: 1, 1: 0, 255: "ignore_label"})
    found = labels(prepare(masked, tmp_path / "mapped")[0], "val")[b"v"]
    np.testing.assert_array_equal(found, np.tile(np.uint8([1, 0, 255, 0, 1]), (HEIGHT, 2)))


def test_lists_of_pictures(masked, tmp_path):
    (masked / "train.txt").write_text("./images/train/a.jpg\n")
    write_yaml(masked, masks_dir="masks", train="train.txt")
    assert prepare(masked, tmp_path / "data")[0].num_pictures("train") == 1
    (masked / "train.txt").write_text("./images/train/b.jpg\n")
    with pytest.raises(DatasetError, match=r"train.txt: .*images/train/b.jpg is not there"):
        prepare(masked, tmp_path / "other")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0 0.1 0.1 0.2 0.2", r"labels/val/v.txt, line 1: a box"),
        ("0 0.1 0.1 0.2 0.2 0.3", "line 1: 5 numbers after the class"),
        ("2 0 0 1 0 1 1", 'line 1: class 2 is not among the 2 "names"'),
        ("0 0 0 12 0 12 8", "line 1: 12; give shares of width and height"),
        ("0 0 zero 1 0 1 1", "line 1: write a class and x1 y1"),
    ],
)
def test_rows_that_are_no_outlines_are_named(outlined, tmp_path, row, message):
    (outlined / "labels/val/v.txt").write_text(f"{row}\n")
    with pytest.raises(DatasetError, match=message):
        prepare(outlined, tmp_path / "data")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": None}, 'data.yaml: no key "names"'),
        ({"names": {1: "a", 2: "b"}}, 'data.yaml: the keys of "names" are 1, 2; they go on from 0'),
        ({"val": None}, 'data.yaml: no key "val"'),
        ({"val": "images/none"}, 'data.yaml: "val" is images/none, and .* is not there'),
        ({"masks_dir": "gone"}, r"images/val/v.jpg has no mask \(looked for .*gone/val/v"),
        ({"label_mapping": {"a": 1}}, 'data.yaml: "label_mapping" has numbers'),
    ],
)
def test_keys_that_cannot_be_are_named(masked, tmp_path, changes, message):
    write_yaml(masked, **{"masks_dir": "masks"} | changes)
    with pytest.raises(DatasetError, match=message):
        prepare(masked, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_folder_needs_one_yaml_file(masked, tmp_path):
    (masked / "data.yaml").rename(masked / "a.yml")
    assert prepare(masked, tmp_path / "data")[0].num_pictures("val") == 1
    (masked / "b.yaml").write_text("{")
    with pytest.raises(DatasetError, match="give the YAML file of the data set; in this folder: a.yml, b.yaml"):
        prepare(masked, tmp_path / "other")
    with pytest.raises(DatasetError, match="b.yaml: no YAML"):
        prepare(masked / "b.yaml", tmp_path / "other")

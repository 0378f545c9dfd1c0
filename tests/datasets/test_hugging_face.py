"""Data sets of Hugging Face's `datasets`: folders that it saves, and Parquet files."""

import functools
import io

import numpy as np
import pytest
from PIL import Image

from dlv3p_jax.data import records
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.datasets import examples, hugging_face
from dlv3p_jax.datasets.preparing import prepare_dataset

datasets = pytest.importorskip("datasets", reason="datasets is not installed")
SIZES = {"train": 5, "validation": 2}


def png(values) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def example(split, index):
    rng = np.random.default_rng([len(split), index])
    return rng.integers(0, 256, (6, 4, 3)).astype(np.uint8), rng.integers(1, 4, (6, 4)).astype(np.uint8)


def rows(split, lacking=None):
    """The rows of a split; that with the index `lacking` has no mask."""
    found = [example(split, index) for index in range(SIZES[split])]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "mask": datasets.Image(),
            "array": datasets.Array2D((6, 4), "int32"),
            "id": datasets.Value("int64"),
        }
    )
    columns = {
        "image": [png(image) for image, _ in found],
        "mask": [None if index == lacking else png(mask) for index, (_, mask) in enumerate(found)],
        "array": [(mask.astype(np.int32) - 1).tolist() for _, mask in found],
        "id": list(range(len(found))),
    }
    return datasets.Dataset.from_dict(columns, features)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "my-set"
    datasets.DatasetDict({split: rows(split) for split in SIZES}).save_to_disk(folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def prepare(data_dir, place, **options):
    options = {"label_key": "mask"} | options
    name = records.local_name(f"hf:{place}")
    make = functools.partial(hugging_face.make_builder, dataset=f"hf:{place}", name=name, **options)
    return prepare_dataset(name, make, data_dir, False)


def labels(dataset, split):
    return [np.asarray(Image.open(io.BytesIO(record["label"]))) for record in dataset.source(split)]


def test_a_saved_folder_keeps_its_order_and_its_files(saved, tmp_path):
    dataset, made_by = prepare(tmp_path / "data", saved)
    assert (dataset.name, dataset.splits) == ("hf_my_set", ("train", "val"))
    assert dataset.class_names == ["value 1", "value 2", "value 3"]
    for split, theirs in (("train", "train"), ("val", "validation")):
        for index, (label, record) in enumerate(zip(labels(dataset, split), dataset.source(split), strict=True)):
            image, mask = example(theirs, index)
            np.testing.assert_array_equal(label, mask - 1)
            assert record["image"] == png(image)["bytes"]
    assert any("begin with 1" in remark for remark in made_by.remarks)


def test_parquet_files_arrays_and_parts_of_splits(tmp_path):
    folder = tmp_path / "parquet"
    folder.mkdir()
    rows("train").to_parquet(folder / "train.parquet")
    (tmp_path / "names.txt").write_text("cat\ndog\nedge\n")
    splits = ["train=train[:60%]", "val=train[3:]"]
    dataset, _ = prepare(
        tmp_path / "data", folder, label_key="array", splits=splits, class_names=tmp_path / "names.txt"
    )
    assert dataset.class_names == ["cat", "dog", "edge"]
    assert (dataset.num_pictures("train"), dataset.num_pictures("val")) == (3, 2)
    for index, label in enumerate(labels(dataset, "train") + labels(dataset, "val")):
        np.testing.assert_array_equal(label, example("train", index)[1] - 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"place": "/no/such"}, "^--dataset=hf:/no/such: datasets cannot load it .*save_to_disk"),
        ({"label_key": None}, "^--label_key: name a column of .*my-set that holds pictures: image, mask, array$"),
        ({"image_key": "id"}, "^--image_key=id: name a column"),
        ({"splits": ["train=test"]}, "^--splits=train=test: write NAME=SPLIT.*it has train, validation$"),
        ({"splits": ["train=train[5:]"]}, r"^--splits=train=train\[5:\]: train has 5 pictures, and none of these"),
    ],
)
def test_what_cannot_be_used_is_one_message(saved, tmp_path, options, message):
    with pytest.raises(DatasetError, match=message):
        prepare(tmp_path / "data", **{"place": saved} | options)


def test_rows_without_a_label_are_problems_like_others(tmp_path):
    folder = tmp_path / "set"
    datasets.DatasetDict({"train": rows("train", lacking=1), "validation": rows("validation")}).save_to_disk(folder)
    with pytest.raises(DatasetError, match="1 problem.*\n.*train-000001, mask: there is none"):
        prepare(tmp_path / "data", folder)
    dataset, made_by = prepare(tmp_path / "data", folder, skip_bad=True)
    assert dataset.num_pictures("train") == SIZES["train"] - 1 and len(made_by.problems) == 1


def test_without_datasets_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(hugging_face.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DatasetError, match=r"^--dataset=hf:some/set: .*pip install 'dlv3p_jax\[hf\]'"):
        prepare(tmp_path / "data", "some/set")


def test_names_and_commands():
    assert records.local_name("hf:owner/my-set:small") == "hf_my_set"
    assert "--dataset=hf:PATH_OR_NAME --name=hf_my_set --label_key=KEY" in records.prepare_command("hf_my_set", "data")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0.0, 1.9]], np.float32), "its values are float32, and no integers"),
        (np.array([[2**32, 1]]), "its values, 1 to 4294967296, are too large"),
    ],
)
def test_labels_that_would_become_others_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        examples.to_file(values)

"""Data sets of TFDS's catalogue: a builder that is defined here, as oxford_iiit_pet lays its examples out."""

import functools
import io
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from dlv3p_jax import prepare as command
from dlv3p_jax.data import records
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.datasets import tfds_catalogue
from dlv3p_jax.datasets.preparing import prepare_dataset

SIZES = {"train": 5, "test": 2}
SIDES = (6, 4)


def example(split: str, index: int) -> dict:
    """A picture and masks of 1, 2, 3 that NumPy draws."""
    rng = np.random.default_rng([len(split), index])
    mask = rng.integers(1, 4, (*SIDES, 1))
    return {
        "image": rng.integers(0, 256, (*SIDES, 3)).astype(np.uint8),
        "segmentation_mask": mask.astype(np.uint8),
        "array": (mask[..., 0] * 100 - 100).astype(np.int32),
        "from_zero": (mask - 1).astype(np.uint8),
        "depth": rng.random((*SIDES, 1)).astype(np.float32),
        "label": index,
    }


class TinyPet(tfds.core.GeneratorBasedBuilder):
    """What the catalogue's builders are."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # where TFDS looks for checksums of downloads

    def _info(self):
        mask = functools.partial(tfds.features.Image, shape=(None, None, 1))
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "segmentation_mask": mask(),
            "array": tfds.features.Tensor(shape=SIDES, dtype=np.int32),
            "from_zero": tfds.features.LabeledImage(labels=["cat", "dog", "edge"], shape=(None, None, 1)),
            "depth": mask(dtype=np.float32),
            "label": np.int64,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split):
        for index in range(SIZES[split]):
            yield index, example(split, index)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    """TFDS's data_dir with TinyPet in it: what `tfds build` leaves."""
    folder = tmp_path_factory.mktemp("tfds")
    TinyPet(data_dir=folder).download_and_prepare()
    return folder


def prepare(data_dir, name="tfds:tiny_pet", **options):
    local = records.local_name(name)
    make = functools.partial(tfds_catalogue.make_builder, dataset=name, name=local, **options)
    return prepare_dataset(local, make, data_dir, False)


def contents(dataset, split):
    """(picture, label) of each record, by the picture's bytes: TFDS shuffles when it prepares."""
    found = (
        [np.asarray(Image.open(io.BytesIO(record[key]))) for key in ("image", "label")]
        for record in dataset.source(split)
    )
    return {picture.tobytes(): label for picture, label in found}


def test_masks_that_begin_with_1_become_classes_from_0(catalogue, tmp_path):
    dataset, made_by = prepare(tmp_path, source=catalogue, label_key="segmentation_mask")
    assert (dataset.name, dataset.splits) == ("tfds_tiny_pet", ("train", "test"))
    assert dataset.class_names == ["value 1", "value 2", "value 3"]
    for split, size in SIZES.items():
        expected = {
            each["image"].tobytes(): each["segmentation_mask"][..., 0] - 1
            for each in (example(split, index) for index in range(size))
        }
        found = contents(dataset, split)
        assert found.keys() == expected.keys()
        assert all((found[key] == expected[key]).all() for key in expected)
        counts = np.bincount(np.concatenate([label.ravel() for label in expected.values()]), minlength=3)
        assert dataset.metadata["class_pixels"][split] == counts.tolist()
    assert any("begin with 1" in remark for remark in made_by.remarks)
    assert records.open_dataset("tfds_tiny_pet", tmp_path).source("train")[0]["id"].startswith(b"tiny_pet-train")


def test_names_of_the_feature_label_maps_and_arrays(catalogue, tmp_path):
    options = {"source": catalogue, "splits": ["train=train[:3]", "val=train[3:]+test"]}
    named, _ = prepare(tmp_path / "a", label_key="from_zero", **options)
    assert (named.class_names, named.splits) == (["cat", "dog", "edge"], ("train", "val"))
    assert (named.num_pictures("train"), named.num_pictures("val")) == (3, 4)

    mapped, _ = prepare(tmp_path / "b", label_key="array", label_map="0:0,100:1,200:ignore", **options)
    assert mapped.class_names == ["value 0", "value 100"]
    labels = {each["image"].tobytes(): each["array"] for each in (example("train", index) for index in range(5))}
    for picture, label in contents(mapped, "train").items():
        np.testing.assert_array_equal(label, np.select([labels[picture] == 0, labels[picture] == 100], [0, 1], 255))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "tfds:no_such"}, "^--dataset=tfds:no_such: Dataset no_such not found. TFDS .* prepared in --source"),
        ({"label_key": None}, "^--label_key: name a feature of tiny_pet that holds pictures: .*segmentation_mask"),
        ({"label_key": "label"}, "^--label_key=label: name a feature"),
        ({"image_key": "depth"}, "^--image_key=depth: name a feature of tiny_pet that holds pictures: "),
        ({"splits": ["train=validation"]}, "^--splits=train=validation: write NAME=SPLIT.*tiny_pet has train, test$"),
        ({"splits": ["train"]}, "^--splits=train: write"),
        ({"label_map": "1:0,2:5,3:1"}, "^--label_map: its classes are 0, 1, 5; they go on from 0"),
        ({"label_map": "1:0,2:1"}, r"(?s)^7 problems.*tiny_pet-test.*label: value 3 \(.* not in the label map"),
        ({"label_key": "array"}, "^its labels hold 3 values up to 200: say with --label_map"),
    ],
)
def test_what_cannot_be_used_is_one_message(catalogue, tmp_path, options, message):
    options = {"label_key": "segmentation_mask", "source": catalogue} | options
    with pytest.raises(DatasetError, match=message) as caught:
        prepare(tmp_path / "data", **options)
    assert str(tmp_path) not in str(caught.value).replace(str(catalogue), "")
    assert "/tmp/tmp" not in str(caught.value)


def test_a_data_set_that_cannot_be_fetched_is_one_line(monkeypatch, tmp_path):
    def fail(self, *arguments, **options):
        raise OSError("no route\nto host")

    monkeypatch.setattr(TinyPet, "_split_generators", fail)
    with pytest.raises(DatasetError, match=r"^--dataset=tfds:tiny_pet: TFDS cannot .*no route to host"):
        prepare(tmp_path / "data", source=tmp_path / "empty", label_key="segmentation_mask")


def test_the_command_takes_the_name_and_says_how_to_train(catalogue, tmp_path):
    flags = ["--dataset=tfds:tiny_pet", f"--data_dir={tmp_path / 'data'}", "--workers=1"]
    commands = (
        [f"--source={catalogue}", "--label_key=segmentation_mask"],
        ["--check"],
        [f"--preview={tmp_path / 'a.png'}", "--crop_size=32,32"],
    )
    said = []
    for more in commands:
        done = subprocess.run([sys.executable, "-m", command.__name__, *flags, *more], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert "--config=configs/image_folder.py" in said[0]
    assert "--config.dataset=tfds_tiny_pet --config.eval_split=test" in said[0]
    assert "labels begin with 1" not in said[1]
    with pytest.raises(DatasetError, match="prepare --dataset=tfds:other/small --label_key=KEY"):
        records.open_dataset("tfds_other__small", tmp_path)

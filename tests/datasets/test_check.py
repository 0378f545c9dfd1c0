"""Checking prepared records: each kind of damage that can be in them is found and named."""

import numpy as np
import pytest

from dlv3p_jax.data import records
from dlv3p_jax.data.example import Example, encode_example
from dlv3p_jax.datasets import builder, check, preparing

IMAGE = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
LABEL = np.uint8([[0, 1, 1, 255, 0, 0]] * 4)


def good(name: str) -> Example:
    return encode_example(name, IMAGE + (name == "x"), LABEL, 2, 255)  # one picture with two labels is refused


def write(data_dir, examples: list[Example]) -> records.Dataset:
    class Given(builder.PictureBuilder):
        def __init__(self, data_dir):
            looks = {"class_names": ["a", "b"], "palette": [[0, 0, 0], [9, 9, 9]], "ignore_label": 255}
            super().__init__(data_dir, {"train": examples}, lambda x: x, **looks, description="given", synthetic=True)

    return preparing.prepare_dataset("given", Given, data_dir, overwrite=False)[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_good_records_pass(tmp_path, workers):
    assert check.check_records(write(tmp_path, [good("x"), good("y")]), workers) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": good("").image[:-20]}, "train: y: picture: damaged or truncated"),
        ({"label": b""}, r"train: y: label: the file is empty \(0 bytes\)"),
        ({"label": encode_example("", IMAGE[:3], LABEL[:3], 2, 255).label}, r"y: the picture is \(4, 6\) .* \(3, 6\)"),
        ({"size": (6, 4)}, r"train: a picture is \(4, 6\) \(height, width\), but \(6, 4\) in the metadata"),
        ({"label": encode_example("", IMAGE, LABEL * 0 + 7, 2, 255).label}, "label 0 is on 12 pixels, on 24 in the"),
    ],
)
def test_damage_is_named(tmp_path, change, message):
    given = {key: getattr(good("y"), key) for key in ("id", "image", "label", "size", "class_pixels", "ignored_pixels")}
    problems = check.check_records(write(tmp_path, [good("x"), Example(**(given | change))]))
    assert problems
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(problems[0].message)


def test_other_records_of_the_same_sizes_and_counts_are_noticed(tmp_path):
    dataset = write(tmp_path, [good("x"), good("y")])
    other = write(tmp_path / "other", [good("y"), good("x")])
    digests = other.metadata["digests"]
    assert [problem.id for problem in check.check_records(other)] == []
    other.metadata["digests"] = dataset.metadata["digests"]
    assert "not those that were written" in check.check_records(other)[0].message
    del other.metadata["digests"]  # as older revisions wrote it
    assert check.check_records(other) == []
    assert digests != dataset.metadata["digests"]


def test_a_label_in_a_split_without_labels(tmp_path):
    unlabelled = Example("x", good("").image, b"", (4, 6), np.zeros(2, np.int64), 0)
    labelled = Example("y", good("").image, good("").label, (4, 6), np.zeros(2, np.int64), 0)
    dataset = write(tmp_path, [unlabelled, labelled])
    assert not dataset.has_labels("train")
    assert [problem.message for problem in check.check_records(dataset)] == [
        "train: y: a label in a split without labels"
    ]

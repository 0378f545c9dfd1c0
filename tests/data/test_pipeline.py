"""Batches from prepared records: which pictures, in which order, with which pixels."""

import collections
import dataclasses
import io

import eval_batches
import numpy as np
import pytest
from PIL import Image

from dlv3p_jax.data import augment, pipeline, records

BATCH = ("image", "label", "size", "id")  # of an evaluation
SETTINGS = dict(batch_size=4, num_steps=9, seed=3)
CROP = augment.Crop((32, 48), min_scale=0.5, max_scale=2.0, scale_step=0.25, flip=True, ignore_label=255)


@pytest.fixture(scope="module")
def dataset(data_dir):
    return records.open_dataset("image_folder", data_dir)


def train(dataset, first_step=0, crop=CROP, **changes):
    return list(pipeline.train_batches(dataset, "train", crop, first_step=first_step, **(SETTINGS | changes)))


def test_every_epoch_is_a_permutation_of_its_own():
    epochs = [[pipeline.picture_of(epoch * 50 + i, 50, seed=1) for i in range(50)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(50))
    assert epochs[1] == [pipeline.picture_of(50 + i, 50, seed=1) for i in range(50)]
    assert epochs[0] != [pipeline.picture_of(i, 50, seed=2) for i in range(50)]


def test_pictures_follow_the_order_of_the_epochs_across_their_ends(dataset):
    ids = [picture_id.decode() for batch in train(dataset) for picture_id in batch["id"]]
    stored = [record["id"].decode() for record in dataset.source("train")]
    assert ids == [stored[pipeline.picture_of(position, 11, SETTINGS["seed"])] for position in range(36)]
    assert collections.Counter(ids[:33]) == dict.fromkeys(stored, 3)  # three whole epochs of 11, batches of 4


def test_batches_are_uint8_crops_with_labels_of_the_data_set(dataset):
    for batch in train(dataset, num_steps=3):
        assert batch["image"].shape == (4, 32, 48, 3) and batch["image"].dtype == np.uint8
        assert batch["label"].shape == (4, 32, 48) and batch["label"].dtype == np.uint8
        assert set(np.unique(batch["label"])) <= {0, 1, 2, 255}


@pytest.mark.parametrize("more", [{}, {"max_class_share": 0.6, "rotation": 20.0, "vertical_flip": 0.5}])
def test_a_run_can_start_at_any_step_bit_for_bit(dataset, more):
    crop = dataclasses.replace(CROP, **more)
    whole, rest = train(dataset, crop=crop), train(dataset, first_step=5, crop=crop)
    assert len(rest) == 4
    for expected, batch in zip(whole[5:], rest, strict=True):
        for name in ("image", "label", "id"):
            np.testing.assert_array_equal(batch[name], expected[name])


def test_nothing_reads_ahead_while_the_interpreter_ends(dataset):
    iterators = [
        pipeline.train_batches(dataset, "train", CROP, first_step=0, **SETTINGS),
        eval_batches.of(dataset, "val", 1),
    ]
    assert all(next(iterator) for iterator in iterators)
    pipeline._close_iterators()
    assert next(iterators[0], None) is None
    with pytest.raises(RuntimeError):  # a generator may not end within another one
        next(iterators[1])


def test_a_cache_of_decoded_pictures_changes_nothing(dataset):
    for expected, batch in zip(train(dataset), train(dataset, cache=True), strict=True):
        for name in ("image", "label", "id"):
            np.testing.assert_array_equal(batch[name], expected[name])
    assert pipeline.cache_bytes(dataset, "train") == 11 * 40 * 56 * 4


def test_the_same_picture_is_augmented_anew_in_every_epoch(dataset):
    crops = collections.defaultdict(list)
    for batch in train(dataset):
        for picture_id, image in zip(batch["id"], batch["image"], strict=True):
            crops[picture_id].append(image)
    assert all((images[0] != images[1]).any() for images in crops.values())


def test_processes_take_disjoint_rows_of_one_global_batch(dataset):
    whole = train(dataset, num_steps=4)
    for rows in ([0, 1], [2, 3], [0, 3]):  # on a TPU slice, a process' rows need not be neighbours
        for expected, part in zip(whole, train(dataset, num_steps=4, rows=rows), strict=True):
            for name in ("image", "label", "id"):
                np.testing.assert_array_equal(part[name], expected[name][rows])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 6])
def test_evaluation_sees_every_picture_once_at_its_own_size(dataset, batch_size):
    seen = {}
    plan = eval_batches.plan(dataset, "val", batch_size)
    for planned, batch in zip(plan, eval_batches.of(dataset, "val", batch_size), strict=True):
        assert len(batch["id"]) == batch_size
        expected = [dataset.source("val")[index]["id"] for index in planned.indices]
        assert [picture_id for picture_id in batch["id"] if picture_id] == expected
        for picture_id, image, label in zip(batch["id"], batch["image"], batch["label"], strict=True):
            if picture_id:
                assert picture_id not in seen
                seen[picture_id] = (image, label)
            else:
                assert (label == 255).all()
    stored = dataset.source("val")
    assert len(seen) == len(stored) == 5
    for record in stored:
        image, label = seen[record["id"]]
        np.testing.assert_array_equal(image, np.asarray(Image.open(io.BytesIO(record["image"])).convert("RGB")))
        np.testing.assert_array_equal(label, np.asarray(Image.open(io.BytesIO(record["label"]))))


def test_evaluation_pads_smaller_pictures_into_one_size_and_tells_their_own(dataset):
    own = {}
    for batch in eval_batches.of(dataset, "val", 1):
        assert batch["size"].tolist() == [list(batch["label"].shape[1:])]
        own[batch["id"][0]] = (batch["image"][0], batch["label"][0])
    assert {label.shape for _, label in own.values()} == {(40, 56), (33, 47)}

    for eval_size, shapes in (((40, 60), [(40, 60)] * 3), ((35, 35), [(40, 56), (40, 56), (35, 47)])):
        found = list(eval_batches.of(dataset, "val", 2, eval_size=eval_size))
        assert [batch["label"].shape[1:] for batch in found] == shapes
        rows = [row for batch in found for row in zip(*(batch[name] for name in BATCH), strict=True)]
        assert sorted(picture_id for *_, picture_id in rows if picture_id) == sorted(own)
        for image, label, (height, width), picture_id in rows:
            expected = own.get(picture_id, (np.zeros((0, 0, 3)), np.zeros((0, 0))))
            assert (height, width) == expected[1].shape
            np.testing.assert_array_equal(image[:height, :width], expected[0])
            np.testing.assert_array_equal(label[:height, :width], expected[1])
            assert (label[height:] == 255).all() and (label[:, width:] == 255).all()


def test_a_process_evaluates_its_rows_of_the_whole(dataset):
    whole = list(eval_batches.of(dataset, "val", 4))
    for rows in ([0, 2], [1, 3], [3]):
        parts = eval_batches.of(dataset, "val", 4, rows=rows)
        for expected, part in zip(whole, parts, strict=True):
            for name in BATCH:
                np.testing.assert_array_equal(part[name], expected[name][rows])

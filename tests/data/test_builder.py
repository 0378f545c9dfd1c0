"""What preparing needs: memory for a few pictures, however many there are."""

import tracemalloc

import numpy as np

from dlv3p_jax.data import builder
from dlv3p_jax.data.pictures import Example

PICTURE_BYTES = 400_000


def read(item: int) -> Example:
    if item == 10:  # TensorFlow has been loaded by now, which takes long while memory is traced
        tracemalloc.start()
    return Example(str(item), bytes([item]) * PICTURE_BYTES, b"label", (2, 2), np.array([3, 1]), 0)


class Many(builder.PictureBuilder):
    def __init__(self, data_dir):
        looks = {"class_names": ["a", "b"], "palette": [[0, 0, 0], [9, 9, 9]], "ignore_label": 255}
        super().__init__(data_dir, {"train": range(100)}, read, **looks, description="many", synthetic=True)


def test_a_shard_is_not_held_in_memory(tmp_path):
    try:
        dataset, _ = builder.prepare_dataset("many", Many, tmp_path, overwrite=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(list(dataset.folder.glob("*array_record*"))) == 1  # all in one shard, 40 MB
    assert [record["image"][:1] for record in dataset.source("train")] == [bytes([item]) for item in range(100)]
    assert peak < 20 * PICTURE_BYTES

"""The sheet that shows a data set: its size, what is on it, and that augmentation moves labels with pictures."""

import numpy as np
import pytest

from dlv3p_jax.configs import common
from dlv3p_jax.data import records
from dlv3p_jax.datasets import preview


@pytest.fixture(scope="module")
def dataset(data_dir):
    return records.open_dataset("image_folder", data_dir)


@pytest.fixture(scope="module")
def config():
    config = common.get_config()
    config.crop_size = (32, 48)
    return config


def test_a_sheet_of_ten_pictures(dataset, config):
    sheet = preview.preview_sheet(dataset, "train", config)
    assert sheet.mode == "RGB"
    # Two bands of five columns; a cell is 320 wide: 229 high for 40x56, 213 high for the crop of 32x48.
    assert sheet.width == 10 + 5 * 330
    assert sheet.height > 2 * (229 + 2 * 213)
    shown = {tuple(color) for color in np.asarray(sheet).reshape(-1, 3).tolist()}
    assert {tuple(color) for color in dataset.palette} <= shown  # the legend
    few = preview.preview_sheet(dataset, "val", config)  # five pictures are one band
    assert few.height < sheet.height / 2 + 50


def test_labels_move_with_their_pictures(config):
    # A picture that is bright exactly where its label is 1; colours may change, but not which side is brighter.
    label = np.zeros((40, 56), np.uint8)
    label[8:25, 10:40] = 1
    image = np.repeat(np.where(label == 1, 200, 60).astype(np.uint8)[..., None], 3, axis=-1)
    crops, labels = preview.augment_pictures([image] * 8, [label] * 8, range(8), config, 255)
    assert crops.shape == (8, 32, 48, 3) and crops.dtype == np.uint8
    assert labels.shape == (8, 32, 48) and set(np.unique(labels)) <= {0, 1, 255}
    assert len({crop.tobytes() for crop in crops}) == 8
    for crop, crop_label in zip(crops.mean(axis=-1), labels, strict=True):
        bright, dark = crop[crop_label == 1], crop[crop_label == 0]
        if bright.size and dark.size:
            threshold = (np.median(bright) + np.median(dark)) / 2
            assert np.median(bright) > np.median(dark)
            assert np.mean((crop > threshold)[crop_label != 255] == (crop_label == 1)[crop_label != 255]) > 0.93
    again, _ = preview.augment_pictures([image] * 8, [label] * 8, range(8), config, 255)
    np.testing.assert_array_equal(crops, again)

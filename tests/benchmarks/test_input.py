"""Reading: our pipeline beside OpenCV's steps, and what the steps do."""

import numpy as np
import pytest

from benchmarks import input as comparison
from dlv3p_jax.configs import common
from dlv3p_jax.performance import measured, reading


def make_config(**changes):
    config = common.get_config()
    config.update_from_flattened_dict({"dataset": "made", "crop_size": (32, 64), "batch_size": 2} | changes)
    return config


def test_both_are_measured_with_and_without_decoding():
    result = comparison.compare(make_config(), (64, 96), repeats=2, turn_seconds=0.05)
    assert [program["name"] for program in result["programs"]] == ["ours", "OpenCV", "ours, decoded", "OpenCV, decoded"]
    for program in result["programs"]:
        assert program["pictures_per_cpu_second"] == pytest.approx(1 / program["processor_seconds"]["median"])
    assert result["ratios"].keys() == {"with decoding", "without decoding"}
    assert "without decoding: ours reads" in comparison.to_text(result)


def test_the_benchmark_reads_made_pictures():
    result = measured.to_text(reading.report(make_config(), (64, 96), repeats=1, turn_seconds=0.05)).splitlines()
    assert result[0].startswith("made PNGs from 64x96 to crops of 32x64")
    assert [line.split("  ")[0] for line in result[2:4]] == ["records to crops", "kept pictures to crops"]


def test_made_pictures_take_about_the_bytes_of_cityscapes(tmp_path):
    dataset = reading.make_dataset(tmp_path, (256, 512), count=1)
    record = dataset.source("train")[0]
    # 2,975 training pictures of 2 megapixels take 6.9 GB: 1.1 bytes a pixel.
    assert 0.8 < len(record["image"]) / (256 * 512) < 1.6
    assert dataset.num_pictures("train") == 1 and dataset.has_labels("train")


def test_the_steps_scale_pad_crop_and_normalise():
    still = {"augment.flip": False, "augment.brightness": 0.0, "augment.contrast": 0.0, "augment.saturation": 0.0}
    still |= {"augment.hue": 0, "augment.min_scale": 1.0, "augment.max_scale": 1.0}
    image = np.random.default_rng(0).integers(0, 256, (20, 64, 3), np.uint8)
    label = np.full((20, 64), 7, np.uint8)
    crop, target = comparison.opencv_steps(image, label, make_config(**still), np.random.default_rng(0))
    assert crop.shape == (3, 32, 64) and crop.dtype == np.float32 and target.shape == (32, 64)
    np.testing.assert_allclose((crop[:, :20] + 1) * 127.5, image.transpose(2, 0, 1), atol=1e-4)
    np.testing.assert_allclose((crop[:, 20:] + 1) * 127.5, 127, atol=1e-4)  # 127.5 truncated
    assert (target[:20] == 7).all() and (target[20:] == 255).all()

    changed = make_config(**still | {"augment.brightness": 0.4, "augment.hue": 18, "augment.flip": True})
    crops = [comparison.opencv_steps(image, label, changed, np.random.default_rng(seed))[0] for seed in range(8)]
    assert all(crop.min() >= -1 and crop.max() <= 1 for crop in crops)
    assert sum(np.array_equal(crop, crops[0]) for crop in crops) < 4

"""The share of padding, against crops that are really cut."""

import drawn
import numpy as np
import pytest
import tensorflow as tf

from dlv3p_jax.data import augment, padding


@pytest.mark.parametrize("scale_step", [0.25, 0.0])
def test_the_share_is_that_of_random_crops(scale_step):
    crop = augment.Crop((32, 48), 0.5, 1.5, scale_step, flip=True, ignore_label=255)
    sizes = [(20, 30)] * 3 + [(64, 24)]

    @tf.function(reduce_retracing=True)
    def cut(image, label, seed):
        return augment.random_crop(image, label, seed, crop)[1]

    shares = []
    for number, size in enumerate(sizes * 150):
        image, label = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
        shares.append(np.mean(cut(image, label, tf.constant([7, number])).numpy() == 255))
    assert padding.padding_share(sizes, crop) == pytest.approx(np.mean(shares), abs=0.02)


def test_pictures_far_smaller_than_the_crop_are_told(caplog):
    crop = augment.crop_of(drawn.make_config({"crop_size": (512, 512), "ignore_label": 255}))
    padding.warn_of_padding([(64, 64)] * 4, crop)
    # The squares of the scales 0.5, 0.75, … 2 have a mean of 1.8125, and (64 / 512)^2 of that is 2.8 %.
    assert "97 % of what" in caplog.text and 'crop_size="(64, 64)"' in caplog.text
    caplog.clear()
    padding.warn_of_padding([(375, 500)] * 4, crop)
    assert not caplog.text

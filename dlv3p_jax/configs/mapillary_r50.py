"""Mapillary Vistas 1.2 (65 classes) on ResNet-50-vd, crops of 1280x1280, as long as MMSegmentation trains on it.

python -m dlv3p_jax.main --config=configs/mapillary_r50.py
"""

from dlv3p_jax.configs import common


def get_config():
    config = common.get_config()
    config.dataset = "mapillary"
    config.crop_size = (1280, 1280)
    config.batch_size = 8
    config.num_train_steps = 300_000
    return config

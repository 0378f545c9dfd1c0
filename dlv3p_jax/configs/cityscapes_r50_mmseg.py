"""Cityscapes as MMSegmentation trains on it for 80,000 steps, on ResNet-50.

python -m dlv3p_jax.main --config=configs/cityscapes_r50_mmseg.py
"""

from dlv3p_jax.configs import mmseg


def get_config():
    config = mmseg.get_config("cityscapes")
    config.num_train_steps = 80_000
    return config

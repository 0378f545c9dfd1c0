"""Cityscapes at output stride 16 with multi-grid and OHEM as MMSegmentation trains on it, on ResNet-101.

python -m dlv3p_jax.main --config=configs/cityscapes_r101_mg124.py
"""

from dlv3p_jax.configs import mmseg


def get_config():
    return mmseg.with_multi_grid(mmseg.get_config("cityscapes", "r101"))

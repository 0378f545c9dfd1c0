"""ISPRS Potsdam (6 classes, tiles of 512x512) as MMSegmentation trains on it, on ResNet-50.

python -m dlv3p_jax.main --config=configs/potsdam_r50.py
"""

from dlv3p_jax.configs import mmseg


def get_config():
    return mmseg.get_config("potsdam")

"""Mapillary Vistas 1.2 (65 classes) as MMSegmentation trains on it, with AdamW, on ResNet-50.

python -m dlv3p_jax.main --config=configs/mapillary_r50.py
"""

from dlv3p_jax.configs import mmseg


def get_config():
    return mmseg.get_config("mapillary")

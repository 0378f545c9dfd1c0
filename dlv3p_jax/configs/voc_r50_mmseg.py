"""Pascal VOC 2012 + Aug as MMSegmentation trains on it, on ResNet-50.

python -m dlv3p_jax.main --config=configs/voc_r50_mmseg.py
"""

from dlv3p_jax.configs import mmseg


def get_config():
    return mmseg.get_config("voc2012")

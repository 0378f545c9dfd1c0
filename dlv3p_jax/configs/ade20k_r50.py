"""ADE20K (150 classes) as MMSegmentation trains on it, on ResNet-50.

python -m dlv3p_jax.main --config=configs/ade20k_r50.py
"""

from dlv3p_jax.configs import mmseg


def get_config():
    return mmseg.get_config("ade20k")

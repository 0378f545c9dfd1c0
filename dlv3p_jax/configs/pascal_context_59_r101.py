"""Pascal Context without its background (59 classes) as MMSegmentation trains on it, on ResNet-101.

python -m dlv3p_jax.main --config=configs/pascal_context_59_r101.py
"""

from dlv3p_jax.configs import mmseg


def get_config():
    return mmseg.get_config("pascal_context_59", "r101")

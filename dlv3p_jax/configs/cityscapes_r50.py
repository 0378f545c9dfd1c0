"""Cityscapes on ResNet-50-vd, crops of 1024x512 (width x height).

    python -m dlv3p_jax.main --config=configs/cityscapes_r50.py

The published mIoU is 80.36 %, 80.57 % with flip, 80.81 % with flip and scales (`eval.average="legacy"`).
"""

from dlv3p_jax.configs import common


def get_config():
    config = common.get_config()  # whose defaults are this recipe's
    config.dataset = "cityscapes"
    return config

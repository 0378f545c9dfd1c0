"""`cityscapes_r50` on ResNet-101-vd.

    python -m dlv3p_jax.main --config=configs/cityscapes_r101.py

The published mIoU is 81.10 %, 81.38 % with flip, 81.24 % with flip and scales (`eval.average="legacy"`).
"""

from dlv3p_jax.configs import cityscapes_r50


def get_config():
    config = cityscapes_r50.get_config()
    config.model.backbone = "resnet101_vd"
    return config

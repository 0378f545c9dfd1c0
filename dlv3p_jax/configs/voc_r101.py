"""`voc_r50` on ResNet-101-vd.

    python -m dlv3p_jax.main --config=configs/voc_r101.py

The published mIoU is 80.60 %, 80.77 % with flip, 80.75 % with flip and scales (`eval.average="legacy"`).
"""

from dlv3p_jax.configs import voc_r50


def get_config():
    config = voc_r50.get_config()
    config.model.backbone = "resnet101_vd"
    return config

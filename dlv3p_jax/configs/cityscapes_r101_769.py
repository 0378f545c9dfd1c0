"""`cityscapes_r101` with crops of 769x769 and aligned corners.

    python -m dlv3p_jax.main --config=configs/cityscapes_r101_769.py

The published mIoU is 81.53 %, 81.88 % with flip, 82.12 % with flip and scales (`eval.average="legacy"`).
"""

from dlv3p_jax.configs import cityscapes_r101


def get_config():
    config = cityscapes_r101.get_config()
    config.crop_size = (769, 769)
    config.eval_size = (1025, 2049)
    config.model.align_corners = True
    return config

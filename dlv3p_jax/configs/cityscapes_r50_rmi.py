"""`cityscapes_r50` with half of the loss RMI (Zhao et al. 2019).

    python -m dlv3p_jax.main --config=configs/cityscapes_r50_rmi.py

The published mIoU is 81.18 %, 81.42 % with flip, 81.48 % with flip and scales (`eval.average="legacy"`).
"""

from dlv3p_jax.configs import cityscapes_r50


def get_config():
    config = cityscapes_r50.get_config()
    config.loss.cross_entropy = 0.5
    config.loss.rmi = 0.5
    return config

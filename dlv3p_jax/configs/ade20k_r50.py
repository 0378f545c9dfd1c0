"""ADE20K (150 classes) on ResNet-50-vd, crops of 512x512, as long as MMSegmentation trains on it.

python -m dlv3p_jax.main --config=configs/ade20k_r50.py
"""

from dlv3p_jax.configs import common


def get_config():
    config = common.get_config()
    config.dataset = "ade20k"
    config.crop_size = (512, 512)
    config.batch_size = 16
    config.num_train_steps = 160_000
    return config

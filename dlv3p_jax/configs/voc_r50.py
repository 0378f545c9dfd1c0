"""Pascal VOC 2012 + Aug on ResNet-50-vd, crops of 512x512.

    python -m dlv3p_jax.main --config=configs/voc_r50.py

The published mIoU is 80.66 %, 81.33 % with flip, 81.49 % with flip and scales (`eval.average="legacy"`).
"""

from dlv3p_jax.configs import common


def get_config():
    config = common.get_config()
    config.dataset = "voc2012"
    config.train_split = "trainaug"
    config.crop_size = (512, 512)
    config.eval_size = (512, 512)
    config.batch_size = 16
    config.num_train_steps = 40_000
    config.eval.batch_size = 16
    return config

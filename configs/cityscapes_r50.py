"""Cityscapes on ResNet-50-vd, crops of 1024x512 (width x height): published with a mIoU of 80.36 %."""

from configs import common


def get_config():
    config = common.get_config()  # whose defaults are this recipe's
    config.dataset = "cityscapes"
    return config

"""`cityscapes_r50` on ResNet-101-vd: published with a mIoU of 81.10 %."""

from configs import cityscapes_r50


def get_config():
    config = cityscapes_r50.get_config()
    config.model.backbone = "resnet101_vd"
    return config

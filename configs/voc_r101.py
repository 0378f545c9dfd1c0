"""`voc_r50` on ResNet-101-vd: published with a mIoU of 80.60 %."""

from configs import voc_r50


def get_config():
    config = voc_r50.get_config()
    config.model.backbone = "resnet101_vd"
    return config

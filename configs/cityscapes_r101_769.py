"""`cityscapes_r101` with crops of 769x769 and aligned corners: published with a mIoU of 81.53 %."""

from configs import cityscapes_r101


def get_config():
    config = cityscapes_r101.get_config()
    config.crop_size = (769, 769)
    config.eval_size = (1025, 2049)
    config.model.align_corners = True
    return config

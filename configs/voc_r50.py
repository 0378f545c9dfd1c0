"""Pascal VOC 2012 + Aug on ResNet-50-vd, crops of 512x512: published with a mIoU of 80.66 %."""

from configs import common


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

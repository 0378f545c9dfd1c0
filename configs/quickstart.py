"""The built-in synthetic street scenes, small enough to train on two CPU cores in a few minutes."""

from configs import common


def get_config():
    config = common.get_config()
    config.dataset = "toy_streets"
    config.crop_size = (96, 128)
    config.batch_size = 8
    config.augment.min_scale = 0.75
    config.augment.max_scale = 1.25

    config.num_train_steps = 200
    config.learning_rate = 0.05
    config.log_every_steps = 20
    config.eval_every_steps = 200
    config.checkpoint_every_steps = 100

    config.model.backbone = "resnet18_vd"
    config.model.output_stride = 16
    config.model.multi_grid = (1, 1)
    config.model.aspp_rates = (1, 2, 4, 6)

    config.eval.batch_size = 8
    return config

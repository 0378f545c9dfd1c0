"""A network of two convolutions in place of the real one, for tests of what runs around it: it compiles in a second."""

import flax.linen as nn

from configs import common

SETTINGS = {
    "dataset": "image_folder",
    "crop_size": (32, 32),
    "batch_size": 4,
    "num_train_steps": 6,
    "log_every_steps": 2,
    "eval_every_steps": 2,
    "checkpoint_every_steps": 2,
    "eval.batch_size": 2,
    "mesh.data": 1,
}


class Tiny(nn.Module):
    """Takes and gives what the real network does."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(4, (3, 3), name="backbone")(images)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Conv(self.num_classes, (1, 1), name="decoder")(nn.relu(x))


def build_model(config) -> Tiny:
    return Tiny(config.num_classes)


def make_config(data_dir, **changes):
    config = common.get_config()
    config.update_from_flattened_dict(SETTINGS | {"data_dir": str(data_dir)} | changes)
    return config

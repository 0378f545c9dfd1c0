"""Your own pictures, prepared with --dataset=image_folder; the number of classes comes from the prepared data.

python -m dlv3p_jax.main --config=configs/image_folder.py
"""

from dlv3p_jax.configs import common


def get_config():
    config = common.get_config()
    config.dataset = "image_folder"
    config.crop_size = (512, 512)
    config.num_train_steps = 20_000
    config.model.backbone = "resnet50_vd"
    config.model.dtype = "auto"
    return config

"""MMSegmentation's recipes by data set, for the configs of each; alone, that of Cityscapes for 40,000 steps.

What is not here: its distributions of colours, and the size that pictures of ADE20K, VOC
and Pascal Context are resized to first. Its ImageNet weights are `--config.pretrained=resnet50_v1c`, and so on.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dlv3p_jax.configs import common

# What all its networks have, as keys of `config.model`; the rest goes by the backbone.
NETWORK = {
    "avg_down": False,
    "stage1_shortcut": False,
    "contract_dilation": True,
    "dilate_second": False,
    "aspp_pooling_first": True,
    "aspp_projection_size": 3,
    "head_bias": False,
    "head_depthwise_relu": True,
    "auxiliary_head": True,
    "mean": (123.675, 116.28, 103.53),
    "std": (58.395, 57.12, 57.375),
}


class DataSet(NamedTuple):
    """How it trains on a data set: (height, width) of crops, pictures of a batch on all GPUs, steps.

    `test_size` is (height, width) that pictures are resized to fit for a test.
    """

    num_classes: int
    crop_size: tuple[int, int]
    batch_size: int
    num_train_steps: int
    test_size: tuple[int, int]


DATASETS = {
    "cityscapes": DataSet(19, (512, 1024), 8, 40_000, (1024, 2048)),
    "ade20k": DataSet(150, (512, 512), 16, 160_000, (512, 2048)),
    "voc2012": DataSet(21, (512, 512), 16, 40_000, (512, 2048)),
    "pascal_context": DataSet(60, (480, 480), 16, 40_000, (520, 520)),
    "pascal_context_59": DataSet(59, (480, 480), 16, 40_000, (520, 520)),
    "loveda": DataSet(7, (512, 512), 16, 80_000, (1024, 1024)),
    "potsdam": DataSet(6, (512, 512), 16, 80_000, (512, 512)),
    "vaihingen": DataSet(6, (512, 512), 16, 80_000, (512, 512)),
    "isaid": DataSet(16, (896, 896), 16, 80_000, (896, 896)),
    "mapillary": DataSet(65, (1280, 1280), 8, 300_000, (1024, 2048)),
}


def network(backbone: str) -> dict[str, Any]:
    """The keys of `config.model` of a network with one of its backbones: r18, r50, r101 or, with a plain stem, r18b."""
    depth, small = int(backbone.strip("rb")), backbone.startswith("r18")
    return NETWORK | {
        "backbone": f"resnet{depth}_vd",  # its blocks
        "stem": "plain" if backbone.endswith("b") else "deep",
        "multi_grid": (1, 1) if small else (1, 1, 1),
        "aspp_channels": 128 if small else 512,
        "decoder_channels": 128 if small else 512,
        "low_level_channels": 12 if small else 48,
    }


def get_config(
    dataset: str = "cityscapes", backbone: str = "r50", crop_size: tuple[int, int] | None = None
) -> ConfigDict:
    """The recipe of a data set in DATASETS.

    Args:
        dataset: its name.
        backbone: see `network`.
        crop_size: (height, width), where it is not the usual one: Cityscapes' (769, 769) has aligned corners.
    """
    recipe = DATASETS[dataset]
    crop_size = crop_size or recipe.crop_size
    aligned = crop_size == (769, 769)
    config = common.get_config()
    config.update(dataset=dataset, crop_size=crop_size, batch_size=recipe.batch_size)
    config.update(num_train_steps=recipe.num_train_steps, end_learning_rate=1e-4, weight_decay=5e-4)
    if dataset == "voc2012":
        config.train_split = "trainaug"
    if dataset.startswith("pascal_context"):
        config.update(learning_rate=0.004, weight_decay=1e-4)
    if dataset == "mapillary":
        config.update(optimizer="adamw", learning_rate=1e-4, end_learning_rate=0.0, weight_decay=1e-4)
        config.update(decay_norm_and_bias=True, clip_grad_norm=0.01, backbone_lr_factor=0.1)
    config.augment.update(scale_step=0.0, max_class_share=0.75)
    config.loss.average_over = "all"
    config.model.update(network(backbone), align_corners=aligned)
    height, width = recipe.test_size
    config.eval.update(resize=(height + 1, width + 1) if aligned else (height, width), align_corners=aligned)
    if aligned:
        config.eval.update(window=crop_size, stride=(513, 513))
    elif dataset.startswith("pascal_context"):
        config.eval.update(window=crop_size, stride=(320, 320))
    return config


def with_multi_grid(config: ConfigDict) -> ConfigDict:
    """The recipe at output stride 16 with multi-grid, which it trains on the 100,000 hardest pixels of a picture."""
    config.model.update(output_stride=16, aspp_rates=(1, 6, 12, 18), multi_grid=(1, 2, 4))
    config.model.multi_grid_kind = "dilations"
    config.loss.ohem_min_kept = 100_000
    return config

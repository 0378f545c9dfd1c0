"""What PaddleSeg's published figures were trained from, and with which batch."""

from typing import NamedTuple

ROOT = "https://bj.bcebos.com/paddleseg/dygraph"  # PaddleSeg's server

# ImageNet weights by backbone: ROOT/NAME.tar.gz holds model.pdparams.
IMAGENET = {"resnet50_vd": "resnet50_vd_ssld_v2", "resnet101_vd": "resnet101_vd_ssld"}


class Recipe(NamedTuple):
    """What decides whether a run is comparable with the published figure of a config."""

    dataset: str
    backbone: str
    batch_size: int


RECIPES = {
    "cityscapes_r50": Recipe("cityscapes", "resnet50_vd", 8),
    "cityscapes_r50_rmi": Recipe("cityscapes", "resnet50_vd", 8),
    "cityscapes_r101": Recipe("cityscapes", "resnet101_vd", 8),
    "cityscapes_r101_769": Recipe("cityscapes", "resnet101_vd", 8),
    "voc_r50": Recipe("voc2012", "resnet50_vd", 16),
    "voc_r101": Recipe("voc2012", "resnet101_vd", 16),
}


def recipe_notes(name: str, config) -> list[str]:
    """What to know before training `config`, of the file configs/NAME.py, if its score is to be the published one.

    Empty for configs that are not published, and for another data set or backbone than the published one.
    """
    recipe = RECIPES.get(name)
    if recipe is None or (config.dataset, config.model.backbone) != (recipe.dataset, recipe.backbone):
        return []
    notes = []
    if config.pretrained is None:
        weights = IMAGENET[recipe.backbone]
        notes.append(
            f"The published figure of {name} started from ImageNet weights of the backbone, {weights}. "
            f"config.pretrained is None, so this run starts from random weights; expect less. The published ones are "
            f"model.pdparams in {ROOT}/{weights}.tar.gz, but this version reads only its own checkpoints, "
            "no .pdparams files yet"
        )
    if config.batch_size != recipe.batch_size:
        notes.append(
            f"{name} was published with global batch {recipe.batch_size}, yours {config.batch_size}; "
            f"config.learning_rate={config.learning_rate:g} does not follow the batch by itself"
        )
    return notes

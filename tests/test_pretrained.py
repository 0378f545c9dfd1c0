"""What a run is told about the published figure it is named after."""

import importlib

import pytest

from dlv3p_jax import pretrained


def load(name):
    return importlib.import_module(f"configs.{name}").get_config()


@pytest.mark.parametrize("name", pretrained.RECIPES)
def test_a_published_config_is_told_its_imagenet_weights_and_nothing_else(name):
    config = load(name)
    (note,) = pretrained.recipe_notes(name, config)
    archive = "resnet101_vd_ssld.tar.gz" if "r101" in name else "resnet50_vd_ssld_v2.tar.gz"
    assert f"https://bj.bcebos.com/paddleseg/dygraph/{archive}" in note and "config.pretrained is None" in note
    config.pretrained = "workdir/a"
    assert pretrained.recipe_notes(name, config) == []


def test_another_batch_is_told_with_both_numbers():
    config = load("cityscapes_r50")
    config.pretrained, config.batch_size = "workdir/a", 2
    (note,) = pretrained.recipe_notes("cityscapes_r50", config)
    assert "published with global batch 8, yours 2" in note


def test_other_data_backbones_and_configs_are_told_nothing():
    assert pretrained.recipe_notes("quickstart", load("quickstart")) == []
    config = load("cityscapes_r50")
    config.model.backbone = "resnet18_vd"
    assert pretrained.recipe_notes("cityscapes_r50", config) == []
    config = load("cityscapes_r50")
    config.dataset = "image_folder"
    assert pretrained.recipe_notes("cityscapes_r50", config) == []

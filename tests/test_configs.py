"""The six published recipes, against a table transcribed from PaddleSeg's configurations."""

import importlib
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from dlv3p_jax.configs import common
from dlv3p_jax.models import build_model
from dlv3p_jax.runtime import configuration
from dlv3p_jax.training import losses

# Sizes as PaddleSeg writes them, width x height; batches are global: 4 cards of 2 pictures, and of 4.
#                        backbone        crop       steps  batch  CE   RMI  align  padded for evaluation
TABLE = {
    "cityscapes_r50": ("resnet50_vd", "1024x512", 80_000, 8, 1.0, 0.0, False, None),
    "cityscapes_r50_rmi": ("resnet50_vd", "1024x512", 80_000, 8, 0.5, 0.5, False, None),
    "cityscapes_r101": ("resnet101_vd", "1024x512", 80_000, 8, 1.0, 0.0, False, None),
    "cityscapes_r101_769": ("resnet101_vd", "769x769", 80_000, 8, 1.0, 0.0, True, "2049x1025"),
    "voc_r50": ("resnet50_vd", "512x512", 40_000, 16, 1.0, 0.0, False, "512x512"),
    "voc_r101": ("resnet101_vd", "512x512", 40_000, 16, 1.0, 0.0, False, "512x512"),
}
DATA = {  # data set, splits and classes
    "cityscapes": ("cityscapes", "train", "val", 19),
    "voc": ("voc2012", "trainaug", "val", 21),
}
# What all six have in common. Not here: how often to log, evaluate and save, and evaluation's batch.
COMMON = {
    "ignore_label": 255,
    "accumulate_steps": 1,
    "augment.min_scale": 0.5,
    "augment.max_scale": 2.0,
    "augment.scale_step": 0.25,
    "augment.brightness": 0.4,
    "augment.contrast": 0.4,
    "augment.saturation": 0.4,
    "augment.hue": 18,
    "augment.flip": True,
    "augment.vertical_flip": 0.0,
    "augment.rotation": 0.0,
    "augment.max_class_share": 1.0,
    "learning_rate": 0.01,
    "end_learning_rate": 0.0,
    "poly_power": 0.9,
    "momentum": 0.9,
    "weight_decay": 4e-5,
    "warmup_steps": 0,
    "clip_grad_norm": None,
    "ema_decay": None,
    "backbone_lr_factor": 1.0,
    "freeze_backbone": False,
    "pretrained": None,
    "loss.dice": 0.0,
    "loss.lovasz": 0.0,
    "loss.class_weights": None,
    "loss.top_k": 1.0,
    "model.output_stride": 8,
    "model.multi_grid": (1, 2, 4),
    "model.aspp_rates": (1, 12, 24, 36),
    "model.aspp_channels": 256,
    "model.dropout": 0.1,
    "model.dtype": "float32",
    "eval.scales": (1.0,),
    "eval.flip": False,
    "eval.window": None,
    "eval.stride": None,
    "eval.resize": None,
    "eval.align_corners": False,
}


def load(name):
    return importlib.import_module(f"dlv3p_jax.configs.{name}").get_config()


def value_of(config, key):
    for part in key.split("."):
        config = config[part]
    return config


def height_width(size):
    return None if size is None else tuple(int(side) for side in reversed(size.split("x")))


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_has_every_hyper_parameter_of_the_table(name, caplog):
    backbone, crop, steps, batch, cross_entropy, rmi, align_corners, padded = TABLE[name]
    dataset, train_split, eval_split, num_classes = DATA[name.split("_")[0]]
    expected = COMMON | {
        "dataset": dataset,
        "train_split": train_split,
        "eval_split": eval_split,
        "crop_size": height_width(crop),
        "eval_size": height_width(padded),
        "batch_size": batch,
        "num_train_steps": steps,
        "loss.cross_entropy": cross_entropy,
        "loss.rmi": rmi,
        "model.backbone": backbone,
        "model.align_corners": align_corners,
    }
    config = load(name)
    assert {key: value_of(config, key) for key in expected} == expected
    configuration.check(config)
    configuration.warn_of_few_pictures(config)
    assert not caplog.records
    model = build_model(configuration.resolve(config, num_classes, 255))
    assert model.decoder.num_classes == num_classes and model.align_corners is align_corners


def test_configs_do_not_share_what_they_change():
    before = load("cityscapes_r50").to_json()
    load("cityscapes_r101_769"), load("cityscapes_r50_rmi")
    assert load("cityscapes_r50").to_json() == before
    assert load("cityscapes_r50").dataset and common.get_config().dataset is None


def test_a_recipe_without_its_data_says_what_to_download_and_which_command_to_run(tmp_path):
    """And, before that, what its published figure was trained from and with."""
    command = [sys.executable, "-m", "dlv3p_jax.main", "--config=configs/cityscapes_r50.py"]
    process = subprocess.run(
        [*command, f"--config.data_dir={tmp_path}", f"--workdir={tmp_path}/run", "--config.batch_size=2"],
        cwd=pathlib.Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
    )
    assert process.returncode != 0 and "Traceback" not in process.stderr
    for words in (
        "ImageNet weights of the backbone, resnet50_vd_ssld_v2",
        "published with global batch 8, yours 2",
        f"python -m dlv3p_jax.prepare --dataset=cityscapes --source=FOLDER --data_dir={tmp_path}",
        "leftImg8bit_trainvaltest.zip",
        "gtFine/{train,val}/CITY/*_gtFine_labelIds.png",
    ):
        assert words in process.stderr
    assert not (tmp_path / "run").exists()


def test_the_recipe_with_rmi_trains_on_both_parts():
    config = configuration.resolve(load("cityscapes_r50_rmi"), 19, 255)
    labels = np.random.default_rng(0).integers(0, 19, (1, 9, 9))
    value, parts = losses.weighted(config)(np.zeros((1, 9, 9, 19), np.float32), labels)
    assert parts.keys() == {"cross_entropy", "rmi"} and np.isfinite(value)


# The config of MMSegmentation that each of ours is of, as zoo.json has it.
MMSEG = {
    "mmseg": "r50-d8_4xb2-40k_cityscapes-512x1024",
    "cityscapes_r50_mmseg": "r50-d8_4xb2-80k_cityscapes-512x1024",
    "cityscapes_r101_mg124": "r101-d16-mg124_4xb2-40k_cityscapes-512x1024",
    "ade20k_r50": "r50-d8_4xb4-160k_ade20k-512x512",
    "voc_r50_mmseg": "r50-d8_4xb4-40k_voc12aug-512x512",
    "pascal_context_r101": "r50-d8_4xb4-40k_pascal-context-480x480",  # whose file is of ResNet-101
    "pascal_context_59_r101": "r101-d8_4xb4-40k_pascal-context-59-480x480",
    "loveda_r50": "r50-d8_4xb4-80k_loveda-512x512",
    "potsdam_r50": "r50-d8_4xb4-80k_potsdam-512x512",
    "vaihingen_r50": "r50-d8_4xb4-80k_vaihingen-512x512",
    "isaid_r50": "r50-d8_4xb4-80k_isaid-896x896",
    "mapillary_r50": "r50-d8_4xb2-300k_mapillay_v1_65-1280x1280",
}


@pytest.mark.parametrize("name", MMSEG)
def test_mmsegmentations_recipes_are_those_of_the_zoo(shared, name):
    zoo = json.loads((shared / "parity" / "mmseg" / "zoo.json").read_text())
    (theirs,) = (each for each in zoo if each["name"].endswith(MMSEG[name]))
    config = importlib.import_module(f"dlv3p_jax.configs.{name}").get_config()
    configuration.check(config)
    losses.check_weights(config.loss)
    dataset = re.sub("(_r50|_r101)?(_mmseg|_mg124)?$", "", name).replace("mmseg", "cityscapes")
    assert config.dataset.removesuffix("2012") == dataset
    assert (list(config.crop_size), config.num_train_steps) == (theirs["crop_size_hw"], theirs["max_iters"])
    assert config.batch_size == 4 * theirs["batch_size_per_gpu"]
    assert [config.poly_power] == theirs["lr_power"]
    optimizer = theirs["optimizer"]
    momentum, *second_beta = optimizer["betas"] if name == "mapillary_r50" else [optimizer["momentum"]]
    rates = [config.optimizer.upper(), config.learning_rate, config.momentum, config.weight_decay]
    assert rates == [optimizer["type"].upper(), optimizer["lr"], momentum, optimizer["weight_decay"]]
    assert second_beta in ([], [0.999])
    assert config.augment.max_class_share == 0.75  # cat_max_ratio, of all their data sets
    assert config.loss.ohem_min_kept == (theirs["sampler"] or {}).get("min_kept")
    assert (config.loss.ohem_threshold, config.loss.average_over) == (None, "all")
    assert (config.model.auxiliary_head, config.loss.auxiliary) == (True, 0.4)
    model = config.model
    depth = 101 if name == "pascal_context_r101" else theirs["depth"]
    assert (model.backbone, model.stem) == (f"resnet{depth}_vd", "deep")
    assert (model.aspp_rates, model.aspp_channels) == (tuple(theirs["aspp_dilations"]), theirs["channels"])
    assert model.output_stride == 4 * np.prod(theirs["strides"])
    assert (config.eval.resize, config.eval.window) == (
        tuple(theirs["test_resize_wh"][::-1]),
        theirs["test_crop"] and tuple(theirs["test_crop"]),
    )
    config.num_classes = theirs["num_classes"]
    build_model(config)

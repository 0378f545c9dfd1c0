"""The models that PaddleSeg and MMSegmentation publish: names, configurations, files; and the table of PaddleSeg's."""

import difflib
import json
import os
import pathlib
import re
from typing import NamedTuple

from absl import logging

from dlv3p_jax.configs import (
    cityscapes_r50,
    cityscapes_r50_rmi,
    cityscapes_r101,
    cityscapes_r101_769,
    common,
    voc_r50,
    voc_r101,
)
from dlv3p_jax.runtime import files
from dlv3p_jax.weights import download, mmseg_models

ROOT = "https://bj.bcebos.com/paddleseg/dygraph"  # PaddleSeg's server; files are ROOT/PATH


class Published(NamedTuple):
    """A published model: its recipe, its mIoU in percent, and its file."""

    dataset: str
    backbone: str
    batch_size: int  # global
    crop_size: tuple[int, int]  # (height, width)
    num_train_steps: int
    plain: float
    flip: float
    ms_flip_legacy: float  # flip and scales as defined from 2020 to 2023, config.eval.average = "legacy"
    ms_flip_logits: float  # as defined since
    path: str


# By the name of the file in configs/.
PUBLISHED = {
    "cityscapes_r50": Published(
        *("cityscapes", "resnet50_vd", 8, (512, 1024), 80_000, 80.36, 80.57, 80.81, 81.33),
        "cityscapes/deeplabv3p_resnet50_os8_cityscapes_1024x512_80k/model.pdparams",
    ),
    "cityscapes_r50_rmi": Published(
        *("cityscapes", "resnet50_vd", 8, (512, 1024), 80_000, 81.18, 81.42, 81.48, 82.00),
        "cityscapes/deeplabv3p_resnet50_os8_cityscapes_1024x512_80k_rmiloss/model.pdparams",
    ),
    "cityscapes_r101": Published(
        *("cityscapes", "resnet101_vd", 8, (512, 1024), 80_000, 81.10, 81.38, 81.24, 81.76),
        "cityscapes/deeplabv3p_resnet101_os8_cityscapes_1024x512_80k/model.pdparams",
    ),
    "cityscapes_r101_769": Published(
        *("cityscapes", "resnet101_vd", 8, (769, 769), 80_000, 81.53, 81.88, 82.12, 82.32),
        "cityscapes/deeplabv3p_resnet101_os8_cityscapes_769x769_80k/model.pdparams",
    ),
    "voc_r50": Published(
        *("voc2012", "resnet50_vd", 16, (512, 512), 40_000, 80.66, 81.33, 81.49, 81.93),
        "pascal_voc12/deeplabv3p_resnet50_os8_voc12aug_512x512_40k/model.pdparams",
    ),
    "voc_r101": Published(
        *("voc2012", "resnet101_vd", 16, (512, 512), 40_000, 80.60, 80.77, 80.75, 81.22),
        "pascal_voc12/deeplabv3p_resnet101_os8_voc12aug_512x512_40k/model.pdparams",
    ),
}

_CONFIGS = {
    "cityscapes_r50": cityscapes_r50.get_config,
    "cityscapes_r50_rmi": cityscapes_r50_rmi.get_config,
    "cityscapes_r101": cityscapes_r101.get_config,
    "cityscapes_r101_769": cityscapes_r101_769.get_config,
    "voc_r50": voc_r50.get_config,
    "voc_r101": voc_r101.get_config,
}

# ImageNet weights by backbone: archives that hold model.pdparams.
IMAGENET = {"resnet50_vd": "resnet50_vd_ssld_v2.tar.gz", "resnet101_vd": "resnet101_vd_ssld.tar.gz"}

# Sizes are not published. These are 4 bytes for each number of the whole model; the backbone alone is somewhat smaller,
# and so is an archive. Half to twice as many bytes are accepted, which keeps out pages of errors and other files.
_ABOUT_BYTES = {"resnet50_vd": 107_000_000, "resnet101_vd": 183_000_000}


def models() -> list[str]:
    """The names of the published models."""
    return [*PUBLISHED, *mmseg_models.PUBLISHED]


def names() -> list[str]:
    """What `fetch` takes: the published models, and the backbones with ImageNet weights."""
    return [*models(), *IMAGENET, *mmseg_models.IMAGENET]


def is_name(name: str) -> bool:
    """Whether `fetch` takes `name`."""
    return name in names()


def config_of(name: str):
    """The configuration of a published model, or for a backbone's name the defaults with this backbone."""
    if name in _CONFIGS:
        return _CONFIGS[name]()
    if name in mmseg_models.PUBLISHED or name in mmseg_models.IMAGENET:
        return mmseg_models.config_of(name)
    config = common.get_config()
    config.model.backbone = name
    return config


def fetch(name: str, cache_dir: str | os.PathLike | None = None, root: str | None = None) -> pathlib.Path:
    """The file of a published model or of a backbone's ImageNet weights, downloaded unless it is in the cache.

    Args:
        name: one of `names`.
        cache_dir: where files are kept, below it as below ROOT; by default $DLV3P_CACHE, or else ~/.cache/dlv3p_jax.
        root: an address that has the same files as their own server; by default $DLV3P_ROOT, or else this.

    Returns:
        A .pdparams file or, for a backbone, a .tar.gz archive with one; a .pth of MMSegmentation's and torchvision's.

    Raises:
        ValueError: there is no such name.
        download.DownloadError: the file cannot be had, or the one in the cache was changed.
    """
    if not is_name(name):
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        listed = ", ".join([*PUBLISHED, *IMAGENET])
        raise ValueError(
            f"{name!r} is no published model or backbone{hint}: there are {listed}, and MMSegmentation's, mmseg/…"
        )
    own_root, path, about = _place(name)
    cache = pathlib.Path(cache_dir).expanduser() if cache_dir else files.cache_folder()
    root = root or os.environ.get("DLV3P_ROOT") or own_root
    bounds = {} if about is None else {"min_bytes": about // 2, "max_bytes": about * 2}
    try:
        file = download.download(f"{root.rstrip('/')}/{path}", cache / path, **bounds)
    except download.DownloadError as error:
        raise download.DownloadError(
            f"{name}: {error} (the environment's DLV3P_CACHE sets the cache folder, DLV3P_ROOT a mirror)"
        ) from error
    _compare_digest(file)
    return file


def _compare_digest(file: pathlib.Path) -> None:
    """Warns where a file's name ends with digits, as those of OpenMMLab and torchvision, that are not its SHA-256's."""
    facts = file.with_name(f"{file.name}.json")
    named = re.search(r"-([0-9a-f]{8})\.pth$", file.name)
    if named and facts.is_file():
        digest = json.loads(facts.read_text(encoding="utf-8")).get("sha256", "")
        if not str(digest).startswith(named[1]):
            logging.warning(
                "%s: its SHA-256 begins with %.8s, not with the %s of its name: it may not be the published file",
                *(file, digest, named[1]),
            )


def _place(name: str) -> tuple[str, str, int | None]:
    """The server of a file, the path there, and about how many bytes it has."""
    if name in IMAGENET:
        return ROOT, IMAGENET[name], _ABOUT_BYTES.get(name)
    if name in PUBLISHED:
        return ROOT, PUBLISHED[name].path, _ABOUT_BYTES.get(PUBLISHED[name].backbone)
    if name in mmseg_models.IMAGENET:
        return *mmseg_models.IMAGENET[name], mmseg_models.ABOUT_BYTES[name.removesuffix("_v1c")]
    published = mmseg_models.PUBLISHED[name]
    return mmseg_models.ROOT, published.path, mmseg_models.ABOUT_BYTES[published.backbone.removesuffix("b")]


def recipe_notes(name: str, config) -> list[str]:
    """What to know before training `config`, of the file configs/NAME.py, if its score is to be the published one.

    Empty for configs that are not published, and for another data set or backbone than the published one.
    """
    published = PUBLISHED.get(name)
    if published is None or (config.dataset, config.model.backbone) != (published.dataset, published.backbone):
        return []
    notes = []
    if config.pretrained is None:
        weights = IMAGENET[published.backbone]
        notes.append(
            f"The published figure of {name} started from ImageNet weights of the backbone, {weights}. "
            "config.pretrained is None, so this run starts from random weights; expect less. "
            f"--config.pretrained={published.backbone} starts from them; it fetches {ROOT}/{weights}"
        )
    if config.batch_size != published.batch_size:
        notes.append(
            f"{name} was published with global batch {published.batch_size}, yours {config.batch_size}; "
            f"config.learning_rate={config.learning_rate:g} does not follow the batch by itself"
        )
    return notes

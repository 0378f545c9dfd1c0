"""The models that MMSegmentation publishes: what they score, how they were trained and tested, where their files are.

A name is the backbone's (`r50` with three 3x3 convolutions at its beginning, `r50b` with one 7x7), the data set's and
the number of steps, with what else sets models of these apart: `mmseg/r50_cityscapes_769_80k` was trained on crops of
769x769. Names go by those of the files. Two of MMSegmentation's pages name Pascal Context's with 60 classes as R-50,
while their files are named, and trained, as R-101.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from dlv3p_jax.configs import common, mmseg

ROOT = "https://download.openmmlab.com"  # OpenMMLab's server; files are ROOT/PATH
_TORCHVISION = "https://download.pytorch.org"


class Published(NamedTuple):
    """A published model: its recipe, its mIoU in percent, and its file."""

    dataset: str
    backbone: str  # r18, r50, r101 or, with a plain stem, r18b, r50b, r101b
    crop_size: tuple[int, int]  # (height, width)
    num_train_steps: int
    plain: float
    ms_flip: float | None  # with flip and the scales 0.5, 0.75, ... 1.75
    path: str


# By data set, of each model: its name, (height)x(width) of its crops, its mIoU plain and with flip + scales, and its
# folder and the end of its file's name. The name begins with the backbone and ends with the number of steps.
_TABLE = {
    "cityscapes": """
  r50_cityscapes_40k            512x1024 79.61 81.01 r50-d8_512x1024_40k_cityscapes         20200605_094610-d222ffcd
  r101_cityscapes_40k           512x1024 80.21 81.82 r101-d8_512x1024_40k_cityscapes        20200605_094614-3769eecf
  r50_cityscapes_769_40k        769x769  78.97 80.46 r50-d8_769x769_40k_cityscapes          20200606_114143-1dcb0e3c
  r101_cityscapes_769_40k       769x769  79.46 80.50 r101-d8_769x769_40k_cityscapes         20200606_114304-ff414b9e
  r18_cityscapes_80k            512x1024 76.89 78.76 r18-d8_512x1024_80k_cityscapes         20201226_080942-cff257fe
  r50_cityscapes_80k            512x1024 80.09 81.13 r50-d8_512x1024_80k_cityscapes         20200606_114049-f9fb496d
  r101_cityscapes_80k           512x1024 80.97 82.03 r101-d8_512x1024_80k_cityscapes        20200606_114143-068fcfe9
  r101_cityscapes_fp16_80k      512x1024 80.46 -     r101-d8_fp16_512x1024_80k_cityscapes   20200717_230920-f1104f4b
  r18_cityscapes_769_80k        769x769  76.26 77.91 r18-d8_769x769_80k_cityscapes          20201226_083346-f326e06a
  r50_cityscapes_769_80k        769x769  79.83 81.48 r50-d8_769x769_80k_cityscapes          20200606_210233-0e9dfdc4
  r101_cityscapes_769_80k       769x769  80.65 81.47 r101-d8_769x769_80k_cityscapes         20220406_154720-dfcc0b68
  r101_d16_mg124_cityscapes_40k 512x1024 79.09 80.36 r101-d16-mg124_512x1024_40k_cityscapes 20200908_005644-cf9ce186
  r101_d16_mg124_cityscapes_80k 512x1024 79.90 81.33 r101-d16-mg124_512x1024_80k_cityscapes 20200908_005644-ee6158e0
  r18b_cityscapes_80k           512x1024 75.87 77.52 r18b-d8_512x1024_80k_cityscapes        20201226_090828-e451abd9
  r50b_cityscapes_80k           512x1024 80.28 81.44 r50b-d8_512x1024_80k_cityscapes        20201225_213645-a97e4e43
  r101b_cityscapes_80k          512x1024 80.16 81.41 r101b-d8_512x1024_80k_cityscapes       20201226_190843-9c3c93a4
  r18b_cityscapes_769_80k       769x769  76.36 78.24 r18b-d8_769x769_80k_cityscapes         20201226_151312-2c868aff
  r50b_cityscapes_769_80k       769x769  79.41 80.56 r50b-d8_769x769_80k_cityscapes         20201225_224655-8b596d1c
  r101b_cityscapes_769_80k      769x769  79.88 81.46 r101b-d8_769x769_80k_cityscapes        20201226_205041-227cdf7c""",
    "ade20k": """
  r50_ade20k_80k   512x512 42.72 43.75 r50-d8_512x512_80k_ade20k   20200614_185028-bf1400d8
  r101_ade20k_80k  512x512 44.60 46.06 r101-d8_512x512_80k_ade20k  20200615_014139-d5730af7
  r50_ade20k_160k  512x512 43.95 44.93 r50-d8_512x512_160k_ade20k  20200615_124504-6135c7e0
  r101_ade20k_160k 512x512 45.47 46.35 r101-d8_512x512_160k_ade20k 20200615_123232-38ed86bb""",
    "voc2012": """
  r50_voc12aug_20k  512x512 75.93 77.50 r50-d8_512x512_20k_voc12aug  20200617_102323-aad58ef1
  r101_voc12aug_20k 512x512 77.22 78.59 r101-d8_512x512_20k_voc12aug 20200617_102345-c7ff3d56
  r50_voc12aug_40k  512x512 76.81 77.57 r50-d8_512x512_40k_voc12aug  20200613_161759-e1b43aa9
  r101_voc12aug_40k 512x512 78.62 79.53 r101-d8_512x512_40k_voc12aug 20200613_205333-faf03387""",
    "pascal_context": """
  r101_pascal_context_40k 480x480 47.30 48.47 r101-d8_480x480_40k_pascal_context 20200911_165459-d3c8a29e
  r101_pascal_context_80k 480x480 47.23 48.26 r101-d8_480x480_80k_pascal_context 20200911_155322-145d3ee8""",
    "pascal_context_59": """
  r101_pascal_context_59_40k 480x480 52.86 54.54 r101-d8_480x480_40k_pascal_context_59 20210416_111233-ed937f15
  r101_pascal_context_59_80k 480x480 53.20 54.67 r101-d8_480x480_80k_pascal_context_59 20210416_111127-7ca0331d""",
    "loveda": """
  r18_loveda_80k  512x512 50.28 50.47 r18-d8_512x512_80k_loveda  20211104_132800-ce0fa0ca
  r50_loveda_80k  512x512 50.99 50.65 r50-d8_512x512_80k_loveda  20211105_080442-f0720392
  r101_loveda_80k 512x512 51.47 51.32 r101-d8_512x512_80k_loveda 20211105_110759-4c1f297e""",
    "potsdam": """
  r18_potsdam_80k  512x512 77.09 78.44 r18-d8_512x512_80k_potsdam  20211219_020601-75fd5bc3
  r50_potsdam_80k  512x512 78.33 79.27 r50-d8_512x512_80k_potsdam  20211219_031508-7e7a2b24
  r101_potsdam_80k 512x512 78.70 79.47 r101-d8_512x512_80k_potsdam 20211219_031508-8b112708""",
    "vaihingen": """
  r18_vaihingen_80k  512x512 72.50 74.13 r18-d8_4x4_512x512_80k_vaihingen  20211231_230805-7626a263
  r50_vaihingen_80k  512x512 73.97 75.05 r50-d8_4x4_512x512_80k_vaihingen  20211231_230816-5040938d
  r101_vaihingen_80k 512x512 73.06 74.14 r101-d8_4x4_512x512_80k_vaihingen 20211231_230816-8a095afa""",
    "isaid": """
  r18_isaid_80k 896x896 61.35 62.61 r18-d8_4x4_896x896_80k_isaid 20220110_180526-7059991d
  r50_isaid_80k 896x896 67.06 68.02 r50-d8_4x4_896x896_80k_isaid 20220110_180526-598be439""",
    "mapillary": """
  r50_mapillary_300k 1280x1280 47.35 - r50-d8_4xb2-300k_mapillay_v1_65-1280x1280 20230301_110504-655f8e43""",
}


def _model(dataset: str, row: str) -> tuple[str, Published]:
    name, crop_size, plain, ms_flip, folder, stamp = row.split()
    backbone, *_, steps = name.split("_")
    height, width = map(int, crop_size.split("x"))
    folder = f"deeplabv3plus_{folder}"
    path = f"mmsegmentation/v0.5/deeplabv3plus/{folder}/{folder}_{stamp}.pth"
    best = None if ms_flip == "-" else float(ms_flip)
    num_train_steps = 1000 * int(steps.removesuffix("k"))
    return f"mmseg/{name}", Published(dataset, backbone, (height, width), num_train_steps, float(plain), best, path)


PUBLISHED = dict(_model(dataset, row) for dataset, rows in _TABLE.items() for row in rows.strip().splitlines())


# ImageNet weights of backbones, their server and path there: OpenMMLab's with the deep stem, and torchvision's.
IMAGENET = {
    "resnet18_v1c": (ROOT, "pretrain/third_party/resnet18_v1c-b5776b93.pth"),
    "resnet50_v1c": (ROOT, "pretrain/third_party/resnet50_v1c-2cccc1ad.pth"),
    "resnet101_v1c": (ROOT, "pretrain/third_party/resnet101_v1c-e67eebb6.pth"),
    "resnet18": (_TORCHVISION, "models/resnet18-f37072fd.pth"),
    "resnet50": (_TORCHVISION, "models/resnet50-0676ba61.pth"),
    "resnet101": (_TORCHVISION, "models/resnet101-63fe2227.pth"),
}

# 4 bytes for each number of a whole model with its auxiliary head, or of a backbone with its classifier.
ABOUT_BYTES = {"r18": 50_000_000, "r50": 175_000_000, "r101": 251_000_000} | {
    "resnet18": 47_000_000,
    "resnet50": 102_000_000,
    "resnet101": 178_000_000,
}


def config_of(name: str) -> ConfigDict:
    """The configuration of a published model: its network, its data set, and how it was trained and is tested.

    Of a backbone of IMAGENET, the defaults with MMSegmentation's network on it.
    """
    if name in IMAGENET:
        config = common.get_config()
        config.model.update(
            mmseg.network(f"r{name.removeprefix('resnet').removesuffix('_v1c')}{'' if '_v1c' in name else 'b'}")
        )
        return config
    published = PUBLISHED[name]
    config = mmseg.get_config(published.dataset, published.backbone, published.crop_size)
    config.update(num_classes=mmseg.DATASETS[published.dataset].num_classes, num_train_steps=published.num_train_steps)
    return mmseg.with_multi_grid(config) if "_d16_mg124_" in name else config

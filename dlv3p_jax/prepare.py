"""Makes a data set: python -m dlv3p_jax.prepare --dataset=NAME [--source=FOLDER] --data_dir=FOLDER

--check reads a prepared data set to its end, or a source without writing anything; --preview=PNG draws some of it.
"""

import functools
import os
import pathlib
import re
import runpy
import shlex
import sys
import time
from typing import Any

from absl import flags, logging

from dlv3p_jax import configs
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.datasets import file_names
from dlv3p_jax.runtime import cli, files

_DATASET = flags.DEFINE_string(
    "dataset",
    None,
    "toy_streets (drawn by this program), image_folder, coco or ultralytics (your own data), ade20k, cityscapes, "
    "isaid, loveda, mapillary, pascal_context, pascal_context_59, potsdam, vaihingen, voc2012, tfds:NAME of "
    "TensorFlow Datasets' catalogue, or hf:PATH_OR_NAME of Hugging Face's datasets.",
)
_SOURCE = flags.DEFINE_string(
    "source",
    None,
    'image_folder: a folder with train.txt and val.txt, "image label" on every line, or with images/{train,val} and '
    "labels/{train,val}, or with JPEGImages, SegmentationClass and ImageSets/Segmentation/{train,val}.txt. "
    "coco: a folder with COCO's JSON and pictures. ultralytics: a data.yaml, or its folder. "
    "cityscapes: the folder that holds leftImg8bit and gtFine. voc2012: VOC2012, or what holds it. The other "
    "public data sets: the folder that the archives were extracted to. tfds:NAME: TFDS's data_dir, if not its default.",
)
_NAME = flags.DEFINE_string(
    "name",
    None,
    "What a data set of your own, or of a library, is called, for --config.dataset and all pages; several may lie in "
    "one data_dir.",
)
_IMAGE_KEY = flags.DEFINE_string(
    "image_key",
    "image",
    "tfds:NAME, hf:NAME: the feature or column that holds the picture. (image_folder's flags for labels work, too.)",
)
_LABEL_KEY = flags.DEFINE_string(
    "label_key", None, "tfds:NAME, hf:NAME: the feature or column that holds the label, a mask of classes."
)
_SPLITS = flags.DEFINE_list(
    "splits",
    [],
    "tfds:NAME, hf:NAME: what to make of which splits, such as train=train[:80%],val=train[80%:]; by default all, with "
    "validation as val. coco: the JSON file of each, such as train=annotations/a.json,val=annotations/b.json.",
)
_SBD = flags.DEFINE_string(
    "sbd", None, "voc2012: SBD's folder (benchmark_RELEASE), whose .mat files then are the augmented part."
)
_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Where prepared data sets live: a folder, or gs://BUCKET/FOLDER.")
_CLASS_NAMES = flags.DEFINE_string(
    "class_names",
    None,
    "image_folder: a file of class names, one a line, or CVAT's labelmap.txt or Roboflow's _classes.csv; by default "
    "SOURCE/classes.txt, or one of these in SOURCE.",
)
_LABEL_SUFFIX = flags.DEFINE_string(
    "label_suffix",
    "",
    "image_folder: what the names of labels have after those of their pictures: _mask, where a.jpg has a_mask.png.",
)
_LABEL_MAP = flags.DEFINE_string(
    "label_map",
    None,
    'image_folder: label values or colours to class indices, "0:0,255:1", "128-64-128:0", "#804080:0" or "255:ignore", '
    'or a file of such pairs. "-1:ignore" and "nan:ignore" are for what is no class, "other:ignore" for all that is '
    "not listed, such as smoothed edges.",
)
_IGNORE_LABEL = flags.DEFINE_integer("ignore_label", 255, "image_folder: the label of pixels that count nowhere.")
_PICTURE_RANGE = flags.DEFINE_list(
    "picture_range",
    None,
    "Your own data: LOW,HIGH, such as 0,4095: the values that become black and white in pictures of more "
    "than 8 bits; by default all that their files have room for.",
)
_WORKERS = flags.DEFINE_integer(
    "workers", os.cpu_count() or 1, "Number of processes that read pictures.", lower_bound=1
)
_SKIP_BAD = flags.DEFINE_bool("skip_bad", False, "Leave out what cannot be used, and list it.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the data set if it is there.")
_CHECK = flags.DEFINE_bool(
    "check", False, "Write nothing: decode everything, of --source or of the prepared data set, and list what is wrong."
)
_PREVIEW = flags.DEFINE_string(
    "preview", None, "Draw ten pictures of the prepared data set, with labels and as augmented, into this PNG file."
)
_CROP_SIZE = flags.DEFINE_list("crop_size", None, "HEIGHT,WIDTH of crops in --preview; that of the config by default.")


_OF_A_SOURCE = (
    *(_SOURCE, _CLASS_NAMES, _LABEL_MAP, _IGNORE_LABEL, _PICTURE_RANGE, _SBD, _SKIP_BAD),
    *(_NAME, _LABEL_SUFFIX, _IMAGE_KEY, _LABEL_KEY, _SPLITS),
)
_OWN = "configs/image_folder.py"
_OF_PICTURES = ("name", "source", "picture_range", "skip_bad")
_OF_OWN = (*_OF_PICTURES, "class_names", "label_map", "ignore_label")
_OF_LIBRARIES = ("dataset", "image_key", "label_key", "splits")
_PUBLIC = ("source", "skip_bad")
# name: (the flags that its `make_builder` takes, the configuration to train with)
BUILDERS = {
    "toy_streets": ((), "configs/quickstart.py"),
    "image_folder": ((*_OF_OWN, "label_suffix"), _OWN),
    "cityscapes": (_PUBLIC, "configs/cityscapes_r50.py"),
    "voc2012": ((*_PUBLIC, "sbd"), "configs/voc_r50.py"),
    **{
        name: (_PUBLIC, f"configs/{name}_r50.py")
        for name in ("ade20k", "loveda", "mapillary", "potsdam", "vaihingen", "isaid")
    },
    **{name: (_PUBLIC, f"configs/{name}_r101.py") for name in ("pascal_context", "pascal_context_59")},
    "coco": ((*_OF_PICTURES, "splits"), _OWN),
    "ultralytics": (_OF_PICTURES, _OWN),
    "tfds:NAME": ((*_OF_OWN, *_OF_LIBRARIES), _OWN),
    "hf:PATH_OR_NAME": ((*(flag for flag in _OF_OWN if flag != "source"), *_OF_LIBRARIES), _OWN),
}


def main(argv: list[str]) -> None:
    cli.configure_logging()
    logging.set_verbosity(logging.WARNING)  # TFDS tells every file that it reads
    try:
        _run(argv[1:])
    except KeyboardInterrupt:
        print("\nprepare: interrupted, nothing was written", file=sys.stderr)
        sys.exit(130)


def _run(arguments: list[str]) -> None:
    dataset = _DATASET.value or ""
    if arguments:
        raise DatasetError(f'"{arguments[0]}" is no flag; flags look like --data_dir=data')
    if _key(dataset) not in BUILDERS:
        raise DatasetError(f"--dataset={dataset}: choose one of {', '.join(BUILDERS)}")
    known, config = BUILDERS[_key(dataset)]
    for flag in _OF_A_SOURCE:
        if flag.present and flag.name not in known:
            raise DatasetError(f"--{flag.name} has no meaning for --dataset={dataset}")
    name = _NAME.value
    if name is not None and (not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) or name in BUILDERS.keys() - {dataset}):
        raise DatasetError(
            f"--name={name}: letters, digits and _, a letter first, and not the name of another --dataset"
        )
    if _PREVIEW.value is not None and _SOURCE.value:
        raise DatasetError("--preview draws a data set that is prepared: leave --source out")
    if _CROP_SIZE.present and _PREVIEW.value is None:
        raise DatasetError("--crop_size is for --preview; training takes --config.crop_size")
    looks = _PREVIEW.value is not None or (_CHECK.value and not _SOURCE.value)
    if not looks and "source" in known and "label_key" not in known and not _SOURCE.value:
        raise DatasetError(f"--source is missing: {flags.FLAGS['source'].help}")
    if looks and (given := [flag.name for flag in _OF_A_SOURCE if flag.present and flag is not _NAME]):
        raise DatasetError(
            f"--{given[0]} says how to prepare a data set, and this looks at a prepared one: leave it out, or give "
            "--source"
        )
    from dlv3p_jax.data import records

    name = name or records.local_name(dataset)
    if looks:
        _look_at_prepared(name, config)
    elif _CHECK.value:
        _check_source(dataset, name)
    else:
        _prepare(dataset, name, config)


def _key(name: str) -> str:
    """The name as `BUILDERS` has it."""
    starts = {"tfds:": "tfds:NAME", "hf:": "hf:PATH_OR_NAME"}
    return next((key for start, key in starts.items() if name.startswith(start)), name)


# Libraries are imported after the flags have been read, so that a slip is told at once.


def _make_builder(dataset: str, name: str, folder: pathlib.Path, **changes: Any):
    """The builder of a data set, which gets the flags that it takes, or in their place `changes`."""
    from dlv3p_jax.data import ranges
    from dlv3p_jax.datasets import by_name

    known, _ = BUILDERS[_key(dataset)]
    options = {flag: flags.FLAGS[flag].value for flag in known} | changes | {"name": name, "workers": _WORKERS.value}
    if "picture_range" in options:
        options["picture_range"] = ranges.parse(_PICTURE_RANGE.value)
    return by_name.module(_key(dataset)).make_builder(folder, **options)


def _prepare(dataset: str, name: str, config: str) -> None:
    from dlv3p_jax.data import cloud_bucket, records
    from dlv3p_jax.datasets import builder, preparing, summary

    start = time.perf_counter()
    data_dir, overwrite, remote = _DATA_DIR.value, _OVERWRITE.value, cloud_bucket.is_remote(_DATA_DIR.value)
    here: str | os.PathLike = data_dir
    version = records.VERSIONS.get(name, records.VERSION)
    if remote:
        cli.configure_logging()  # shows how far the copy is
        if cloud_bucket.is_there(name, version, data_dir) and not overwrite:
            raise preparing.already_there(f"{data_dir.rstrip('/')}/{name}")
        here, overwrite = cloud_bucket.local_data_dir(data_dir), True  # what is here is a copy of what is there, or was
    make = functools.partial(_make_builder, dataset, name)
    made, made_by = preparing.prepare_dataset(name, make, here, overwrite)
    if remote:
        cloud_bucket.upload(name, version, data_dir)
    seconds = time.perf_counter() - start
    _warn(*made_by.remarks, *summary.warnings(made))
    if made_by.problems:
        print(f"Skipped (all are in skipped.txt): {builder.describe_problems(made_by.problems)}")
    print(summary.table(made))
    count = sum(map(made.num_pictures, made.splits))
    where = f"{data_dir.rstrip('/')}/{name} and {made.folder}" if remote else made.folder
    print(f"Wrote {where} in {seconds:.1f} s ({count / seconds:.0f} pictures/s). Train on it with")
    settings = {"data_dir": data_dir} | (
        {"dataset": name, **_other_splits(made)} if config == _OWN and name != "image_folder" else {}
    )
    flags_ = " ".join(f"--config.{key}={shlex.quote(value)}" for key, value in settings.items())
    print(f"  python -m dlv3p_jax.main --config={config} {flags_}")


def _other_splits(dataset) -> dict[str, str]:
    """The settings that name the splits, where they are not train and val."""
    train, *others = sorted(dataset.splits, key="train".__ne__)
    found = {"train_split": train, "eval_split": "val" if "val" in others else (others or [train])[0]}
    return {key: split for key, split in found.items() if split not in ("train", "val")}


def _check_source(dataset: str, name: str) -> None:
    from dlv3p_jax.datasets import summary

    made_by = _make_builder(dataset, name, pathlib.Path(_DATA_DIR.value), skip_bad=True)
    surveyed = made_by.survey(_SOURCE.value)
    _warn(*made_by.remarks, *summary.warnings(surveyed))
    print(summary.table(surveyed))
    made_by.refuse_contradictions()
    if made_by.problems:
        raise DatasetError(made_by.describe_problems(most=len(made_by.problems), with_remarks=False))
    made_by.refuse_useless_data()
    print(f"{_SOURCE.value} can be prepared: every file was decoded, and no problem found")


def _look_at_prepared(name: str, config: str) -> None:
    from dlv3p_jax.data import cloud_bucket, records
    from dlv3p_jax.datasets import builder, check, summary

    if cloud_bucket.is_remote(_DATA_DIR.value):
        cli.configure_logging()  # shows how far the copy is
    dataset = records.open_dataset(name, _DATA_DIR.value)
    if _CHECK.value:
        problems = check.check_records(dataset, _WORKERS.value)
        _warn(*summary.warnings(dataset))
        print(summary.table(dataset))
        if problems:
            listed = builder.describe_problems(problems, most=len(problems))
            if "--overwrite" not in listed:  # which a record that cannot be read comes with
                listed += f"\nPrepare it again: {records.prepare_command(name, _DATA_DIR.value)} --overwrite"
            raise DatasetError(listed)
        print(f"{dataset.folder} is whole: every record was decoded")
    if _PREVIEW.value is not None:
        from dlv3p_jax.datasets import preview

        settings = _preview_config(config)
        split = settings.train_split if settings.train_split in dataset.splits else dataset.splits[0]
        sheet = preview.preview_sheet(dataset, split, settings)
        try:
            with files.replacing(_PREVIEW.value) as unfinished:
                sheet.save(unfinished, "PNG")
        except OSError as error:
            raise DatasetError(f"--preview={_PREVIEW.value}: cannot be written ({error.strerror})") from error
        print(f"Wrote {_PREVIEW.value}")


def _preview_config(path: str):
    """The configuration that the data set is trained with, and the crop size of the flag."""
    config = runpy.run_path(str(pathlib.Path(configs.__file__).with_name(pathlib.Path(path).name)))["get_config"]()
    if _CROP_SIZE.value:
        config.crop_size = cli.parse_size("crop_size", _CROP_SIZE.value)
    return config


def _warn(*warnings: str) -> None:
    for warning in warnings:
        print(f"warning: {file_names.printable(warning)}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main, "prepare", lambda error: file_names.printable(cli.told(error, _DATA_DIR.value)))

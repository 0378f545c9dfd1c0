"""Makes a data set: python -m dlv3p_jax.prepare --dataset=NAME [--source=FOLDER] --data_dir=FOLDER"""

import os
import sys
import time

from absl import app, flags, logging

from dlv3p_jax.data.errors import DatasetError

_DATASET = flags.DEFINE_string("dataset", None, "toy_streets (drawn by this program) or image_folder (your own data).")
_SOURCE = flags.DEFINE_string(
    "source",
    None,
    'image_folder: a folder with train.txt and val.txt, "image label" on every line, or with images/{train,val} and '
    "labels/{train,val}.",
)
_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Where prepared data sets live.")
_CLASS_NAMES = flags.DEFINE_string(
    "class_names", None, "image_folder: a file of class names, one a line; SOURCE/classes.txt by default."
)
_LABEL_MAP = flags.DEFINE_string(
    "label_map",
    None,
    'image_folder: label values or colours to class indices, "0:0,255:1", "128-64-128:0", "#804080:0" or "255:ignore", '
    "or a file of such pairs.",
)
_IGNORE_LABEL = flags.DEFINE_integer("ignore_label", 255, "image_folder: the label of pixels that count nowhere.")
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count(), "Number of processes that read pictures.", lower_bound=1)
_SKIP_BAD = flags.DEFINE_bool("skip_bad", False, "image_folder: leave out what cannot be used, and list it.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the data set if it is there.")


def _toy_streets(data_dir):
    from dlv3p_jax.data.toy_streets import ToyStreets

    return ToyStreets(data_dir, workers=_WORKERS.value)


def _image_folder(data_dir):
    from dlv3p_jax.data.image_folder import ImageFolder

    return ImageFolder(
        data_dir,
        _SOURCE.value,
        class_names=_CLASS_NAMES.value,
        label_map=_LABEL_MAP.value,
        ignore_label=_IGNORE_LABEL.value,
        workers=_WORKERS.value,
        skip_bad=_SKIP_BAD.value,
    )


_OF_A_SOURCE = (_SOURCE, _CLASS_NAMES, _LABEL_MAP, _IGNORE_LABEL, _SKIP_BAD)
# name: (the builder, which of these flags it knows, the configuration to train it with)
BUILDERS = {
    "toy_streets": (_toy_streets, (), "configs/quickstart.py"),
    "image_folder": (_image_folder, _OF_A_SOURCE, "configs/image_folder.py"),
}


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # TFDS tells every file that it reads
    try:
        _prepare(argv[1:])
    except DatasetError as error:
        sys.exit(f"prepare: {error}")
    except KeyboardInterrupt:
        print("\nprepare: interrupted, nothing was written", file=sys.stderr)
        sys.exit(130)


def _prepare(arguments: list[str]) -> None:
    name = _DATASET.value
    if arguments:
        raise DatasetError(f'"{arguments[0]}" is no flag; flags look like --data_dir=data')
    if name not in BUILDERS:
        raise DatasetError(f"--dataset={name or ''}: choose one of {', '.join(BUILDERS)}")
    make_builder, known, config = BUILDERS[name]
    if _SOURCE in known and not _SOURCE.value:
        raise DatasetError(f"--source is missing: {flags.FLAGS['source'].help}")
    for flag in _OF_A_SOURCE:
        if flag.present and flag not in known:
            raise DatasetError(f"--{flag.name} has no meaning for --dataset={name}")
    if "://" in _DATA_DIR.value:
        raise DatasetError(f"--data_dir={_DATA_DIR.value}: prepare on a local disk, then copy the folder there")

    from dlv3p_jax.data import builder, summary  # after the flags, so that a slip is told at once

    start = time.perf_counter()
    dataset, made_by = builder.prepare_dataset(name, make_builder, _DATA_DIR.value, _OVERWRITE.value)
    seconds = time.perf_counter() - start
    for warning in (*made_by.remarks, *summary.warnings(dataset)):
        print(f"warning: {warning}", file=sys.stderr)
    if made_by.problems:
        print(f"Skipped (all are in skipped.txt): {builder.describe_problems(made_by.problems)}")
    print(summary.table(dataset))
    count = sum(map(dataset.num_pictures, dataset.splits))
    print(f"Wrote {dataset.folder} in {seconds:.1f} s ({count / seconds:.0f} pictures/s). Train on it with")
    print(f"  python -m dlv3p_jax.main --config={config} --config.data_dir={_DATA_DIR.value}")


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(f"prepare: {error} (--help lists the flags)")


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)

"""Labels and overlays of pictures: python -m dlv3p_jax.predict --checkpoint=WORKDIR --output=DIR PATH…

PATH is a picture, or a folder whose pictures are all predicted. DIR/labels gets PNGs whose pixels are class indices,
shown in the classes' colours, and DIR/overlays pictures with the colours laid over.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags
from PIL import Image

from dlv3p_jax import commands, predictor, sharding, viz, weights
from dlv3p_jax.data import cityscapes_labels
from dlv3p_jax.data.pictures import Problem

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "A file of configs/; the one the checkpoint was trained with by default. --config.KEY=VALUE with it.",
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A workdir, whose best checkpoint is taken, or a checkpoint.")
_OUTPUT = flags.DEFINE_string("output", None, "The folder that gets the outputs.")
_FLIP = flags.DEFINE_bool("flip", None, "View every scale mirrored as well; config.eval.flip by default.")
_SCALES = flags.DEFINE_list("scales", None, "Sizes of the views, such as 0.75,1.0,1.25; config.eval.scales by default.")
_WINDOW = flags.DEFINE_list("window", None, "HEIGHT,WIDTH of a sliding window; config.eval.window by default.")
_STRIDE = flags.DEFINE_list("stride", None, "HEIGHT,WIDTH between windows; two thirds of the window by default.")
_LABEL_IDS = flags.DEFINE_bool("label_ids", False, "Write Cityscapes' official ids (0..33) in place of train ids.")
_SUBMISSION = flags.DEFINE_enum("submission", None, ["voc"], "Write labels in the folder that VOC's server takes.")

_ID_PALETTE = [label.color for label in cityscapes_labels.LABELS if label.id >= 0]
_VOC_CLASSES = 21
_VOC_FOLDER = pathlib.Path("results", "VOC2012", "Segmentation", "comp6_test_cls")


def main(argv: list[str]) -> None:
    for flag in (_CHECKPOINT, _OUTPUT):
        if flag.value is None:
            raise app.UsageError(f"give --{flag.name}")
    if len(argv) == 1:
        raise app.UsageError("give the pictures, or folders of pictures, to predict")
    if _LABEL_IDS.value and _SUBMISSION.value:
        raise app.UsageError("--label_ids is for Cityscapes, and --submission=voc is not")
    commands.configure_logging()
    output = pathlib.Path(_OUTPUT.value).expanduser()
    commands.check_folder("predict", "output", output)
    try:
        problems = _predict(argv[1:], output)
    except (ValueError, OSError) as error:
        logging.debug("The traceback of the error below", exc_info=True)
        sys.exit(f"predict: {error}")
    if problems:
        sys.exit("\n  ".join(["predict: what could not be predicted:", *(problem.message for problem in problems)]))


def _predict(paths: list[str], output: pathlib.Path) -> list[Problem]:
    """Predicts and writes everything that can be, says where, and returns what could not."""
    pictures, problems = predictor.find_pictures(paths, output)
    if not pictures:
        return problems
    label_folder = output / (_VOC_FOLDER if _SUBMISSION.value == "voc" else "labels")
    label_names = _label_names(pictures)
    trained = weights.load_checkpoint(_CONFIG.value, _CHECKPOINT.value, _views())
    config, names, palette = trained.config, trained.class_names, trained.palette
    values = _values(config.num_classes)
    value_palette = _ID_PALETTE if _LABEL_IDS.value else palette
    # The mesh is of the machine: that of the checkpoint's config.json is of the one that trained.
    mesh = sharding.make_mesh() if _CONFIG.value is None else sharding.make_mesh(config.mesh.data, config.mesh.space)

    pixels, done = np.zeros(config.num_classes, np.int64), 0
    for result in predictor.predict_pictures(config, trained.model, trained.variables, pictures, mesh):
        if isinstance(result, Problem):
            problems.append(result)
            continue
        name = result.picture.name
        overlay = Image.fromarray(viz.overlay(result.image, result.label, palette))
        _save(overlay, output / "overlays" / f"{name}.jpg", "JPEG", quality=90)
        _save(viz.label_png(values[result.label], value_palette), label_folder / f"{label_names[name]}.png", "PNG")
        pixels += np.bincount(result.label.ravel(), minlength=len(pixels))
        done += 1
        logging.log_every_n_seconds(logging.INFO, "%d of %d pictures", 10, done, len(pictures))
    if done:
        _print_shares(pixels, names)
        print(f"{done} pictures\nlabels: {label_folder}\noverlays: {output / 'overlays'}", flush=True)
    return problems


def _views() -> dict[str, Any]:
    """The changes to the configuration that flags ask for, by dotted key."""
    changes = {"eval.flip": _FLIP.value}
    for key, flag, number in (("scales", _SCALES, float), ("window", _WINDOW, int), ("stride", _STRIDE, int)):
        try:
            changes[f"eval.{key}"] = None if flag.value is None else tuple(map(number, flag.value))
        except ValueError:
            kind = "whole numbers, HEIGHT,WIDTH" if number is int else "numbers"
            raise ValueError(f"--{flag.name}={','.join(flag.value)}: give {kind}, with commas and no blanks") from None
    return {key: value for key, value in changes.items() if value is not None}


def _values(num_classes: int) -> np.ndarray:
    """What is written for each class, uint8 `[num_classes]`."""
    if _LABEL_IDS.value:
        _require_classes(
            num_classes, len(cityscapes_labels.LABEL_IDS), "--label_ids is for the train ids of Cityscapes"
        )
        return cityscapes_labels.LABEL_IDS
    if _SUBMISSION.value == "voc":
        _require_classes(num_classes, _VOC_CLASSES, "--submission=voc is for the classes of Pascal VOC")
    return np.arange(num_classes, dtype=np.uint8)


def _require_classes(num_classes: int, expected: int, what: str) -> None:
    if num_classes != expected:
        raise ValueError(f"{what}, of which there are {expected}; this checkpoint has {num_classes} classes")


def _label_names(pictures: list[predictor.Picture]) -> dict[str, str]:
    """What the label of each picture is called; VOC's server wants all of them in one folder.

    Raises:
        ValueError: two pictures would be called the same.
    """
    if _SUBMISSION.value is None:
        return {picture.name: picture.name for picture in pictures}
    stems = {}
    for picture in pictures:
        other = stems.setdefault(picture.path.stem, picture)
        if other is not picture:
            raise ValueError(f"{other.path} and {picture.path} would both be {picture.path.stem}.png in the submission")
    return {picture.name: picture.path.stem for picture in pictures}


def _save(image: Image.Image, path: pathlib.Path, kind: str, **options) -> None:
    """Writes a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    image.save(unfinished, kind, **options)
    unfinished.replace(path)


def _print_shares(pixels: np.ndarray, names: Sequence[str]) -> None:
    """How much of all pixels each class has, the largest first: a model that answers one class to everything shows."""
    width = max(map(len, names))
    print(f"\n{'class':{width}}  % of the pixels")
    for index in np.argsort(-pixels, kind="stable"):
        if pixels[index]:
            print(f"{names[index]:{width}}  {100 * pixels[index] / pixels.sum():6.2f}")


if __name__ == "__main__":
    app.run(main, flags_parser=commands.make_flags_parser("predict"))

"""Labels and overlays of pictures: python -m dlv3p_jax.predict --checkpoint=WORKDIR --output=DIR PATH…

PATH is a picture, a folder whose pictures are all predicted, a glob in quotes, such as "photos/**/*.jpg", a video, or
the http address of a picture or a video. DIR/labels gets PNGs whose pixels are class indices, shown in the classes'
colours, DIR/overlays pictures with the colours laid over, and DIR/videos such videos. A run that was killed goes on
with the same command.
"""

import dataclasses
import errno
import os
import pathlib
import sys
import typing
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags, logging

from dlv3p_jax.data import ranges
from dlv3p_jax.data.example import Problem
from dlv3p_jax.inference import addresses, finding
from dlv3p_jax.runtime import arguments, cli, text
from dlv3p_jax.weights import published

if typing.TYPE_CHECKING:
    from dlv3p_jax.weights import trained

_CONFIG = arguments.DEFINE_config(
    "config",
    "A file of configs/; the one the checkpoint was trained with by default. --config.KEY=VALUE with it.",
    reads=("eval.", "eval_size", "mesh.", "model.", "num_classes"),
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "A workdir, whose best checkpoint is taken, a checkpoint, a .pdparams file, or a published name such as voc_r50.",
)
_OUTPUT = flags.DEFINE_string("output", None, "The folder that gets the outputs.")
_OVERWRITE = flags.DEFINE_bool(
    "overwrite",
    False,
    "Predict everything again, whatever --output holds and however that was made; files of other pictures stay.",
)
_FLIP = flags.DEFINE_bool("flip", None, "View every scale mirrored as well; config.eval.flip by default.")
_SCALES = flags.DEFINE_list("scales", None, "Sizes of the views, such as 0.75,1.0,1.25; config.eval.scales by default.")
_WINDOW = flags.DEFINE_list("window", None, "HEIGHT,WIDTH of a sliding window; config.eval.window by default.")
_STRIDE = flags.DEFINE_list("stride", None, "HEIGHT,WIDTH between windows; two thirds of the window by default.")
_PAD_TO = flags.DEFINE_list(
    "pad_to",
    None,
    "HEIGHT,WIDTH that smaller pictures are padded to, so that fewer sizes are compiled. It changes results: the "
    "network sees the padding, by its image pooling everywhere. config.eval_size by default.",
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Pictures of one size at a time; config.eval.batch_size by default.", lower_bound=1
)
_PICTURE_RANGE = flags.DEFINE_list(
    "picture_range",
    None,
    "LOW,HIGH, such as 0,4095: the values that become black and white in pictures of more than 8 bits; by default "
    "those that the checkpoint was trained with, or all that the files have room for.",
)
_PROBABILITIES = flags.DEFINE_bool(
    "probabilities", False, "Write DIR/probabilities/NAME.npy too: float16 [height, width, classes]."
)
_LABEL_IDS = flags.DEFINE_bool("label_ids", False, "Write Cityscapes' official ids (0..33) in place of train ids.")
_FRAMES = flags.DEFINE_bool("frames", False, "Of videos, write the labels and overlays of all frames, too.")
_GEOTIFF = flags.DEFINE_bool(
    "geotiff",
    False,
    "Write labels of TIFFs as GeoTIFFs, which lie where the pictures do, and nothing else: DIR/geotiffs/NAME.tif. They "
    "are predicted window by window, so that any size will do.",
)
_SUBMISSION = flags.DEFINE_enum("submission", None, ["voc"], "Write labels in the folder that VOC's server takes.")


def main(argv: list[str]) -> None:
    # Exit codes: 0 done, 1 an error or pictures that could not be predicted, 130 Ctrl-C.
    if _CHECKPOINT.value is None or _OUTPUT.value is None:
        raise app.UsageError("give --checkpoint and --output")
    if len(argv) == 1:
        raise app.UsageError("give the pictures, or folders of pictures, to predict")
    if _LABEL_IDS.value and _SUBMISSION.value:
        raise app.UsageError("--label_ids is for Cityscapes, and --submission=voc is not")
    if "://" in _OUTPUT.value:
        raise app.UsageError(f"--output={_OUTPUT.value}: give a folder on this machine")
    cli.configure_logging()
    output = pathlib.Path(_OUTPUT.value)
    cli.check_folder("predict", "output", output)
    try:
        changes = _changes()
        _check_checkpoint(_CHECKPOINT.value)
        paths, problems = addresses.fetch(argv[1:], output)
        videos = [path for path in paths if finding.is_video(path)]
        paths = [path for path in paths if path not in videos]
        videos = list(dict.fromkeys(os.path.abspath(os.path.expanduser(path)) for path in videos))
        _check_flags_of_pictures(bool(videos))
        pictures, not_found = finding.find_pictures(paths, output) if paths else ([], [])
        problems += not_found
        if pictures or videos:
            problems += _predict(changes, pictures, videos, output)
    except KeyboardInterrupt:
        print("\npredict: interrupted; the same command goes on", file=sys.stderr, flush=True)
        os._exit(130)  # JAX may be compiling, and crashes where Python ends meanwhile
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):  # what JAX says where the compiler saw no lack of memory coming
            raise
        remedies = "give a smaller --batch_size, or --window=HEIGHT,WIDTH"
        sys.exit(f"predict: the device has too little memory: {remedies}; the same command goes on with that")
    if problems:
        sys.exit("\n  ".join(["predict: what could not be predicted:", *(problem.message for problem in problems)]))


def _changes() -> dict[str, Any]:
    """The changes to the configuration that flags ask for, by dotted key."""
    changes: dict[str, Any] = {"eval.flip": _FLIP.value, "eval.batch_size": _BATCH_SIZE.value}
    if _SCALES.value is not None:
        changes["eval.scales"] = cli.parse_scales(_SCALES.value)
    for key, flag in (("eval.window", _WINDOW), ("eval.stride", _STRIDE), ("eval_size", _PAD_TO)):
        if flag.value is not None:
            changes[key] = cli.parse_size(flag.name, flag.value)
    return {key: value for key, value in changes.items() if value is not None}


def _check_flags_of_pictures(videos: bool) -> None:
    """Raises ValueError for a flag that would do nothing to videos, or to what --geotiff writes."""
    for what, given in (("videos", videos), ("what --geotiff writes", _GEOTIFF.value)):
        for flag in (_PROBABILITIES, _SUBMISSION, _LABEL_IDS):
            of_frames = flag is _LABEL_IDS and what == "videos" and _FRAMES.value
            if given and flag.value and not of_frames:
                raise ValueError(f"--{flag.name} is not for {what}: leave it out, or give pictures by themselves")


def _check_checkpoint(checkpoint: str) -> None:
    """Raises ValueError where there is nothing of this name; what it is shows when it is loaded."""
    known = "://" in checkpoint or checkpoint.startswith("hf:") or published.is_name(checkpoint)
    if not known and not os.path.exists(os.path.expanduser(checkpoint)):
        names = ", ".join(published.PUBLISHED)
        raise ValueError(f"--checkpoint={checkpoint}: no such file or folder, and no published model ({names})")


def _predict(
    changes: dict[str, Any], pictures: list[finding.Picture], videos: list[str], output: pathlib.Path
) -> list[Problem]:
    """Predicts and writes everything that can be, says where, and returns what could not."""
    from dlv3p_jax.inference import folder_run
    from dlv3p_jax.weights import trained  # JAX: wrong flags do not wait for it

    picture_range = ranges.parse(_PICTURE_RANGE.value)
    loaded = trained.load_checkpoint(_CONFIG.value, _CHECKPOINT.value, changes)
    if picture_range is not None:
        loaded = dataclasses.replace(loaded, picture_range=picture_range)
    if "eval_size" in changes:
        logging.info(
            "Pictures smaller than %dx%d (height x width) are padded to it, which changes their labels somewhat",
            *loaded.config.eval_size,
        )
    suffixes = (".tif", ".tiff") if _GEOTIFF.value else ()
    tiffs = [picture for picture in pictures if picture.path.suffix.lower() in suffixes]
    pictures = [picture for picture in pictures if picture.path.suffix.lower() not in suffixes]
    problems: list[Problem] = []
    if pictures:
        problems = _predict_pictures(loaded, pictures, output)
    if videos or tiffs:
        with folder_run.alone_in(output):
            problems += _predict_streams(loaded, videos, tiffs, output)
    return problems


def _predict_pictures(
    loaded: "trained.TrainedModel", pictures: list[finding.Picture], output: pathlib.Path
) -> list[Problem]:
    """What is read and written whole."""
    from dlv3p_jax.inference import folder_run, outputs
    from dlv3p_jax.runtime import sharding

    # The mesh is of the machine: that of the checkpoint's config.json is of the one that trained.
    sizes = () if _CONFIG.value is None else (loaded.config.mesh.data, loaded.config.mesh.space)
    pixels, problems = folder_run.write_predictions(
        loaded,
        pictures,
        sharding.make_mesh(*sizes),
        output,
        label_ids=_LABEL_IDS.value,
        submission=_SUBMISSION.value,
        probabilities=_PROBABILITIES.value,
        overwrite=_OVERWRITE.value,
    )
    if len(problems) < len(pictures):
        _print_shares(pixels, loaded.class_names, loaded.palette)
        print(text.count(len(pictures) - len(problems), "picture"))
        print(f"labels: {output / outputs.label_folder(_SUBMISSION.value)}\noverlays: {output / 'overlays'}")
        if _PROBABILITIES.value:
            print(f"probabilities: {output / 'probabilities'}")
    return problems


def _predict_streams(
    loaded: "trained.TrainedModel", videos: list[str], tiffs: list[finding.Picture], output: pathlib.Path
) -> list[Problem]:
    """What is read and written in parts: videos, and rasters of any size."""
    from dlv3p_jax.inference import folder_record, outputs, rasters, segmenter
    from dlv3p_jax.inference import videos as video_files

    model = segmenter.Segmenter(loaded)
    ledger = folder_record.Ledger(output, folder_record.describe(loaded, _LABEL_IDS.value), _OVERWRITE.value)
    problems: list[Problem] = []
    if videos:
        about = len(loaded.class_names), loaded.palette, _LABEL_IDS.value, None
        label_values = outputs.label_values(*about) if _FRAMES.value else None
        how = model, output, label_values, _BATCH_SIZE.value or 1, ledger
        pixels, problems = video_files.write_all(videos, *how)
        _print_shares(pixels, loaded.class_names, loaded.palette)
        print(f"videos: {output / 'videos'}")
    if tiffs:
        pixels, not_made = rasters.write_all(tiffs, model, output, ledger)
        problems += not_made
        _print_shares(pixels, loaded.class_names, loaded.palette)
        print(f"GeoTIFFs: {output / 'geotiffs'}")
    return problems


def _print_shares(pixels: np.ndarray, names: Sequence[str], palette: np.ndarray) -> None:
    """How much of all pixels each class has, the largest first: a model that answers one class to everything shows."""
    if not pixels.any():
        return
    width = max(map(len, names))
    print(f"\n{'class':{width}}  colour   % of the pixels")
    for index in np.argsort(-pixels, kind="stable"):
        if pixels[index]:
            share = 100 * pixels[index] / pixels.sum()
            print(f"{names[index]:{width}}  #{bytes(palette[index]).hex()}  {share:6.2f}")


def _message(error: Exception) -> str:
    if not isinstance(error, OSError) or error.errno in (None, errno.ENAMETOOLONG):
        return cli.told(error)
    return f"{cli.told(error, _OUTPUT.value)}; what was written before is whole, and the same command goes on"


if __name__ == "__main__":
    cli.run(main, "predict", _message)

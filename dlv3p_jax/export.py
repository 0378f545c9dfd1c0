"""A trained model as a file that runs without this program:

    python -m dlv3p_jax.export --checkpoint=WORKDIR --output=DIR --format=stablehlo,savedmodel --height=512 --width=1024
    python -m dlv3p_jax.export --checkpoint=WORKDIR --output=DIR --format=onnx --dynamic

DIR/FORMAT gets the model, and model.json with classes, palette, sizes and normalisation. The model takes uint8 RGB
pictures, [B, H, W, 3], any number of one size, and gives labels, [B, H, W], and logits: one plain view of each picture,
computed in float32. Normalisation is inside. Before it says done, the command compares it with the network.
"""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from dlv3p_jax import commands, disk_errors
from dlv3p_jax.exporting import folders

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/; the one the checkpoint was trained with by default."
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A workdir, whose best checkpoint is taken, a checkpoint, a .pdparams or a published name."
)
_OUTPUT = flags.DEFINE_string("output", None, "The folder that gets a folder for each format.")
_FORMATS = flags.DEFINE_list("format", None, f"One or several, with commas, of {', '.join(folders.FORMATS)}.")
_HEIGHT = flags.DEFINE_integer("height", None, "Of the pictures that the model takes.", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", None, "Of the pictures that the model takes.", lower_bound=1)
_DYNAMIC = flags.DEFINE_bool("dynamic", False, "Take pictures of any size; for ONNX only.")
_PICTURE = flags.DEFINE_string("picture", None, "The picture to compare on; a drawn one by default.")


def main(argv: list[str]) -> None:
    _check_flags(argv)
    commands.configure_logging()
    output = pathlib.Path(_OUTPUT.value).expanduser()
    commands.check_folder("export", "output", output)
    try:
        for name in _FORMATS.value:
            folders.check(output, name)
        _export(output)
    except Exception as error:
        reason = disk_errors.reason(error)
        if reason is None and not isinstance(error, (ValueError, OSError)):
            raise
        logging.debug("The traceback of the error below", exc_info=True)
        sys.exit(f"export: {output}: {reason}" if reason else f"export: {error}")


def _check_flags(argv: list[str]) -> None:
    commands.refuse_words(argv)
    for flag in (_CHECKPOINT, _OUTPUT, _FORMATS):
        if not flag.value:
            raise app.UsageError(f"give --{flag.name}")
    for name in _FORMATS.value:
        if name not in folders.FORMATS:
            raise app.UsageError(f"--format={name}: choose from {', '.join(folders.FORMATS)}")
    if "://" in _OUTPUT.value:
        raise app.UsageError(f"--output={_OUTPUT.value}: give a folder on this machine")
    fixed = [flag.value for flag in (_HEIGHT, _WIDTH) if flag.value is not None]
    if _DYNAMIC.value and fixed:
        raise app.UsageError("--dynamic is for any size: leave out --height and --width")
    if _DYNAMIC.value and _FORMATS.value != ["onnx"]:
        raise app.UsageError(
            "--dynamic is for --format=onnx alone: a StableHLO program, which a SavedModel holds too, is for one size; "
            "give --height and --width"
        )
    if not _DYNAMIC.value and len(fixed) < 2:
        raise app.UsageError("give --height and --width, the size of the pictures, or --dynamic (ONNX only)")


def _export(output: pathlib.Path) -> None:
    from dlv3p_jax import segmenter, weights
    from dlv3p_jax.exporting import write

    picture = None if _PICTURE.value is None else segmenter.as_array(_PICTURE.value)
    size = None if _DYNAMIC.value else (_HEIGHT.value, _WIDTH.value)
    trained = weights.load_checkpoint(_CONFIG.value, _CHECKPOINT.value, {"model.dtype": "float32"})
    for name in _FORMATS.value:
        comparison = write.export(trained, name, output, size, picture)
        sizes = " and ".join(f"{height}x{width}" for height, width in comparison.sizes)
        print(
            f"{name}: {output / name}\n"
            f"  compared on {_PICTURE.value or 'a drawn street'}, at {sizes}: "
            f"{comparison.equal_labels:.4%} of the labels are equal ({comparison.classes} classes), logits differ by "
            f"{comparison.largest_logit_difference:.2g} at most",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main, flags_parser=commands.make_flags_parser("export"))

"""A trained model as a file that runs without this program:

    python -m dlv3p_jax.export --checkpoint=WORKDIR --output=DIR --format=stablehlo,savedmodel
    python -m dlv3p_jax.export --checkpoint=WORKDIR --output=DIR --format=stablehlo,savedmodel --height=512 --width=1024
    python -m dlv3p_jax.export --checkpoint=WORKDIR --output=DIR --format=stablehlo --dynamic --height=512 --width=1024
    python -m dlv3p_jax.export --checkpoint=WORKDIR --output=DIR --format=onnx --dynamic

DIR/FORMAT gets the model, and model.json with classes, palette, sizes and normalisation. The model takes uint8 RGB
pictures, [B, H, W, 3], any number of one size (by default that which it is evaluated at), and gives labels, [B, H, W],
and logits: one plain view of each picture, computed in float32. Normalisation is inside. With --dynamic, a StableHLO
program takes pictures of all sizes up to this one, and the (height, width) of each, [B, 2], beside them; ONNX takes any
size. Before it says done, the command compares it with the network.
"""

import pathlib

from absl import app, flags, logging

from dlv3p_jax.inference.export import folders
from dlv3p_jax.runtime import arguments, cli, disk_errors

_CONFIG = arguments.DEFINE_config(
    "config",
    "A file of configs/; the one the checkpoint was trained with by default.",
    reads=("eval_size", "model.", "num_classes"),
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A workdir, whose best checkpoint is taken, a checkpoint, a .pdparams or a published name."
)
_OUTPUT = flags.DEFINE_string("output", None, "The folder that gets a folder for each format.")
_FORMATS = flags.DEFINE_list("format", None, f"One or several, with commas, of {', '.join(folders.FORMATS)}.")
_HEIGHT = flags.DEFINE_integer(
    "height", None, "Of the pictures that the model takes; by default it is evaluated at this size.", lower_bound=1
)
_WIDTH = flags.DEFINE_integer("width", None, "As --height.", lower_bound=1)
_DYNAMIC = flags.DEFINE_bool(
    "dynamic", False, "Take pictures of any size with --format=onnx, up to --height x --width with --format=stablehlo."
)
_VERSION = flags.DEFINE_integer(
    "version", None, "Write savedmodel/VERSION/, a numbered folder, which TensorFlow Serving looks for.", lower_bound=0
)
_PICTURE = flags.DEFINE_string("picture", None, "The picture to compare on; a drawn one by default.")


def main(argv: list[str]) -> None:
    cli.refuse_words(argv)
    checkpoint, folder, names, size = _CHECKPOINT.value, _OUTPUT.value, _FORMATS.value, _given_size()
    if not (checkpoint and folder and names):
        raise app.UsageError("give --checkpoint, --output and --format")
    for name in names:
        if name not in folders.FORMATS:
            raise app.UsageError(f"--format={name}: choose from {', '.join(folders.FORMATS)}")
    if _DYNAMIC.value and len(names) > 1:
        raise app.UsageError("--dynamic means something else in each format: export one after the other")
    if _DYNAMIC.value and names == ["savedmodel"]:
        raise app.UsageError("--dynamic is for --format=onnx or stablehlo: a SavedModel is for one size; leave it out")
    if _VERSION.value is not None and "savedmodel" not in names:
        raise app.UsageError("--version is for --format=savedmodel")
    if "://" in folder:
        raise app.UsageError(f"--output={folder}: give a folder on this machine")
    cli.configure_logging()
    output = pathlib.Path(folder)
    cli.check_folder("export", "output", output)
    try:
        for name in names:
            folders.check(_folder(output, name), name)
        _export(checkpoint, output, names, size)
    except Exception as error:
        if (reason := disk_errors.reason(error)) is None:
            raise
        raise OSError(f"{output}: {reason}") from error


def _given_size() -> tuple[int, int] | None:
    """(height, width); None where neither is given."""
    height, width = _HEIGHT.value, _WIDTH.value
    if height is None and width is None:
        return None
    if _DYNAMIC.value and _FORMATS.value == ["onnx"]:
        raise app.UsageError("--dynamic is for any size: leave out --height and --width")
    if height is None or width is None:
        raise app.UsageError("give both of --height and --width, the size of the pictures, or neither")
    return height, width


def _folder(output: pathlib.Path, name: str) -> pathlib.Path:
    return output / name / str(_VERSION.value) if name == "savedmodel" and _VERSION.value is not None else output / name


def _export(checkpoint: str, output: pathlib.Path, names: list[str], size: tuple[int, int] | None) -> None:
    from dlv3p_jax.inference import picture_like
    from dlv3p_jax.inference.export import sizes, write
    from dlv3p_jax.weights import trained  # these import JAX: what is wrong so far does not wait for it

    picture = None if _PICTURE.value is None else picture_like.as_array(_PICTURE.value)
    loaded = trained.load_checkpoint(_CONFIG.value, checkpoint, {"model.dtype": "float32"})
    views = loaded.config.eval
    if views.flip or tuple(views.scales) != (1,) or views.window or views.resize or loaded.config.eval_size:
        logging.info(
            "What is exported sees each picture once, whole and as it is: not as eval.flip, .scales, .window, .resize "
            "and eval_size say"
        )
    if views.resize:
        logging.info(
            "Its scores are of pictures made to fit %dx%d first, their ratio kept (OpenCV's INTER_LINEAR on 8 bits): "
            "give it such pictures, and bring its logits back to their size",
            *views.resize,
        )
    origin = "--height and --width"
    # A .pdparams file alone does not say on what it was trained and evaluated.
    known = _CONFIG.value is not None or not pathlib.Path(checkpoint).is_file()
    up_to = _DYNAMIC.value and names == ["stablehlo"]
    if size is None and (up_to or not _DYNAMIC.value):
        if not known:
            raise ValueError(f"{checkpoint} does not say which pictures it is for: {sizes.ASK}")
        size, origin = sizes.evaluated_at(loaded.config)
        logging.info("Exported for pictures of %dx%d (height x width): %s", *size, origin)
    if known and size is not None and (remark := sizes.remark(size, loaded.config)):
        logging.warning("%s", remark)
    for name in names:
        comparison = write.export(loaded, name, _folder(output, name), size, picture, origin, up_to)
        compared = " and ".join(f"{height}x{width}" for height, width in comparison.sizes)
        print(
            f"{name}: {_folder(output, name)}\n"
            f"  compared on {_PICTURE.value or 'a drawn street'}, at {compared}: "
            f"{comparison.equal_labels:.4%} of the labels are equal ({comparison.classes} classes), logits differ by "
            f"{comparison.largest_logit_difference:.2g} at most",
            flush=True,
        )


if __name__ == "__main__":
    cli.run(main, "export")

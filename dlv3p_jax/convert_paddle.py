"""PaddleSeg's weights into our checkpoints, and back:

    python -m dlv3p_jax.convert_paddle --config=configs/cityscapes_r50.py --pdparams=model.pdparams --output=DIR
    python -m dlv3p_jax.convert_paddle --weights=cityscapes_r50 --output=DIR
    python -m dlv3p_jax.convert_paddle --reverse --checkpoint=WORKDIR --output=model.pdparams

The first takes a file, which may be an archive with one, of a whole model or of an ImageNet backbone alone; the second
downloads a published one. DIR then holds a checkpoint with its config.json, for `main --mode=eval --checkpoint`,
`predict --checkpoint` and `--config.pretrained`. The third writes a file that PaddleSeg loads. Paddle is not needed.
"""

import hashlib
import pathlib
import shlex
from typing import Any

from absl import app, flags

from dlv3p_jax.runtime import arguments, cli
from dlv3p_jax.weights import published
from dlv3p_jax.weights.pdparams import PdparamsError, load_pdparams, save_pdparams

__all__ = ["ConversionError", "PdparamsError", "convert", "load_pdparams", "main", "revert", "save_pdparams"]  # noqa: F822

_NAMES = (*published.PUBLISHED, *published.IMAGENET)


def __getattr__(name: str) -> Any:
    if name in ("ConversionError", "convert", "revert"):
        from dlv3p_jax.weights import paddle

        return getattr(paddle, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def define_flags() -> None:
    """Defines the command's flags; not at import, since this module is a library too."""
    arguments.DEFINE_config(
        "config", "A file of configs/, of the model; not needed with --weights.", reads=("model.", "num_classes")
    )
    flags.DEFINE_string("pdparams", None, "The file to convert: .pdparams, or a .tar.gz with one.")
    flags.DEFINE_string("weights", None, f"A name to download and convert: {', '.join(_NAMES)}.")
    flags.DEFINE_string("output", None, "The folder to make; with --reverse, the .pdparams file.")
    flags.DEFINE_bool("reverse", False, "Write a .pdparams file from --checkpoint.")
    flags.DEFINE_string(
        "checkpoint", None, "With --reverse: a workdir, whose best checkpoint is taken, or a checkpoint."
    )


def main(argv: list[str]) -> None:
    values = flags.FLAGS
    cli.refuse_words(argv)
    if values.output is None:
        raise app.UsageError("give --output")
    if values.reverse and (values.checkpoint is None or values.pdparams or values.weights):
        raise app.UsageError("--reverse takes --checkpoint and --output, and writes the .pdparams file")
    if not values.reverse and ((values.pdparams is None) == (values.weights is None) or values.checkpoint):
        raise app.UsageError("give --pdparams=FILE or --weights=NAME (--checkpoint goes with --reverse)")
    if values.pdparams and values.config is None:
        raise app.UsageError("give --config=FILE with --pdparams: it says of which model the file is")
    cli.configure_logging()
    if values.reverse:
        write_pdparams(values.config, values.checkpoint, pathlib.Path(values.output))
    else:
        config = values.config or published.config_of(values.weights)
        file = published.fetch(values.weights) if values.weights else pathlib.Path(values.pdparams)
        write_checkpoint(config, file, values.output)


def write_checkpoint(config, file: pathlib.Path, output: str) -> None:
    """Converts `file` and writes the checkpoint."""
    import jax  # which wrong flags do not wait for

    from dlv3p_jax import models
    from dlv3p_jax.weights import checkpoint_reading, trained

    config = config.copy_and_resolve_references()
    any_classes = config.num_classes is None
    if any_classes:
        config.num_classes = 2  # until the file is read; a network has to have some
    variables = trained.load_foreign(file, models.build_model(config), allow_new_head=any_classes)
    whole = "decoder" in variables["params"]
    if any_classes:
        config.num_classes = len(variables["params"]["decoder"]["classifier"]["bias"]) if whole else None
    meta = {"source": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    folder = checkpoint_reading.write_variables(output, variables, config, meta)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    what = f"{config.model.backbone} DeepLabV3+, {config.num_classes} classes" if whole else config.model.backbone
    print(f"{what}: {count / 1e6:.1f} million numbers from {file}\ncheckpoint: {folder}", flush=True)
    if not whole:
        print(f"a backbone alone: to train from it, give --config.pretrained={shlex.quote(output)}", flush=True)


def write_pdparams(config, checkpoint: str, output: pathlib.Path) -> None:
    """Writes the checkpoint's weights, the averaged ones where there are, as PaddleSeg names them."""
    from dlv3p_jax.weights import paddle, trained

    if output.exists():
        raise ValueError(f"{output} exists: give another --output, or remove it first")
    loaded = trained.load_checkpoint(config, checkpoint)
    state = paddle.revert(loaded.variables, loaded.model)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_pdparams(state, output)
    print(f"{len(state)} arrays as PaddleSeg names them: {output}", flush=True)


if __name__ == "__main__":
    define_flags()
    cli.run(main, "convert_paddle")

"""MMSegmentation's weights into our checkpoints, and back:

    python -m dlv3p_jax.convert_mmseg --pth=work_dir/iter_80000.pth --output=DIR
    python -m dlv3p_jax.convert_mmseg --weights=mmseg/r50_ade20k_160k --output=DIR
    python -m dlv3p_jax.convert_mmseg --reverse --checkpoint=WORKDIR --output=model.pth

The first takes a file of a whole DeepLabV3+, or of an ImageNet backbone alone with --config; its own config, or the one
given as --mmseg_config, says what its arrays do not. The second downloads a published one. DIR then holds a checkpoint
with its config.json, for `main --mode=eval --checkpoint`, `predict --checkpoint` and `--config.pretrained`. The third
writes a file that MMSegmentation loads. PyTorch and MMSegmentation are not needed.
"""

import hashlib
import pathlib
import shlex

from absl import app, flags

from dlv3p_jax.runtime import arguments, cli
from dlv3p_jax.weights import pth, published


def define_flags() -> None:
    """Defines the command's flags; not at import, since tests import this module beside others."""
    arguments.DEFINE_config(
        "config", "A file of configs/, of the model; found out by default.", reads=("model.", "num_classes")
    )
    flags.DEFINE_string("pth", None, "The file to convert.")
    flags.DEFINE_string("mmseg_config", None, "MMSegmentation's config of it, where the file has not its own.")
    flags.DEFINE_string("weights", None, "A name to download and convert, such as mmseg/r50_ade20k_160k.")
    flags.DEFINE_string("output", None, "The folder to make; with --reverse, the .pth file.")
    flags.DEFINE_bool("reverse", False, "Write a .pth file from --checkpoint.")
    flags.DEFINE_string(
        "checkpoint", None, "With --reverse: a workdir, whose best checkpoint is taken, or a checkpoint."
    )
    flags.DEFINE_bool("auxiliary_head", True, "With --reverse: with an auxiliary head, of zeros if need be.")


def main(argv: list[str]) -> None:
    values = flags.FLAGS
    cli.refuse_words(argv)
    if values.output is None:
        raise app.UsageError("give --output")
    if values.reverse and (values.checkpoint is None or values.pth or values.weights):
        raise app.UsageError("--reverse takes --checkpoint and --output, and writes the .pth file")
    if not values.reverse and ((values.pth is None) == (values.weights is None) or values.checkpoint):
        raise app.UsageError("give --pth=FILE or --weights=NAME (--checkpoint goes with --reverse)")
    if values.mmseg_config and (values.config or values.pth is None):
        raise app.UsageError("--mmseg_config goes with --pth and without --config")
    cli.configure_logging()
    if values.reverse:
        write_pth(values.config, values.checkpoint, pathlib.Path(values.output), values.auxiliary_head)
        return
    config, file = values.config, values.pth
    if values.weights:
        config, file = config or published.config_of(values.weights), published.fetch(values.weights)
    mmseg_config = pathlib.Path(values.mmseg_config) if values.mmseg_config else None
    if mmseg_config is not None:
        mmseg_config.stat()  # that it is missing is told before the weights are read
    write_checkpoint(config, pathlib.Path(file), values.output, mmseg_config)


def write_checkpoint(config, path: pathlib.Path, output: str, mmseg_config: pathlib.Path | None = None) -> None:
    """Converts a file and writes the checkpoint.

    Args:
        config: of the model, or None: as the file describes it.
        path: the `.pth`.
        output: the folder to make.
        mmseg_config: MMSegmentation's config, where the file's own is not to be taken.

    Raises:
        ValueError, OSError: the file is not one of MMSegmentation's, or `output` cannot be written.
    """
    import jax  # which wrong flags do not wait for

    from dlv3p_jax import models
    from dlv3p_jax.weights import checkpoint_reading, foreign, mmseg

    file = foreign.read(path)
    if file.names is not mmseg:
        raise ValueError(f"{path} is a file of PaddleSeg's: python -m dlv3p_jax.convert_paddle converts it")
    if config is None and file.is_backbone:
        raise ValueError(f"{path} holds a backbone alone: give --config=FILE, of the model that is to start from it")
    config = foreign.describe(file, mmseg_config) if config is None else config.copy_and_resolve_references()
    config.dataset = config.dataset or "image_folder"  # a checkpoint's configuration names one
    num_classes = config.num_classes or file.num_classes or 2  # a backbone's network has to have some
    config.num_classes = num_classes
    model = models.build_model(config)
    variables = foreign.convert(file, model, allow_new_head=False)
    if file.is_backbone:
        config.num_classes = None
    meta = {"source": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    if file.classes:
        meta |= checkpoint_reading.describe_classes(*file.classes, config.ignore_label)
    folder = checkpoint_reading.write_variables(output, variables, config, meta)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    what = config.model.backbone if file.is_backbone else f"{config.model.backbone} DeepLabV3+, {num_classes} classes"
    print(f"{what}: {count / 1e6:.1f} million numbers from {path}\ncheckpoint: {folder}", flush=True)
    if file.is_backbone:
        print(f"a backbone alone: to train from it, give --config.pretrained={shlex.quote(output)}", flush=True)


def write_pth(config, checkpoint: str, output: pathlib.Path, auxiliary_head: bool) -> None:
    """Writes the checkpoint's weights, the averaged ones where there are, as MMSegmentation names them."""
    from dlv3p_jax.weights import mmseg, trained

    if output.exists():
        raise ValueError(f"{output} exists: give another --output, or remove it first")
    model = trained.load_checkpoint(config, checkpoint)
    state = mmseg.revert(model.variables, model.model, auxiliary_head)
    meta = {"CLASSES": model.class_names, "PALETTE": model.palette.tolist(), "source": model.source}
    output.parent.mkdir(parents=True, exist_ok=True)
    pth.save_pth(state, output, meta)
    print(f"{len(state)} arrays as MMSegmentation names them: {output}", flush=True)
    if auxiliary_head and "auxiliary_head" not in model.variables["params"]:
        print("its auxiliary head is zeros, as the checkpoint has none: --noauxiliary_head leaves it out", flush=True)


if __name__ == "__main__":
    define_flags()
    cli.run(main, "convert_mmseg")

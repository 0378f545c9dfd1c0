"""timm's ResNet-D into a backbone to train from: python -m dlv3p_jax.convert_timm --weights=FILE --output=DIR

FILE is the model.safetensors of timm's resnet50d, resnet101d or resnet152d, with or without its classifier, which is
left out. DIR then holds a checkpoint with its config.json, for --config.pretrained. Neither timm nor PyTorch is needed.
"""

import hashlib
import pathlib
import shlex

from absl import flags

from dlv3p_jax.runtime import cli
from dlv3p_jax.weights import published

_WEIGHTS = flags.DEFINE_string("weights", None, "The .safetensors file to convert.")
_BACKBONE = flags.DEFINE_string(
    "backbone", None, "What the file is converted into, such as resnet50_vd; found out from its names by default."
)
_OUTPUT = flags.DEFINE_string("output", None, "The folder to make.")


def main(argv: list[str]) -> None:
    cli.refuse_words(argv)
    weights, output = cli.required(_WEIGHTS), cli.required(_OUTPUT)
    cli.configure_logging()
    _convert(pathlib.Path(weights), pathlib.Path(output))


def _convert(file: pathlib.Path, output: pathlib.Path) -> None:
    import jax  # which wrong flags do not wait for

    from dlv3p_jax.weights import checkpoint_reading, timm

    if _BACKBONE.value not in (None, *timm.BACKBONES):
        raise ValueError(f"--backbone={_BACKBONE.value}: choose from {', '.join(timm.BACKBONES)}")
    state = timm.load_safetensors(file)
    try:
        backbone = _BACKBONE.value or timm.infer_backbone(state)
        variables, dropped = timm.convert(state, backbone)
    except timm.ConversionError as error:
        raise timm.ConversionError(f"{file}: {error}") from error
    meta = {"source": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    checkpoint_reading.write_variables(output, variables, published.config_of(backbone), meta)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    print(f"{backbone}: {count / 1e6:.1f} million numbers from {file}")
    if dropped:
        print(f"the classifier is left out: {', '.join(dropped)}")
    keys = f"--config.pretrained={shlex.quote(str(output))} --config.model.backbone={backbone}"
    print(
        f"checkpoint: {output}\n"
        f"a backbone alone: to train from it, give {keys}\n"
        "timm's weights are of pictures normalised by ImageNet's mean and standard deviation, this program's are "
        "x / 127.5 - 1: BatchNorm takes that out in training, but not with config.freeze_backbone",
        flush=True,
    )


if __name__ == "__main__":
    cli.run(main, "convert_timm")

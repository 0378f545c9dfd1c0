"""Files of weights that other programs wrote, PaddleSeg or MMSegmentation: which of them, and what they say."""

import os
import pathlib
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from dlv3p_jax.configs import common
from dlv3p_jax.models import DeepLabV3Plus, Variables
from dlv3p_jax.weights import (
    checkpoint_files,
    mmseg,
    mmseg_config,
    paddle,
    pdparams,
    pth,
    published,
    renamed,
)
from dlv3p_jax.weights.renamed import ConversionError

_OF_A_RESNET = re.compile(r"(backbone\.)?(layer1\.0|bb_0_0)\.")  # names of the first block, of both programs
_KNOWN = re.compile(r"(?:^|\.)((?:backbone|head|decode_head|layer1|bb_0_0)\.)")  # where names of a network begin
_EXPECTED = {
    mmseg: "decode_head.conv_seg.weight and backbone.layer1.0.conv1.weight",
    paddle: "head.decoder.conv.weight and backbone.bb_0_0.conv0._conv.weight",
}


class Foreign(NamedTuple):
    """The weights of another program's file.

    Attributes:
        path: the file.
        names: of `paddle` and `mmseg`, the one whose names the arrays have.
        state: these names and the arrays.
        meta: what the file says beside its arrays; a config's text is in it.
    """

    path: str
    names: ModuleType
    state: Mapping[str, np.ndarray]
    meta: Mapping[str, Any]

    @property
    def is_backbone(self) -> bool:
        """Whether it is a backbone alone, such as ImageNet weights."""
        return self.names.is_backbone(self.state)

    @property
    def num_classes(self) -> int | None:
        """The number of classes, None where there is no classifier."""
        return self.names.num_classes_of(self.state)

    @property
    def classes(self) -> tuple[list[str], list[list[int]]] | None:
        """Names and colours of the classes, where the file has them."""
        found = mmseg.classes_of(self.meta)
        return found if found and len(found[0]) == self.num_classes else None


def read(path: str | os.PathLike) -> Foreign:
    """Reads a `.pdparams`, an archive with one, or a `.pth`; which it is shows in its content.

    What wraps a network, as PyTorch Lightning and Paddle's DataParallel do, puts a word before all names (`model.`,
    `_layers.`), which is taken off.

    Raises:
        ValueError: it is none of these, holds another network, or is not to be trusted; the message names it.
    """
    path = os.path.expanduser(path)
    if os.path.isfile(path) and pth.is_pth(path):
        meta, state = pth.load_pth(path)
        file = Foreign(path, mmseg, _unwrapped(state), meta)
    else:
        file = Foreign(path, paddle, _unwrapped(pdparams.load_pdparams(path)), {})
    if file.is_backbone and not any(map(_OF_A_RESNET.match, file.state)):
        first = ", ".join(list(file.state)[:3])
        raise ConversionError(
            f"{path} holds neither a DeepLabV3+ nor a ResNet, by the names of its arrays: {first}… Expected are names "
            f"such as {_EXPECTED[file.names]}"
        )
    return file


def _unwrapped(state: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    names = [name for name in state if name != pdparams.NAME_TABLE]
    prefix = os.path.commonprefix(names)
    prefix = prefix[: prefix.rfind(".") + 1] if len(names) > 1 else ""
    if known := _KNOWN.search(prefix):
        prefix = prefix[: known.start(1)]
    return {name.removeprefix(prefix): value for name, value in state.items()} if prefix else state


def require_converted(checkpoint: str | os.PathLike) -> None:
    """Raises ValueError, with the command, where a checkpoint of ours is wanted and it is another program's weights."""
    name, path = os.fspath(checkpoint), os.path.expanduser(checkpoint)
    if os.path.isfile(path) and pth.is_pth(path):
        command = f"convert_mmseg --pth={name}"
    elif os.path.isfile(path) and path.endswith((".pdparams", ".tar.gz", ".tar")):
        command = f"convert_paddle --config=FILE --pdparams={name}"
    elif name in published.models() and not os.path.exists(path):
        command = f"{'convert_mmseg' if name.startswith('mmseg/') else 'convert_paddle'} --weights={name}"
    else:
        return
    raise ValueError(
        f"--checkpoint={name} is not one of this program: make one of it, with python -m dlv3p_jax.{command} "
        "--output=DIR, and give --checkpoint=DIR"
    )


def describe(file: Foreign, config_file: pathlib.Path | None = None) -> ConfigDict:
    """The configuration of a whole model as far as its file says it, on the defaults; the log says what it does not.

    Args:
        file: what `read` gave.
        config_file: MMSegmentation's config, where the file's own is not to be taken.

    Raises:
        ValueError: its arrays or its config are those of no network here, or of two; the message names the file.
    """
    config = common.get_config()
    config.update_from_flattened_dict(file.names.describe(file.state, file.path))
    text = mmseg_config.text_of(file.meta) if config_file is None else config_file.read_text(encoding="utf-8")
    if text is not None:
        where = f"the config in {file.path}" if config_file is None else str(config_file)
        try:
            settings = mmseg_config.settings(text)
            num_classes = settings.pop("num_classes", config.num_classes)
            if num_classes != config.num_classes:
                raise ValueError(f"num_classes={num_classes}, but {file.path} has {config.num_classes}")
            config.update_from_flattened_dict(settings)
            return config
        except mmseg_config.NoConfig as error:
            if config_file is not None:
                raise ConversionError(f"{where}: {error}") from error
            logging.warning("The config in %s says nothing of its network: %s", file.path, error)
        except (ValueError, TypeError) as error:  # ConfigDict's, for a value of another kind
            how = "python -m dlv3p_jax.convert_mmseg --config=FILE takes a configuration of ours instead"
            raise ConversionError(f"{where}: {error}. {how}") from error
    logging.warning(
        "%s does not say all of its network; taken are output_stride %d, multi_grid %s, aspp_rates %s and "
        "align_corners %s: give --config=FILE if it was trained otherwise",
        file.path,
        *(config.model[key] for key in ("output_stride", "multi_grid", "aspp_rates", "align_corners")),
    )
    return config


def convert(file: Foreign, model: DeepLabV3Plus, allow_new_head: bool) -> Variables:
    """The weights for a network.

    Args:
        file: what `read` gave.
        model: what `build_model` returned.
        allow_new_head: whether the classifier may be for another number of classes than `model` has.

    Returns:
        {'params': …, 'batch_stats': …}; of a backbone alone only their `backbone`.

    Raises:
        ConversionError: they are of another network, or not finite; the message names the file and the arrays.
    """
    try:
        renamed.check_function(model, file.names.NETWORK, file.is_backbone)
        if file.is_backbone:
            variables, dropped = file.names.convert_backbone(file.state, model)
            if dropped:
                listed = ", ".join(dropped)
                logging.info("%s is a backbone with its classifier, which is left out: %s", file.path, listed)
        else:
            num_classes = file.num_classes
            if allow_new_head and num_classes is not None:
                head = model.auxiliary_head and model.auxiliary_head.clone(num_classes=num_classes)
                model = model.clone(decoder=model.decoder.clone(num_classes=num_classes), auxiliary_head=head)
            variables = file.names.convert(file.state, model)
        checkpoint_files.check_finite(variables)
    except ValueError as error:
        raise ConversionError(f"{file.path}: {error}") from error
    return variables

"""Files of weights that other programs wrote, PaddleSeg or MMSegmentation: which of them, and what they say."""

import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from dlv3p_jax.configs import common
from dlv3p_jax.models import DeepLabV3Plus, Variables
from dlv3p_jax.weights import checkpoint_files, mmseg, mmseg_config, paddle, pdparams, pth, renamed
from dlv3p_jax.weights.renamed import ConversionError


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

    Raises:
        ValueError: it is none of these, or not to be trusted; the message names it.
    """
    path = os.path.expanduser(path)
    if os.path.isfile(path) and pth.is_pth(path):
        meta, state = pth.load_pth(path)
        return Foreign(path, mmseg, state, meta)
    return Foreign(path, paddle, pdparams.load_pdparams(path), {})


def describe(file: Foreign, config_text: str | None = None) -> ConfigDict:
    """The configuration of a whole model as far as its file says it, on the defaults; the log says what it does not.

    Args:
        file: what `read` gave.
        config_text: of MMSegmentation's config, where the file's own is not to be taken.

    Raises:
        ValueError: its arrays are those of no network here; the message names the file.
    """
    config = common.get_config()
    config.update_from_flattened_dict(file.names.describe(file.state, file.path))
    text = config_text or mmseg_config.text_of(file.meta)
    if text is not None:
        try:
            config.update_from_flattened_dict(mmseg_config.settings(text))
            return config
        except ValueError as error:
            if config_text is not None:
                raise
            logging.warning("The config in %s says nothing of its network: %s", file.path, error)
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

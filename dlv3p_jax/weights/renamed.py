"""The same numbers under other names, with other axes: what all conversions from other programs have in common.

Their convolutions are [out, in / groups, height, width], ours [height, width, in / groups, out].
"""

import collections
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dlv3p_jax.models import DeepLabV3Plus, variable_shapes
from dlv3p_jax.models.resnet import BASIC_BLOCKS, BLOCKS
from dlv3p_jax.runtime.errors import UserError

TORCH_BATCH_NORM = (  # our path of each array of a BatchNorm, and PyTorch's name of it
    ("params/{}/batch_norm/scale", "weight"),
    ("params/{}/batch_norm/bias", "bias"),
    ("batch_stats/{}/batch_norm/mean", "running_mean"),
    ("batch_stats/{}/batch_norm/var", "running_var"),
)
# Their names, in their order -> our path, such as params/decoder/classifier/bias, and their shape.
Names = dict[str, tuple[str, tuple[int, ...]]]


class ConversionError(UserError):
    """Parameters are not those of the model; the message lists all names missing, unexpected or of another shape."""


def other_function(model: DeepLabV3Plus, trained: Mapping[str, Any], only_backbone: bool = False) -> dict[str, Any]:
    """What makes a network another function of weights of the same names and shapes than that of their training.

    Args:
        model: what `build_model` returned.
        trained: keys of `config.model` of the network of their training, as far as they are known.
        only_backbone: whether the weights are of a backbone alone.

    Returns:
        The keys that differ, with their values in `trained`.
    """
    now = {"avg_down": model.backbone.avg_down}
    if not only_backbone:
        now |= {"aspp_pooling_first": model.aspp.pooling_first, "head_depthwise_relu": model.aspp.depthwise_relu}
    return {key: trained[key] for key, value in now.items() if trained.get(key, value) != value}


def check_function(model: DeepLabV3Plus, trained: Mapping[str, Any], only_backbone: bool) -> None:
    """Raises ConversionError, with the keys to give, where `other_function` finds some."""
    if other := other_function(model, trained, only_backbone):
        keys = " ".join(f"--config.model.{key}={value}" for key, value in other.items())
        raise ConversionError(f"these weights are of a network that computes something else: give {keys}")


def backbone_of(names: Iterable[str], block: str, bottleneck: bool) -> tuple[str | None, int]:
    """The name of our backbone with as many blocks in each stage, None for none, and how many blocks there are.

    Args:
        names: of arrays.
        block: a pattern of one name of each block, whose group 1 is the number of its stage.
        bottleneck: whether the blocks are.
    """
    stages = collections.Counter(int(match[1]) for name in names if (match := re.fullmatch(block, name)))
    counts = tuple(number for _, number in sorted(stages.items()))
    fitting = (name for name, blocks in BLOCKS.items() if blocks == counts and (name in BASIC_BLOCKS) != bottleneck)
    return next(fitting, None), stages.total()


def without_counters(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """PyTorch's arrays without the steps that BatchNorms have counted, which nothing reads."""
    return {name: value for name, value in state.items() if not name.endswith(".num_batches_tracked")}


def torch_pairs(layers: Iterable[tuple[str, str, str]]) -> Iterator[tuple[str, str]]:
    """`names_of`'s pairs of layers: of each our path, and PyTorch's names of its convolution and its BatchNorm."""
    for ours, conv, batch_norm in layers:
        yield f"params/{ours}/conv/kernel", f"{conv}.weight"
        for path, leaf in TORCH_BATCH_NORM:
            yield path.format(ours), f"{batch_norm}.{leaf}"


def names_of(module: nn.Module, pairs: Iterable[tuple[str, str]], scope: str = "", part: str = "") -> Names:
    """Their names of all arrays of a network, or of a part of it.

    Args:
        module: a network; `init(key, images, train=False)` makes its variables.
        pairs: our path and their name, in their order; those of arrays that the network does not have are left out.
        scope: where the module lies in the whole network, `backbone/` for one.
        part: how the paths of the arrays begin that names are wanted of.

    Raises:
        ConversionError: an array has no name.
    """
    shapes = {
        f"{kind}/{scope}{path}": leaf.shape
        if len(leaf.shape) != 4
        else tuple(leaf.shape[axis] for axis in (3, 2, 0, 1))
        for kind, tree in variable_shapes(module).items()
        for path, leaf in flax.traverse_util.flatten_dict(tree, sep="/").items()
        if f"{scope}{path}".startswith(part)
    }
    names = {path: name for path, name in pairs if path in shapes}
    if unnamed := shapes.keys() - names.keys():
        raise ConversionError(f"the other program has no name for {', '.join(sorted(unnamed))}")
    return {name: (path, shapes[path]) for path, name in names.items()}


def below(prefix: str, names: Names) -> Names:
    """The names that begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in names.items() if name.startswith(prefix)}


def to_ours(state: Mapping[str, np.ndarray], names: Names, what: str) -> dict:
    """{'params': ..., 'batch_stats': ...} of float32 arrays; ConversionError where `state` is not `what`."""
    _check(state, names, what)
    leaves = {}
    for name, (path, _) in names.items():
        value = np.asarray(state[name], np.float32)
        leaves[path] = jnp.array(value.transpose(2, 3, 1, 0) if value.ndim == 4 else value)
    return flax.traverse_util.unflatten_dict(leaves, sep="/")


def to_theirs(variables: Mapping, names: Names, what: str) -> dict[str, np.ndarray]:
    """float32 arrays by their names; ConversionError where `variables` are not `what`."""
    leaves = flax.traverse_util.flatten_dict(jax.device_get(dict(variables)), sep="/")
    state = {}
    for name, (path, _) in names.items():
        if path in leaves:
            value = np.asarray(leaves[path], np.float32)
            state[name] = np.ascontiguousarray(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value)
    _check(state, names, what)
    return state


def _check(state: Mapping[str, np.ndarray], names: Names, what: str) -> None:
    """Raises ConversionError, which lists all that is missing, unexpected, mis-shaped or of another type."""
    shapes = {name: shape for name, (_, shape) in names.items()}
    shared = [name for name in shapes if name in state]
    problems = {
        "missing": [f"{name} {shape}" for name, shape in shapes.items() if name not in state],
        "unexpected": [f"{name} {np.shape(value)}" for name, value in state.items() if name not in shapes],
        "mis-shaped": [
            f"{name} has {np.shape(state[name])}, the model {shapes[name]}"
            for name in shared
            if np.shape(state[name]) != shapes[name]
        ],
        "not of floating-point numbers": [
            f"{name} {dtype}"
            for name in shared
            if not jnp.issubdtype(dtype := jnp.result_type(state[name]), np.floating)
        ],
    }
    if any(problems.values()):
        lists = ["\n  ".join([f"{len(lines)} {kind}:", *lines]) for kind, lines in problems.items() if lines]
        raise ConversionError("\n".join([f"these parameters are not those of {what}", *lists]))

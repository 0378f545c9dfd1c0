"""What the parts of the network say of pictures before its classifier: features to compare, cluster or learn from."""

from collections.abc import Callable

import jax.numpy as jnp

from dlv3p_jax.data import colors
from dlv3p_jax.models import tiles
from dlv3p_jax.models.deeplabv3plus import DeepLabV3Plus

_FINE, _STAGES = 4, ("stage1", "stage2", "stage3", "stage4")


def strides(output_stride: int) -> dict[str, int]:
    """The names of the features, and over how many pixels of the picture, along each side, a place of them goes."""
    by_stage = zip(_STAGES, (_FINE, 8, output_stride, output_stride), strict=True)
    return dict(by_stage) | {"aspp": output_stride, "decoder": _FINE}


def make_feature_step(model: DeepLabV3Plus) -> Callable:
    """A pure function `step(variables, images, sizes, view_sizes=None) -> {name: float32 [B, h, w, C]}`.

    Images and sizes are as in `predictor.make_predict_step`; of `view_sizes`, the first is looked at. The decoder's are
    those that the classifier sees.
    """

    def is_asked_for(module, method: str) -> bool:
        return method == "__call__" and module.path in (("backbone",), ("aspp",), ("decoder", "fuse2"))

    def step(variables, images, sizes, view_sizes=None):
        images = tiles.cleared(tiles.Tiled(colors.normalize(images), sizes=sizes))
        own = None if view_sizes is None else view_sizes[:, 0]
        _, state = model.apply(variables, images, train=False, sizes=own, capture_intermediates=is_asked_for)
        found = state["intermediates"]
        parts = dict(zip(_STAGES, found["backbone"]["__call__"][0], strict=True))
        parts |= {"aspp": found["aspp"]["__call__"][0], "decoder": found["decoder"]["fuse2"]["__call__"][0]}
        return {name: tiles.whole(part).astype(jnp.float32) for name, part in parts.items()}

    return step

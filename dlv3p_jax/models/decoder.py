"""The decoder of DeepLabV3+ (Chen et al., 2018)."""

import jax.numpy as jnp
from flax import linen as nn

from dlv3p_jax.models import ops
from dlv3p_jax.models.layers import Conv, ConvBN, SeparableConvBN
from dlv3p_jax.models.strips import count_strips, from_strips, to_strips


class Decoder(nn.Module):
    """Joins coarse features with the fine ones of the first stage, and classifies each pixel of the latter.

    Attributes:
        num_classes: channels of the result.
        align_corners: how the coarse features are resized, see `ops.resize`.
        dtype: type of the computation.
    """

    num_classes: int
    align_corners: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, coarse, fine, train: bool):
        """coarse: [B, h, w, C], fine: [B, H, W, D] -> logits [B, H, W, num_classes] in `dtype`."""
        strips = count_strips(fine, stride=1)
        coarse = to_strips(ops.resize(coarse, fine.shape[1:3], self.align_corners), strips)
        fine = to_strips(fine, strips)
        fine = ConvBN(48, dtype=self.dtype, name="low_level_projection")(fine, train)
        x = jnp.concatenate([coarse, fine], -1)
        x = SeparableConvBN(256, strips=strips, dtype=self.dtype, name="fuse1")(x, train)
        x = SeparableConvBN(256, strips=strips, dtype=self.dtype, name="fuse2")(x, train)
        return from_strips(Conv(self.num_classes, dtype=self.dtype, name="classifier")(x), strips)

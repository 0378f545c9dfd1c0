"""The decoder of DeepLabV3+ (Chen et al., 2018)."""

import jax.numpy as jnp
from flax import linen as nn

from dlv3p_jax.models import resizing, tiles
from dlv3p_jax.models.layers import Conv, ConvBN, SeparableConvBN
from dlv3p_jax.models.tiles import Pictures


class Decoder(nn.Module):
    """Joins coarse features with the fine ones of the first stage, and classifies each pixel of the latter.

    Attributes:
        num_classes: channels of the result.
        low_level_channels: that the fine features are projected to.
        channels: of the two 3x3 convolutions over both.
        use_bias: whether convolutions before the classifier add a bias.
        depthwise_relu: see `SeparableConvBN`.
        align_corners: how the coarse features are resized, see `resizing.resize`.
        dtype: type of the computation.
    """

    num_classes: int
    low_level_channels: int = 48
    channels: int = 256
    use_bias: bool = True
    depthwise_relu: bool = False
    align_corners: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, coarse: Pictures, fine: Pictures, train: bool) -> Pictures:
        """coarse: [B, h, w, C], fine: [B, H, W, D] -> logits [B, H, W, num_classes] in `dtype`.

        Of `Tiled` too in one part each.
        """
        pictures, resized = tiles.assemble(fine), tiles.assemble(coarse)
        resized = resizing.resize(resized, pictures.shape[1:3], self.align_corners, sizes=pictures.sizes)
        projection = ConvBN(
            self.low_level_channels, use_bias=self.use_bias, dtype=self.dtype, name="low_level_projection"
        )
        projected = projection(tiles.split(pictures, stride=1), train)
        x = tiles.each(lambda *arrays: jnp.concatenate(arrays, -1), tiles.split(resized, stride=1), projected)
        for name in ("fuse1", "fuse2"):
            fuse = SeparableConvBN(*(self.channels, 1, self.use_bias, self.depthwise_relu), dtype=self.dtype, name=name)
            x = fuse(x, train)
        return tiles.given(fine, tiles.assemble(Conv(self.num_classes, dtype=self.dtype, name="classifier")(x)))

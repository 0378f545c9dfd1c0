"""Atrous spatial pyramid pooling (Chen et al., 2017) with separable convolutions (Chen et al., 2018)."""

import functools

import jax.numpy as jnp
from flax import linen as nn

from dlv3p_jax.models import tiles
from dlv3p_jax.models.layers import ConvBN, SeparableConvBN
from dlv3p_jax.models.tiles import Pictures


class ASPP(nn.Module):
    """Branches `branch1`, ... of different dilations and the pooled picture, side by side, then `projection`.

    Attributes:
        channels: of every branch and of the result.
        rates: dilation of each branch; 1 stands for a plain 1x1 convolution.
        pooling_first: the pooled picture comes first among the branches, not last.
        projection_size: of the kernel of the convolution over all branches, 1 or 3.
        use_bias: whether convolutions, but that of the pooled picture, add a bias.
        depthwise_relu: see `SeparableConvBN`.
        dropout: share of the result's values that training drops.
        dtype: type of the computation.
    """

    channels: int
    rates: tuple[int, ...]
    dropout: float
    pooling_first: bool = False
    projection_size: int = 1
    use_bias: bool = True
    depthwise_relu: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Pictures, train: bool) -> Pictures:
        """x: [B, H, W, C] -> [B, H, W, channels], of `Tiled` too in one part each."""
        parts = tiles.glue_for(tiles.join(tiles.of(x)), *(rate for rate in self.rates if rate > 1))
        conv = functools.partial(ConvBN, self.channels, use_bias=self.use_bias, dtype=self.dtype)
        branches = []
        for index, rate in enumerate(self.rates, start=1):
            name = f"branch{index}"
            branch: ConvBN | SeparableConvBN
            if rate == 1:
                branch = conv(name=name)
            else:
                branch = SeparableConvBN(
                    *(self.channels, rate, self.use_bias, self.depthwise_relu), dtype=self.dtype, name=name
                )
            branches.append(branch(parts, train))

        pooled = ConvBN(self.channels, use_bias=False, dtype=self.dtype, name="image_pooling")(tiles.mean(parts), train)
        # Resizing a single pixel, in whatever way, repeats it.
        branches.insert(0 if self.pooling_first else len(branches), tiles.spread(pooled, parts))

        joined = tiles.each(lambda *arrays: jnp.concatenate(arrays, -1), *branches)
        if self.projection_size > 1:
            joined = tiles.glue_for(joined, 1)
        joined = conv(size=self.projection_size, name="projection")(joined, train)
        joined = tiles.assemble(joined)
        return tiles.given(x, tiles.like(joined, nn.Dropout(self.dropout, deterministic=not train)(joined.array)))

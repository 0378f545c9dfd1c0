"""Atrous spatial pyramid pooling (Chen et al., 2017) with separable convolutions (Chen et al., 2018)."""

import jax.numpy as jnp
from flax import linen as nn

from dlv3p_jax.models.layers import ConvBN, SeparableConvBN


class ASPP(nn.Module):
    """Branches `branch1`, ... of different dilations and the pooled picture, side by side, then `projection`.

    Attributes:
        channels: of every branch and of the result.
        rates: dilation of each branch; 1 stands for a plain 1x1 convolution.
        dropout: share of the result's values that training drops.
        dtype: type of the computation.
    """

    channels: int
    rates: tuple[int, ...]
    dropout: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        """x: [B, H, W, C] -> [B, H, W, channels]."""
        branches = []
        for index, rate in enumerate(self.rates, start=1):
            name = f"branch{index}"
            if rate == 1:
                branch = ConvBN(self.channels, dtype=self.dtype, name=name)
            else:
                branch = SeparableConvBN(self.channels, rate, dtype=self.dtype, name=name)
            branches.append(branch(x, train))

        pooled = x.mean((1, 2), keepdims=True, dtype=jnp.promote_types(self.dtype, jnp.float32))
        pooled = ConvBN(self.channels, use_bias=False, dtype=self.dtype, name="image_pooling")(pooled, train)
        # Resizing a single pixel, in whatever way, repeats it.
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))

        x = ConvBN(self.channels, dtype=self.dtype, name="projection")(jnp.concatenate(branches, -1), train)
        return nn.Dropout(self.dropout, deterministic=not train)(x)

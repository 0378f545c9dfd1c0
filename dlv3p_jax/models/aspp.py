"""Atrous spatial pyramid pooling (Chen et al., 2017) with separable convolutions (Chen et al., 2018)."""

import jax.numpy as jnp
from flax import linen as nn

from dlv3p_jax.models import ops
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
    def __call__(self, x, train: bool, cuts: int = 0):
        """x: [B, H, W, C], cut into sub-images `cuts` times (`ops.cut`) -> whole pictures [B, H, W, channels]."""
        while cuts and any(rate > 1 and rate % 2**cuts for rate in self.rates):
            x, cuts = ops.glue(x, cuts), cuts - 1  # a dilation that is odd there mixes the sub-images
        branches = []
        for index, rate in enumerate(self.rates, start=1):
            name = f"branch{index}"
            branch: ConvBN | SeparableConvBN
            if rate == 1:
                branch = ConvBN(self.channels, dtype=self.dtype, name=name)
            else:
                dilation = rate // 2**cuts
                layout = ops.depthwise_layout(x, cuts, dilation)
                branch = SeparableConvBN(self.channels, dilation, layout, dtype=self.dtype, name=name)
            branches.append(branch(x, train))

        pictures = x.reshape(-1, 4**cuts, *x.shape[1:])
        pooled = pictures.mean((1, 2, 3), dtype=jnp.promote_types(self.dtype, jnp.float32))[:, None, None]
        pooled = ConvBN(self.channels, use_bias=False, dtype=self.dtype, name="image_pooling")(pooled, train)
        # Resizing a single pixel, in whatever way, repeats it.
        branches.append(jnp.broadcast_to(jnp.repeat(pooled, 4**cuts, axis=0), branches[0].shape))

        x = ConvBN(self.channels, dtype=self.dtype, name="projection")(jnp.concatenate(branches, -1), train)
        for number in range(cuts, 0, -1):
            x = ops.glue(x, number)
        return nn.Dropout(self.dropout, deterministic=not train)(x)

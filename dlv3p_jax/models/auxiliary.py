"""The auxiliary head: a classifier on an earlier stage, whose loss helps the backbone to learn (Zhao et al., 2017)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from dlv3p_jax.models import tiles
from dlv3p_jax.models.layers import Conv, ConvBN
from dlv3p_jax.models.tiles import Tiled


class AuxiliaryHead(nn.Module):
    """A 3x3 convolution to a quarter of the channels, dropout, and a classifier: MMSegmentation's FCNHead of one layer.

    Attributes:
        num_classes: channels of the result.
        dropout: share of the values before the classifier that training drops.
        dtype: type of the computation.
    """

    num_classes: int
    dropout: float = 0.1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array | Tiled, train: bool) -> jax.Array:
        """[B, h, w, C], the third stage's -> logits [B, h, w, num_classes] in `dtype`."""
        x = tiles.split(Tiled(tiles.whole(features)), stride=1)
        x = ConvBN(x.shape[-1] // 4, size=3, use_bias=False, dtype=self.dtype, name="conv")(x, train)
        x = nn.Dropout(self.dropout, deterministic=not train)(tiles.whole(x))
        return Conv(self.num_classes, dtype=self.dtype, name="classifier")(x)

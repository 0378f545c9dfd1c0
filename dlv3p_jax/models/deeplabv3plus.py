"""DeepLabV3+ (Chen et al., 2018)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from dlv3p_jax.models import ops
from dlv3p_jax.models.aspp import ASPP
from dlv3p_jax.models.decoder import Decoder
from dlv3p_jax.models.resnet import ResNet


class DeepLabV3Plus(nn.Module):
    """A dilated ResNet-vd, ASPP and decoder: `backbone`, `aspp`, `decoder`.

    Attributes:
        num_classes: channels of the logits.
        blocks, bottleneck, output_stride, multi_grid: of the backbone, see `ResNet`.
        aspp_channels, aspp_rates, dropout: see `ASPP`.
        align_corners: how features and logits are resized, see `ops.resize`.
        remat: of the backbone, see `ResNet`.
        freeze_backbone: in training too, the backbone uses its running statistics and takes no gradient.
        dtype: type of the computation. Parameters, batch statistics and logits are float32 whatever it is.
    """

    num_classes: int
    blocks: tuple[int, ...]
    bottleneck: bool
    output_stride: int
    multi_grid: tuple[int, ...]
    aspp_channels: int
    aspp_rates: tuple[int, ...]
    dropout: float
    align_corners: bool
    remat: bool = False
    freeze_backbone: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, output_size: tuple[int, int] | None = None) -> jax.Array:
        """The logits of every pixel.

        Args:
            images: [B, H, W, 3], normalised; any height and width.
            train: normalise by the batch's statistics (then pass `mutable=["batch_stats"]`) and drop out (then pass
                `rngs={"dropout": key}`).
            output_size: (height, width) that the logits are resized to, if not that of the images; with pixel centres
                at i + 1/2, as evaluation brings views of other scales back.

        Returns:
            float32 [B, H, W, num_classes], or of `output_size`.
        """
        backbone = ResNet(
            *(self.blocks, self.bottleneck, self.output_stride, self.multi_grid, self.remat),
            dtype=self.dtype,
            name="backbone",
        )
        (fine, *_, coarse), (*_, cuts) = backbone(images.astype(self.dtype), train and not self.freeze_backbone)
        if self.freeze_backbone:
            fine, coarse = jax.lax.stop_gradient((fine, coarse))
        aspp = ASPP(self.aspp_channels, self.aspp_rates, self.dropout, dtype=self.dtype, name="aspp")
        decoder = Decoder(self.num_classes, self.align_corners, dtype=self.dtype, name="decoder")
        logits = decoder(aspp(coarse, train, cuts), fine, train)
        logits = logits.astype(jnp.promote_types(self.dtype, jnp.float32))
        return ops.resize(logits, images.shape[1:3], self.align_corners, output_size)

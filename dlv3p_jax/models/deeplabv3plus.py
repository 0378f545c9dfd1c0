"""DeepLabV3+ (Chen et al., 2018)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from dlv3p_jax.models import resizing, tiles
from dlv3p_jax.models.aspp import ASPP
from dlv3p_jax.models.auxiliary import AuxiliaryHead
from dlv3p_jax.models.decoder import Decoder
from dlv3p_jax.models.resnet import ResNet
from dlv3p_jax.models.tiles import Tiled


class DeepLabV3Plus(nn.Module):
    """A dilated backbone, ASPP on its last features, and a decoder that joins these with its first.

        DeepLabV3Plus(ResNet(blocks=(3, 4, 6, 3)), ASPP(256, rates=(1, 12, 24, 36)), Decoder(num_classes=19))

    Attributes:
        backbone, aspp, decoder: the parts; their parameters lie under these names.
        auxiliary_head: one on the third stage, for training alone, whose logits, resized as the others, are sown as
            `intermediates/auxiliary_logits`; None: none.
        mean, std: the colours, 0 to 255, that the backbone is to see as 0, and as 1 beside it.
        align_corners: how logits are resized, see `resizing.resize`.
        freeze_backbone: in training too, the backbone uses its running statistics and takes no gradient.
    """

    backbone: ResNet
    aspp: ASPP
    decoder: Decoder
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)
    align_corners: bool = False
    freeze_backbone: bool = False
    auxiliary_head: AuxiliaryHead | None = None

    def __call__(
        self,
        images: jax.Array,
        train: bool,
        output_size: tuple[int, int] | None = None,
        sizes: jax.Array | None = None,
        output_sizes: jax.Array | None = None,
    ) -> jax.Array:
        """The logits of every pixel; they, parameters and statistics are float32 whatever the parts compute in.

        Args:
            images: [B, H, W, 3], -1..1 (`colors.normalize`); any height and width.
            train: normalise by the batch's statistics (then pass `mutable=["batch_stats"]`) and drop out (then pass
                `rngs={"dropout": key}`).
            output_size: (height, width) that the logits are resized to, if not that of the images; with pixel centres
                at i + 1/2, as evaluation brings views of other scales back.
            sizes: integers [B, 2], 1 at least: the (height, width) that each picture fills from the top left, where
                pictures of several sizes share a batch. The logits within are those of the picture alone; beyond, they
                mean nothing.
            output_sizes: what the logits of each are resized to, with `sizes` and `output_size`.

        Returns:
            float32 [B, H, W, num_classes], or of `output_size`.
        """
        if {*self.mean, *self.std} != {127.5}:
            mean, std = (jnp.asarray(values, images.dtype) for values in (self.mean, self.std))
            images = (images * 127.5 + (127.5 - mean)) / std
        features = self.backbone(Tiled(images, sizes=sizes), train and not self.freeze_backbone)
        if self.freeze_backbone:
            features = jax.lax.stop_gradient(features)

        def resized(logits: jax.Array | Tiled) -> jax.Array:
            logits = tiles.each(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), logits)
            to = images.shape[1:3], self.align_corners, output_size, sizes, output_sizes
            return tiles.whole(resizing.resize(logits, *to))

        if self.auxiliary_head is not None and (train or self.is_initializing()):
            self.sow("intermediates", "auxiliary_logits", resized(self.auxiliary_head(features[2], train)))
        return resized(self.decoder(self.aspp(features[-1], train), features[0], train))

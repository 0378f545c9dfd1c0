"""How sure a model is: the probability that it gives to the labels, and how often it is right when it is so sure.

The sums are taken on the devices, beside the confusion matrices, of the softmax of what the predictions are made from.
"""

import jax
import jax.numpy as jnp
import numpy as np

BINS = 15  # of confidence, which is the largest probability of a pixel: equal parts of 0..1


def sum_probabilities(
    logits: jax.Array, labels: jax.Array, predictions: jax.Array, ignore_label: int
) -> dict[str, jax.Array]:
    """Sums over the labelled pixels of each picture; jittable, for any sharding of batch and height.

    Args:
      logits: float32 `[B, H, W, C]`.
      labels: integers `[B, H, W]`; `ignore_label` and all else outside the classes counts nothing.
      predictions: integers `[B, H, W]`.
      ignore_label: the label that is not counted.

    Returns:
      'label_probability' float32 `[B, C]`: the probabilities of their label, added up by label; 'confidence' float32
      `[B, BINS]`: the largest probabilities, added up by their bin; 'confident' int32 `[B, 2, BINS]`: how many these
      are, and how many of them are right.
    """
    is_class = (labels[..., None] == jnp.arange(logits.shape[-1])) & (labels != ignore_label)[..., None]
    total = jax.nn.logsumexp(logits, axis=-1)
    confidence = jnp.exp(jnp.max(logits, axis=-1) - total)
    place = jnp.minimum((confidence * BINS).astype(jnp.int32), BINS - 1)
    # Not by scatters and gathers, which are slow or do not shard on a TPU.
    in_bin = (place[..., None] == jnp.arange(BINS)) & is_class.any(-1, keepdims=True)
    right = in_bin & (labels == predictions)[..., None]
    pixels = (1, 2)
    return {
        "label_probability": jnp.sum(jnp.where(is_class, jnp.exp(logits - total[..., None]), 0), pixels),
        "confidence": jnp.sum(jnp.where(in_bin, confidence[..., None], 0), pixels),
        "confident": jnp.stack([jnp.sum(which, pixels, dtype=jnp.int32) for which in (in_bin, right)], 1),
    }


def calibration_error(calibration: np.ndarray) -> float:
    """The expected calibration error (Guo et al., 2017): how far confidence and accuracy are apart, on average.

    `calibration` is float64 `[3, BINS]`: pixels, right ones, and the sum of their confidence. NaN without any pixel.
    """
    pixels, right, confidence = calibration
    return float(np.abs(right - confidence).sum() / pixels.sum()) if pixels.any() else float("nan")


def doubts(label_probability: np.ndarray, counts: np.ndarray, least_share: float = 0.005) -> np.ndarray:
    """The mean probability of the label over the pixels of each picture that have it; NaN where these are few.

    Args:
      label_probability: `[..., C]`, as summed above.
      counts: `[..., 3, C]`, see `metrics.pixel_counts`.
      least_share: of the picture's labelled pixels; fewer are NaN, for they are little but edges.

    Returns:
      float64 `[..., C]`.
    """
    pixels = counts[..., 1, :]
    enough = (pixels > 0) & (pixels >= least_share * pixels.sum(-1, keepdims=True))
    return np.divide(label_probability, pixels, out=np.full(pixels.shape, np.nan), where=enough)

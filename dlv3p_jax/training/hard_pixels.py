"""Which pixels a loss counts where it counts the hardest alone: a share of them, or those below a confidence."""

import jax
import jax.numpy as jnp
from jax import Array


def share_of_largest(values: Array, count: int | Array, among: bool | Array = True) -> Array:
    """1 at the `count` largest non-negative float32 `values`, 0 elsewhere, a fraction where the last ones tie.

    Where `among` is False, values have to be 0; they are never chosen, and there are at least `count` others.
    """
    bits, threshold = _bits_and_threshold(values, count)
    above, tied = bits > threshold, (bits == threshold) & among
    left = (count - jnp.sum(above)) / jnp.maximum(jnp.sum(tied), 1)
    return jnp.where(above, 1.0, jnp.where(tied, left, 0.0))


def online(losses: Array, valid: Array, count: int, threshold: float | None) -> Array:
    """Online hard example mining (Shrivastava, Gupta and Girshick, CVPR 2016), as MMSegmentation's OHEMPixelSampler.

    Without `threshold`, the `count` valid pixels of largest loss count, all where there are fewer; ties for the last
    places share them. With it, those count whose class has a probability exp(-loss) below `threshold`; where these are
    fewer than `count`, it rises to the probability of the pixel of rank count + 1, or of the last one.

    Args:
        losses: float32, non-negative, of every pixel; 0 where not valid.
        valid: booleans of the same shape.
        count: how many pixels at least, above 0.
        threshold: between 0 and 1, or None.

    Returns:
        float32 of the same shape: 1 at the pixels that count, 0 elsewhere.
    """
    valid_count = jnp.sum(valid)
    if threshold is None:
        return share_of_largest(losses, jnp.minimum(count, valid_count), valid)
    bits, ranked = _bits_and_threshold(losses, jnp.minimum(count, valid_count - 1) + 1)
    confident = jax.lax.bitcast_convert_type(-jnp.log(jnp.float32(threshold)), jnp.int32)
    return jnp.where(valid & (bits > jnp.minimum(ranked, confident)), 1.0, 0.0)


def _bits_and_threshold(values, count):
    """The bit patterns of non-negative float32 `values`, which are ordered as these are, and the count-th largest.

    It is bisected in 31 counts, each of which shards, instead of sorting the pixels of all devices together.
    """
    bits = jax.lax.bitcast_convert_type(jnp.maximum(values, 0), jnp.int32)

    def halve(i, threshold):  # the largest threshold that at least `count` values reach, from its highest bit down
        raised = threshold | (1 << (30 - i))
        return jnp.where(jnp.sum(bits >= raised) >= count, raised, threshold)

    return bits, jax.lax.fori_loop(0, 31, halve, jnp.int32(0))

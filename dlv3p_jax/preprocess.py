"""Colour distortion and normalisation of a batch, on the device."""

import jax.numpy as jnp
from jax import Array


def normalize(images: Array) -> Array:
    """(x / 255 - 0.5) / 0.5: uint8 or float `[B, H, W, 3]` in 0..255 to float32 in -1..1."""
    return (images.astype(jnp.float32) / 255 - 0.5) / 0.5

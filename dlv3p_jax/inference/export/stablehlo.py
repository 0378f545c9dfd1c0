"""StableHLO, as `jax.export` writes it: one file for CPUs, GPUs and TPUs, which needs JAX alone to run."""

import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dlv3p_jax.inference.export import programs

FILE = "model.stablehlo"


def write(model, variables, folder: pathlib.Path, height: int, width: int) -> None:
    """Writes the program of `programs.predict`, with the weights inside, for any number of pictures of one size."""
    program = jax.jit(lambda image: programs.predict(model, variables, image))
    batch, *_ = jax.export.symbolic_shape("batch")
    image = jax.ShapeDtypeStruct((batch, height, width, 3), jnp.uint8)
    exported = jax.export.export(program, platforms=programs.PLATFORMS)(image)
    (folder / FILE).write_bytes(exported.serialize())


def load(folder: pathlib.Path) -> Callable:
    """uint8 `[B, H, W, 3]` -> what `programs.predict` returns."""
    exported = jax.export.deserialize(bytearray((folder / FILE).read_bytes()))
    return jax.jit(exported.call)

"""StableHLO, as `jax.export` writes it: one file for CPUs, GPUs and TPUs, which needs JAX alone to run."""

import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dlv3p_jax.inference.export import programs

FILE = "model.stablehlo"


def write(model, variables, folder: pathlib.Path, height: int, width: int, up_to: bool = False) -> None:
    """Writes the program of `programs.predict`, with the weights inside, for any number of pictures of one size.

    With `up_to`, for pictures of all sizes up to this one; then it takes the size of each beside them.
    """
    program = jax.jit(lambda *inputs: programs.predict(model, variables, *inputs))
    batch, *_ = jax.export.symbolic_shape("batch")
    inputs = [jax.ShapeDtypeStruct((batch, height, width, 3), jnp.uint8)]
    if up_to:
        inputs.append(jax.ShapeDtypeStruct((batch, 2), jnp.int32))
    exported = jax.export.export(program, platforms=programs.PLATFORMS)(*inputs)
    (folder / FILE).write_bytes(exported.serialize())


def load(folder: pathlib.Path) -> Callable:
    """uint8 `[B, H, W, 3]` -> what `programs.predict` returns."""
    exported = jax.export.deserialize(bytearray((folder / FILE).read_bytes()))
    if len(exported.in_avals) == 1:
        return jax.jit(exported.call)
    call, (room_height, room_width) = jax.jit(exported.call), exported.in_avals[0].shape[1:3]

    def predict(images: np.ndarray) -> dict[str, jax.Array]:
        batch, height, width, _ = images.shape
        padded = np.pad(images, ((0, 0), (0, room_height - height), (0, room_width - width), (0, 0)))
        outputs = call(padded, np.full((batch, 2), (height, width), np.int32))
        return {name: values[:, :height, :width] for name, values in outputs.items()}

    return predict

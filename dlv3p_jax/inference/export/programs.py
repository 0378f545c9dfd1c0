"""The network from uint8 pictures to labels, as one JAX program for any number of pictures on any platform."""

import functools

import jax
import jax.numpy as jnp

from dlv3p_jax.data import colors
from dlv3p_jax.runtime import sharding

PLATFORMS = ("cpu", "cuda", "tpu")


def predict(model, variables, images: jax.Array, sizes: jax.Array | None = None) -> dict[str, jax.Array]:
    """Labels and logits, in the forms that each platform is fast with; which one is decided where the program runs.

    The forms of the network's operations (`models.ops`) are chosen while it is traced, for the platform that it is
    traced for. So it is traced once for each, and all of these programs share one copy of the weights.

    Args:
        model, variables: a network and its weights.
        images: uint8 `[B, H, W, 3]`, RGB. B may be a symbolic dimension, H and W have to be numbers.
        sizes: integers `[B, 2]`, 1 at least: the (height, width) that each picture fills from the top left; None: all.

    Returns:
        `labels`, uint8 `[B, H, W]`, and `logits`, float32 `[B, H, W, num_classes]`; within its size, those of each
        picture alone.
    """
    programs = {platform: functools.partial(predict_on, platform, model) for platform in PLATFORMS}
    return jax.lax.platform_dependent(variables, images, sizes, **programs)


def predict_on(platform: str, model, variables, images: jax.Array, sizes=None) -> dict[str, jax.Array]:
    """The same, in the forms of one platform wherever it runs."""
    device = jax.sharding.AbstractDevice(device_kind=platform, num_cores=None, platform=platform)
    mesh = sharding.make_mesh(1, 1).abstract_mesh.update(abstract_device=device)

    def predict_one(image, size):
        own = None if size is None else size[None]
        logits = model.apply(variables, colors.normalize(image[None]), train=False, sizes=own)[0]
        return {"labels": jnp.argmax(logits, -1).astype(jnp.uint8), "logits": logits}

    with jax.sharding.use_abstract_mesh(mesh):
        # Picture by picture, because forms also depend on how many pictures there are, which is not known here.
        return jax.vmap(predict_one)(images, sizes)

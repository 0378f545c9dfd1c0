"""Pictures of several sizes in one padded batch: the logits of each are those of the picture alone."""

import dataclasses
import functools
import types

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlv3p_jax.models import tiles
from dlv3p_jax.models.tiles import Tiled
from dlv3p_jax.runtime import sharding

ROOM = (64, 96)
SIZES = [(1, 1), (1, 70), (17, 31), (63, 65), (64, 96)]


def of_mmseg(model):
    """The same with what MMSegmentation's networks have otherwise."""
    backbone = dataclasses.replace(
        *(model.backbone,), stem="plain", avg_down=False, contract_dilation=True, bottleneck=True, parent=None
    )
    aspp = dataclasses.replace(model.aspp, projection_size=3, depthwise_relu=True, use_bias=False, parent=None)
    decoder = dataclasses.replace(model.decoder, depthwise_relu=True, use_bias=False, parent=None)
    return type(model)(backbone, aspp, decoder, mean=(120.0, 110.0, 100.0), std=(60.0, 55.0, 50.0))


def draw_variables(model):
    """With normalisations that make something of nothing, as trained ones do."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: leaf + rng.uniform(0.1, 0.5, leaf.shape) if leaf.ndim == 1 else np.float64(leaf),
        drawn.draw_variables_of(model),
    )


NETWORKS = {
    "stride 8": drawn.make_network(dtype=jnp.float64),
    "stride 16, corners": drawn.make_network(output_stride=16, rates=(1, 3), align_corners=True, dtype=jnp.float64),
    "as MMSegmentation's": of_mmseg(drawn.make_network(dtype=jnp.float64)),
}


@pytest.mark.parametrize("name", [*NETWORKS, "in strips"])
def test_each_picture_is_seen_as_if_alone(name, in_float64, monkeypatch):
    model = NETWORKS[name.replace("in strips", "stride 8")]
    if name == "in strips":
        like_a_tpu = types.SimpleNamespace(**vars(sharding) | {"platform": lambda: "tpu"})
        monkeypatch.setattr("dlv3p_jax.models.tiles.sharding", like_a_tpu)  # all else in the forms of a CPU
        assert tiles.split(Tiled(jnp.zeros((2, *ROOM, 3))), 8).strips > 1
    sizes = SIZES if name == "stride 8" else SIZES[2:4]
    variables, rng = draw_variables(model), np.random.default_rng(0)
    images = rng.normal(size=(len(sizes), *ROOM, 3))  # noise beyond the pictures, too
    apply = jax.jit(lambda variables, images, sizes: model.apply(variables, images, train=False, sizes=sizes))
    found = apply(variables, images, np.array(sizes))
    for image, logits, (height, width) in zip(images, found, sizes, strict=True):
        expected = apply(variables, image[None, :height, :width], None)[0]
        np.testing.assert_allclose(logits[:height, :width], expected, rtol=1e-9, atol=1e-9 * np.std(expected))


def test_devices_may_share_rows_of_such_pictures():
    model = drawn.make_network()
    variables = jax.tree.map(np.float32, draw_variables(model))
    images = np.random.default_rng(0).normal(size=(4, *ROOM, 3)).astype(np.float32)
    sizes = np.array(SIZES[1:], np.int32)
    mesh = sharding.make_mesh(2, 2)

    def predict(variables, images, sizes):
        return model.apply(variables, images, train=False, sizes=sizes)

    shardings = sharding.replicated(mesh), sharding.batched(mesh), sharding.per_picture(mesh)
    jit = functools.partial(sharding.jit, mesh, predict)
    found = jit(in_shardings=shardings, out_shardings=shardings[1])(variables, images, sizes)
    expected = jax.jit(predict)(variables, images, sizes)
    for logits, alone, (height, width) in zip(np.asarray(found), expected, sizes, strict=True):
        error = np.abs(logits - alone)[:height, :width].max()
        assert error <= 1e-4 * np.std(alone[:height, :width])

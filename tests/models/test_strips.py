"""Convolutions on strips of rows, as TPUs run them: the same function, of the same parameters, as on whole pictures."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

from dlv3p_jax.models import ops
from dlv3p_jax.models.deeplabv3plus import DeepLabV3Plus
from dlv3p_jax.models.strips import count_strips, from_strips, to_strips
from dlv3p_jax.runtime import sharding


def integers(*shape):
    """Small ones, of which sums are exact."""
    return jnp.asarray(np.random.default_rng(0).integers(-3, 4, shape), jnp.float32)


def test_strips_are_neighbouring_rows():
    x = integers(2, 12, 5, 3)
    np.testing.assert_array_equal(to_strips(x, 3), [picture[i : i + 4] for picture in x for i in (0, 4, 8)])
    np.testing.assert_array_equal(from_strips(to_strips(x, 3), 3), x)


@pytest.mark.parametrize("strips", [2, 3, 6])
@pytest.mark.parametrize(
    "operation",
    [
        lambda x, **strips: ops.conv3x3(x, integers(3, 3, 4, 5), **strips),
        lambda x, **strips: ops.conv3x3(x, integers(3, 3, 4, 5), stride=2, **strips),
        lambda x, **strips: ops.depthwise_conv3x3(x, integers(3, 3, 1, 4), **strips),
        lambda x, **strips: ops.max_pool3x3(x - 9, **strips),
    ],
    ids=["conv", "strided", "depthwise", "max_pool"],
)
def test_operations_see_the_strips_above_and_below(operation, strips):
    x = integers(2, 12, 7, 4)
    np.testing.assert_array_equal(from_strips(operation(to_strips(x, strips), strips=strips), strips), operation(x))


@pytest.mark.parametrize(
    ("batch_size", "height", "stride", "strips"),
    [(1, 512, 8, 16), (2, 512, 8, 8), (3, 512, 8, 16), (16, 512, 8, 1), (1, 320, 8, 8), (1, 769, 8, 1), (2, 6, 1, 2)],
)
def test_strips_fill_sixteen_sublanes_and_keep_whole_rows_through_all_strides(
    batch_size, height, stride, strips, monkeypatch
):
    x = jax.ShapeDtypeStruct((batch_size, height, 8, 3), jnp.float32)
    x = jnp.broadcast_to(jnp.float32(0), x.shape)
    assert count_strips(x, stride) == 1  # on this CPU
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    assert count_strips(x, stride) == strips


@pytest.mark.parametrize(("mesh", "strips"), [((8, 1), 8), ((2, 1), 2), ((1, 2), 1)])
def test_the_batch_of_a_device_counts(mesh, strips, monkeypatch):
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    mesh, seen = sharding.make_mesh(*mesh), []
    batched = sharding.batched(mesh)
    sharding.jit(mesh, lambda x: seen.append(count_strips(x, 8)), batched, None).lower(jnp.zeros((16, 512, 8, 3)))
    assert seen == [strips]


@pytest.fixture
def in_float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def test_logits_gradients_and_statistics_are_those_of_whole_pictures(monkeypatch, in_float64):
    model = DeepLabV3Plus(
        num_classes=3,
        blocks=(1, 1, 1, 1),
        bottleneck=False,
        output_stride=16,
        multi_grid=(2,),
        aspp_channels=8,
        aspp_rates=(1, 12, 24, 36),
        dropout=0.0,
        align_corners=False,
        dtype=jnp.float64,
    )
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 32, 3)))
    variables = quick.jit(lambda: model.init(jax.random.key(0), images, train=False))()
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables)

    def run(images):
        def loss(params):
            logits, updates = model.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])
            return (logits**2).mean(), (logits, updates)

        return jax.grad(loss, has_aux=True)(variables["params"])

    expected = quick.jit(run)(images)
    split = []
    # Strips as on a TPU, all else in the forms that a CPU is quick with.
    like_a_tpu = types.SimpleNamespace(platform=lambda: "tpu", num_row_shards=lambda: 1, num_picture_shards=lambda: 1)
    monkeypatch.setattr("dlv3p_jax.models.strips.sharding", like_a_tpu)
    monkeypatch.setattr(
        "dlv3p_jax.models.ops.add_neighbours",
        lambda x, strips, add=ops.add_neighbours, **options: split.append(strips) or add(x, strips, **options),
    )
    found = quick.jit(lambda images: run(images))(images)
    assert split == 10 * [4] + 2 * [8]  # stem, pooling and three stages; the decoder, of more rows
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, expected)

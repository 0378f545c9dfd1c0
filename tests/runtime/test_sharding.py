"""Mesh layouts and placement on eight virtual devices."""

import jax
import numpy as np
import pytest

from dlv3p_jax.runtime import sharding


@pytest.mark.parametrize(
    ("data", "space", "shape"),
    [(-1, 1, (8, 1)), (-1, 2, (4, 2)), (-1, 8, (1, 8)), (2, 4, (2, 4)), (1, 1, (1, 1)), (2, 2, (2, 2))],
)
def test_layouts(data, space, shape):
    mesh = sharding.make_mesh(data, space)
    assert mesh.axis_names == ("data", "space") and mesh.devices.shape == shape
    used = list(mesh.devices.flat)
    assert used == jax.devices()[: len(used)]  # `space` neighbours are neighbours among the devices


def test_a_mesh_of_given_devices():
    devices = jax.devices()[2:5]
    assert list(sharding.make_mesh(devices=devices).devices.flat) == devices


@pytest.mark.parametrize(
    ("data", "space", "message"),
    [
        (0, 1, "mesh.data=0 and mesh.space=1: give counts"),
        (-2, 1, "mesh.data=-2"),
        (-1, 0, "mesh.space=0: give counts"),
        (-1, 3, "mesh.space=3 does not divide the 8 devices"),
        (9, 1, "mesh.data=9 x mesh.space=1 asks for 9 devices, but 8 are here"),
        (4, 4, "asks for 16 devices, but 8 are here"),
    ],
)
def test_layouts_that_the_devices_do_not_have(data, space, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(data, space)


def test_several_processes_must_use_all_their_devices(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert sharding.make_mesh(4, 2).size == 8
    with pytest.raises(ValueError, match="mesh.data=2 x mesh.space=2 must use all 8 devices"):
        sharding.make_mesh(2, 2)


def test_batches_that_cannot_be_split_are_refused_with_what_to_do():
    mesh = sharding.make_mesh(4, 2)
    sharding.check_batch(mesh, 8, 34, "config.batch_size")
    with pytest.raises(ValueError, match=r"config.batch_size=6 does not divide over mesh.data=4 .* a multiple of 4"):
        sharding.check_batch(mesh, 6, 34, "config.batch_size")
    with pytest.raises(ValueError, match="a picture height of 33 does not divide over mesh.space=2"):
        sharding.check_batch(mesh, 8, 33, "config.eval.batch_size")


def test_each_device_holds_its_rows_of_the_batch_and_of_the_pictures():
    mesh = sharding.make_mesh(4, 2)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 6, 5, 3), dtype=np.uint8),
        "label": rng.integers(0, 256, (8, 6, 5), dtype=np.uint8),
    }
    arrays = sharding.put_batch(mesh, batch)
    for name, array in arrays.items():
        assert array.dtype == np.uint8 and array.sharding == sharding.batched(mesh)
        np.testing.assert_array_equal(array, batch[name])
        for shard in array.addressable_shards:
            row, column = np.argwhere(mesh.devices == shard.device)[0]
            part = batch[name][2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
            np.testing.assert_array_equal(shard.data, part)


def test_replicated_arrays_are_whole_on_every_device():
    mesh = sharding.make_mesh(4, 2)
    value = np.arange(6.0).reshape(2, 3)
    array = jax.device_put(value, sharding.replicated(mesh))
    assert len(array.addressable_shards) == 8
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(shard.data, value)


@pytest.mark.parametrize(
    ("name", "platform", "expected"),
    [
        ("auto", None, "float32"),
        ("auto", "gpu", "bfloat16"),
        ("auto", "tpu", "bfloat16"),
        ("float32", "tpu", "float32"),
    ],
)
def test_auto_is_bfloat16_where_there_are_units_for_it(name, platform, expected):
    assert sharding.dtype(name, platform) == expected


def test_the_mesh_in_words():
    assert sharding.describe(sharding.make_mesh(4, 2)) == "8 x cpu (mesh: data=4, space=2)"

"""The curves of growth, of a network of two convolutions."""

import pytest
import tiny
from PIL import Image

from benchmarks import growth
from dlv3p_jax import models
from dlv3p_jax.configs import common


def test_every_curve_is_measured_and_drawn(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "build_model", tiny.build_model)
    for name in ("DEVICES", "SIDES", "BATCHES"):
        monkeypatch.setattr(growth, name, (1, 2))
    monkeypatch.setattr(growth, "VIEWS", {1: ((1.0,), False), 2: ((1.0,), True)})
    pixels, batch, devices, views = (curves := growth.measure(common.get_config(), (32, 64), repeats=1)).values()
    assert [point["x"] for point in pixels] == [32 * 64, 4 * 32 * 64]
    assert [point["x"] for point in batch] == [point["x"] for point in devices] == [1, 2]
    assert [point["x"] for point in views] == [1, 2]
    # Parameters and counts apart, memory is in proportion to what a device holds.
    assert pixels[1]["bytes"] == pytest.approx(4 * pixels[0]["bytes"], rel=0.1)
    assert batch[1]["bytes"] == pytest.approx(2 * batch[0]["bytes"], rel=0.1)
    assert devices[1]["bytes"] == pytest.approx(devices[0]["bytes"] / 2, rel=0.2)
    assert all(point["seconds"] > 0 for curve in curves.values() for point in curve)

    growth.draw(curves, tmp_path / "growth.png")
    with Image.open(tmp_path / "growth.png") as picture:
        assert picture.size == (1600, 600)
        assert len(set(picture.convert("L").getdata())) > 10

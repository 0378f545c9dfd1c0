"""The benchmark command at tiny sizes: what it reports, without TensorFlow, and what it answers to mistakes."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dlv3p_jax import models
from dlv3p_jax.configs import common
from dlv3p_jax.performance import measured, straightforward, timing, workloads
from dlv3p_jax.runtime import sharding

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
TINY = {
    "model.backbone": "resnet18_vd",
    "model.multi_grid": (1, 1),
    "model.aspp_rates": (1, 2),
    "model.aspp_channels": 8,
    "crop_size": (32, 32),
    "batch_size": 2,
    "eval.batch_size": 2,
    "mesh.data": 1,
}
WITHOUT_TENSORFLOW = """
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "tensorflow_datasets", "clu", "array_record"):
            raise ImportError(f"{name} is absent")

sys.meta_path.insert(0, Absent())
runpy.run_module("dlv3p_jax.benchmark", run_name="__main__")
"""


def make_config(**changes):
    config = common.get_config()
    config.update_from_flattened_dict(TINY | changes)
    return config


def run(*arguments):
    keys = [f"--config.{key}={value}" for key, value in TINY.items()]
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, "--config=configs/common.py", *keys, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def test_predict_without_tensorflow(tmp_path):
    result = run("--kind=predict", "--size=32,64", "--repeats=2", f"--json={tmp_path / 'new' / 'report.json'}")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "new" / "report.json").read_text())
    assert (report["kind"], report["num_classes"], report["devices"]["count"]) == ("predict", 19, 1)
    (program,) = report["programs"]
    assert (program["batch_size"], program["size"], program["dtype"]) == (2, [32, 64], "float32")
    seconds = program["seconds"]
    assert seconds["repeats"] == 2 and 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
    assert seconds["spread"] == pytest.approx((seconds["max"] - seconds["min"]) / seconds["median"])
    assert program["pictures_per_second"] == pytest.approx(2 / seconds["median"])
    assert program["pictures_per_second_per_device"] == program["pictures_per_second"]
    rate = 2 * program["teraflop_per_picture"] / seconds["median"]
    assert program["teraflops_per_second"] == pytest.approx(rate)
    assert program["share_of_product"] == pytest.approx(rate / report["product"]["teraflops_per_second"])
    assert program["memory"]["source"] == "compiler"  # a CPU does not tell what it uses
    assert program["memory"]["bytes"] > 4 * 2 * 32 * 64 * (3 + 19)
    compiling = program["compile"]
    assert compiling["cached_over_cold"] == pytest.approx(compiling["cached_seconds"] / compiling["cold_seconds"])
    table = result.stdout.splitlines()
    assert table[1].split()[:2] == ["program", "pictures/s"] and table[2].split()[0] == "predict"


def test_train_and_evaluate(monkeypatch):
    monkeypatch.setattr(models, "build_model", tiny.build_model)
    monkeypatch.setattr(straightforward, "build", tiny.build_model)
    report = measured.report("train", make_config(**{"mesh.data": 2, "model.dtype": "bfloat16"}), (1, 1), 1, False)
    (train,) = report["programs"]
    assert report["devices"]["mesh"] == {"data": 2, "space": 1} and train["size"] == [32, 32]
    assert train["pictures_per_second_per_device"] == pytest.approx(train["pictures_per_second"] / 2)
    assert report["product"]["dtype"] == train["dtype"] == "bfloat16" and "seconds" in train["compile"]
    assert report["start_to_first_call_seconds"] > 0

    report = measured.report("evaluate", make_config(**{"eval.scales": (1.0, 0.5)}), (32, 48), 1, False)
    names = ["predict at 0.5", "predict", "evaluate plain", "evaluate flip", "evaluate flip + scales"]
    assert [program["name"] for program in report["programs"]] == names
    half, forward, plain, flip, scales = (program["teraflop_per_picture"] for program in report["programs"])
    assert (plain, flip) == (forward, 2 * forward)
    assert scales == pytest.approx(2 * (forward + half)) and 2 * half < forward < train["teraflop_per_picture"]
    assert len(report["ratios"]) == 3
    assert "flip + scales over its forward passes" in measured.to_text(report)


def test_windows_count_as_often_as_the_network_looks():
    config = workloads.prepare(make_config(**{"eval.window": (32, 32), "eval.stride": (16, 32)}))
    mesh, variables = sharding.make_mesh(1), workloads.init_variables(config)
    views = workloads.evaluate_views(config, mesh, variables, (64, 64), "windows", (1.0,), False)
    at_once = workloads.predict(config, mesh, variables, (32, 32))
    assert views.count_operations() == 3 * 2 * at_once.count_operations()


def test_operations_of_a_product_and_of_a_dilated_convolution():
    matrix = jax.ShapeDtypeStruct((8, 16), jnp.float32)
    assert timing.count_operations(lambda a: a @ a.T, matrix) == 2 * 8 * 16 * 8

    def convolution(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), ((4, 4), (4, 4)), rhs_dilation=(4, 4), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    shapes = jax.ShapeDtypeStruct((2, 6, 5, 3), jnp.float32), jax.ShapeDtypeStruct((3, 3, 3, 7), jnp.float32)
    seen = (2 + 6 + 2) * (1 + 5 + 1)  # rows times columns that the three taps see of a picture of 6x5
    assert timing.count_operations(convolution, *shapes) == 2 * 2 * 3 * 7 * seen


def test_spread_and_share_of_others():
    assert timing.spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "spread": 1.0, "repeats": 3}
    assert timing.share_of_others((10.0, 100.0), (18.0, 120.0), own_seconds=3.0) == pytest.approx(5 / 20)
    assert timing.share_of_others(None, (18.0, 120.0), 3.0) is None


def test_made_batches_are_the_same_every_time():
    config = workloads.prepare(make_config())
    batch = workloads.made_batch(config, 2, (32, 32))
    again = workloads.made_batch(config, 2, (32, 32), np.float32)
    np.testing.assert_array_equal(batch["label"], again["label"])
    np.testing.assert_allclose((again["image"] + 1) * 127.5, batch["image"], atol=1e-4)
    assert set(np.unique(batch["label"])) <= {*range(19), 255} and 255 in batch["label"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind=input"], "benchmark: --kind=input needs TensorFlow"),
        (["--size=32,32"], "--size=32,32: --kind=train takes crops of --config.crop_size"),
    ],
)
def test_mistakes_end_in_a_message(arguments, message):
    result = run(*arguments)
    assert result.returncode == 1
    assert message in result.stdout + result.stderr and "Traceback" not in result.stderr

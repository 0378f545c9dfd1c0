"""Planning for a TPU slice: what is compiled, for devices that are here, and what is made of what a compiler says."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny

from dlv3p_jax import models
from dlv3p_jax.configs import cityscapes_r50, common, voc_r50
from dlv3p_jax.data import colors
from dlv3p_jax.performance import (
    compile_child,
    compile_process,
    plan_text,
    planned,
    straightforward,
    tpu,
    workloads,
)
from dlv3p_jax.runtime import sharding

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
V5E = tpu.find("v5e-8")
GIB = 2**30
SMALL = {
    "model.backbone": "resnet18_vd",
    "model.multi_grid": (1, 1),
    "model.aspp_rates": (1, 2),
    "model.aspp_channels": 8,
    "model.dtype": "bfloat16",
    "crop_size": (64, 64),
    "num_classes": 3,
}
# A command whose JAX cannot be imported.
WITHOUT_JAX = """
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jax", "flax", "tensorflow"):
            raise ImportError(f"{name} is absent")

sys.meta_path.insert(0, Absent())
runpy.run_module("dlv3p_jax.plan", run_name="__main__")
"""


def make_config(get_config=cityscapes_r50.get_config, **changes):
    config = get_config()
    config.update_from_flattened_dict(changes)
    return config


def made_program(config, views, fits=True):
    """What a compiler might say: the memory of a chip grows by 1 GiB with each picture of the batch."""
    pictures = config.batch_size if views is None else config.eval.batch_size
    result = {"pictures": pictures, "size": [512, 1024], "model_flops": pictures * 2e12, "compile_seconds": 1.0}
    if not fits:
        return result | {"fits": False, "needed_bytes": (1 + pictures) * GIB, "message": "RESOURCE_EXHAUSTED"}
    return result | {
        "fits": True,
        "memory": {"parameters": GIB, "temporary": pictures * GIB},
        "flops": pictures * 1.97e12 / 8,
        "moved_bytes": 8.19e9,
        "collectives": [{"kind": "all-reduce", "count": 2, "bytes": 10**8, "sent_bytes": 2e8}],
        "turns": 1,
    }


@pytest.fixture
def compiled(monkeypatch):
    """Puts `made_program` in place of the compiler, of chips that hold `usable` pictures; lists what was compiled."""
    calls = []

    def use(usable=14):
        def compile_for(config, piece, name, views, size, effort, remark=""):
            calls.append((name, config.batch_size, config.mesh.data, config.mesh.space))
            program = made_program(config, views, fits=views is not None or config.batch_size <= usable)
            return {"name": name} | program

        monkeypatch.setattr(compile_process, "compile_for", compile_for)
        monkeypatch.setattr(planned.importlib.metadata, "version", lambda name: "1.2.3")
        return calls

    return use


def test_roofline():
    # Worked by hand: 1.97e12 of 197e12 a second; 8.19e9 of 819e9; 1e9 of two links of 50e9.
    bfloat16 = tpu.estimate(1.97e12, 8.19e9, 1e9, V5E, "bfloat16")
    assert bfloat16 == pytest.approx((0.010, 0.010, 0.010, 0.020))
    assert tpu.estimate(1.97e12, 8.19e9, 1e9, V5E, "float32") == pytest.approx((0.060, 0.010, 0.010, 0.070))
    assert tpu.estimate(1e12, 1e9, 0, tpu.find("v5e-1"), "bfloat16").exchange == 0


def test_the_largest_batch_is_on_the_line_through_two():
    assert planned.largest_batch_of([(8, 3 * GIB), (16, 5 * GIB)], 8, 16 * GIB) == 56  # 60 fit, in eights
    assert planned.largest_batch_of([(8, 20 * GIB), (4, 12 * GIB)], 4, 16 * GIB) == 4
    assert planned.largest_batch_of([(8, 20 * GIB), (4, 19 * GIB)], 4, 16 * GIB) == 0
    assert planned.largest_batch_of([(8, 20 * GIB), (4, None)], 4, 16 * GIB) is None
    assert planned.largest_batch_of([(8, GIB), (16, GIB)], 4, 16 * GIB) is None


def test_a_report(compiled):
    calls = compiled()
    config = make_config(**{"model.dtype": "bfloat16"})
    report = planned.report(config, V5E, (1024, 2048), "low", price_per_chip_hour=1.5)
    assert calls == [("train", 8, -1, 1), ("train", 16, -1, 1), ("evaluate plain", 8, -1, 1)]
    train, evaluation = report["programs"]
    # 8 pictures: 1.97 TFLOP and 8.19 GB a chip are 10 ms each; 0.2 GB over 100 GB/s are 2 ms.
    assert train["estimate"] == pytest.approx({"compute": 0.01, "memory": 0.01, "exchange": 0.002, "total": 0.012})
    assert (train["total_bytes"], train["chip_model_flops"]) == (9 * GIB, 2e12)
    # The chip's 15.75 GiB hold 14 pictures and the parameters, which are not a multiple of the 8 chips.
    assert report["largest_batch"]["pictures"] == 8 and report["largest_batch"]["growing_temporary_bytes"] is None
    # 80,000 steps of 12 ms; 40 evaluations of 500 pictures, in 63 batches.
    hours = (80_000 * 0.012 + 40 * 63 * evaluation["estimate"]["total"]) / 3600
    assert report["recipe"]["hours"] == pytest.approx(hours)
    assert report["recipe"]["cost"] == pytest.approx(8 * hours * 1.5)
    assert report["mesh"] == {"data": 8, "space": 1}
    assert json.loads(json.dumps(report)) is not None
    text = plan_text.to_text(report)
    for part in ("v5e-8 (8 chips, v5e:2x4, mesh: data=8, space=1)", "estimate", "low effort", "2 all-reduce of 100 MB"):
        assert part in text
    assert "Largest batch that fits this mesh: 8 pictures (estimate:" in text
    assert text.startswith("FITS: a batch of 8 fits v5e-8; of training, batches of up to 8 do (estimate).\n")
    assert [line for line in text.splitlines() if line.startswith("train ")][0].split()[-1] == "yes"


def test_a_report_of_a_step_that_does_not_fit(compiled):
    calls = compiled(usable=4)
    report = planned.report(make_config(), tpu.find("v4-8"), (1024, 2048), "low", all_views=True)
    assert [call[:2] for call in calls[:2]] == [("train", 8), ("train", 4)]
    assert [call[0] for call in calls[2:]] == ["evaluate plain", "evaluate flip", "evaluate flip + scales"]
    assert report["recipe"] is None
    first, *others = report["warnings"]
    assert first.startswith("train does not fit: it needs 9.00 GiB, and a v4 has 30.75 GiB; take --config.mesh.space=2")
    assert "--config.model.remat=True, --config.accumulate_steps=2, a smaller --config.batch_size" in first
    assert any("--config.model.dtype=bfloat16" in line for line in others)
    text = plan_text.to_text(report)
    assert "NO" in text
    assert text.startswith("DOES NOT FIT: v4-8 has too little memory for train (8 pictures). Training fits with a")


def test_a_mesh_that_takes_no_smaller_batch(compiled):
    calls = compiled(usable=4)
    report = planned.report(make_config(), V5E, (1024, 2048), "low")
    assert [call[:2] for call in calls] == [("train", 8), ("evaluate plain", 8)]
    assert report["largest_batch"]["pictures"] == 0
    text = plan_text.to_text(report)
    assert "No batch fits this mesh: 8 pictures are too many" in text and "Training fits" not in text
    # Neither half of the batch nor its micro-batches would divide over the eight chips.
    assert "accumulate_steps" not in report["warnings"][0] and "smaller" not in report["warnings"][0]


def test_a_step_that_nearly_fills_the_memory_is_told_of(compiled):
    compiled()
    config = make_config(batch_size=13, **{"model.dtype": "bfloat16"})
    programs = [planned.training(config, tpu.find("v5e-1"), (64, 64), "low")["programs"][0]]  # 14 of 15.75 GiB
    (low,) = planned.warnings(config, tpu.find("v5e-1"), programs, "low")
    assert low.startswith("train takes 89% of a chip's memory: check with --effort=full, or take ")
    assert planned.warnings(config, tpu.find("v5e-1"), programs, "full") == []


def test_meshes_are_ranked_by_fit_and_estimate(compiled, monkeypatch):
    compiled()
    estimate = tpu.estimate

    def longer_on_the_first(flops, moved_bytes, sent_bytes, piece, dtype):
        calls.append(dtype)
        return estimate(flops, moved_bytes / len(calls), sent_bytes, piece, dtype)

    calls = []
    monkeypatch.setattr(tpu, "estimate", longer_on_the_first)
    report = planned.compare_meshes(make_config(**{"model.dtype": "bfloat16"}), V5E, (1024, 2048), "low")
    meshes = [tuple(candidate["mesh"].values()) for candidate in report["meshes"]]
    totals = [candidate["programs"][0]["estimate"]["total"] for candidate in report["meshes"]]
    assert sorted(meshes) == [(1, 8), (2, 4), (4, 2), (8, 1)]
    assert totals == sorted(totals) and report["mesh"] == report["meshes"][0]["mesh"]
    text = plan_text.to_text(report)
    best = "data={data} x space={space}".format(**report["mesh"])
    assert text.startswith(f"FITS: a batch of 8 fits 4 of the 4 meshes of v5e-8; the best is {best}.\n")
    assert "1 x 8" in text


def test_sensible_meshes():
    sixteen = lambda config, size: planned.sensible_meshes(config, 16, size)  # noqa: E731
    assert sixteen(make_config(), (1024, 2048)) == [(8, 2), (4, 4), (2, 8)]
    assert sixteen(make_config(voc_r50.get_config), (512, 512)) == [(16, 1), (8, 2), (4, 4), (2, 8)]
    assert sixteen(make_config(batch_size=16, crop_size=(769, 769), **{"eval.batch_size": 16}), (1025, 2049)) == [
        (16, 1)
    ]
    with pytest.raises(ValueError, match="no mesh of 16 chips.* take batches that are multiples of 16"):
        sixteen(make_config(crop_size=(769, 769)), (1025, 2049))


def test_the_evaluated_size_and_where_it_is_from():
    assert planned.evaluated_size(make_config())[0] == (1024, 2048)
    assert planned.evaluated_size(make_config(eval_size=(1025, 2049)))[0] == (1025, 2049)
    assert planned.evaluated_size(make_config(voc_r50.get_config))[0] == (512, 512)
    size, source = planned.evaluated_size(make_config(common.get_config, crop_size=(96, 64)))
    assert size == (96, 64) and "--size" in source


def test_plan_needs_no_tensorflow():
    script = WITHOUT_JAX.replace('("jax", "flax", "tensorflow")', '("tensorflow", "tensorflow_datasets", "clu")')
    script = script.replace(
        'runpy.run_module("dlv3p_jax.plan", run_name="__main__")', "import dlv3p_jax.performance.compile_child"
    )
    script += "import dlv3p_jax.plan, dlv3p_jax.performance.planned, dlv3p_jax.performance.plan_text"
    result = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def two_convolutions(monkeypatch):
    """A network that compiles in a second, in place of the real one, and no distortion of colours."""
    monkeypatch.setattr(colors, "distort", lambda images, rng, **factors: images)
    monkeypatch.setattr(models, "build_model", tiny.build_model)
    monkeypatch.setattr(straightforward, "build", tiny.build_model)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_training_step_compiled_for_devices(two_convolutions, parts):
    config = make_config(batch_size=16, accumulate_steps=parts, num_classes=3, crop_size=(32, 32))
    program = compile_child.compile_program(config, sharding.make_mesh(8), None, (32, 32))
    kernels = 3 * 3 * 3 * 4 + 4 * 3  # with biases of 4 and 3, and scales and biases of BatchNorm
    parameters = 4 * (kernels + 4 + 3 + 2 * 4)
    memory = program["memory"]
    assert (program["fits"], program["pictures"], program["turns"]) == (True, 16, parts)
    assert (memory["parameters"], memory["batch_statistics"], memory["moving_average"]) == (parameters, 4 * 8, 0)
    assert parameters <= memory["optimizer"] <= parameters + 8  # a momentum of each, and a counter
    assert memory["pictures"] == 2 * 32 * 32 * 4  # two pictures a device, of three channels and a label
    # The straightforward model's operations, of all devices, and what one of them computes.
    assert program["model_flops"] / 8 == pytest.approx(program["flops"], rel=0.2)
    reduced = sum(item["bytes"] for item in program["collectives"] if item["kind"] == "all-reduce")
    assert reduced >= parameters  # the gradients at least


def test_an_evaluation_with_flip_runs_its_loop_twice(two_convolutions):
    config = make_config(num_classes=3, **{"eval.batch_size": 8})
    mesh, size = sharding.make_mesh(8), (64, 64)
    plain = compile_child.compile_program(config, mesh, {"scales": (1.0,), "flip": False}, size)
    flip = compile_child.compile_program(config, mesh, {"scales": (1.0,), "flip": True}, size)
    assert (plain["turns"], flip["turns"]) == (1, 2)
    assert flip["model_flops"] == 2 * plain["model_flops"]
    assert 1.5 < flip["flops"] / plain["flops"] < 2.5
    assert set(plain["memory"]) & {"optimizer", "moving_average"} == set()


def test_a_batch_that_does_not_divide():
    config = make_config(num_classes=3, batch_size=6)
    with pytest.raises(ValueError, match="config.batch_size=6 does not divide over mesh.data=8"):
        compile_child.compile_program(config, sharding.make_mesh(8), None, (64, 64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"accumulate_steps": 2},
            r"\(config.batch_size / config.accumulate_steps\)=4 does not divide over mesh.data=8",
        ),
        ({"eval.batch_size": 4}, "config.eval.batch_size=4 does not divide over mesh.data=8"),
    ],
)
def test_batches_that_do_not_divide_are_told_before_anything_is_compiled(changes, message, monkeypatch):
    monkeypatch.setattr(planned.compile_process, "compile_for", lambda *_: pytest.fail("compiles"))
    with pytest.raises(ValueError, match=message):
        planned.report(make_config(num_classes=3, batch_size=8, **changes), tpu.find("v5e-8"), (64, 64), "low")


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        ("Ran out of memory on HBM, the total memory required for HLO temporaries (456.00G) exceeds available", 456),
        ("Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm. Exceeded hbm capacity by 4.75G.", 20.5),
        ("Something else", None),
    ],
)
def test_what_a_program_that_is_too_large_needs(message, gib):
    assert compile_child.needed_bytes(message) == (None if gib is None else gib * GIB)


def test_a_missing_compiler(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="libtpu"):
        compile_process.require_compiler()


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """Puts a shell script in place of the process that compiles; gives a function that calls it."""
    monkeypatch.setattr(compile_process, "require_compiler", lambda: None)

    def call(script):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(path))
        return compile_process.compile_for(make_config(), V5E, "train", None, (64, 64), "low")

    return call


def test_what_the_compiler_is_asked_and_answers(compiler, capfd, tmp_path):
    script = f"""cp "$3" {tmp_path}/request; echo "$JAX_PLATFORMS $JAX_EXEC_TIME_OPTIMIZATION_EFFORT" > {tmp_path}/set
        echo '{{"fits": true}}' > "$4" """
    result = compiler(script)
    assert (result["name"], result["fits"]) == ("train", True) and result["compile_seconds"] > 0
    request = json.loads((tmp_path / "request").read_text())
    assert (request["slice"], request["views"], request["size"]) == ("v5e:2x4", None, [64, 64])
    assert (tmp_path / "set").read_text() == "cpu -1.0\n"
    assert "compiling train for v5e-8: 0 s" in capfd.readouterr().err


def test_a_compiler_that_refuses_or_dies(compiler):
    with pytest.raises(ValueError, match="^mesh.space=3 does not divide$"):
        compiler("""echo '{"error": "mesh.space=3 does not divide"}' > "$4" """)
    with pytest.raises(RuntimeError, match="(?s)ended with code 7 while it compiled train:.*out of luck"):
        compiler("echo out of luck >&2; exit 7")


def test_an_interrupt_ends_the_compiler(compiler, monkeypatch, tmp_path):
    def interrupt(process, what):
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        processes.append(process)
        raise KeyboardInterrupt

    processes = []
    monkeypatch.setattr(compile_process, "_wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compiler(f"touch {tmp_path}/started; exec sleep 60")
    assert processes[0].returncode == -9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/common.py"], "give --topology="),
        (["--config=configs/common.py", "--topology=v9-8"], "plan: --topology=v9-8 is no slice that is known here"),
        (["--config=configs/common.py", "--topology=v5e-8", "--effort=none"], "should be one of <low|full>"),
    ],
)
def test_wrong_flags_are_answered_without_jax(arguments, message):
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_JAX, *arguments], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == 1 and message in result.stdout + result.stderr and "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install '.[plan]'")
@pytest.mark.parametrize("name", ["v5e-8", "v4-8"])
def test_with_googles_compiler(name):
    """A step and an evaluation of a small network, two minutes each: python -m pytest -m slow tests/test_plan.py."""
    piece = tpu.find(name)
    config = make_config(**SMALL)
    report = planned.report(config, piece, (64, 128), "low", largest_batch=False)
    train, evaluation = report["programs"]
    shapes = workloads.variable_shapes(config)
    parameters = sum(4 * np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    assert train["fits"] and train["memory"]["parameters"] == parameters and train["memory"]["temporary"] > 0
    assert train["flops"] == pytest.approx(train["chip_model_flops"], rel=0.25)
    reduced = sum(item["bytes"] for item in train["collectives"] if item["kind"] == "all-reduce")
    assert parameters / 2 <= reduced <= 1.5 * parameters  # the gradients, in bfloat16 or float32, and statistics
    assert evaluation["fits"] and evaluation["memory"]["temporary"] > 0
    assert report["mesh"] == {"data": piece.num_chips, "space": 1}
    assert os.environ["JAX_PLATFORMS"] == "cpu"

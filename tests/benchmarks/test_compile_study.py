"""What is read out of compiled programs, and the study itself, compiled for this CPU."""

import tiny

from benchmarks import compile_study
from dlv3p_jax import models
from dlv3p_jax.configs import common
from dlv3p_jax.performance import straightforward
from dlv3p_jax.runtime import sharding

TPU = """
HloModule step, num_partitions=2

ENTRY %main (x: f32[4]) -> f32[4] {
  %a = f32[4]{0} fusion(%x), kind=kLoop, backend_config={"estimated_cycles":"1500000"}
  %r = f32[1024,1024]{1,0} all-reduce(%a), replica_groups={{0,1}}, backend_config={"estimated_cycles":"500000"}
}
"""
GPU = """
  %a = (bf16[64,3,3,64]{3,2,1,0}, u8[0]{0}) custom-call(%x, %y), window={size=64x128}, target="__cudnn$convForward"
  %b = (bf16[2,8,8,64]{3,2,1,0}, u8[0]{0}) custom-call(%x, %y), window={size=3x3}, target="__cudnn$convForward"
  %c = (bf16[2,8,8,64]{3,2,1,0}, u8[0]{0}) custom-call(%x, %y), target="__cudnn$convBackwardInput"
  %wrapped_transpose.4 = bf16[512,1024]{1,0} fusion(%c), kind=kInput
  %loop_add_fusion = bf16[512,1024]{1,0} fusion(%c), kind=kLoop
"""


def test_cycles_and_exchanges_are_added_up():
    assert compile_study.read_tpu(TPU) == {"million cycles": 2.0, "all-reduce MiB": 4.0}


def test_cycles_belong_to_the_part_that_an_instruction_is_named_after():
    names = (
        "jit(train_step)/transpose(jvp(DeepLabV3Plus))/backbone/jit(core_fn)/stage3_block1/conv/dot_general",
        "jit(train_step)/jvp(DeepLabV3Plus)/backbone/stem_conv1/conv",
        "jit(train_step)/jvp(DeepLabV3Plus)/backbone/stem_conv2/conv",
        "jit(train_step)/jvp(loss)/log",
        "jit(train_step)/distort/add",
        "jit(train_step)/add",
    )
    line = '  %f = f32[4]{{0}} fusion(%x), metadata={{op_name="{}"}}, backend_config={{"estimated_cycles":"1000000"}}'
    assert compile_study.read_parts("\n".join(map(line.format, names))) == {
        "distort, million cycles": 1,
        "loss, forward, million cycles": 1,
        "other, million cycles": 1,
        "stage3, backward, million cycles": 1,
        "stem, forward, million cycles": 2,
    }


def test_windows_as_large_as_pictures_and_transposes_are_found():
    expected = {"convolutions": 3, "picture-sized windows": 1, "transposes MiB": 1.0}
    assert compile_study.read_gpu(GPU) == expected


def test_both_networks_are_compiled_for_the_mesh(monkeypatch):
    monkeypatch.setattr(models, "build_model", tiny.build_model)
    monkeypatch.setattr(models, "build_model", tiny.build_model)
    config = common.get_config()
    config.update_from_flattened_dict({"num_classes": 3, "crop_size": (32, 64), "batch_size": 2, "eval.batch_size": 2})
    monkeypatch.setattr(straightforward, "build", tiny.build_model)
    mesh = sharding.make_mesh(2, 1)
    results = compile_study.study(config, mesh, "train", (32, 64), straight=True)
    assert results["ours"] == results["straightforward"]
    assert results["ours"]["all-reduce MiB"] > 0
    config.eval.flip = True
    (result,) = compile_study.study(config, mesh, "evaluate", (32, 64), straight=True).values()
    assert 1 < result["operations over the model's"] < 3

"""What is read out of compiled programs, against sizes worked out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from dlv3p_jax.performance import hlo
from dlv3p_jax.performance.hlo import Collective


def test_a_program_compiled_for_eight_devices():
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "space"))
    both = PartitionSpec("data", "space")

    def exchange(x):
        def move(_, y):
            return 2 * jax.lax.ppermute(y, "data", [(0, 1), (1, 2), (2, 3)])

        total = jax.lax.psum(x, "data") + jax.lax.fori_loop(0, 3, move, x)
        total += jax.lax.all_to_all(x, "data", 1, 1, tiled=True)
        gathered = jax.lax.all_gather(x, "space", axis=0, tiled=True)
        return total, gathered, jax.lax.psum_scatter(x, "data", scatter_dimension=1, tiled=True)

    program = jax.jit(jax.shard_map(exchange, mesh=mesh, in_specs=both, out_specs=both, check_vma=False))
    text = program.lower(jax.ShapeDtypeStruct((8, 32), jnp.float32)).compile().as_text()
    # Each device holds 2 x 16 numbers: 128 bytes. The loop turns three times.
    assert sorted(hlo.collectives(text)) == [
        Collective("all-gather", 1, 256, 256 / 2),
        Collective("all-reduce", 1, 128, 2 * 128 * 3 / 4),
        Collective("all-to-all", 1, 128, 128 * 3 / 4),
        Collective("collective-permute", 3, 3 * 128, 3 * 128),
        Collective("reduce-scatter", 1, 32, 32 * 3),
    ]


# As libtpu writes it: tiled layouts, several results, groups by the names of a mesh, pairs of start and done, a loop
# whose turns are not known, and calls of other computations.
TPU = """HloModule jit_step, is_scheduled=true, num_partitions=8

%add.clone (x: f32[], y: f32[]) -> f32[] {
  ROOT %add.1 = f32[] add(%x, %y)
}

%called (p: bf16[1024]) -> bf16[1024] {
  ROOT %all-to-all.1 = bf16[1024]{0:T(1024)(128)(2,1)} all-to-all(%p), channel_id=4, replica_groups=[2,4]<=[8], dimensions={0}
}

%body (t: (s32[], f32[64])) -> (s32[], f32[64]) {
  %all-reduce.7 = f32[64]{0:T(128)} all-reduce(%g), channel_id=2, replica_groups={}, to_apply=%add.clone
}

%condition (t: (s32[], f32[64])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main.1_spmd (p0: f32[64]) -> f32[64] {
  %all-reduce.1 = (f32[32]{0:T(128)}, /*index=1*/bf16[1,1,64,32]{3,2,1,0:T(8,128)(2,1)}) all-reduce(%a, %b), channel_id=1, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, use_global_device_ids=true, to_apply=%add.clone
  %get-tuple-element.1 = f32[32]{0:T(128)} get-tuple-element(%all-reduce.1), index=0
  %collective-permute-start.1 = (bf16[100]{0}, bf16[100]{0:S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%c), source_target_pairs={{0,1},{1,2}}
  %collective-permute-done.1 = bf16[100]{0:S(1)} collective-permute-done(%collective-permute-start.1)
  %all-gather-start.1 = ((u8[5]{0}, u8[5]{0}), (u8[40]{0}, u8[40]{0}), u32[], u32[]) all-gather-start(%d), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %all-gather-done.1 = (u8[40]{0}, u8[40]{0}) all-gather-done(%all-gather-start.1)
  %while.1 = (s32[]{:T(128)}, f32[64]{0:T(128)}) while(%tuple), condition=%condition, body=%body
  %async-start = ((bf16[1024]), bf16[1024], s32[]) async-start(%e), calls=%called
}
"""  # noqa: E501


@pytest.mark.parametrize("turns", [1, 5])
def test_a_program_as_libtpu_writes_it(turns):
    first = 32 * 4 + 64 * 32 * 2  # in groups of 4; the loop's is among all 8
    assert {item.kind: dataclasses.astuple(item)[1:] for item in hlo.collectives(TPU, turns)} == {
        "all-reduce": (1 + turns, first + turns * 256, 2 * first * 3 / 4 + turns * 2 * 256 * 7 / 8),
        "all-to-all": (1, 2048, 2048 * 3 / 4),
        "collective-permute": (1, 200, 200),
        "all-gather": (1, 80, 80 * 7 / 8),
    }


def test_axes_of_a_mesh_that_are_taken_in_part():
    text = TPU.replace("mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", "mesh['axis_0'=4,'axis_1'=2] {'axis_0':(1)2,'axis_1'}")
    kinds = {item.kind: item for item in hlo.collectives(text)}
    assert kinds["all-reduce"].sent_bytes == 2 * (128 + 4096) * 3 / 4 + 2 * 256 * 7 / 8  # 2 of 4, times 2


def test_a_program_of_one_device_exchanges_nothing():
    program = jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((8,), jnp.float32)).compile()
    assert hlo.collectives(program.as_text()) == []

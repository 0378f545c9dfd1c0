"""Whether a training step fits, told before it runs."""

import pathlib

import drawn
import jax
import jax.numpy as jnp
import pytest

from dlv3p_jax.runtime import memory, sharding
from dlv3p_jax.runtime.configuration import ConfigError


def program(side: int):
    """A product of two square matrices, compiled and never run."""
    return jax.jit(jnp.matmul).lower(*[jax.ShapeDtypeStruct((side, side), jnp.float32)] * 2).compile()


def test_a_program_is_refused_where_its_arrays_are_larger_than_the_memory(monkeypatch):
    config, mesh = drawn.make_config(), sharding.make_mesh(1, 1)
    side = 64
    arrays = 3 * side * side * 4  # two factors and the product
    monkeypatch.setattr(memory, "limit", lambda _: arrays)
    memory.check_program(config, mesh, program(side))
    monkeypatch.setattr(memory, "limit", lambda _: arrays - 1)
    with pytest.raises(ConfigError, match=r"crop_size=\(32, 32\) with config.batch_size=2: a training step would"):
        memory.check_program(config, mesh, program(side))


def test_the_limit_of_a_container_counts(tmp_path):
    everything = memory.host_limit(tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.host_limit(tmp_path) == everything
    (tmp_path / "memory.max").write_text("1000000\n")
    assert memory.host_limit(tmp_path) == 1_000_000
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("500000\n")
    assert memory.host_limit(tmp_path) == 500_000


@pytest.mark.parametrize(
    ("group", "name"),
    [("0::/slurm/job_7/step_0", "memory.max"), ("12:cpu,memory:/slurm/job_7/step_0", "memory/memory.limit_in_bytes")],
)
def test_the_smallest_limit_on_the_way_up_from_our_group_counts(tmp_path, group, name):
    ours = tmp_path / "cgroup"
    ours.write_text(f"1:name=systemd:/\n{group}\n")
    root, file = (tmp_path / name).parent, pathlib.Path(name).name
    for folder, value in (("", "max"), ("slurm", "max"), ("slurm/job_7", "700000"), ("slurm/job_7/step_0", "900000")):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / file).write_text(f"{value}\n")
    (root / "slurm" / "job_8").mkdir()
    (root / "slurm" / "job_8" / file).write_text("100\n")  # of another job
    assert memory.host_limit(tmp_path, ours) == 700_000
    assert memory.host_limit(tmp_path, tmp_path / "absent") > 700_000


def test_the_memory_of_this_machine_is_shared_by_its_virtual_devices():
    total = memory.limit(sharding.make_mesh(1, 1))
    assert 2**28 < total < 2**45
    assert memory.limit(sharding.make_mesh(4, 2)) == total // 8


def test_what_the_allocators_say_becomes_a_line():
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 80 bytes.\nstack\nof lines")
    line = memory.exhausted(error)
    assert "RESOURCE_EXHAUSTED: Out of memory allocating 80 bytes." in line and "--config.accumulate_steps" in line
    assert "\n" not in line and memory.exhausted(ValueError("RESOURCE_EXHAUSTED")) is None

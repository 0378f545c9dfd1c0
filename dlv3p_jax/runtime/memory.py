"""Whether training fits into the devices' memory, said before the first step; and how much of it is in use."""

import contextlib
import os
import pathlib
import resource

import jax
from jax.sharding import Mesh

from dlv3p_jax.runtime import text
from dlv3p_jax.runtime.configuration import ConfigError

EVALUATION_REMEDIES = "take a smaller --config.eval.batch_size, or --config.eval.window (docs/memory.md)"
REMEDIES = (
    "take smaller crops or batches, a larger --config.accumulate_steps, --config.model.remat=True or "
    "--config.model.dtype=bfloat16 (docs/memory.md)"
)


def limit(mesh: Mesh) -> int | None:
    """The bytes that a device of the mesh may use; None where its runtime does not tell.

    CPU devices, which are several where XLA_FLAGS asks for them, have equal shares of the machine's memory.
    """
    device = mesh.local_devices[0]
    if device.platform == "cpu":
        return host_limit() // len(mesh.local_devices)
    return (device.memory_stats() or {}).get("bytes_limit")


def used(mesh: Mesh) -> int:
    """The most bytes that a device of this process has had in use so far; where they do not tell, that this process."""
    stats = [device.memory_stats() or {} for device in mesh.local_devices]
    if all("peak_bytes_in_use" in stat for stat in stats):
        return max(stat["peak_bytes_in_use"] for stat in stats)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def host_limit(
    cgroups: pathlib.Path = pathlib.Path("/sys/fs/cgroup"), ours: pathlib.Path = pathlib.Path("/proc/self/cgroup")
) -> int:
    """The bytes of the machine, or of the container or job that this process may not outgrow.

    SLURM, systemd and Docker limit a control group some way below the top, so that every group from ours up counts.

    Args:
        cgroups: where Linux shows the limits of control groups, as version 2 or 1 lays them out.
        ours: the file that says in which groups this process is, a line `number:controllers:path` each.
    """
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    groups = [(cgroups, "memory.max", ""), (cgroups / "memory", "memory.limit_in_bytes", "")]
    with contextlib.suppress(OSError, ValueError):
        for line in ours.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                groups.append((cgroups, "memory.max", path))
            elif "memory" in controllers.split(","):
                groups.append((cgroups / "memory", "memory.limit_in_bytes", path))
    for root, name, path in groups:
        group = pathlib.PurePosixPath(path.strip("/"))
        for part in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # there is none, or it is "max"
                found.append(int((root / part / name).read_text(encoding="utf-8")))
    return min(found)


def check_logits(config, mesh: Mesh) -> None:
    """A bound that takes no compiling: the logits of a device's pictures and their gradient, in float32.

    Raises:
        ConfigError: they alone do not fit; the message has the sizes and what to change.
    """
    height, width = config.crop_size
    pixels = config.batch_size // config.accumulate_steps * height * width / mesh.size
    _require(config, mesh, int(2 * 4 * config.num_classes * pixels), "the logits and their gradient alone")


def check_program(config, mesh: Mesh, program: jax.stages.Compiled) -> None:
    """Compares what the compiler says that a training step takes with what there is.

    Raises:
        ConfigError: it does not fit; the message has the sizes and what to change.
    """
    sizes = program.memory_analysis()
    if sizes is None:  # not every backend tells
        return
    parts = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    _require(config, mesh, parts + sizes.temp_size_in_bytes, "a training step")


def exhausted(error: BaseException) -> str | None:
    """What to say of an error of the devices' allocators, which no check could tell before; None if it is another."""
    if not isinstance(error, jax.errors.JaxRuntimeError) or "RESOURCE_EXHAUSTED" not in str(error):
        return None
    remedies = f"in training, {REMEDIES}; in evaluation, {EVALUATION_REMEDIES}"
    return f"the devices' memory is too small ({text.first_line(error)}): {remedies}"


def _require(config, mesh: Mesh, needed: int, what: str) -> None:
    available = limit(mesh)
    if available is None or needed <= available:
        return
    raise ConfigError(
        f"config.crop_size={config.crop_size} with config.batch_size={config.batch_size}: {what} would take "
        f"{needed / 1e9:.1f} GB on a device, which has {available / 1e9:.1f} GB: {REMEDIES}"
    )

"""The device mesh and every PartitionSpec of the program; nobody else names an axis.

The mesh is always there: `data` x `space` devices, 1 x 1 on a laptop. A batch is split over `data` and the height of
its pictures over `space`; parameters, statistics and counts are replicated. All else follows from these shardings.
"""

import functools
import os
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax._src import xla_bridge  # the public part does not tell whether there are devices yet
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

DATA = "data"
SPACE = "space"
_forked_from: list[int] = []  # the process that this one was forked from after JAX had found its devices


def _note_fork() -> None:
    if xla_bridge.backends_are_initialized():
        _forked_from[:] = [os.getppid()]


os.register_at_fork(after_in_child=_note_fork)


def check_process() -> None:
    """Raises ValueError in a process that was forked from one where JAX had its devices: it would wait there for ever.

    JAX's threads are not in the new process.
    """
    if _forked_from:
        raise ValueError(
            f"process {os.getpid()} was forked from process {_forked_from[0]} after JAX was used there, and JAX does "
            "not work in it. Load the model in each process, after the fork (gunicorn without --preload), or start "
            'processes by multiprocessing\'s "spawn" method'
        )


def find_devices() -> list[jax.Device]:
    """All devices of the run.

    Raises:
        ValueError: the platform that JAX_PLATFORMS asks for is not here, or as `check_process`.
    """
    check_process()
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts where the plugin for GPUs is not installed
        wanted = os.environ.get("JAX_PLATFORMS", "")
        reason = " ".join(str(error).partition("(set JAX_PLATFORMS")[0].split())
        raise ValueError(
            f"JAX finds no device of JAX_PLATFORMS={wanted}{reason and f' ({reason})'}: unset it to compute on what is "
            "here; GPUs need pip install '.[gpu]' and a driver (see nvidia-smi), TPUs pip install '.[tpu]'"
        ) from error


def make_mesh(data: int = -1, space: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `data` x `space` devices; `data=-1` takes all that there are.

    Raises:
        ValueError: the devices are not here, or cannot be laid out this way.
    """
    devices = list(find_devices() if devices is None else devices)
    if space < 1 or (data < 1 and data != -1):
        raise ValueError(f"mesh.data={data} and mesh.space={space}: give counts of devices (mesh.data=-1: all of them)")
    if data == -1:
        if len(devices) % space:
            raise ValueError(f"mesh.space={space} does not divide the {len(devices)} devices that are here")
        data = len(devices) // space
    if data * space > len(devices):
        raise ValueError(
            f"mesh.data={data} x mesh.space={space} asks for {data * space} devices, but {len(devices)} are here"
        )
    if data * space < len(devices) and jax.process_count() > 1:
        raise ValueError(f"mesh.data={data} x mesh.space={space} must use all {len(devices)} devices of all processes")
    return Mesh(np.array(devices[: data * space]).reshape(data, space), (DATA, SPACE))


def replicated(mesh: Mesh) -> NamedSharding:
    """For parameters, batch statistics, optimiser state, random keys, scalars and counts."""
    return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
    """For images `[B, H, W, C]` and labels `[B, H, W]`: batch over `data`, height over `space`."""
    return NamedSharding(mesh, PartitionSpec(DATA, SPACE))


def per_picture(mesh: Mesh) -> NamedSharding:
    """For what a batch holds of each picture as a whole, such as sizes `[B, 2]`: batch over `data`."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def jit(mesh: Mesh, function: Callable, in_shardings, out_shardings, **options) -> jax.stages.Wrapped:
    """`jax.jit` for a mesh that `function`, while it is traced, can ask for layouts on (`by_height` and its like)."""

    @functools.wraps(function)
    def on_mesh(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return jax.jit(on_mesh, in_shardings=in_shardings, out_shardings=out_shardings, **options)


def platform() -> str:
    """What a function that `jit` traces is for, such as 'cpu', 'gpu' or 'tpu'; JAX's own backend outside of one.

    Devices that a program is compiled for need not be here, see `plan`.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name == "cuda" else name


def dtype(name: str, platform: str | None = None) -> str:
    """What `config.model.dtype` is on a platform: "auto" is bfloat16 on GPUs and TPUs, and float32 on CPUs.

    Args:
        name: "auto", or a type, which stays.
        platform: such as "cpu"; None: that of the devices here.

    Raises:
        ValueError: as `find_devices`.
    """
    if name != "auto":
        return name
    return "float32" if (platform or find_devices()[0].platform) == "cpu" else "bfloat16"


def num_row_shards() -> int:
    """Over how many devices the rows of a picture lie, in a function that `jit` traces; 1 outside of one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[SPACE]


def num_picture_shards() -> int:
    """Over how many devices the pictures of a batch lie, in a function that `jit` traces; 1 outside of one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[DATA]


def by_height(x: jax.Array) -> jax.Array:
    """Asks for `x` `[B, H, W, C]` as pictures are laid out: batch over `data`, height over `space`.

    This and the three below are for layouts that the compiler does not find by itself. They change nothing but where
    values lie, and do nothing outside of `jit` and where devices hold whole pictures (`space` = 1).
    """
    return _lay_out(x, DATA, SPACE)


def by_columns(x: jax.Array) -> jax.Array:
    """Asks for `x` `[B, H, W, C]` with batch over `data` and width over `space`: each device sees whole columns."""
    return _lay_out(x, DATA, None, SPACE)


def by_channels(x: jax.Array) -> jax.Array:
    """Asks for `x` `[B, H, W, C]` with batch over `data` and channels over `space`: each device sees all pixels."""
    return _lay_out(x, DATA, None, None, SPACE)


def by_pictures(x: jax.Array) -> jax.Array:
    """Asks for `x` `[B, H, W, C]` with batch over all devices: each sees whole pictures. See `are_enough`."""
    return _lay_out(x, (DATA, SPACE))


def are_enough(batch_size: int) -> bool:
    """Whether so many pictures can lie on all devices of the mesh, a whole number on each."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or batch_size % mesh.size == 0


def _lay_out(x: jax.Array, *axes) -> jax.Array:
    return x if num_row_shards() == 1 else jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def replicate(mesh: Mesh, tree):
    """A tree of arrays that every process has alike -> the same on every device, without any communication.

    (`jax.device_put` compares each leaf between the processes.)
    """

    def put(value):
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, replicated(mesh), lambda index: value[index])

    return jax.tree.map(put, tree)


def check_batch(mesh: Mesh | AbstractMesh, batch_size: int, height: int, name: str) -> None:
    """Raises ValueError, naming the key `name`, where such a batch cannot be split over the mesh."""
    if batch_size % mesh.shape[DATA]:
        raise ValueError(
            f"{name}={batch_size} does not divide over mesh.data={mesh.shape[DATA]} devices: "
            f"take a multiple of {mesh.shape[DATA]}, or set --config.mesh.data"
        )
    if height % mesh.shape[SPACE]:
        raise ValueError(f"a picture height of {height} does not divide over mesh.space={mesh.shape[SPACE]} devices")


def check_micro_batch(mesh: Mesh | AbstractMesh, batch_size: int, accumulate_steps: int, height: int) -> None:
    """The same of the micro-batches that a training step makes of `config.batch_size` pictures."""
    name = "config.batch_size" if accumulate_steps == 1 else "(config.batch_size / config.accumulate_steps)"
    check_batch(mesh, batch_size // accumulate_steps, height, name)


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of a batch -> global arrays on the mesh, without waiting for the transfer.

    The rows are those of `local_rows`, whole pictures in this order. 'image' and 'label' are laid out as `batched`
    says, all else as `per_picture` says.
    """
    return {
        name: _put(mesh, (batched if name in ("image", "label") else per_picture)(mesh), array)
        for name, array in batch.items()
    }


def local_rows(mesh: Mesh, batch_size: int) -> tuple[int, ...]:
    """The rows of a global batch that this process's devices hold, and so the pictures that it has to read.

    Processes that lie along `data` have rows of their own; those that share pictures over `space` have the same.
    """
    placed = per_picture(mesh).addressable_devices_indices_map((batch_size,))
    parts = [index[0] for index in placed.values() if index is not None]
    return tuple(sorted({row for part in parts for row in range(*part.indices(batch_size))}))


def _put(mesh: Mesh, sharding: NamedSharding, array: np.ndarray) -> jax.Array:
    batch_size = len(array) * mesh.shape[DATA] // _local_size(mesh)
    place = {row: index for index, row in enumerate(local_rows(mesh, batch_size))}

    def shard(index):
        first, last, _ = index[0].indices(batch_size)
        start = place[first] if last > first else 0
        return array[(slice(start, start + last - first), *index[1:])]

    return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, shard)


def _local_size(mesh: Mesh) -> int:
    """How many of the places along `data` are, at least in part, on devices of this process."""
    return len(local_rows(mesh, mesh.shape[DATA]))


def gather(array: jax.Array) -> np.ndarray:
    """All of a global array, on every process; all processes have to call this together."""
    return multihost_utils.process_allgather(array, tiled=True) if jax.process_count() > 1 else np.asarray(array)


def describe(mesh: Mesh) -> str:
    """One line for the log, such as '8 x TPU v5 lite (mesh: data=4, space=2)'."""
    kind = mesh.devices.flat[0].device_kind
    return f"{mesh.size} x {kind} (mesh: {DATA}={mesh.shape[DATA]}, {SPACE}={mesh.shape[SPACE]})"

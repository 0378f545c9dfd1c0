"""What the program exists for, on made batches, ready to be measured: a training step, a forward pass, an evaluation.

Needs neither data nor TensorFlow. Each is compiled for the mesh exactly as training and evaluation compile it. Made
from the shapes of variables, it can be compiled, but not called: so the mesh may be of devices that are not here.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dlv3p_jax import models
from dlv3p_jax.data import padding
from dlv3p_jax.evaluation.step import jit_eval_step
from dlv3p_jax.models import Variables
from dlv3p_jax.performance import straightforward, timing
from dlv3p_jax.runtime import configuration, sharding
from dlv3p_jax.training import steps

CLASSES = {"voc2012": 21}  # and 19 where neither the configuration nor this says how many
SCALES = (0.75, 1.0, 1.25)


class Workload(NamedTuple):
    """A program to be compiled and called again and again.

    Attributes:
        name: such as 'train' or 'evaluate flip'.
        pictures: how many a call takes.
        size: (height, width) of a picture.
        jitted: the program.
        arguments: of the first call, on the devices; only their shapes, for a program made from shapes.
        advance: (arguments, result) -> the arguments of the next call.
        count_operations: counts the additions and multiplications of a call in the straightforward model.
    """

    name: str
    pictures: int
    size: tuple[int, int]
    jitted: jax.stages.Wrapped
    arguments: tuple
    advance: Callable[[tuple, Any], tuple]
    count_operations: Callable[[], float | None]

    def repeatedly(self, program: jax.stages.Compiled) -> Callable[[], Any]:
        """Calls the compiled program, each time with what `advance` makes of the time before."""
        arguments = self.arguments

        def call():
            nonlocal arguments
            result = program(*arguments)
            arguments = self.advance(arguments, result)
            return result

        return call


def prepare(config, platform: str | None = None):
    """A copy of the configuration with what otherwise the data set tells: a number of classes, and weights of these.

    And with the type that the network computes in on `platform`; None: that of the devices here.
    """
    config = config.copy_and_resolve_references()
    config.model.dtype = sharding.dtype(config.model.dtype, platform)
    if config.num_classes is None:
        config.num_classes = CLASSES.get(config.dataset, 19)
    if config.loss.class_weights == configuration.BALANCED:
        with config.ignore_type():
            config.loss.class_weights = (1.0,) * config.num_classes
    return config


def made_batch(config, batch_size: int, size: Sequence[int], dtype=np.uint8) -> dict[str, np.ndarray]:
    """Random pictures and labels, the same every time: 'image' `[B, H, W, 3]` and 'label' uint8 `[B, H, W]`.

    Args:
        config: `num_classes` and `ignore_label` are read; a twentieth of the labels is ignored.
        batch_size, size: how many, and (height, width).
        dtype: uint8, or float32 for pictures that are normalised already.
    """
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, *size, 3), np.uint8)
    labels = rng.integers(0, config.num_classes, (batch_size, *size), np.uint8)
    labels[rng.random(labels.shape, np.float32) < 0.05] = config.ignore_label
    if dtype != np.uint8:
        images = (images.astype(dtype) / 255 - 0.5) / 0.5
    return {"image": images, "label": labels}


def variable_shapes(config) -> Variables:
    """The variables' shapes and types, as `jax.ShapeDtypeStruct`s."""
    return models.variable_shapes(models.build_model(config))


def init_variables(config) -> Variables:
    """Random variables like fresh ones, on the host: kernels as in He et al. (2015); nothing is compiled for it."""
    rng = np.random.default_rng(config.seed)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            deviation = math.sqrt(2 / math.prod(leaf.shape[:3]))
            return deviation * rng.standard_normal(leaf.shape, np.float32)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)

    return jax.tree_util.tree_map_with_path(draw, variable_shapes(config))


def train(config, mesh: Mesh, variables: Variables, dtype=np.uint8, build: Callable | None = None) -> Workload:
    """A training step of `batch_size` pictures of `crop_size`.

    Args:
        config: from `prepare`.
        mesh: of devices.
        variables: to start from, or their shapes.
        dtype: of the pictures; uint8 ones are distorted in colour and normalised in the step, as in training.
        build: makes the network of the configuration; `build_model` by default.

    Raises:
        ValueError: the mesh does not divide the batch.
    """
    size, batch_size = tuple(config.crop_size), config.batch_size
    sharding.check_micro_batch(mesh, batch_size, config.accumulate_steps, size[0])
    model = (build or models.build_model)(config)
    batch = made_batch(config, batch_size, size, dtype)
    make_key = functools.partial(jax.random.key, config.seed)
    make_state = functools.partial(steps.create_train_state, config)
    shapes = jax.eval_shape(lambda variables, batch: (make_state(variables), batch, make_key()), variables, batch)
    jitted = steps.jit_train_step(config, model, mesh)
    at_once = config.copy_and_resolve_references()
    at_once.accumulate_steps = 1  # of micro-batches, which are a loop, only one would be counted
    plain_step = steps.make_train_step(at_once, straightforward.build(config))
    if _are_shapes(variables):
        arguments = shapes
    else:
        state = sharding.replicate(mesh, make_state(variables))
        rng = jax.jit(make_key, out_shardings=sharding.replicated(mesh))()
        arguments = (state, sharding.put_batch(mesh, batch), rng)
    return Workload(
        "train", batch_size, size, jitted, arguments, _next_step, lambda: timing.count_operations(plain_step, *shapes)
    )


def predict(config, mesh: Mesh, variables: Variables, size: tuple[int, int], scale: float = 1.0) -> Workload:
    """A forward pass of `eval.batch_size` normalised pictures of (height, width) `size` times `scale`, to logits.

    Raises:
        ValueError: the mesh does not divide the batch.
    """
    size, batch_size = _scaled(size, scale), config.eval.batch_size
    sharding.check_batch(mesh, batch_size, size[0], "config.eval.batch_size")
    model = models.build_model(config)
    jitted = sharding.jit(
        mesh,
        lambda variables, images: model.apply(variables, images, train=False),
        in_shardings=(sharding.replicated(mesh), sharding.batched(mesh)),
        out_shardings=sharding.batched(mesh),
    )
    image = made_batch(config, batch_size, size, np.float32)["image"]
    if _are_shapes(variables):
        arguments = (variables, _shapes(image))
    else:
        arguments = (sharding.replicate(mesh, variables), sharding.put_batch(mesh, {"image": image})["image"])
    count = functools.partial(_forward_operations, config, variables, batch_size, size)
    name = "predict" if scale == 1 else f"predict at {scale:g}"
    return Workload(name, batch_size, size, jitted, arguments, _same, count)


def evaluate_views(
    config,
    mesh: Mesh,
    variables: Variables,
    size: tuple[int, int],
    name: str,
    scales: Sequence[float],
    flip: bool,
) -> Workload:
    """An evaluation step of `eval.batch_size` pictures of `size` with these views: to confusion matrices.

    Raises:
        ValueError: the mesh does not divide the batch, or the views make no sense.
    """
    config = config.copy_and_resolve_references()
    config.eval.scales, config.eval.flip = tuple(scales), flip
    batch_size = config.eval.batch_size
    sharding.check_batch(mesh, batch_size, size[0], "config.eval.batch_size")
    batch = made_batch(config, batch_size, size)
    batch["size"] = np.tile(np.array(size, np.int32), (batch_size, 1))
    jitted = jit_eval_step(config, mesh, models.build_model(config))
    if _are_shapes(variables):
        arguments = (variables, _shapes(batch))
    else:
        arguments = (sharding.replicate(mesh, variables), sharding.put_batch(mesh, batch))

    def count() -> float | None:
        total = 0.0
        for scale in scales:
            view, times = _windows(config.eval, _scaled(padding.padded_size(size, config.eval_size), scale))
            operations = _forward_operations(config, variables, batch_size, view)
            if operations is None:
                return None
            total += operations * times
        return (2 if flip else 1) * total

    return Workload(name, batch_size, size, jitted, arguments, _same, count)


def evaluations(config, mesh: Mesh, variables: Variables, size: tuple[int, int]) -> list[Workload]:
    """Plain, flip, and flip + scales."""
    return [evaluate_views(config, mesh, variables, size, name, *views) for name, views in named_views(config).items()]


def named_views(config) -> dict[str, tuple[tuple[float, ...], bool]]:
    """{name: (scales, flip)} of the evaluations plain, with flip, and with flip + scales."""
    return {
        "evaluate plain": ((1.0,), False),
        "evaluate flip": ((1.0,), True),
        "evaluate flip + scales": (scales_of(config), True),
    }


def scales_of(config) -> tuple[float, ...]:
    """The scales of 'flip + scales': those of the configuration where it has several, else `SCALES`."""
    return tuple(config.eval.scales) if len(config.eval.scales) > 1 else SCALES


def _are_shapes(variables) -> bool:
    return isinstance(jax.tree.leaves(variables)[0], jax.ShapeDtypeStruct)


def _shapes(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _same(arguments, result):
    return arguments


def _next_step(arguments, result):
    return (result[0], *arguments[1:])


def _scaled(size: Sequence[int], scale: float) -> tuple[int, int]:
    height, width = (max(math.floor(side * scale + 0.5), 1) for side in size)
    return height, width


def _windows(settings, view: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """The size of what the network sees of a view at once, and how often it looks."""
    if settings.window is None:
        return view, 1
    window = (min(settings.window[0], view[0]), min(settings.window[1], view[1]))
    strides = settings.stride or tuple(max(side * 2 // 3, 1) for side in settings.window)
    places = (max(math.ceil((side - w) / stride), 0) + 1 for side, w, stride in zip(view, window, strides, strict=True))
    return window, math.prod(places)


def _forward_operations(config, variables, batch_size: int, size: tuple[int, int]) -> float | None:
    model = straightforward.build(config)
    images = jax.ShapeDtypeStruct((batch_size, *size, 3), jnp.float32)
    forward = lambda variables, images: model.apply(variables, images, train=False)  # noqa: E731
    return timing.count_operations(forward, _shapes(variables), images)

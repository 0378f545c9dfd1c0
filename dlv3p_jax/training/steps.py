"""The training step: pure functions from a state and a batch to the next state; no host loop, no files."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from dlv3p_jax.data import colors
from dlv3p_jax.models import Variables
from dlv3p_jax.runtime import sharding
from dlv3p_jax.training import losses, optim

Batch = Mapping[str, jax.Array]  # {'image': [B, H, W, 3], 'label': [B, H, W]}


@flax.struct.dataclass
class TrainState:
    """Everything that training changes.

    Attributes:
      step: int32 scalar, the number of steps taken.
      params: float32 parameters.
      batch_stats: float32 running statistics of the BatchNorms.
      opt_state: optax state.
      ema: exponential moving average of params and batch_stats as {'params': …, 'batch_stats': …}; None without.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Variables | None = None

    @property
    def variables(self) -> Variables:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_train_state(
    config, variables: Variables, optimizer: optax.GradientTransformation | None = None
) -> TrainState:
    """The state before the first step, from freshly initialised or pretrained variables.

    Args:
      config: a configuration (`configs/common.py`); its optimiser's keys and `ema_decay` are read.
      variables: {'params': …, 'batch_stats': …} in float32.
      optimizer: in place of the one of `config`; the step takes the same.
    """
    optimizer = optim.make_optimizer(config) if optimizer is None else optimizer
    # Jitted, since otherwise a program would be compiled for each shape. The average starts with copies: the state is
    # donated to the step, and one buffer cannot be donated twice.
    copy = jax.jit(functools.partial(jax.tree.map, jnp.copy))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=jax.jit(optimizer.init)(variables["params"]),
        ema=copy(variables) if config.ema_decay is not None else None,
    )


def make_train_step(
    config,
    model,
    ema_ramps: bool = True,
    *,
    loss: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """A pure function of one optimisation step; `jit_train_step` compiles it for a mesh.

    `train_step(state, batch, rng) -> (state, scalars)`: `batch` is {'image': [B, H, W, 3], 'label': [B, H, W]}. uint8
    images are distorted in colour and normalised here, on the device; float32 images are taken as normalised already.
    `rng` is the run's key: the step folds its own number into it, so that a resumed run draws what it would have drawn.
    The loss is the mean over all valid pixels of the global batch, and BatchNorm's statistics are over the global
    batch. The moving average of step t, from 0, has the decay min(`ema_decay`, (1 + t) / (10 + t)), or
    `ema_decay` where it does not ramp.
    `scalars` holds float32 'loss', its parts by name, 'learning_rate' and 'grad_norm'.

    A `loss` of your own, from float32 logits `[B, H, W, C]` and labels `[B, H, W]` to a scalar, takes the place of the
    mix under `config.loss`; with `accumulate_steps`, it is the mean over the micro-batches. An `optimizer` of your own
    takes the place of the configuration's (give it to `create_train_state` as well), but 'learning_rate' in `scalars`
    stays that of the configuration's schedule.

    With `config.accumulate_steps` = k above 1, the batch is cut into k micro-batches of B / k pictures, of which the
    activations of one at a time are in memory. The step is taken once, with their mean gradient:

    - Colours are those that the pictures have without accumulation. Dropout has a key for each micro-batch.
    - The cross-entropy of a micro-batch is divided by the valid pixels (or class weights) of the whole batch, so that
      the mean is that of the large batch, exactly. So it is for RMI and Dice, means over the pictures. Lovász,
      `top_k` and OHEM are those of each micro-batch, averaged, which is another loss than that of the large batch.
    - BatchNorm normalises by the statistics of each micro-batch, and the running statistics are updated k times in a
      step. So the gradient is the large batch's only where statistics are frozen; a network with BatchNorm learns as
      with batches of B / k pictures in this respect.

    Raises:
      ValueError: while it is traced, if a batch does not divide into `accumulate_steps`.
    """
    optimizer = optim.make_optimizer(config) if optimizer is None else optimizer
    schedule = optim.make_schedule(config)
    own_loss, loss_function, auxiliary_loss = loss, losses.weighted(config), losses.auxiliary(config)
    has_auxiliary = config.model.auxiliary_head and config.loss.auxiliary > 0
    augment = config.augment
    ema_decay = config.ema_decay
    count = config.accumulate_steps

    def compute_loss(params, batch_stats, images, labels, dropout_rng, normalizer=None):
        if images.dtype == jnp.uint8:
            images = colors.normalize(images)
        logits, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            rngs={"dropout": dropout_rng},
            mutable=["batch_stats", "intermediates"] if has_auxiliary else ["batch_stats"],
        )
        with jax.named_scope("loss"):
            if own_loss is None:
                loss, parts = loss_function(logits, labels, normalizer)
            else:
                loss, parts = own_loss(logits, labels), {}
        if has_auxiliary:
            (auxiliary_logits,) = updates["intermediates"]["auxiliary_logits"]
            parts |= {"auxiliary": auxiliary_loss(auxiliary_logits, labels, normalizer=normalizer)}
            loss += config.loss.auxiliary * parts["auxiliary"]
        return loss, (parts, updates["batch_stats"])

    differentiate = jax.value_and_grad(compute_loss, has_aux=True)

    def accumulate(params, batch_stats, images, labels, dropout_rng):
        """What `differentiate` returns, of the micro-batches one after the other."""
        normalizer = losses.mean_weight(labels, config.num_classes, config.loss.class_weights, config.ignore_label)

        def add(carry, micro_batch):
            batch_stats, total = carry
            images, labels, index = micro_batch
            rng = jax.random.fold_in(dropout_rng, index)
            (loss, (parts, batch_stats)), gradients = differentiate(
                params, batch_stats, images, labels, rng, normalizer
            )
            return (batch_stats, jax.tree.map(jnp.add, total, gradients)), (loss, parts)

        micro_batches = (_cut(images, count), _cut(labels, count), jnp.arange(count))
        (batch_stats, total), values = jax.lax.scan(
            add, (batch_stats, jax.tree.map(jnp.zeros_like, params)), micro_batches
        )
        loss, parts = jax.tree.map(jnp.mean, values)
        return (loss, (parts, batch_stats)), jax.tree.map(lambda gradient: gradient / count, total)

    def train_step(state: TrainState, batch: Batch, rng: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        distort_rng, dropout_rng = jax.random.split(jax.random.fold_in(rng, state.step))
        images = batch["image"]
        if images.dtype == jnp.uint8:
            with jax.named_scope("distort"):
                images = colors.distort(
                    images,
                    distort_rng,
                    brightness=augment.brightness,
                    contrast=augment.contrast,
                    saturation=augment.saturation,
                    hue=augment.hue,
                )
        compute = differentiate if count == 1 else accumulate
        (loss, (parts, batch_stats)), gradients = compute(
            state.params, state.batch_stats, images, batch["label"], dropout_rng
        )
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            variables = {"params": params, "batch_stats": batch_stats}
            # It ramps up: the average of a short run, or of the first steps, is not that of the initial weights.
            decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step)) if ema_ramps else ema_decay
            ema = jax.tree.map(lambda average, new: decay * average + (1 - decay) * new, ema, variables)
        scalars = {
            "loss": loss,
            **parts,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "grad_norm": optax.global_norm(gradients),
        }
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema), scalars

    return train_step


def jit_train_step(config, model, mesh: Mesh, ema_ramps: bool = True) -> jax.stages.Wrapped:
    """`make_train_step`, to be compiled for a mesh: the batch lies over it, the rest is on all devices."""
    replicated = sharding.replicated(mesh)
    return sharding.jit(
        mesh,
        make_train_step(config, model, ema_ramps),
        in_shardings=(replicated, sharding.batched(mesh), replicated),
        out_shardings=(replicated, replicated),
        donate_argnums=0,
    )


def _cut(x: jax.Array, count: int) -> jax.Array:
    """[B, …] -> [count, B / count, …]; every count-th picture, so that each part lies over a mesh as the whole does."""
    if x.shape[0] % count:
        raise ValueError(f"a batch of {x.shape[0]} pictures does not divide into config.accumulate_steps={count}")
    return jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)

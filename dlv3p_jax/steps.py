"""The training step: pure functions from a state and a batch to the next state; no host loop, no files."""

from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from dlv3p_jax import losses, optim, preprocess

Variables = dict[str, Any]  # {'params': …, 'batch_stats': …}
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


def create_train_state(config, model, variables: Variables) -> TrainState:
    """The state before the first step, from freshly initialised or pretrained variables.

    Args:
      config: a configuration (`configs/common.py`); its optimiser's keys and `ema_decay` are read.
      model: what `build_model` gave; not called, here for symmetry with `make_train_step`.
      variables: {'params': …, 'batch_stats': …} in float32.
    """
    del model
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optim.make_optimizer(config).init(variables["params"]),
        # Copies: the state is donated to the step, and one buffer cannot be donated twice.
        ema=jax.tree.map(jnp.copy, variables) if config.ema_decay is not None else None,
    )


def make_train_step(config, model) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """A pure function of one optimisation step; the caller jits it with shardings and donates the state.

    `train_step(state, batch, rng) -> (state, scalars)`: `batch` is {'image': [B, H, W, 3], 'label': [B, H, W]}. uint8
    images are distorted in colour and normalised here, on the device; float32 images are taken as normalised already.
    `rng` is the run's key: the step folds its own number into it, so that a resumed run draws what it would have drawn.
    The loss is the mean over all valid pixels of the global batch, and BatchNorm's statistics are over the global
    batch. `scalars` holds float32 'loss', its parts by name, 'learning_rate' and 'grad_norm'.
    """
    optimizer = optim.make_optimizer(config)
    schedule = optim.make_schedule(config)
    loss_function = losses.weighted(config)
    augment = config.augment
    ema_decay = config.ema_decay

    def train_step(state: TrainState, batch: Batch, rng: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        distort_rng, dropout_rng = jax.random.split(jax.random.fold_in(rng, state.step))
        images = batch["image"]
        if images.dtype == jnp.uint8:
            images = preprocess.distort(
                images,
                distort_rng,
                brightness=augment.brightness,
                contrast=augment.contrast,
                saturation=augment.saturation,
                hue=augment.hue,
            )
            images = preprocess.normalize(images)

        def compute_loss(params):
            logits, updates = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                rngs={"dropout": dropout_rng},
                mutable=["batch_stats"],
            )
            loss, parts = loss_function(logits, batch["label"])
            return loss, (parts, updates["batch_stats"])

        (loss, (parts, batch_stats)), gradients = jax.value_and_grad(compute_loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            variables = {"params": params, "batch_stats": batch_stats}
            ema = jax.tree.map(lambda average, new: ema_decay * average + (1 - ema_decay) * new, ema, variables)
        scalars = {
            "loss": loss,
            **parts,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "grad_norm": optax.global_norm(gradients),
        }
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema), scalars

    return train_step

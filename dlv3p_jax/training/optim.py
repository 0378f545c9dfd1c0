"""Momentum SGD with coupled weight decay and a polynomial learning rate, as PaddleSeg trains."""

import optax


def poly_schedule(
    learning_rate: float,
    num_train_steps: int,
    end_learning_rate: float = 0.0,
    power: float = 0.9,
    warmup_steps: int = 0,
) -> optax.Schedule:
    """lr(step) = end + (learning_rate - end) (1 - step / steps)^power.

    With W = `warmup_steps` above 0, the first W steps rise linearly, learning_rate (step + 1) / (W + 1), and the
    formula spans what remains: (step - W) / (steps - W).

    Raises:
        ValueError: if no step is left after the warm-up.
    """
    if not 0 <= warmup_steps < num_train_steps:
        raise ValueError(f"warmup_steps = {warmup_steps}: at least 0 and below num_train_steps = {num_train_steps}")
    poly = optax.polynomial_schedule(learning_rate, end_learning_rate, power, num_train_steps - warmup_steps)
    if not warmup_steps:
        return poly
    warmup = optax.linear_schedule(learning_rate / (warmup_steps + 1), learning_rate, warmup_steps)
    return optax.join_schedules([warmup, poly], [warmup_steps])


def momentum_sgd(
    schedule: optax.Schedule,
    momentum: float = 0.9,
    weight_decay: float = 4e-5,
    clip_grad_norm: float | None = None,
    backbone_lr_factor: float = 1.0,
    freeze_backbone: bool = False,
) -> optax.GradientTransformation:
    """Momentum SGD: v <- momentum v + (g + weight_decay p), p <- p - lr v.

    This holds for every parameter p with gradient g, those of BatchNorm and biases included.

    Args:
        schedule: the learning rate of a step.
        momentum: of the velocity v, without dampening or Nesterov's step.
        weight_decay: added to the gradient (L2 regularisation; not decoupled).
        clip_grad_norm: scale the gradients, before the decay is added, down to at most this global norm; None: do not.
        backbone_lr_factor: multiplies the learning rate of `params["backbone"]`.
        freeze_backbone: leave `params["backbone"]` exactly as it is: no decay, no velocity, no share in the norm.
    """
    steps = [] if clip_grad_norm is None else [optax.clip_by_global_norm(clip_grad_norm)]
    steps += [optax.add_decayed_weights(weight_decay), optax.trace(momentum), optax.scale_by_learning_rate(schedule)]
    if freeze_backbone:
        return optax.chain(optax.masked(optax.chain(*steps), _heads), optax.masked(optax.set_to_zero(), _backbone))
    if backbone_lr_factor != 1:
        steps.append(optax.masked(optax.scale(backbone_lr_factor), _backbone))
    return optax.chain(*steps)


def make_schedule(config) -> optax.Schedule:
    """`poly_schedule` of `learning_rate`, `num_train_steps`, `end_learning_rate`, `poly_power` and `warmup_steps`."""
    return poly_schedule(
        config.learning_rate, config.num_train_steps, config.end_learning_rate, config.poly_power, config.warmup_steps
    )


def make_optimizer(config) -> optax.GradientTransformation:
    """`momentum_sgd` with `make_schedule` and the configuration's keys of the same names as its arguments."""
    return momentum_sgd(
        make_schedule(config),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        clip_grad_norm=config.clip_grad_norm,
        backbone_lr_factor=config.backbone_lr_factor,
        freeze_backbone=config.freeze_backbone,
    )


def _backbone(params):
    return {name: name == "backbone" for name in params}


def _heads(params):
    return {name: name != "backbone" for name in params}

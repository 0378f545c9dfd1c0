"""The optimiser and its learning rate: SGD or AdamW, a polynomial or a cosine. By default as PaddleSeg trains."""

import jax
import optax


def make_schedule(config) -> optax.Schedule:
    """The learning rate of a step, by the configuration's `schedule`.

    With s of S = `num_train_steps` steps done, and `learning_rate` falling to `end_learning_rate`, it is
    end + (start - end) f(s / S) with f(x) = (1 - x)^`poly_power` for "poly", and (1 + cos(pi x)) / 2 for "cosine".

    With W = `warmup_steps` above 0, the first W steps rise linearly, start (s + 1) / (W + 1), and the formula spans
    what remains: (s - W) / (S - W).

    Raises:
        ValueError: if no step is left after the warm-up.
    """
    start, end, warmup_steps = config.learning_rate, config.end_learning_rate, config.warmup_steps
    if not 0 <= warmup_steps < config.num_train_steps:
        raise ValueError(
            f"warmup_steps = {warmup_steps}: at least 0 and below num_train_steps = {config.num_train_steps}"
        )
    remaining = config.num_train_steps - warmup_steps
    if config.schedule == "cosine":
        falling = optax.cosine_decay_schedule(start, remaining, alpha=end / start)
    else:
        falling = optax.polynomial_schedule(start, end, config.poly_power, remaining)
    if not warmup_steps:
        return falling
    warmup = optax.linear_schedule(start / (warmup_steps + 1), start, warmup_steps)
    return optax.join_schedules([warmup, falling], [warmup_steps])


def make_optimizer(config) -> optax.GradientTransformation:
    """The step from a gradient g to the change of a parameter p, by the configuration's keys of these names.

    "sgd": v <- `momentum` v + (g + `weight_decay` p), p <- p - lr v, as PaddleSeg, without Nesterov's step.
    "adamw" (Loshchilov and Hutter, 2019), as `torch.optim.AdamW` with betas (`momentum`, 0.999) and eps 1e-8:
    m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2, p <- p - lr (m' / (sqrt(v') + eps) + `weight_decay` p), where m'
    and v' are m and v without their bias to 0.

    - `decay_norm_and_bias`: whether scales and biases, which have one dimension, decay as kernels do. None: as is
      usual, with "sgd" they do, with "adamw" they do not.
    - `clip_grad_norm`: gradients are first scaled down to at most this global norm; None: they are not.
    - `backbone_lr_factor`: multiplies the learning rate of `params["backbone"]`.
    - `freeze_backbone`: `params["backbone"]` stays exactly as it is: no decay, no state, no share in the norm.
    """
    decays_all = config.decay_norm_and_bias
    if decays_all is None:
        decays_all = config.optimizer == "sgd"
    decay = optax.add_decayed_weights(config.weight_decay, mask=None if decays_all else _kernels)
    steps = [] if config.clip_grad_norm is None else [optax.clip_by_global_norm(config.clip_grad_norm)]
    if config.optimizer == "adamw":
        steps += [optax.scale_by_adam(b1=config.momentum), decay]
    else:
        steps += [decay, optax.trace(config.momentum)]
    steps.append(optax.scale_by_learning_rate(make_schedule(config)))
    if config.freeze_backbone:
        return optax.chain(optax.masked(optax.chain(*steps), _heads), optax.masked(optax.set_to_zero(), _backbone))
    if config.backbone_lr_factor != 1:
        steps.append(optax.masked(optax.scale(config.backbone_lr_factor), _backbone))
    return optax.chain(*steps)


def _kernels(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _backbone(params):
    return {name: name == "backbone" for name in params}


def _heads(params):
    return {name: name != "backbone" for name in params}

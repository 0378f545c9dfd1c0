"""Prediction on the devices: a picture's flips, scales and sliding windows, and the mean of what is found in them.

PaddleSeg has had two definitions of test-time augmentation, and both are here. `average="logits"` (its own since
February 2023): every scale is made from the original picture and the views' logits are averaged. `average="legacy"`:
the views' probabilities are averaged, and each scale's picture is made from the previous scale's.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlv3p_jax.models import ops

AVERAGES = ("logits", "legacy")


@dataclasses.dataclass(frozen=True)
class Views:
    """How a picture is looked at: the settings of `config.eval` that decide its prediction.

    Attributes:
      scales: sizes of the views, relative to the picture; a side becomes floor(side * scale + 0.5), 1 at least.
      flip: also predict every view mirrored left to right.
      window: (height, width) of a sliding window over each view, None to see each view at once. Where windows overlap,
        their logits are averaged; a view smaller than the window is seen at once.
      stride: (height, width) between windows; None: two thirds of the window.
      average: what is averaged over the views, 'logits' or 'legacy', see above.

    Raises:
      ValueError: an unknown `average`, no scales or one that is not positive, a stride larger than the window.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    average: str = "logits"

    def __post_init__(self) -> None:
        for name in ("scales", "window", "stride"):  # JSON has lists
            value = getattr(self, name)
            object.__setattr__(self, name, value if value is None else tuple(value))
        if self.average not in AVERAGES:
            raise ValueError(f"eval.average={self.average!r} is not one of {', '.join(AVERAGES)}")
        scales: Any = self.scales
        window, stride = self.window, self.stride
        if not scales or not all(isinstance(scale, numbers.Real) and 0 < float(scale) < math.inf for scale in scales):
            raise ValueError(f"eval.scales={scales!r}: give at least one scale, all of them positive numbers")
        if window is not None and not _is_size(window):
            raise ValueError(f"eval.window={window!r}: give (height, width) in pixels")
        if stride is not None:
            if window is None:
                raise ValueError(f"eval.stride={stride!r} needs eval.window too")
            if not _is_size(stride) or stride[0] > window[0] or stride[1] > window[1]:
                raise ValueError(
                    f"eval.stride={stride!r} must be (height, width), at least 1 and at most eval.window={window!r}"
                )

    @classmethod
    def of(cls, settings) -> "Views":
        """Those of a configuration's `eval`, or of a report that has the same keys."""
        return cls(**{field.name: settings[field.name] for field in dataclasses.fields(cls)})

    @property
    def name(self) -> str:
        """As part of a file's name, such as 'plain', 'scales-0.75-1-1.25-flip' or 'window-32-48-stride-16-24'."""
        parts = []
        if self.scales != (1.0,):
            parts += ["scales", *(f"{scale:g}" for scale in self.scales)]
        if self.flip:
            parts.append("flip")
        for key, size in (("window", self.window), ("stride", self.stride)):
            if size is not None:
                parts += [key, *map(str, size)]
        return "-".join(self._averaged(parts))

    @property
    def title(self) -> str:
        """For people, such as 'plain', 'flip + scales 0.75, 1, 1.25' or 'window 32x48 + stride 16x24'."""
        parts = ["flip"] if self.flip else []
        if self.scales != (1.0,):
            parts.append("scales " + ", ".join(f"{scale:g}" for scale in self.scales))
        for key, size in (("window", self.window), ("stride", self.stride)):
            if size is not None:
                parts.append("{} {}x{}".format(key, *size))
        return " + ".join(self._averaged(parts))

    def _averaged(self, parts: list[str]) -> list[str]:
        """With what is averaged; of a single view whose class is sought, that makes no difference."""
        if not parts:
            return ["plain"]
        return parts if self.average == "logits" else [*parts, self.average]


def _is_size(size) -> bool:
    return len(size) == 2 and all(isinstance(side, numbers.Integral) and int(side) >= 1 for side in size)


PLAIN = Views()


def predict_logits(model, variables, images: jax.Array, views: Views = PLAIN) -> jax.Array:
    """The mean over all views of a picture; pure and jittable (everything but variables and images is static).

    Args:
      model: what `build_model` gave, or whose `apply` takes the same, `output_size` included.
      variables: {'params': …, 'batch_stats': …}.
      images: float32 `[B, H, W, 3]`, normalised.
      views: how to look at them.

    Returns:
      float32 `[B, H, W, num_classes]`: mean logits, or mean probabilities for 'legacy'.
    """
    size = images.shape[1:3]

    def forward(view: jax.Array) -> jax.Array:
        if views.window is None:
            return model.apply(variables, view, train=False, output_size=size)
        logits = _slide(lambda patch: model.apply(variables, patch, train=False), view, views.window, views.stride)
        return ops.resize(logits, size, align_corners=False)

    def scores_of(view: jax.Array, mirrored: jax.Array | bool) -> jax.Array:
        logits = _mirror(forward(_mirror(view, mirrored)), mirrored)
        return jax.nn.softmax(logits) if views.average == "legacy" else logits

    def scaled(picture: jax.Array, scale: float) -> jax.Array:
        scaled_size = tuple(max(math.floor(side * scale + 0.5), 1) for side in size)
        return ops.resize(picture, scaled_size, align_corners=False)

    if len(views.scales) == 1 and not views.flip:
        return scores_of(scaled(images, views.scales[0]), False)
    # A loop for each scale: both mirror images run through one compiled network, and since the sum goes from loop to
    # loop, the scales run one after the other, so that memory does not grow with their number (but by pictures). XLA
    # must not know how often a loop of one turn runs: it would unroll it, and then run several networks at once.
    turns = jax.lax.optimization_barrier(jnp.int32(2 if views.flip else 1))
    total = jnp.zeros(jax.eval_shape(partial(scores_of, mirrored=False), images).shape, jnp.float32)
    view = images
    for scale in views.scales:
        view = scaled(view if views.average == "legacy" else images, scale)
        total = jax.lax.fori_loop(0, turns, lambda i, total, view=view: total + scores_of(view, i == 1), total)
    return total / (len(views.scales) * (2 if views.flip else 1))


def _mirror(x: jax.Array, mirrored: jax.Array | bool) -> jax.Array:
    return x if mirrored is False else jnp.where(mirrored, x[:, :, ::-1], x)


def _starts(side: int, window: int, stride: int) -> list[int]:
    """Where the windows along one side start: the last one is moved back inside the picture."""
    count = max(math.ceil((side - window) / stride), 0) + 1
    return [max(min(i * stride, side - window), 0) for i in range(count)]


def _slide(apply: Callable, view: jax.Array, window: tuple[int, int], stride: tuple[int, int] | None) -> jax.Array:
    """Logits of `view` as the mean of those of overlapping windows, one window at a time."""
    height, width = view.shape[1:3]
    if stride is None:
        stride = max(window[0] * 2 // 3, 1), max(window[1] * 2 // 3, 1)
    window = (min(window[0], height), min(window[1], width))
    starts = [(y, x) for y in _starts(height, window[0], stride[0]) for x in _starts(width, window[1], stride[1])]
    if len(starts) == 1:
        return apply(view)
    visits = np.zeros((height, width, 1), np.float32)
    for y, x in starts:
        visits[y : y + window[0], x : x + window[1]] += 1

    def add_window(total, start):
        y, x = start
        patch = jax.lax.dynamic_slice(view, (0, y, x, 0), (view.shape[0], *window, view.shape[3]))
        logits = apply(patch)
        before = jax.lax.dynamic_slice(total, (0, y, x, 0), logits.shape)
        return jax.lax.dynamic_update_slice(total, before + logits, (0, y, x, 0)), None

    patch_shape = jax.ShapeDtypeStruct((view.shape[0], *window, view.shape[3]), view.dtype)
    num_classes = jax.eval_shape(apply, patch_shape).shape[-1]
    total = jnp.zeros((view.shape[0], height, width, num_classes), jnp.float32)
    total, _ = jax.lax.scan(add_window, total, np.array(starts, np.int32))
    return total / visits

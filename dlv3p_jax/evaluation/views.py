"""Prediction on the devices: a picture's flips, scales and sliding windows, and the mean of what is found in them.

PaddleSeg has had two definitions of test-time augmentation, and both are here. `average="logits"` (its own since
February 2023): every scale is made from the original picture and the views' logits are averaged. `average="legacy"`:
the views' probabilities are averaged, and each scale's picture is made from the previous scale's. MMSegmentation's is
`average="probabilities"`: they are averaged, and every scale is made from the original picture, in grey levels.
"""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlv3p_jax.data import colors
from dlv3p_jax.evaluation import grey_levels
from dlv3p_jax.models import resizing, tiles
from dlv3p_jax.models.tiles import Tiled

AVERAGES = ("logits", "legacy", "probabilities")


@dataclasses.dataclass(frozen=True)
class Views:
    """How a picture is looked at: the settings of `config.eval` that decide its prediction.

    Attributes:
      scales: sizes of the views, relative to the picture; a side becomes floor(side * scale + 0.5), 1 at least.
      flip: also predict every view mirrored left to right.
      window: (height, width) of a sliding window over each view, None to see each view at once. Where windows overlap,
        their logits are averaged; a view smaller than the window is seen at once.
      stride: (height, width) between windows; None: two thirds of the window.
      average: what is averaged over the views, 'logits', 'legacy' or 'probabilities', see above.
      resize: a longer and a shorter side, in any order, that the picture is made to fit before, keeping its ratio, in
        grey levels; with several scales, these two times the scale. None: the picture's own size.
      align_corners: how logits are brought back to the picture's own size, see `resizing.resize`.

    Raises:
      ValueError: an unknown `average`, no scales or one that is not positive, a stride larger than the window, or
        `resize` with 'legacy'.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    average: str = "logits"
    resize: tuple[int, int] | None = None
    align_corners: bool = False

    def __post_init__(self) -> None:
        for name in ("scales", "window", "stride", "resize"):  # JSON has lists
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
        if self.resize is not None and not _is_size(self.resize):
            raise ValueError(f"eval.resize={self.resize!r}: give two sides in pixels")
        if self.resize is not None and self.average == "legacy":
            raise ValueError(f"eval.resize={self.resize!r} does not go with eval.average='legacy'")

    @classmethod
    def of(cls, settings) -> "Views":
        """Those of a configuration's `eval`, or of a report, which may be of before the last two settings."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: settings[name] for name in names if name in settings or name not in _LATER})

    @property
    def settings(self) -> dict[str, Any]:
        """What `of` takes; without what earlier revisions did not know where it is as it was then."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value or name not in _LATER}

    @property
    def gives_probabilities(self) -> bool:
        """Whether the mean over the views is one of probabilities, not of logits."""
        return self.average != "logits"

    def sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """The sizes of the views of a picture of (height, width), one a scale."""
        factors = list(self.scales)
        if self.resize is not None:
            sides = [sorted(int(side * scale) for side in self.resize) for scale in self.scales]
            factors = [min(longer / max(size), shorter / min(size)) for shorter, longer in sides]
        height, width = size
        return [
            (max(math.floor(height * factor + 0.5), 1), max(math.floor(width * factor + 0.5), 1)) for factor in factors
        ]

    def all_sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """The picture's own (height, width), 1 at least, then those of its views."""
        own = max(size[0], 1), max(size[1], 1)
        return [own, *self.sizes(own)]

    def sizes_of_each(self, sizes: Iterable[tuple[int, int]]) -> np.ndarray:
        """int32 `[B, 1 + scales, 2]`, what `predict_logits` takes of pictures of these (height, width)."""
        return np.array(list(map(self.all_sizes, sizes)), np.int32)

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
        if self.resize is not None:
            parts += ["resize", *map(str, self.resize)]
        return "-".join(self._last(parts, "aligned"))

    @property
    def title(self) -> str:
        """For people, such as 'plain', 'flip + scales 0.75, 1, 1.25' or 'window 32x48 + stride 16x24'."""
        parts = ["flip"] if self.flip else []
        if self.scales != (1.0,):
            parts.append("scales " + ", ".join(f"{scale:g}" for scale in self.scales))
        for key, size in (("window", self.window), ("stride", self.stride)):
            if size is not None:
                parts.append("{} {}x{}".format(key, *size))
        if self.resize is not None:
            parts.append("resized to fit {}x{}".format(*self.resize))
        return " + ".join(self._last(parts, "aligned corners"))

    def _last(self, parts: list[str], aligned: str) -> list[str]:
        """With what is averaged, which does not change the class of a single view, and how corners are mapped."""
        averaged = [self.average] if parts and self.average != "logits" else []
        return [*parts, *averaged, *([aligned] if self.align_corners else [])] or ["plain"]


_LATER = ("resize", "align_corners")  # settings that the first versions did not have


def _is_size(size) -> bool:
    return len(size) == 2 and all(isinstance(side, numbers.Integral) and int(side) >= 1 for side in size)


PLAIN = Views()


def predict_logits(
    model,
    variables,
    images: jax.Array,
    views: Views = PLAIN,
    sizes: jax.Array | None = None,
    rooms: Sequence[tuple[int, int]] | None = None,
) -> jax.Array:
    """The mean over all views of a picture; pure and jittable (everything but variables, images and sizes is static).

    Args:
      model: what `build_model` gave, or whose `apply` takes the same, `output_size` and `sizes` included.
      variables: {'params': …, 'batch_stats': …}.
      images: float32 `[B, H, W, 3]`, normalised.
      views: how to look at them.
      sizes: where pictures of several sizes share the batch, int32 `[B, 1 + scales, 2]`: of each, whose (height, width)
        it fills from the top left, what `Views.all_sizes` gives. None: all have that of `images`.
      rooms: for these, a (height, width) for each scale that holds all views.

    Returns:
      float32 `[B, H, W, num_classes]`: mean logits, or mean probabilities; see `Views.gives_probabilities`. Of pictures
      with `sizes`, what lies beyond means nothing.
    """
    size = (images.shape[1], images.shape[2])
    own = None if sizes is None else sizes[:, 0]

    def see(view: Tiled, **options) -> jax.Array:
        more = options if view.sizes is None else options | {"sizes": view.sizes}
        return model.apply(variables, view.array, train=False, **more)

    def forward(view: Tiled) -> jax.Array:
        if views.window is None and not views.align_corners:
            return see(view, output_size=size, **({} if own is None else {"output_sizes": own}))
        logits = see(view) if views.window is None else _slide(see, view, views.window, views.stride)
        return tiles.whole(resizing.resize(tiles.like(view, logits), size, views.align_corners, sizes=own))

    def scores_of(view: Tiled, mirrored: jax.Array | bool) -> jax.Array:
        logits = _mirror(Tiled(forward(_mirror(view, mirrored)), sizes=own), mirrored).array
        return jax.nn.softmax(logits) if views.gives_probabilities else logits

    def scaled(picture: Tiled, scale: int) -> Tiled:
        room = views.sizes(size)[scale] if rooms is None else rooms[scale]
        to = None if sizes is None else sizes[:, 1 + scale]
        if views.average == "probabilities" or views.resize is not None:
            both = None if picture.sizes is None or to is None else (picture.sizes, to)
            levels = grey_levels.resize(colors.grey_levels(picture.array), room, both)
            return Tiled(colors.normalize(levels), sizes=to)
        if picture is pictures and views.scales[scale] == 1 and room == size:
            return picture
        return resizing.resize(picture, room, align_corners=False, sizes=to)

    pictures = view = Tiled(images, sizes=own)
    if len(views.scales) == 1 and not views.flip:
        return scores_of(scaled(pictures, 0), False)
    # A loop for each scale: both mirror images run through one compiled network, and since the sum goes from loop to
    # loop, the scales run one after the other, so that memory does not grow with their number (but by pictures). XLA
    # must not know how often a loop of one turn runs: it would unroll it, and then run several networks at once.
    turns = jax.lax.optimization_barrier(jnp.int32(2 if views.flip else 1))
    total = jnp.zeros(jax.eval_shape(functools.partial(scores_of, mirrored=False), pictures).shape, jnp.float32)
    for scale in range(len(views.scales)):
        view = scaled(view if views.average == "legacy" else pictures, scale)
        total = jax.lax.fori_loop(0, turns, lambda i, total, view=view: total + scores_of(view, i == 1), total)
    return total / (len(views.scales) * (2 if views.flip else 1))


def _mirror(x: Tiled, mirrored: jax.Array | bool) -> Tiled:
    if mirrored is False:
        return x
    if x.sizes is None:
        return Tiled(jnp.where(mirrored, x.array[:, :, ::-1], x.array))
    places, widths = jnp.arange(x.shape[2]), x.sizes[:, 1:]
    places = jnp.where(mirrored & (places < widths), widths - 1 - places, places)
    return tiles.like(x, jax.vmap(lambda picture, places: picture[:, places])(x.array, places))


def _starts(side: int, window: int, stride: int) -> list[int]:
    """Where the windows along one side start: the last one is moved back inside the picture."""
    count = max(math.ceil((side - window) / stride), 0) + 1
    return [max(min(i * stride, side - window), 0) for i in range(count)]


def _slide(apply: Callable, view: Tiled, window: tuple[int, int], stride: tuple[int, int] | None) -> jax.Array:
    """Logits of `view` as the mean of those of overlapping windows, one window at a time."""
    height, width = view.shape[1:3]
    if stride is None:
        stride = max(window[0] * 2 // 3, 1), max(window[1] * 2 // 3, 1)
    window = (min(window[0], height), min(window[1], width))
    if window == (height, width):
        return apply(view)
    if view.sizes is not None:
        return _slide_each(apply, view, view.sizes, window, stride)
    starts = [(y, x) for y in _starts(height, window[0], stride[0]) for x in _starts(width, window[1], stride[1])]
    visits = np.zeros((height, width, 1), np.float32)
    for y, x in starts:
        visits[y : y + window[0], x : x + window[1]] += 1

    def add_window(total, start):
        y, x = start
        patch = jax.lax.dynamic_slice(view.array, (0, y, x, 0), (view.shape[0], *window, view.shape[3]))
        logits = apply(Tiled(patch))
        before = jax.lax.dynamic_slice(total, (0, y, x, 0), logits.shape)
        return jax.lax.dynamic_update_slice(total, before + logits, (0, y, x, 0)), None

    total = jnp.zeros((view.shape[0], height, width, _num_classes(apply, view, window)), jnp.float32)
    total, _ = jax.lax.scan(add_window, total, np.array(starts, np.int32))
    return total / visits


def _slide_each(
    apply: Callable, view: Tiled, sizes: jax.Array, window: tuple[int, int], stride: tuple[int, int]
) -> jax.Array:
    """The same of pictures that have sizes, and so windows, of their own; a batch takes as many as its largest."""
    windows = jnp.minimum(sizes, jnp.array(window))  # of a picture that is smaller, all of it
    counts = -(-(sizes - windows) // jnp.array(stride)) + 1
    num_windows = counts.prod(1)

    def add_window(i, totals):
        index = jnp.stack([i // counts[:, 1], i % counts[:, 1]], 1)
        starts = jnp.minimum(index * jnp.array(stride), sizes - windows)
        cut = jax.vmap(lambda picture, start: jax.lax.dynamic_slice(picture, (*start, 0), (*window, picture.shape[2])))
        paste = jax.vmap(lambda picture, patch, start: jax.lax.dynamic_update_slice(picture, patch, (*start, 0)))
        logits = apply(Tiled(cut(view.array, starts), sizes=windows))
        sizes_now = jnp.where((i < num_windows)[:, None], windows, 0)  # nothing of one that has no more windows

        def add(total, patch):
            return paste(total, cut(total, starts) + tiles.cleared(Tiled(patch, sizes=sizes_now)), starts)

        return add(totals[0], logits), add(totals[1], jnp.ones_like(logits[..., :1]))

    shape = view.shape[:3]
    totals = [jnp.zeros((*shape, channels), jnp.float32) for channels in (_num_classes(apply, view, window), 1)]
    total, visits = jax.lax.fori_loop(0, num_windows.max(), add_window, tuple(totals))
    return total / jnp.maximum(visits, 1)


def _num_classes(apply: Callable, view: Tiled, window: tuple[int, int]) -> int:
    patch = jax.ShapeDtypeStruct((view.shape[0], *window, view.shape[3]), view.array.dtype)
    return jax.eval_shape(lambda patch: apply(tiles.like(view, patch)), patch).shape[-1]

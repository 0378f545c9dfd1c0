"""A trained model as a Python object: a picture in, the classes of its pixels out."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from dlv3p_jax.data import decoding, padding, ranges, size_buckets, viz
from dlv3p_jax.data.pictures import read_image, to_eight_bits
from dlv3p_jax.evaluation.views import Views
from dlv3p_jax.inference import predictor
from dlv3p_jax.runtime import sharding
from dlv3p_jax.weights import published
from dlv3p_jax.weights.trained import TrainedModel, load_checkpoint

PictureLike = np.ndarray | Image.Image | str | os.PathLike[str]


class ViewSettings(TypedDict, total=False):
    """What to set of `Views`, which says what each is; what is left out is as in the model's configuration."""

    flip: bool
    scales: Sequence[float]
    window: tuple[int, int] | None
    stride: tuple[int, int] | None
    average: str


class Segmenter:
    """Predicts pictures of any size, one at a time, on one device.

        segmenter = Segmenter.from_checkpoint("workdir/mine")  # or .from_pretrained("voc_r50")
        labels = segmenter("street.jpg")                        # int32 [H, W]
        segmenter.overlay("street.jpg")                         # uint8 [H, W, 3]
        segmenter.classes[labels[0, 0]]

    A picture is a path, a PIL image or a uint8 array `[H, W, 3]` (RGB). Paths and PIL images may be of any kind that
    `prepare` takes, and are turned as their EXIF orientation says; alpha is dropped, and more than 8 bits are read by
    `picture_range`. Labels are those of `python -m dlv3p_jax.predict`.

    Programs are kept as long as the segmenter, and pictures of many sizes share them: between a side and its double
    there are four rooms, so that 16 programs serve all sizes there. The first picture in a room is slow, for its
    program is compiled. `warm_up` does so beforehand for one size, exactly. All methods may be called from several
    threads at once. A process that is forked after JAX was used has to load its own (ValueError).

    Attributes:
        classes: the names of the C classes.
        palette: uint8 `[C, 3]`, their colours.
        config: the configuration, as a FrozenConfigDict.
        source: where the weights are from.
        picture_range: the values that become 0 and 255 in pictures of more than 8 bits, as in the data that the model
            was trained on; None: all that a file has room for.
    """

    classes: tuple[str, ...]
    palette: NDArray[np.uint8]
    config: ml_collections.FrozenConfigDict
    source: str
    picture_range: tuple[float, float] | None

    def __init__(self, trained: TrainedModel, device: jax.Device | None = None):
        """Takes what `trained.load_checkpoint` gave; `device` is the first one by default.

        Raises:
            ValueError: the configuration's views make no sense together, or the process cannot compute: see
                `sharding.check_process`, which all methods ask.
        """
        sharding.check_process()
        self.classes, self.palette, self.source = trained.class_names, trained.palette, trained.source
        self.config, self.picture_range = trained.config, trained.picture_range
        self._mesh = sharding.make_mesh(1, 1, [device or jax.local_devices()[0]])
        everywhere = sharding.replicated(self._mesh)
        self._variables = jax.device_put(trained.variables, everywhere)
        self._trained = dataclasses.replace(trained, variables=self._variables)
        self._views = Views.of(trained.config.eval)
        self._exact = {trained.config.eval_size}  # sizes with a program of their own

        @functools.cache
        def program(probabilities: bool, view_rooms: tuple[size_buckets.Size, ...] | None) -> jax.stages.Wrapped:
            dtype = jnp.float32 if probabilities else None
            step = predictor.make_predict_step(trained.config, trained.model, dtype, view_rooms)
            return sharding.jit(self._mesh, step, in_shardings=everywhere, out_shardings=everywhere)

        self._program = program

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str | os.PathLike[str],
        config: ml_collections.ConfigDict | None = None,
        device: jax.Device | None = None,
        **views: Unpack[ViewSettings],
    ) -> "Segmenter":
        """A model from a workdir, a checkpoint's folder, a `.pdparams` file or a published name.

        Args:
            checkpoint: of a workdir, the best checkpoint is taken, with its averaged weights where it has any.
            config: where the checkpoint has none, or for other settings; of a `.pdparams` file, what its arrays do not
                say (output stride, dilations, `align_corners`) is as in PaddleSeg's 512x512 and 1024x512 recipes.
            device: to compute on; the first one by default.
            **views: see `Views`.

        Raises:
            ValueError, OSError: it is none of these, or of another network than `config` says; the message names it.
        """
        return cls(_looking(load_checkpoint(config, checkpoint), views), device)

    @classmethod
    def from_pretrained(cls, name: str, device: jax.Device | None = None, **views: Unpack[ViewSettings]) -> "Segmenter":
        """A model that PaddleSeg published, such as "cityscapes_r50"; fetched once, and then taken from the cache.

        Raises:
            ValueError: there is no such model; the message lists all.
            download.DownloadError: it cannot be had; the message says where to put the file.
        """
        if name not in published.PUBLISHED:
            raise ValueError(f"{name!r} is no published model: there are {', '.join(published.PUBLISHED)}")
        return cls.from_checkpoint(name, device=device, **views)

    def with_views(self, **views: Unpack[ViewSettings]) -> "Segmenter":
        """The same model, with the same arrays on the device, that looks at pictures otherwise.

        Raises:
            ValueError: the views make no sense together.
        """
        return Segmenter(_looking(self._trained, views), self._mesh.devices.item())

    def __call__(self, image: PictureLike) -> NDArray[np.int32]:
        """The class of each pixel, int32 `[H, W]` in 0..C-1.

        Raises:
            ValueError: it is no picture, or cannot be read; the message names it.
        """
        return self._predict(as_array(image, self.picture_range)).astype(np.int32)

    def probabilities(self, image: PictureLike) -> NDArray[np.float32]:
        """The probability of each class at each pixel, float32 `[H, W, C]`, of sum 1; raises as a call does."""
        return self._predict(as_array(image, self.picture_range), probabilities=True)

    def overlay(self, image: PictureLike, alpha: float = 0.5) -> NDArray[np.uint8]:
        """The picture with the classes' colours laid over, uint8 `[H, W, 3]`.

        Args:
            image: the picture.
            alpha: how much of a pixel is its class's colour, 0 to 1.

        Raises:
            ValueError: as a call does; `alpha` is another.
        """
        array = as_array(image, self.picture_range)
        return viz.overlay(array, self._predict(array), self.palette, alpha)

    def warm_up(self, size: tuple[int, int]) -> None:
        """Compiles a program for pictures of this (height, width) alone, without any padding, and runs it once."""
        self._exact.add(padding.padded_size(size, self.config.eval_size))
        self._predict(np.zeros((*size, 3), np.uint8))

    def __repr__(self) -> str:
        return f"Segmenter({self.source!r}, {len(self.classes)} classes)"

    def _predict(self, image: np.ndarray, probabilities: bool = False) -> np.ndarray:
        """Labels, or probabilities."""
        sharding.check_process()
        height, width = image.shape[:2]
        own = padding.padded_size((height, width), self.config.eval_size)
        room, view_rooms, view_sizes = own, None, None
        if own not in self._exact:
            room, *rooms = map(size_buckets.room, self._views.all_sizes(own))
            # Those of all pictures in this room, where they follow from it.
            view_rooms = tuple(rooms if self._views.resize else map(size_buckets.room, self._views.sizes(room)))
            view_sizes = self._views.sizes_of_each([own])
        images = np.zeros((1, *room, 3), np.uint8)
        images[0, :height, :width] = image
        program = self._program(probabilities, view_rooms)
        found = program(self._variables, images, np.array([[height, width]], np.int32), view_sizes)
        return np.asarray(found[1] if probabilities else found[0])[0, :height, :width]


def as_array(image: PictureLike, picture_range: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """A picture as uint8 `[H, W, 3]`, RGB, turned as its EXIF orientation says.

    Args:
        image: a path, a PIL image or an array.
        picture_range: the values that become 0 and 255 in files and PIL images of more than 8 bits.

    Raises:
        ValueError: it is no picture, or cannot be read; the message names it.
    """
    if isinstance(image, (str, os.PathLike)):
        stored = read_image(image, picture_range)
        _warn_of_dark(str(image), stored.values, stored.taken_for)
        return stored.pixels()
    if isinstance(image, Image.Image):
        name = getattr(image, "filename", "") or "the PIL image"
        with decoding.naming(name):  # it is decoded only here
            if picture_range is not None and isinstance(image, ImageFile.ImageFile) and image.mode in ("RGB", "RGBA"):
                _refuse_lost_bits(name, image)
            upright = ImageOps.exif_transpose(image)
            if not upright.mode.startswith(("F", "I")):
                return np.asarray(upright.convert("RGB"))
            values = np.asarray(upright)
        if picture_range is None and not upright.mode.startswith("I;16"):
            raise ValueError(f"{name}: a PIL image of mode {image.mode} has no known range: convert it to 8 bits first")
        if picture_range is None:
            _warn_of_dark(name, (float(values.min()), float(values.max())), (0, 65535))
        grey = to_eight_bits(name, values, picture_range or (0, 65535))
        return np.stack([grey] * 3, axis=-1)
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(
            f"an array of {array.dtype} {list(array.shape)} is no picture: give uint8 [height, width, 3], RGB, 0..255"
        )
    return array


def _refuse_lost_bits(name: str, image: ImageFile.ImageFile) -> None:
    """Raises DatasetError where the file has 16 bits a colour, of which a PIL image keeps 8."""
    if any("16" in str(tile.args) for tile in image.tile):
        raise decoding.DatasetError(f"{name}: a PIL image keeps 8 of its 16 bits a colour: give its path")


def _warn_of_dark(name: str, values: ranges.Range | None, taken_for: ranges.Range | None) -> None:
    if values is None or taken_for is None:
        return
    seen = ranges.Seen()
    seen.add(name, values, taken_for)
    if complaint := seen.complaint():
        logging.log_first_n(logging.WARNING, "%s", 1, complaint)


def _looking(trained: TrainedModel, settings: ViewSettings) -> TrainedModel:
    """The same model, whose configuration has these views."""
    config = trained.config.as_configdict()
    changes: dict[str, Any] = {**settings}
    views = dataclasses.replace(Views.of(config.eval), **changes)
    config.eval.update(dataclasses.asdict(views))
    return dataclasses.replace(trained, config=ml_collections.FrozenConfigDict(config))

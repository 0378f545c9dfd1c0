"""A trained model as a Python object: a picture in, the classes of its pixels out."""

import collections
import dataclasses
import difflib
import functools
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from numpy.typing import NDArray

from dlv3p_jax.data import padding, size_buckets, viz
from dlv3p_jax.evaluation.views import Views
from dlv3p_jax.inference import features, model_card, predictor
from dlv3p_jax.inference.picture_like import PictureLike, as_array
from dlv3p_jax.runtime import sharding
from dlv3p_jax.weights import model_folder, published
from dlv3p_jax.weights.trained import TrainedModel, load_checkpoint

Asked = Literal["labels", "probabilities", "features"]
Pictures = list[Any] | tuple[Any, ...]  # of PictureLike, of any sizes


class ViewSettings(TypedDict, total=False):
    """What to set of `Views`, which says what each is; what is left out is as in the model's configuration."""

    flip: bool
    scales: Sequence[float]
    window: tuple[int, int] | None
    stride: tuple[int, int] | None
    average: str


class Segmenter:
    """Predicts pictures of any size on one device.

        segmenter = Segmenter.from_checkpoint("workdir/mine")  # or .from_pretrained("voc_r50")
        labels = segmenter("street.jpg")                        # int32 [H, W]
        segmenter.overlay("street.jpg")                         # uint8 [H, W, 3]
        segmenter.classes[labels[0, 0]]
        segmenter(["a.jpg", "b.jpg"], batch_size=2)             # a list of int32 [H, W]

    A picture is a path, a PIL image or a uint8 array `[H, W, 3]` (RGB). Paths and PIL images may be of any kind that
    `prepare` takes, and are turned as their EXIF orientation says; alpha is dropped, and more than 8 bits are read by
    `picture_range`. Labels are those of `python -m dlv3p_jax.predict`.

    A list or a tuple of pictures of any sizes gives a list of results, and a uint8 array `[B, H, W, 3]` an array of
    them. `batch_size` pictures whose sizes share a program are computed at once, which takes so many times the memory;
    by default it is one at a time. A result is that of the picture alone, to rounding.

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
        def program(asked: Asked, view_rooms: tuple[size_buckets.Size, ...] | None) -> jax.stages.Wrapped:
            if asked == "features":
                step = features.make_feature_step(trained.model)
            else:
                dtype = jnp.float32 if asked == "probabilities" else None
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
        """A model from a workdir, a checkpoint, a folder of `save_pretrained`, a `.pdparams` file or a published name.

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
    def from_pretrained(
        cls, name: str | os.PathLike[str], device: jax.Device | None = None, **views: Unpack[ViewSettings]
    ) -> "Segmenter":
        """A model that somebody shares: by its published name, in a folder, or on Hugging Face's hub.

        Args:
            name: "cityscapes_r50" or another of PaddleSeg's and MMSegmentation's, which is fetched once; a folder of
                `save_pretrained`; or "user/model" on the hub, whose newest is fetched where it can be reached.
            device: to compute on; the first one by default.
            **views: see `Views`.

        Raises:
            ValueError: there is no such model; the message lists those that are published.
            DownloadError, HubError: it cannot be had; the message says what to do.
        """
        models, name = published.models(), os.path.expanduser(os.fspath(name))
        if name not in models and not os.path.exists(name):  # of a file, `from_checkpoint` says what it is
            name = name.removeprefix(model_folder.HUB)
            if not model_folder.looks_like_hub_name(name) or name.startswith("mmseg/"):
                near = difflib.get_close_matches(name, models, n=1)
                meant = f" (did you mean {near[0]}?)" if near else ""
                raise ValueError(
                    f"{name!r} is no published model{meant}: there are {', '.join(published.PUBLISHED)}, and "
                    "MMSegmentation's, mmseg/…; a folder of save_pretrained or user/model on Hugging Face's hub will do"
                )
            name = model_folder.HUB + name
        return cls.from_checkpoint(name, device=device, **views)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes the model as others load it: `model.safetensors`, `config.json` and a card, `README.md`.

        The card has the scores of the evaluations in the model's workdir. One that is in `folder` already stays.
        `from_pretrained`, and whatever takes a checkpoint here, takes the folder.

        Raises:
            ValueError: `folder` is that of a run.
            OSError: it cannot be written.
        """
        self._write(folder, os.path.basename(os.path.abspath(folder)))

    def push_to_hub(self, name: str, private: bool | None = None) -> str:
        """Puts what `save_pretrained` writes onto Hugging Face's hub as "user/model"; gives the address of the commit.

        Raises:
            HubError: it cannot be put there; the message says why.
        """
        with tempfile.TemporaryDirectory() as folder:
            return model_folder.push(self._write(folder, name), name, private)

    def with_views(self, **views: Unpack[ViewSettings]) -> "Segmenter":
        """The same model, with the same arrays on the device, that looks at pictures otherwise.

        Raises:
            ValueError: the views make no sense together.
        """
        return Segmenter(_looking(self._trained, views), self._mesh.devices.item())

    @overload
    def __call__(self, image: PictureLike) -> NDArray[np.int32]: ...
    @overload
    def __call__(self, image: Pictures, batch_size: int = 1) -> list[NDArray[np.int32]]: ...
    def __call__(self, image: PictureLike | Pictures, batch_size: int = 1) -> Any:
        """The class of each pixel, int32 `[H, W]` in 0..C-1; of several pictures, see above.

        Raises:
            ValueError: it is no picture, or cannot be read; the message names it. `batch_size` is less than 1.
        """
        return self._each(image, batch_size, "labels", lambda _, labels: labels.astype(np.int32))

    @overload
    def probabilities(self, image: PictureLike) -> NDArray[np.float32]: ...
    @overload
    def probabilities(self, image: Pictures, batch_size: int = 1) -> list[NDArray[np.float32]]: ...
    def probabilities(self, image: PictureLike | Pictures, batch_size: int = 1) -> Any:
        """The probability of each class at each pixel, float32 `[H, W, C]`, of sum 1; raises as a call does."""
        return self._each(image, batch_size, "probabilities", lambda _, probabilities: probabilities)

    @overload
    def overlay(self, image: PictureLike, alpha: float = 0.5) -> NDArray[np.uint8]: ...
    @overload
    def overlay(self, image: Pictures, alpha: float = 0.5, batch_size: int = 1) -> list[NDArray[np.uint8]]: ...
    def overlay(self, image: PictureLike | Pictures, alpha: float = 0.5, batch_size: int = 1) -> Any:
        """The picture with the classes' colours laid over, uint8 `[H, W, 3]`.

        Args:
            image: the picture, or several.
            alpha: how much of a pixel is its class's colour, 0 to 1.
            batch_size: of several, how many are computed at once.

        Raises:
            ValueError: as a call does; `alpha` is another.
        """
        return self._each(
            image, batch_size, "labels", lambda seen, labels: viz.overlay(seen, labels, self.palette, alpha)
        )

    def features(self, image: PictureLike) -> dict[str, NDArray[np.float32]]:
        """What the parts of the network say of a picture, seen once, as it is: float32 `[h, w, C]` by their names.

        Height and width are those of the picture, divided and rounded up: by 4 in `stage1` and by 8 in `stage2` of the
        backbone, by `model.output_stride` in its `stage3` and `stage4` and in `aspp`, which has `model.aspp_channels`,
        and by 4 in `decoder`, which has `model.decoder_channels` and is what the classifier sees.

        Raises:
            ValueError: as a call does.
        """
        (found,) = self._each([image], 1, "features", lambda _, features: features)
        return dict(found)

    def warm_up(self, size: tuple[int, int]) -> None:
        """Compiles a program for pictures of this (height, width) alone, without any padding, and runs it once."""
        self._exact.add(padding.padded_size(size, self.config.eval_size))
        self(np.zeros((*size, 3), np.uint8))

    def __repr__(self) -> str:
        return f"Segmenter({self.source!r}, {len(self.classes)} classes)"

    def _write(self, folder: str | os.PathLike[str], name: str) -> epath.Path:
        trained = self._trained
        card = model_card.write(trained, name)
        return model_folder.write(folder, jax.device_get(trained.variables), trained.config, trained.describe(), card)

    def _each(self, image: PictureLike | Pictures, batch_size: int, asked: Asked, finish: Callable[..., Any]) -> Any:
        """`finish` of a picture, uint8 `[H, W, 3]`, and of what is found in it; of several, a list or an array of them.

        Pictures are read when their turn comes, and wait until `batch_size` of them share a program.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: give 1 or more")
        sharding.check_process()
        stacked = isinstance(image, np.ndarray) and image.ndim == 4 and len(image) > 0
        if isinstance(image, list | tuple):
            pictures: Sequence[Any] = image
        elif stacked:
            pictures = list(np.asarray(image))
        else:
            seen = as_array(image, self.picture_range)
            return finish(seen, self._predict([seen], asked)[0])
        results: dict[int, Any] = {}
        waiting: dict[Any, list[tuple[int, np.ndarray]]] = collections.defaultdict(list)

        def run(batch: list[tuple[int, np.ndarray]]) -> None:
            seen = [array for _, array in batch]
            full = seen + seen[:1] * (batch_size - len(seen))  # which needs no program of its own
            for (index, array), found in zip(batch, self._predict(full, asked), strict=False):
                results[index] = finish(array, found)
            batch.clear()

        for index, picture in enumerate(pictures):
            array = as_array(picture, self.picture_range)
            batch = waiting[self._rooms(_size(array))]
            batch.append((index, array))
            if len(batch) == batch_size:
                run(batch)
        for batch in filter(None, waiting.values()):
            run(batch)
        in_order = [results[index] for index in range(len(pictures))]
        return np.stack(in_order) if stacked else in_order

    def _rooms(self, size: tuple[int, int]) -> tuple[size_buckets.Size, tuple[size_buckets.Size, ...] | None]:
        """The size of the program for a picture, and those of its views; None: the program is for this size alone."""
        own = padding.padded_size(size, self.config.eval_size)
        if own in self._exact:
            return own, None
        room, *rooms = map(size_buckets.room, self._views.all_sizes(own))
        # Those of all pictures in this room, where they follow from it.
        return room, tuple(rooms if self._views.resize else map(size_buckets.room, self._views.sizes(room)))

    def _predict(self, images: Sequence[np.ndarray], asked: Asked) -> list[Any]:
        """What is asked for of pictures that share a program, each of its own size."""
        sizes = [_size(image) for image in images]
        room, view_rooms = self._rooms(sizes[0])
        view_sizes = None
        if view_rooms is not None:
            view_sizes = self._views.sizes_of_each([padding.padded_size(size, self.config.eval_size) for size in sizes])
        batch = np.zeros((len(images), *room, 3), np.uint8)
        for row, image, (height, width) in zip(batch, images, sizes, strict=True):
            row[:height, :width] = image
        found = self._program(asked, view_rooms)(self._variables, batch, np.array(sizes, np.int32), view_sizes)
        if asked == "features":
            strides = features.strides(self.config.model.output_stride)
            arrays = {name: np.asarray(array) for name, array in found.items()}
            return [
                {
                    name: array[row, : -(-height // strides[name]), : -(-width // strides[name])]
                    for name, array in arrays.items()
                }
                for row, (height, width) in enumerate(sizes)
            ]
        values = np.asarray(found[asked == "probabilities"])
        return [values[row, :height, :width] for row, (height, width) in enumerate(sizes)]


def _size(image: np.ndarray) -> size_buckets.Size:
    height, width = image.shape[:2]
    return height, width


def _looking(trained: TrainedModel, settings: ViewSettings) -> TrainedModel:
    """The same model, whose configuration has these views."""
    config = trained.config.as_configdict().copy_and_resolve_references()  # that is the frozen one's own
    changes: dict[str, Any] = {**settings}
    views = dataclasses.replace(Views.of(config.eval), **changes)
    config.eval.update(dataclasses.asdict(views))
    return dataclasses.replace(trained, config=ml_collections.FrozenConfigDict(config))

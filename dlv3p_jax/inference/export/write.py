"""Writing a model in one format, and comparing what was written with the network itself."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from PIL import Image

from dlv3p_jax.data import colors
from dlv3p_jax.datasets.toy_streets import scenes
from dlv3p_jax.inference.export import folders, programs
from dlv3p_jax.runtime import files, provenance
from dlv3p_jax.runtime.errors import UserError
from dlv3p_jax.weights.trained import TrainedModel

LEAST_EQUAL = 0.999  # share of the pixels whose labels have to be equal


class ExportError(UserError):
    """The model that was written is not the one that it was made of."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """How a model that was written differs from the network, over some pictures.

    Attributes:
        sizes: (height, width) of the pictures; of each size there is a picture and its mirror image.
        equal_labels: share of the pixels whose labels are equal.
        largest_logit_difference: over all pixels and classes.
        classes: how many classes the network finds in them.
    """

    sizes: tuple[tuple[int, int], ...]
    equal_labels: float
    largest_logit_difference: float
    classes: int


def export(
    trained: TrainedModel,
    name: str,
    folder: pathlib.Path,
    size: tuple[int, int] | None,
    picture: np.ndarray | None = None,
    size_from: str = "",
    up_to: bool = False,
) -> Difference:
    """Writes into `folder` the model and its description, `model.json`; nothing if the comparison fails.

    Args:
        trained: a model whose `config.model.dtype` is float32.
        name: one of `folders.FORMATS`.
        folder: made where it is not there, else replaced.
        size: (height, width) of the pictures that the model takes; None, for ONNX alone: any.
        picture: what to compare on, uint8 `[H, W, 3]`, which is resized to `size`; None: a drawn street.
        size_from: where `size` is from, for the description.
        up_to: for StableHLO alone: the model takes pictures of all sizes up to this one.

    Raises:
        OSError: the files cannot be written.
        ExportError: less than `LEAST_EQUAL` of the labels are equal, or the network's logits are not finite.
    """
    picture = scenes.draw_scene("val", 0)[0] if picture is None else picture
    sizes = (size,) if size and not up_to else _two_sizes(*(size or picture.shape[:2]))
    format_ = _module(name)
    with files.replacing_folder(folder) as unfinished:
        options = {"up_to": True} if up_to else {}
        format_.write(trained.model, trained.variables, unfinished, *(size or (None, None)), **options)
        comparison = _compare(format_.load(unfinished), trained, picture, sizes)
        if comparison.equal_labels < LEAST_EQUAL:
            raise ExportError(
                f"{name}: only {comparison.equal_labels:.3%} of the labels are those of the network, so nothing was "
                "written: please report it, with what `pip freeze` lists"
            )
        description = json.dumps(_describe(trained, name, size, size_from, comparison, up_to), indent=2)
        (unfinished / folders.DESCRIPTION).write_text(f"{description}\n", encoding="utf-8")
    return comparison


def _module(name: str):
    """The module of a format; the libraries of the others are not imported."""
    match name:
        case "onnx":
            from dlv3p_jax.inference.export import onnx

            return onnx
        case "savedmodel":
            from dlv3p_jax.inference.export import savedmodel

            return savedmodel
        case _:
            from dlv3p_jax.inference.export import stablehlo

            return stablehlo


def _two_sizes(*size: int) -> tuple[tuple[int, ...], ...]:
    """`size`, and about half of it, in odd numbers, which divide by nothing that the network likes."""
    return size, tuple(side // 2 + 1 - side // 2 % 2 for side in size)


def _compare(predict: Callable, trained: TrainedModel, picture: np.ndarray, sizes) -> Difference:
    equal, pixels, difference = 0, 0, 0.0
    classes: set[int] = set()
    for height, width in sizes:
        resized = np.asarray(Image.fromarray(picture).resize((width, height)))
        images = np.stack([resized, resized[:, ::-1]])
        logits = np.asarray(_apply(trained.model, trained.variables, images))
        if not np.isfinite(logits).all():
            raise ExportError(f"{trained.source}: the logits are not finite, so there is nothing to compare with")
        labels, outputs = logits.argmax(-1), predict(images)
        equal += int(np.sum(np.asarray(outputs["labels"]) == labels))
        pixels += labels.size
        difference = max(difference, float(np.abs(np.asarray(outputs["logits"]) - logits).max()))
        classes |= set(np.unique(labels).tolist())
    return Difference(sizes, equal / pixels, difference, len(classes))


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, variables, images):
    return model.apply(variables, colors.normalize(images), train=False)


def _describe(
    trained: TrainedModel, name: str, size, size_from: str, comparison: Difference, up_to: bool = False
) -> dict[str, Any]:
    config, (height, width) = trained.config, size or ("height", "width")
    # (height, width) that each picture fills from the top left; beyond it, outputs mean nothing.
    each = {"size": {"name": "size", "dtype": "int32", "shape": ["batch", 2]}} if up_to else {}
    return {
        "producer": folders.PRODUCER,
        "format": name,
        "platforms": ["any"] if name == "onnx" else list(programs.PLATFORMS),
        "checkpoint": trained.source,
        "input": {"name": "image", "dtype": "uint8", "shape": ["batch", height, width, 3], "colors": "RGB"},
        **each,
        # The values that became 0 and 255 in pictures of more than 8 bits, in the data that it was trained on.
        "picture_range": trained.picture_range,
        "size_from": size_from if size else "any size",
        "outputs": {
            "labels": {"dtype": "uint8", "shape": ["batch", height, width]},
            "logits": {"dtype": "float32", "shape": ["batch", height, width, config.num_classes]},
        },
        # What the model does to its input by itself: (value / 255 - mean) / std.
        "normalization": {
            "inside": True,
            **{key: [value / 255 for value in getattr(trained.model, key)] for key in ("mean", "std")},
        },
        "views": {"scales": [1.0], "flip": False, "window": None, "padded_to": None, "resized_to_fit": None},
        "classes": list(trained.class_names),
        "palette": trained.palette.tolist(),
        "ignore_label": config.ignore_label,
        "model": config.model.to_dict(),
        "comparison": dataclasses.asdict(comparison),
        "made_by": provenance.describe(),
    }

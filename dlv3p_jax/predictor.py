"""Prediction of picture files with a checkpoint: any formats and sizes in, labels out; nothing is written here."""

import collections
import concurrent.futures
import dataclasses
import io
import os
import pathlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from PIL import Image, UnidentifiedImageError

from dlv3p_jax import evaluate, preprocess, sharding, steps
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.pairs import EXTENSIONS
from dlv3p_jax.data.pictures import Problem, read_image

_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that exchange width and height
_READERS = 4  # threads that decode


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture file; `name` is what its outputs are called: a relative path, in general without its extension."""

    path: pathlib.Path
    name: str


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A picture, uint8 `[H, W, 3]`, and the classes of its pixels, uint8 `[H, W]`."""

    picture: Picture
    image: np.ndarray
    label: np.ndarray


def find_pictures(
    paths: Sequence[str | os.PathLike], output: str | os.PathLike | None = None
) -> tuple[list[Picture], list[Problem]]:
    """Picture files, and those below folders, sorted within each folder.

    Names are relative to the deepest folder that holds all of `paths`, so that pictures of one name in two folders stay
    apart. They leave out the extension, unless two pictures differ in nothing else.

    Args:
        paths: files and folders. Hidden files in folders, and files that are no pictures by their extension, are not
            looked at.
        output: a folder to leave out, because it is where outputs go.

    Returns:
        The pictures, each once, and what is wrong with paths that are not there or hold no picture.
    """
    files, problems = {}, []
    skipped = None if output is None else pathlib.Path(os.path.abspath(output))
    paths = [pathlib.Path(os.path.abspath(os.path.expanduser(path))) for path in paths]
    for path in paths:
        if path.is_dir():
            found = [file for file in _files_below(path) if skipped is None or skipped not in file.parents]
            if not found:
                problems.append(Problem(str(path), f"{path}: no pictures in this folder"))
            files |= dict.fromkeys(found)
        elif path.is_file():
            files[path] = None
        else:
            problems.append(Problem(str(path), f"{path}: no such file or folder"))
    if not files:
        return [], problems
    root = os.path.commonpath([path if path.is_dir() else path.parent for path in paths if path.exists()])
    relative = {path: path.relative_to(root) for path in files}
    stems = collections.Counter(name.with_suffix("") for name in relative.values())
    pictures = [
        Picture(path, (name.with_suffix("") if stems[name.with_suffix("")] == 1 else name).as_posix())
        for path, name in relative.items()
    ]
    return pictures, problems


def _files_below(folder: pathlib.Path) -> list[pathlib.Path]:
    files = (pathlib.Path(root, name) for root, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(
        path
        for path in files
        if path.suffix.lower() in EXTENSIONS and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )


def make_predict_step(config, model):
    """A pure function `predict_step(variables, images, sizes) -> labels` with the views of `config.eval`.

    `images` is uint8 `[B, H, W, 3]`, each of which fills `sizes` (int32 `[B, 2]`, height and width) from the top left.
    What lies beyond becomes 0 after normalisation, as the padding of an evaluation is, whatever it holds. `labels` is
    uint8 `[B, H, W]`, and means nothing beyond the picture.
    """
    views = evaluate.views_of(config)

    def predict_step(variables, images, sizes):
        images = evaluate.clear_padding(preprocess.normalize(images), sizes)
        logits = evaluate.predict_logits(model, variables, images, **views)
        return jnp.argmax(logits, axis=-1).astype(jnp.uint8)

    return predict_step


def predict_pictures(
    config, model, variables: steps.Variables, pictures: Sequence[Picture], mesh: Mesh
) -> Iterator[Prediction | Problem]:
    """Predicts all pictures, size by size; what is smaller than `config.eval_size` is padded to it, as in evaluation.

    Args:
        config, model, variables: what `weights.load_checkpoint` gave.
        pictures: what `find_pictures` gave.
        mesh: the devices. A batch holds `config.eval.batch_size` pictures at most, rounded up to fill them.

    Yields:
        A prediction for each picture, or why it cannot be read, in no particular order.

    Raises:
        ValueError: a view or the mesh cannot be used.
    """
    predict_step = sharding.jit(
        mesh,
        make_predict_step(config, model),
        in_shardings=(sharding.replicated(mesh), sharding.batched(mesh), sharding.rows(mesh)),
        out_shardings=sharding.batched(mesh),
    )
    groups = collections.defaultdict(list)
    for picture in pictures:
        size = _read_size(picture)
        if isinstance(size, Problem):
            yield size
        else:
            groups[_padded(size, config.eval_size)].append(picture)
    logging.info(
        "Predicting %d pictures in %d sizes, each compiled at its first batch, on %s",
        *(sum(map(len, groups.values())), len(groups), sharding.describe(mesh)),
    )
    variables = jax.device_put(variables, sharding.replicated(mesh))
    pending = None
    with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
        for size, batch in _batches(groups, config.eval.batch_size):
            read = list(readers.map(lambda picture, size=size: _read(picture, size, config.eval_size), batch))
            yield from (result for result in read if isinstance(result, Problem))
            read = [result for result in read if not isinstance(result, Problem)]
            if not read:
                continue
            rows = min(config.eval.batch_size, len(groups[size]))
            images, sizes = _stack([image for _, image in read], size, rows, mesh)
            labels = predict_step(variables, images, sizes)
            if pending is not None:  # one behind, so that the devices compute while the host decodes
                yield from _cut(*pending)
            pending = (read, labels)
    if pending is not None:
        yield from _cut(*pending)


def _padded(size: tuple[int, int], eval_size: tuple[int, int] | None) -> tuple[int, int]:
    return size if eval_size is None else tuple(map(max, size, eval_size))


def _batches(groups, batch_size: int) -> Iterator[tuple[tuple[int, int], list[Picture]]]:
    for size, pictures in groups.items():
        for start in range(0, len(pictures), batch_size):
            yield size, pictures[start : start + batch_size]


def _read_size(picture: Picture) -> tuple[int, int] | Problem:
    """(height, width) as the picture is shown, from its header."""
    try:
        with Image.open(picture.path) as opened:
            width, height = opened.size
            # To look for it behind a PNG's pixels, Pillow would decode them.
            has_exif = opened.format != "PNG" or "exif" in opened.info
            turned = has_exif and opened.getexif().get(_ORIENTATION, 1) in _TURNED
    except UnidentifiedImageError:
        return Problem(picture.name, f"{picture.path}: not a picture that Pillow can read")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return Problem(picture.name, f"{picture.path}: cannot be read ({error})")
    return (width, height) if turned else (height, width)


def _read(picture: Picture, padded_size, eval_size) -> tuple[Picture, np.ndarray] | Problem:
    try:
        data, size, _ = read_image(picture.path)
    except DatasetError as error:
        return Problem(picture.name, str(error))
    if _padded(size, eval_size) != padded_size:
        return Problem(picture.name, f"{picture.path}: its size is not what its header says; save it again")
    return picture, np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _stack(images: list[np.ndarray], size: tuple[int, int], rows: int, mesh: Mesh):
    """The pictures in one array on the mesh, with their sizes; its rows are as many for every batch of a size."""
    devices = mesh.shape[sharding.DATA]
    rows = -(-rows // devices) * devices
    sharding.check_batch(mesh, rows, size[0], "config.eval.batch_size")
    stacked = np.zeros((rows, *size, 3), np.uint8)
    sizes = np.zeros((rows, 2), np.int32)
    for row, image in enumerate(images):
        sizes[row] = image.shape[:2]
        stacked[row, : sizes[row, 0], : sizes[row, 1]] = image
    batch = sharding.put_batch(mesh, {"image": stacked, "size": sizes})
    return batch["image"], batch["size"]


def _cut(read: list[tuple[Picture, np.ndarray]], labels: jax.Array) -> Iterator[Prediction]:
    labels = np.asarray(labels)
    for (picture, image), label in zip(read, labels[: len(read)], strict=True):
        yield Prediction(picture, image, label[: image.shape[0], : image.shape[1]])

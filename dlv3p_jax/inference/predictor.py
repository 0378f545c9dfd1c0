"""Prediction of picture files with a trained model: any formats and sizes in, labels out; nothing is written here."""

import collections
import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from absl import logging
from jax.sharding import Mesh
from jax.typing import DTypeLike

from dlv3p_jax.data import colors, decoding, padding, ranges
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.pictures import Problem, Stored, read_image
from dlv3p_jax.evaluation.step import clear_padding
from dlv3p_jax.evaluation.views import Views, predict_logits
from dlv3p_jax.inference.finding import Picture
from dlv3p_jax.models import Variables
from dlv3p_jax.runtime import memory, sharding

_READERS = 4  # threads that decode


class _Row(NamedTuple):
    """Of a batch: a picture, its pixels, and what its file was."""

    picture: Picture
    image: np.ndarray
    stored: Stored


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A picture, uint8 `[H, W, 3]`, the classes of its pixels, uint8 `[H, W]`, and perhaps how probable each class is.

    `probabilities` is float16 `[H, W, C]`, which is within 0.0003 of float32 and half its size; or None.
    """

    picture: Picture
    image: np.ndarray
    label: np.ndarray
    probabilities: np.ndarray | None


def make_predict_step(config, model, probabilities: DTypeLike | None = None) -> Callable:
    """A pure function `predict_step(variables, images, sizes) -> (labels, probabilities)` with the views of `config`.

    `images` is uint8 `[B, H, W, 3]`, each of which fills `sizes` (int32 `[B, 2]`, height and width) from the top left.
    What lies beyond becomes 0 after normalisation, as the padding of an evaluation is, whatever it holds. `labels` is
    uint8 `[B, H, W]`, and means nothing beyond the picture. `probabilities` is `[B, H, W, C]` of the type that is asked
    for, or None.
    """
    views = Views.of(config.eval)

    def predict_step(variables, images, sizes):
        images = clear_padding(colors.normalize(images), sizes)
        scores = predict_logits(model, variables, images, views)
        labels = jnp.argmax(scores, axis=-1).astype(jnp.uint8)
        if probabilities is None:
            return labels, None
        values = scores if views.gives_probabilities else jax.nn.softmax(scores)
        return labels, values.astype(probabilities)

    return predict_step


def predict_pictures(
    config,
    model,
    variables: Variables,
    pictures: Sequence[Picture],
    mesh: Mesh,
    done: Collection[str] = (),
    probabilities: bool = False,
    picture_range: ranges.Range | None = None,
) -> Iterator[Prediction | Problem]:
    """Predicts all pictures, size by size; what is smaller than `config.eval_size` is padded to it, as in evaluation.

    Args:
        config, model, variables: of a `weights.TrainedModel`.
        pictures: what `finding.find_pictures` gave.
        mesh: the devices. A batch holds `config.eval.batch_size` pictures at most, rounded up to fill them.
        done: names of pictures to leave out. Their places in the batches stay empty, so that the others come out to the
            same bits as if all were predicted: batches of another size are other programs, which round otherwise.
        probabilities: whether to give these too.
        picture_range: the values that become 0 and 255 in pictures of more than 8 bits; see `pictures.read_image`.

    Yields:
        A prediction for each picture, or why it cannot be read or predicted, in no particular order.

    Raises:
        ValueError: a view or the mesh cannot be used.
    """
    predict_step = sharding.jit(
        mesh,
        make_predict_step(config, model, jnp.float16 if probabilities else None),
        in_shardings=(sharding.replicated(mesh), sharding.batched(mesh), sharding.per_picture(mesh)),
        out_shardings=sharding.batched(mesh),
    )
    groups: dict[tuple[int, int], list[Picture]] = collections.defaultdict(list)
    for picture in pictures:
        size = _read_size(picture)
        if not isinstance(size, Problem):
            groups[padding.padded_size(size, config.eval_size)].append(picture)
        elif picture.name not in done:
            yield size
    left = {size: [picture for picture in group if picture.name not in done] for size, group in groups.items()}
    logging.info(
        "Predicting %d pictures in %d sizes, each compiled at its first batch, on %s%s",
        *(sum(map(len, left.values())), sum(map(bool, left.values())), sharding.describe(mesh)),
        f"; {len(done)} are there already" if done else "",
    )
    variables = jax.device_put(variables, sharding.replicated(mesh))
    pending, said = None, _Said()
    with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
        for size, group in groups.items():
            if not left[size]:
                continue
            num_rows = _num_rows(min(config.eval.batch_size, len(group)), size, mesh)
            try:
                program = _compile(predict_step, variables, num_rows, size, mesh)
            except MemoryError as error:
                yield from (Problem(picture.name, f"{picture.path}: {error}") for picture in left[size])
                continue
            read = functools.partial(_read, padded_size=size, eval_size=config.eval_size, picture_range=picture_range)
            for batch in _batches(group, config.eval.batch_size, done):
                results = list(readers.map(read, batch))
                yield from (result for result in results if isinstance(result, Problem))
                rows = [None if isinstance(result, Problem) else result for result in results]
                said.add(rows)
                outputs = program(variables, *_stack(rows, size, num_rows, mesh))
                if pending is not None:  # one behind, so that the devices compute while the host decodes
                    yield from _cut(*pending)
                pending = (rows, *outputs)
    if pending is not None:
        yield from _cut(*pending)
    said.end()


class _Said:
    """Logs what is made of pictures that are no 8-bit RGB or grey, a line for each kind of them."""

    def __init__(self) -> None:
        self._kinds: set[tuple[str, str]] = set()
        self._ranges = ranges.Seen()

    def add(self, rows: Sequence[_Row | None]) -> None:
        for picture, _, stored in filter(None, rows):
            kind = stored.kind, stored.became
            if stored.kind and kind not in self._kinds:
                self._kinds.add(kind)
                logging.info("%s: %s read as %s; so are others of its kind", picture.path, *kind)
            if stored.values and stored.taken_for:
                self._ranges.add(str(picture.path), stored.values, stored.taken_for)

    def end(self) -> None:
        if complaint := self._ranges.complaint():
            logging.warning("%s", complaint)


def _batches(group: Sequence[Picture], batch_size: int, done: Collection[str]) -> list[list[Picture | None]]:
    """The batches in which something is left to do, with None in the places of what is done."""
    places = [None if picture.name in done else picture for picture in group]
    batches = [places[start : start + batch_size] for start in range(0, len(places), batch_size)]
    return [batch for batch in batches if any(batch)]


def _num_rows(num_pictures: int, size: tuple[int, int], mesh: Mesh) -> int:
    """How many rows the batches of a size have: all the same, and enough for all devices."""
    devices = mesh.shape[sharding.DATA]
    num_rows = -(-num_pictures // devices) * devices
    sharding.check_batch(mesh, num_rows, size[0], "config.eval.batch_size")
    return num_rows


def _compile(
    predict_step, variables: Variables, num_rows: int, size: tuple[int, int], mesh: Mesh
) -> Callable[..., tuple[jax.Array, jax.Array | None]]:
    """The program for batches of one size. It is dropped after them: of thousands of sizes, not all could be kept.

    Raises:
        MemoryError: it needs more than there is.
    """
    images = jax.ShapeDtypeStruct((num_rows, *size, 3), jnp.uint8)
    sizes = jax.ShapeDtypeStruct((num_rows, 2), jnp.int32)
    what = f"{size[0]}x{size[1]} pixels (height x width), {num_rows} at a time"
    advice = "give a smaller --batch_size, or --window=HEIGHT,WIDTH"
    try:
        program = predict_step.lower(variables, images, sizes).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(f"{what}, take more memory than the device has: {advice}") from error
    sizes_in_memory = program.memory_analysis()
    if sizes_in_memory is not None:
        needed = sizes_in_memory.temp_size_in_bytes + sizes_in_memory.output_size_in_bytes
        logging.info("Compiled for %s: %.1f GiB of memory on each device, beside the weights", what, needed / 2**30)
        free = _free_memory(mesh)
        if needed > free:
            raise MemoryError(f"{what}, take {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} are free: {advice}")
    return program


def _free_memory(mesh: Mesh) -> float:
    """Bytes that can be had on each device; of the host, a fifth is left, since Linux kills who takes all."""
    stats = [device.memory_stats() for device in mesh.devices.flat]
    if all(stats):
        return min(each["bytes_limit"] - each["bytes_in_use"] for each in stats)
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    return 0.8 * min(free, memory.host_limit() - psutil.Process().memory_info().rss) / len(stats)


def _read_size(picture: Picture) -> tuple[int, int] | Problem:
    """(height, width) as the picture is shown, from its header."""
    try:
        return decoding.read_size(picture.path)
    except DatasetError as error:
        return Problem(picture.name, str(error))


def _read(
    picture: Picture | None,
    padded_size: tuple[int, int],
    eval_size: tuple[int, int] | None,
    picture_range: ranges.Range | None,
) -> _Row | Problem | None:
    if picture is None:
        return None
    try:
        stored = read_image(picture.path, picture_range)
        image = stored.pixels()
    except DatasetError as error:
        return Problem(picture.name, str(error))
    if padding.padded_size(image.shape[:2], eval_size) != padded_size:
        return Problem(picture.name, f"{picture.path}: its size is not what its header says; save it again")
    return _Row(picture, image, dataclasses.replace(stored, data=b""))


def _stack(
    rows: Sequence[_Row | None], size: tuple[int, int], num_rows: int, mesh: Mesh
) -> tuple[jax.Array, jax.Array]:
    """The pictures in one array on the mesh, each in its own row, and their sizes; the other rows are empty."""
    stacked = np.zeros((num_rows, *size, 3), np.uint8)
    sizes = np.zeros((num_rows, 2), np.int32)
    for index, row in enumerate(rows):
        if row is not None:
            image = row.image
            height, width = sizes[index] = image.shape[:2]
            stacked[index, :height, :width] = image
    batch = sharding.put_batch(mesh, {"image": stacked, "size": sizes})
    return batch["image"], batch["size"]


def _cut(rows: Sequence[_Row | None], labels: jax.Array, probabilities: jax.Array | None) -> Iterator[Prediction]:
    """The predictions of a batch, each of the size of its picture."""
    all_labels = np.asarray(labels)
    all_probabilities = None if probabilities is None else np.asarray(probabilities)
    for index, row in enumerate(rows):
        if row is not None:
            picture, image, _ = row
            inside = (index, slice(image.shape[0]), slice(image.shape[1]))
            values = None if all_probabilities is None else all_probabilities[inside]
            yield Prediction(picture, image, all_labels[inside], values)

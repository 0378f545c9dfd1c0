"""Prediction of picture files with a trained model: any formats and sizes in, labels out; nothing is written here."""

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

from dlv3p_jax.data import colors, decoding, padding, ranges, size_buckets
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.example import Problem
from dlv3p_jax.data.pictures import Stored, read_image
from dlv3p_jax.evaluation.views import Views, predict_logits
from dlv3p_jax.inference.finding import Picture
from dlv3p_jax.models import Variables, tiles
from dlv3p_jax.runtime import memory, sharding, text

_READERS = 4  # threads that decode

_Known = tuple[Picture, Sequence[tuple[int, int]]]  # with its size, padded as in evaluation, and those of its views


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


def make_predict_step(
    config, model, probabilities: DTypeLike | None = None, view_rooms: Sequence[tuple[int, int]] | None = None
) -> Callable:
    """A pure function `predict_step(variables, images, sizes, view_sizes=None) -> (labels, probabilities)`.

    `images` is uint8 `[B, H, W, 3]`, each of which fills `sizes` (int32 `[B, 2]`, height and width) from the top left.
    What lies beyond becomes 0 after normalisation, as the padding of an evaluation is, whatever it holds, and is a part
    of what the network sees; unless there are `view_rooms`: then `view_sizes` and these are `sizes` and `rooms` of
    `predict_logits`. The views are those of `config`. `labels` is uint8 `[B, H, W]`, and means nothing beyond the
    picture. `probabilities` is `[B, H, W, C]` of the type that is asked for, or None.
    """
    views = Views.of(config.eval)

    def predict_step(variables, images, sizes, view_sizes=None):
        images = tiles.cleared(tiles.Tiled(colors.normalize(images), sizes=sizes))
        scores = predict_logits(model, variables, images, views, view_sizes, view_rooms)
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
    """Predicts all pictures; what is smaller than `config.eval_size` is padded to it, as in evaluation.

    Of many sizes, several share a program (`config.eval.buckets`), which sees each as if it were alone.

    Args:
        config, model, variables: of a `trained.TrainedModel`.
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
    views, known = Views.of(config.eval), list[_Known]()
    for picture in pictures:
        size = _read_size(picture)
        if not isinstance(size, Problem):
            known.append((picture, views.all_sizes(padding.padded_size(size, config.eval_size))))
        elif picture.name not in done:
            yield size
    to_do = _choose(config, known, mesh, config.eval.buckets, done)
    logging.info(
        "Predicting %s by %s, compiled at the first batch, on %s%s",
        text.count(sum(picture.name not in done for picture, _ in known), "picture"),
        *(text.count(len(to_do), "program"), sharding.describe(mesh)),
        f"; {len(done)} are there already" if done else "",
    )
    variables = jax.device_put(variables, sharding.replicated(mesh))
    pending, said = None, _Said()
    with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
        while to_do:
            bucket, group = to_do.pop(0)
            num_rows = _num_rows(min(config.eval.batch_size, len(group)), bucket.room, mesh)
            step = make_predict_step(config, model, jnp.float16 if probabilities else None, bucket.view_rooms)
            try:
                program = _compile(step, variables, num_rows, bucket, mesh)
            except MemoryError as error:
                if len({sizes[0] for _, sizes in group}) > 1:  # each size by itself, then: some may do
                    to_do += _choose(config, group, mesh, 0, done)
                    continue
                left = [picture for picture, _ in group if picture.name not in done]
                yield from (Problem(picture.name, f"{picture.path}: {error}") for picture in left)
                continue
            read = functools.partial(_read, eval_size=config.eval_size, picture_range=picture_range)
            for batch in _batches(group, config.eval.batch_size, done):
                results = list(readers.map(read, batch))
                yield from (result for result in results if isinstance(result, Problem))
                rows = [None if isinstance(result, Problem) else result for result in results]
                said.add(rows)
                outputs = program(variables, *_stack(rows, bucket, num_rows, config, mesh))
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


def _choose(
    config, known: Sequence[_Known], mesh: Mesh, limit: int, done: Collection[str]
) -> list[tuple[size_buckets.Bucket, list[_Known]]]:
    """What `size_buckets.choose` gives for all, with the pictures of each bucket; only where one is left to do."""
    sizes = [sizes for _, sizes in known]
    chosen = size_buckets.choose(sizes, config.eval.batch_size, limit, mesh.shape[sharding.SPACE])
    groups = [(bucket, [known[index] for index in bucket.indices]) for bucket in chosen]
    return [(bucket, group) for bucket, group in groups if any(each.name not in done for each, _ in group)]


def _batches(group: Sequence[_Known], batch_size: int, done: Collection[str]) -> list[list[_Known | None]]:
    """The batches in which something is left to do, with None in the places of what is done."""
    places = [None if known[0].name in done else known for known in group]
    batches = [places[start : start + batch_size] for start in range(0, len(places), batch_size)]
    return [batch for batch in batches if any(batch)]


def _num_rows(num_pictures: int, size: tuple[int, int], mesh: Mesh) -> int:
    """How many rows the batches of a size have: all the same, and enough for all devices."""
    devices = mesh.shape[sharding.DATA]
    num_rows = -(-num_pictures // devices) * devices
    sharding.check_batch(mesh, num_rows, size[0], "config.eval.batch_size")
    return num_rows


def _compile(
    predict_step, variables: Variables, num_rows: int, bucket: size_buckets.Bucket, mesh: Mesh
) -> Callable[..., tuple[jax.Array, jax.Array | None]]:
    """The program for the batches of a bucket. It is dropped after them: each size may have its own.

    Raises:
        MemoryError: it needs more than there is.
    """
    size, batched, each = bucket.room, sharding.batched(mesh), sharding.per_picture(mesh)
    inputs = [((*size, 3), jnp.uint8, batched), ((2,), jnp.int32, each)]
    if bucket.view_rooms is not None:
        inputs.append(((1 + len(bucket.view_rooms), 2), jnp.int32, each))
    arguments = [jax.ShapeDtypeStruct((num_rows, *shape), dtype) for shape, dtype, _ in inputs]
    shardings = (sharding.replicated(mesh), *(place for *_, place in inputs))
    what = f"{size[0]}x{size[1]} pixels (height x width), {num_rows} at a time"
    advice = "give a smaller --batch_size, or --window=HEIGHT,WIDTH"
    try:
        jitted = sharding.jit(mesh, predict_step, in_shardings=shardings, out_shardings=batched)
        program = jitted.lower(variables, *arguments).compile()
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
    known: _Known | None, eval_size: tuple[int, int] | None, picture_range: ranges.Range | None
) -> _Row | Problem | None:
    if known is None:
        return None
    picture, (padded_size, *_) = known
    try:
        stored = read_image(picture.path, picture_range)
        image = stored.pixels()
    except DatasetError as error:
        return Problem(picture.name, str(error))
    if padding.padded_size(image.shape[:2], eval_size) != padded_size:
        return Problem(picture.name, f"{picture.path}: its size is not what its header says; save it again")
    return _Row(picture, image, dataclasses.replace(stored, data=b""))


def _stack(
    rows: Sequence[_Row | None], bucket: size_buckets.Bucket, num_rows: int, config, mesh: Mesh
) -> tuple[jax.Array, ...]:
    """What a program takes beside the variables: each picture in its own row; the other rows are empty."""
    stacked = np.zeros((num_rows, *bucket.room, 3), np.uint8)
    sizes = np.zeros((num_rows, 2), np.int32)
    for index, row in enumerate(rows):
        if row is not None:
            image = row.image
            height, width = sizes[index] = image.shape[:2]
            stacked[index, :height, :width] = image
    batch: dict[str, np.ndarray] = {"image": stacked, "size": sizes}
    if bucket.view_rooms is not None:
        padded = (padding.padded_size(size, config.eval_size) for size in sizes.tolist())
        batch["view_sizes"] = Views.of(config.eval).sizes_of_each(padded)
    return tuple(sharding.put_batch(mesh, batch).values())


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

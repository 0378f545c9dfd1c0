"""tf.data over prepared records: training batches that can start at any step, evaluation batches with every picture.

A position in a run is an integer: step * batch_size + row. It alone decides which picture is read (the epochs' order is
a permutation made from the seed and the epoch) and how it is augmented, so a resumed run reads what it would have read,
without reading what came before, and several processes take disjoint rows of one global batch.
"""

import atexit
import contextlib
import functools
import itertools
import re
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
import tensorflow as tf

from dlv3p_jax.data import augment, records, size_buckets
from dlv3p_jax.data.errors import DatasetError

# For functions of a pipeline: they are graphs as they stand, and to look for Python's `if` in them takes a second.
_as_it_is = tf.autograph.experimental.do_not_convert

Batch = dict[str, np.ndarray]  # 'image' uint8 [B, H, W, 3], 'label' uint8 [B, H, W], 'id' bytes [B], and 'size'


@functools.lru_cache(maxsize=4)
def _permutation(num_pictures: int, seed: int, epoch: int) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    return generator.permutation(num_pictures)


def picture_of(position: int, num_pictures: int, seed: int) -> int:
    """The index of the picture at a position of the run: every picture once an epoch, each epoch in its own order."""
    epoch, offset = divmod(int(position), num_pictures)
    return int(_permutation(num_pictures, seed, epoch)[offset])


def train_batches(
    dataset: records.Dataset,
    split: str,
    crop: augment.Crop,
    *,
    batch_size: int,
    first_step: int,
    num_steps: int,
    seed: int,
    cache: bool = False,
    rows: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """This process's rows of the global batches of steps first_step … num_steps - 1.

    Args:
        dataset, split: what to read.
        crop: how the pictures are cut.
        batch_size: of the global batch.
        first_step: where to begin, in O(1): nothing before it is read.
        num_steps: where the run ends.
        seed: decides order and augmentation, together with the position.
        cache: keep every picture that was decoded in memory, `cache_bytes` in the end; the batches are the same.
        rows: which rows of the batch are ours (`sharding.local_rows`); None: all.

    Yields:
        {'image': uint8 `[b, *crop.size, 3]`, 'label': uint8 `[b, *crop.size]`, 'id': bytes `[b]`}.
    """
    dataset.require_labels(split)
    source, num_pictures = dataset.source(split), dataset.num_pictures(split)
    rows = range(batch_size) if rows is None else rows

    def read(position):
        return _read(source, picture_of(position, num_pictures, seed))

    @functools.cache
    def read_decoded(index):
        picture_id, image, label = _decode(*_read(source, index))
        # Views of TensorFlow's own memory, which lies such that a numpy_function hands it on without a copy.
        return picture_id, np.asarray(memoryview(image)), np.asarray(memoryview(label))

    def make_example(position):
        if cache:
            picture_id, image, label = tf.numpy_function(
                lambda position: read_decoded(picture_of(position, num_pictures, seed)),
                [position],
                [tf.string, tf.uint8, tf.uint8],
                stateful=False,
            )
            for tensor, shape in ((picture_id, []), (image, [None, None, 3]), (label, [None, None])):
                tensor.set_shape(shape)
        else:
            picture_id, image, label = _decode(*_read_record(read, position))
        image, label = augment.random_crop(image, label, tf.stack([tf.constant(seed, tf.int64), position]), crop)
        return {"image": image, "label": label, "id": picture_id}

    def positions_of(step):
        return tf.data.Dataset.from_tensor_slices(step * batch_size + tf.constant(list(rows), tf.int64))

    steps = tf.data.Dataset.range(first_step, num_steps).flat_map(_as_it_is(positions_of))
    examples = steps.map(_as_it_is(make_example), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    batches = examples.batch(len(rows), drop_remainder=True).prefetch(2).as_numpy_iterator()

    def pictures_of(count):
        first = (first_step + count) * batch_size
        return [picture_of(first + row, num_pictures, seed) for row in rows]

    return _closed_at_exit(_naming_damage(batches, pictures_of, dataset, split, source))


def cache_bytes(dataset: records.Dataset, split: str) -> int:
    """How much memory the decoded pictures and labels of a split take."""
    return sum(4 * height * width for height, width in dataset.sizes(split))


def eval_batches(
    dataset: records.Dataset, split: str, plan: Sequence[size_buckets.Bucket], *, ignore_label: int, rows: Sequence[int]
) -> Iterator[Batch]:
    """The `rows` of the batches of a split, one for each entry of `plan`, which `size_buckets.batches` gave.

    Pictures smaller than their bucket's room lie at the top left of it, and their label is ignored beyond them. A batch
    that is not full is filled with pictures of no size, whose id is empty.

    Yields:
        {'image': uint8 `[b, H, W, 3]`, 'label': uint8 `[b, H, W]`, 'size': int32 `[b, 2]`, each picture's own height
        and width, 'id': bytes `[b]`}; H and W differ between batches.

    Raises:
        DatasetError: the split has no labels.
    """
    dataset.require_labels(split)
    source = dataset.source(split)
    ours = [{i: batch.indices[row] for i, row in enumerate(rows) if row < len(batch.indices)} for batch in plan]
    to_read = np.array([index for batch in ours for index in batch.values()], np.int64)

    def make_example(index):
        return _decode(*_read_record(lambda i: _read(source, int(i)), index))

    examples = tf.data.Dataset.from_tensor_slices(to_read)
    examples = examples.map(_as_it_is(make_example), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    examples = examples.prefetch(2 * len(rows)).as_numpy_iterator()
    examples = _closed_at_exit(_naming_damage(examples, lambda count: [int(to_read[count])], dataset, split, source))
    for planned, batch in zip(plan, ours, strict=True):
        images = np.zeros((len(rows), *planned.room, 3), np.uint8)
        labels = np.full((len(rows), *planned.room), ignore_label, np.uint8)
        sizes = np.zeros((len(rows), 2), np.int32)
        ids = np.full(len(rows), b"", object)
        for row, index in batch.items():
            ids[row], image, label = next(examples)
            _check_sizes(dataset, split, index, ids[row], image, label)
            height, width = sizes[row] = label.shape
            images[row, :height, :width], labels[row, :height, :width] = image, label
        yield {"image": images, "label": labels, "size": sizes, "id": ids}


_open_iterators: weakref.WeakSet[Generator] = weakref.WeakSet()


def _closed_at_exit(iterator: Generator) -> Generator:
    """The generator, which no longer reads ahead when the interpreter ends.

    A thread that calls Python then hangs, or aborts the process, and a generator may live until then where the
    traceback of an error or a script's variable holds it.
    """
    _open_iterators.add(iterator)
    return iterator


@atexit.register
def _close_iterators() -> None:
    for iterator in list(_open_iterators):
        with contextlib.suppress(ValueError):  # one that another thread is in
            iterator.close()


def _naming_damage(iterator, pictures_of: Callable[[int], Sequence[int]], dataset, split: str, source) -> Generator:
    """What a tf.data iterator gives; its error becomes one that names the record.

    TensorFlow's own is the text of a traceback, and that of a decoder does not know which picture it had. So the
    pictures of the element that failed, `pictures_of(how many came before it)`, are read and decoded once more.
    """
    for count in itertools.count():
        try:
            element = next(iterator)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            indices = pictures_of(count)
            for index in indices:
                picture_id, *parts = _read(source, index)
                try:
                    _, image, label = _decode(picture_id, *parts)
                except tf.errors.OpError as again:
                    raise dataset.damaged(split, index, _first_line(again), picture_id) from again
                _check_sizes(dataset, split, index, picture_id, image, label)
            raise DatasetError(
                f"{split}: one of the records {', '.join(map(str, indices))} of {dataset.folder} could not be read "
                f"({_first_line(error)}), but can be now: start again, and look at the disk or network they are on"
            ) from error
        yield element


def _check_sizes(dataset: records.Dataset, split: str, index: int, picture_id: bytes, image, label) -> None:
    sizes = tuple(image.shape[:2]), tuple(label.shape), dataset.sizes(split)[index]
    if not sizes[0] == sizes[1] == sizes[2]:
        reason = f"the picture is {sizes[0]} (height, width), its label {sizes[1]}, {sizes[2]} in metadata.json"
        raise dataset.damaged(split, index, reason, picture_id)


def _first_line(error: tf.errors.OpError) -> str:
    """TensorFlow's message without the nodes and data sets that it passed, and without the traceback."""
    return re.sub(
        r"^.*}} |Error in user-defined function .*Iterator::\S+ | \[Op:.*$", "", error.message.splitlines()[0]
    )


def _read(source, index: int) -> tuple[bytes, bytes, bytes]:
    record = source[index]
    picture_id = record["id"]
    return picture_id if isinstance(picture_id, bytes) else picture_id.encode(), record["image"], record["label"]


def _read_record(read, position: tf.Tensor) -> list[tf.Tensor]:
    parts = tf.numpy_function(read, [position], [tf.string, tf.string, tf.string], stateful=False)
    for part in parts:
        part.set_shape([])
    return parts


def _decode(picture_id: tf.Tensor, image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Bytes -> uint8 `[H, W, 3]` and uint8 `[H, W]`; the exact JPEG decoder, which equals OpenCV's and Pillow's."""
    image = tf.cond(
        tf.io.is_jpeg(image),
        lambda: tf.io.decode_jpeg(image, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_png(image, channels=3),
    )
    return picture_id, image, tf.io.decode_png(label, channels=1)[:, :, 0]

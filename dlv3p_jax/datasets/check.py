"""Checking a prepared data set: every record is read and decoded, and its metadata counted anew."""

import functools
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.example import Problem
from dlv3p_jax.data.labels import read_label
from dlv3p_jax.data.pictures import read_image
from dlv3p_jax.data.records import Dataset
from dlv3p_jax.datasets.digests import Digest, digest_contents
from dlv3p_jax.datasets.workers import ordered_map


def check_records(dataset: Dataset, workers: int = 1) -> list[Problem]:
    """What is wrong with the records of a data set, a sentence each; nothing: it is whole.

    Args:
        dataset: is read from beginning to end.
        workers: number of processes.
    """
    problems = []
    total = sum(map(dataset.num_pictures, dataset.splits))
    with tqdm(total=total, unit=" pictures", desc=f"check {dataset.name}", disable=total == 0) as progress:
        for split in dataset.splits:
            problems += _check_split(dataset, split, workers, progress)
    return problems


def _check_split(dataset: Dataset, split: str, workers: int, progress: tqdm) -> list[Problem]:
    problems, sizes, digest = [], dataset.sizes(split), Digest()
    try:
        items = _read_items(dataset, split)
        check = functools.partial(_check_record, has_label=dataset.has_labels(split))
        counts = np.zeros(256, np.int64)
        for size, result in zip(sizes, ordered_map(check, items, workers), strict=True):
            progress.update()
            if isinstance(result, Problem):
                problems.append(result)
                continue
            found_size, found_counts, record_id, contents = result
            counts += found_counts
            digest.add(record_id, contents)
            if found_size != size:
                message = f"{split}: a picture is {found_size} (height, width), but {size} in the metadata"
                problems.append(Problem(split, message))
    except DatasetError as error:
        return [*problems, Problem(split, str(error))]
    if problems:
        return problems
    expected = dict(enumerate(dataset.metadata["class_pixels"][split]))
    expected[dataset.ignore_label] = dataset.metadata["ignored_pixels"][split]
    for value in sorted(expected.keys() | set(np.flatnonzero(counts).tolist())):
        if counts[value] != expected.get(value, 0):
            message = (
                f"{split}: label {value} is on {counts[value]} pixels, on {expected.get(value, 0)} in the metadata"
            )
            problems.append(Problem(split, message))
    if digest.hexdigest() != dataset.metadata.get("digests", {}).get(split, digest.hexdigest()):
        problems.append(Problem(split, f"{split}: ids, pictures or labels are not those that were written (SHA-256)"))
    return problems


def _read_items(dataset: Dataset, split: str) -> Iterator[tuple[str, bytes, bytes, bytes]]:
    source = dataset.source(split)
    for index in range(dataset.num_pictures(split)):
        record = source[index]
        yield split, record["id"], record["image"], record["label"]


def _check_record(
    item: tuple[str, bytes, bytes, bytes], has_label: bool
) -> tuple[tuple[int, int], np.ndarray, bytes, tuple[bytes, bytes]] | Problem:
    """(height, width) of a record's picture, the pixels of each of 256 label values, its id and hashes."""
    split, record_id, image, label = item
    counts = np.zeros(256, np.int64)
    try:
        size = read_image(image).size
        if has_label:
            values = read_label(label)
            if values.shape != size:
                raise DatasetError(f"the picture is {size} (height, width), its label {values.shape}")
            counts = np.bincount(values.ravel(), minlength=256)
        elif label:
            raise DatasetError("a label in a split without labels")
    except DatasetError as error:
        name = f"{split}: {record_id.decode()}"
        return Problem(name, f"{name}: {error}")
    return size, counts, record_id, digest_contents(image, label)

"""How fast the training pipeline reads: prepared records in, augmented crops out. Needs TensorFlow."""

import functools
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from dlv3p_jax.data import augment, pipeline, records
from dlv3p_jax.datasets.image_folder import make_builder
from dlv3p_jax.datasets.preparing import prepare_dataset
from dlv3p_jax.datasets.toy_streets import canvas
from dlv3p_jax.performance import measured, timing

_MADE_PICTURES = 8  # more than a processor's cache holds
_CLASSES = 19


def report(config, size: tuple[int, int] | None, repeats: int, turn_seconds: float = 3.0) -> dict[str, Any]:
    """Measures pictures a second from records to batches of crops, with decoding and with decoded pictures kept.

    Args:
        config: a configuration; its `crop_size`, `augment` and `batch_size` are read.
        size: (height, width) of the pictures that are made, as PNGs like those of Cityscapes; None: read
            `config.dataset` in `config.data_dir`.
        repeats: how many times each is measured, in turn.
        turn_seconds: how long each of these measurements lasts.

    Returns:
        What can be written as JSON: 'programs', each of them with 'name', 'seconds' (`timing.spread`, of a picture),
        'pictures_per_second', 'pictures_per_second_per_core' and 'pictures_per_cpu_second': of this process's own
        time on a core, whatever else the machine does.

    Raises:
        ValueError: the data set or the configuration cannot be used.
    """
    others = timing.watch_others()
    augment.crop_of(config)  # wrong scales do not wait for the pictures
    with tempfile.TemporaryDirectory(prefix="dlv3p_jax_input_") as folder:
        if size is None:
            dataset, split = records.open_dataset(config.dataset, config.data_dir), config.train_split
        else:
            dataset, split = make_dataset(pathlib.Path(folder), size), "train"
        kinds = {"records to crops": False, "kept pictures to crops": True}
        iterators = {name: batches(config, dataset, split, cache) for name, cache in kinds.items()}
        for iterator in iterators.values():  # the first epoch decodes in either case
            for _ in range(1 + dataset.num_pictures(split) // config.batch_size):
                next(iterator)
        times = measure({name: reader(iterator) for name, iterator in iterators.items()}, repeats, turn_seconds)
        pictures = "made PNGs" if size is not None else f"{dataset.title} {split}"
        return summary(config, pictures, dataset.sizes(split)[0], times) | {"share_of_others": others()}


def batches(config, dataset: records.Dataset, split: str, cache: bool) -> Iterator[pipeline.Batch]:
    """The training batches of this configuration, without end."""
    return pipeline.train_batches(
        dataset,
        split,
        augment.crop_of(config),
        batch_size=config.batch_size,
        first_step=0,
        num_steps=1_000_000_000,
        seed=config.seed,
        cache=cache,
    )


def reader(iterator: Iterator[pipeline.Batch]) -> Callable[[float], int]:
    """`read(seconds)`: reads batches for so long, and gives how many pictures they held."""

    def read(seconds: float) -> int:
        start, pictures = time.perf_counter(), 0
        while pictures == 0 or time.perf_counter() - start < seconds:
            pictures += len(next(iterator)["image"])
        return pictures

    return read


def measure(
    reads: dict[str, Callable[[float], int]], repeats: int, turn_seconds: float = 3.0
) -> dict[str, list[tuple[float, float]]]:
    """(seconds, this process's processor seconds) a picture, of several ways to read, measured in turn.

    `read(seconds)` reads for so long and gives the number of pictures. A turn begins when the others have ceased to
    read ahead; what it has read ahead itself is read first and not counted.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in reads}
    for _ in range(repeats):
        for name, read in reads.items():
            wait_until_idle()
            read(turn_seconds / 4)
            start, processor = time.perf_counter(), time.process_time()
            pictures = read(turn_seconds)
            times[name].append(((time.perf_counter() - start) / pictures, (time.process_time() - processor) / pictures))
    return times


def wait_until_idle(seconds: float = 0.1, at_most: float = 10) -> None:
    """Returns once this process has passed `seconds` with a twentieth of them on a processor, or after `at_most`."""
    for _ in range(round(at_most / seconds)):
        processor = time.process_time()
        time.sleep(seconds)
        if time.process_time() - processor < seconds / 20:
            return


def summary(config, pictures: str, source_size: Sequence[int], times: Mapping[str, Sequence[tuple[float, float]]]):
    """What the report says of several ways to read such pictures, given what `measure` says of them."""
    result = measured.describe("input", config) | {
        "source_size": list(source_size),
        "crop_size": list(config.crop_size),
        "batch_size": config.batch_size,
        "pictures": pictures,
        "programs": [],
    }
    for name, those in times.items():
        seconds, processor = (timing.spread(values) for values in zip(*those, strict=True))
        program = {
            "name": name,
            "seconds": seconds,
            "processor_seconds": processor,
            "pictures_per_second": 1 / seconds["median"],
            "pictures_per_second_per_core": 1 / seconds["median"] / result["cores"],
            "pictures_per_cpu_second": 1 / processor["median"],
        }
        result["programs"].append(program)
    return result


def make_dataset(folder: pathlib.Path, size: tuple[int, int], count: int = _MADE_PICTURES) -> records.Dataset:
    """Prepares `count` made pictures of (height, width) `size`, as PNGs of about the bytes a pixel of Cityscapes'."""
    for split, pictures in (("train", count), ("val", 1)):
        for kind in ("images", "labels"):
            (folder / "source" / kind / split).mkdir(parents=True)
        for index in range(pictures):
            image, label = made_picture(size, index)
            for kind, array in (("images", image), ("labels", label)):
                # Cityscapes' files are compressed as libpng does by default.
                Image.fromarray(array).save(folder / "source" / kind / split / f"{index}.png", compress_level=6)
    (folder / "source" / "classes.txt").write_text(
        "".join(f"class {index}\n" for index in range(_CLASSES)), encoding="utf-8"
    )
    prepared, _ = prepare_dataset(
        "image_folder", functools.partial(make_builder, source=folder / "source"), folder / "data", overwrite=False
    )
    return prepared


def made_picture(size: tuple[int, int], index: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth surfaces with the noise of a camera, and a label of regions: uint8 [H, W, 3], uint8 [H, W]."""
    rng = np.random.default_rng(index)
    coarse = canvas.smooth_noise(rng, size, 120)
    label = np.clip((coarse + 1) / 2 * _CLASSES, 0, _CLASSES - 1).astype(np.uint8)
    label[-max(size[0] // 16, 1) :] = 255  # as the bonnet of the car
    image = 90 + 50 * coarse[..., None] + 25 * canvas.smooth_noise(rng, size, 9)[..., None]
    image = image * rng.uniform(0.8, 1.2, 3) + rng.normal(0, 1.6, (*size, 3))
    return np.clip(image, 0, 255).astype(np.uint8), label

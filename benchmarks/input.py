"""Our input pipeline against PaddleSeg's OpenCV steps, from the same prepared PNG records to crops, in one run:

    python -m benchmarks.input --config=configs/cityscapes_r50.py [--config.KEY=VALUE] [--json=FILE]

The steps are written from their description, in one thread: read as float, scale the whole picture, pad, crop, flip,
distort the colours with Pillow, normalise. Ours ends with uint8 crops, for it distorts and normalises on the device,
exactly as Pillow does; `python -m dlv3p_jax.benchmark --kind=train` has that in its step. What is compared are pictures
for each second on a core, with and without decoding; all that is measured runs on the same single core.
"""

import io
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import app, flags, logging
from PIL import Image, ImageEnhance

from dlv3p_jax.performance import measured, timing
from dlv3p_jax.runtime import arguments, cli, configuration

Picture = tuple[np.ndarray, np.ndarray]


def define_flags() -> None:
    """Defines the command's flags; not at import, since tests import this module."""
    arguments.DEFINE_config("config", "A file of configs/; --config.KEY=VALUE changes one key.")
    flags.DEFINE_list("size", ["1024", "2048"], "HEIGHT,WIDTH of the made pictures.")
    flags.DEFINE_integer("repeats", 5, "How many times each is measured, in turn.", lower_bound=1)
    flags.DEFINE_float("turn_seconds", 3.0, "How long each of these measurements lasts.", lower_bound=0.01)
    flags.DEFINE_string("json", None, "A file that the report goes to as JSON.")


def main(argv: list[str]) -> None:
    values = flags.FLAGS
    cli.require_config(argv)
    cli.configure_logging()
    if hasattr(os, "sched_setaffinity"):  # before TensorFlow counts the cores
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    try:
        if values.config.dataset is None:
            values.config.dataset = "made"
        configuration.check(values.config)
        try:
            import cv2  # noqa: F401
        except ImportError as error:
            raise ValueError(f"OpenCV is not installed ({error}): pip install opencv-python-headless") from error
        result = compare(values.config, cli.parse_size("size", values.size), values.repeats, values.turn_seconds)
        if values.json is not None:
            pathlib.Path(values.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        logging.debug("The traceback of the error below", exc_info=True)
        sys.exit(f"input: {error}")
    print(to_text(result), flush=True)


def compare(config, size: Sequence[int], repeats: int, turn_seconds: float) -> dict[str, Any]:
    """Measures ours and theirs in turn, with and without decoding.

    Returns:
        What can be written as JSON: 'programs' as in `input.report`, and 'ratios', `timing.spread` of our pictures
        a CPU second over theirs, measurement by measurement.
    """
    import cv2

    from dlv3p_jax.performance import reading

    cv2.setNumThreads(1)
    others = timing.watch_others()
    with tempfile.TemporaryDirectory(prefix="dlv3p_jax_input_") as folder:
        dataset = reading.make_dataset(pathlib.Path(folder), size)
        source = dataset.source("train")
        files = [(record["image"], record["label"]) for record in (source[i] for i in range(len(source)))]
        iterators = {
            "ours": reading.batches(config, dataset, "train", cache=False),
            "OpenCV": opencv_batches(config, lambda index: decode(*files[index]), len(files)),
            "ours, decoded": reading.batches(config, dataset, "train", cache=True),
            "OpenCV, decoded": opencv_batches(config, [decode(*pair) for pair in files].__getitem__, len(files)),
        }
        for _ in range(1 + len(files) // config.batch_size):  # the first epoch decodes in any case
            next(iterators["ours, decoded"])
        reads = {name: reading.reader(iterator) for name, iterator in iterators.items()}
        times = reading.measure(reads, repeats, turn_seconds)
    result = reading.summary(config, "made PNGs", size, times)
    ratios = {
        what: timing.spread(
            [theirs / ours for (_, ours), (_, theirs) in zip(times[f"ours{end}"], times[f"OpenCV{end}"], strict=True)]
        )
        for what, end in (("with decoding", ""), ("without decoding", ", decoded"))
    }
    return result | {"opencv": cv2.__version__, "ratios": ratios, "share_of_others": others()}


def decode(image: bytes, label: bytes) -> Picture:
    """A PNG by OpenCV, as RGB uint8 [H, W, 3], and its label by Pillow, uint8 [H, W]."""
    import cv2

    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.asarray(Image.open(io.BytesIO(label)))


def opencv_batches(config, read: Callable[[int], Picture], count: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches like those of PaddleSeg's loader, without end: float32 [B, 3, H, W] and int64 [B, H, W]."""
    rng = np.random.default_rng(config.seed)
    while True:
        pictures = [opencv_steps(*read(int(rng.integers(count))), config, rng) for _ in range(config.batch_size)]
        images, labels = zip(*pictures, strict=True)
        yield {"image": np.stack(images), "label": np.stack(labels)}


def opencv_steps(image: np.ndarray, label: np.ndarray, config, rng: np.random.Generator) -> Picture:
    """One picture through PaddleSeg's training transforms.

    Args:
        image: uint8 [H, W, 3].
        label: uint8 [H, W].
        config: its `crop_size`, `ignore_label` and `augment` are read.
        rng: draws scale, offset, mirroring and distortion.

    Returns:
        float32 [3, crop height, crop width] in -1..1 and int64 [crop height, crop width].
    """
    import cv2

    from dlv3p_jax.data import augment

    settings, (height, width) = config.augment, config.crop_size
    image = image.astype(np.float32)
    scales = augment.crop_of(config).scales
    scale = rng.choice(scales) if scales else rng.uniform(settings.min_scale, settings.max_scale)
    size = tuple(round(side * scale) for side in reversed(label.shape))
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)

    bottom, right = max(height - label.shape[0], 0), max(width - label.shape[1], 0)
    if bottom or right:
        border = (0, bottom, 0, right, cv2.BORDER_CONSTANT)
        image = cv2.copyMakeBorder(image, *border, value=(127.5, 127.5, 127.5))
        label = cv2.copyMakeBorder(label, *border, value=config.ignore_label)
    y, x = (rng.integers(side - crop + 1) for side, crop in zip(label.shape, (height, width), strict=True))
    image, label = image[y : y + height, x : x + width], label[y : y + height, x : x + width]
    if settings.flip and rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]

    image = _distort(image.astype(np.uint8), settings, rng).astype(np.float32)
    image = (image / 255 - 0.5) / 0.5
    return np.ascontiguousarray(image.transpose(2, 0, 1)), label.astype(np.int64)


def _distort(image: np.ndarray, settings, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue in random order, each with probability 0.5; uint8 [H, W, 3]."""
    enhancers = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }
    picture = Image.fromarray(image)
    for name in rng.permutation([*enhancers, "hue"]):
        if settings[name] == 0 or rng.random() < 0.5:
            continue
        amount = rng.uniform(-settings[name], settings[name])
        if name == "hue":
            planes = np.array(picture.convert("HSV"))
            planes[..., 0] = (planes[..., 0].astype(np.int32) + int(amount)) % 256
            picture = Image.fromarray(planes, "HSV").convert("RGB")
        else:
            picture = enhancers[name](picture).enhance(1 + amount)
    return np.asarray(picture)


def to_text(result: dict[str, Any]) -> str:
    """The comparison as people read it."""
    lines = [f"OpenCV {result['opencv']}, in one thread; all on {result['cores']} core(s)", measured.to_text(result)]
    lines += [
        f"{what}: ours reads {ratio['median']:.2f} times as many pictures a CPU second (spread {ratio['spread']:.0%})"
        for what, ratio in result["ratios"].items()
    ]
    lines.append(
        "Ours are uint8, to be distorted and normalised on the device; OpenCV's are distorted, normalised float32."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    define_flags()
    app.run(main, flags_parser=cli.make_flags_parser("input"))

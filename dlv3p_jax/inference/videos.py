"""Videos: frames in, a video of overlays out, and a label for each frame where asked for; a few frames in memory."""

import contextlib
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from absl import logging
from tqdm import tqdm

from dlv3p_jax.data import viz
from dlv3p_jax.data.example import Problem
from dlv3p_jax.inference import outputs
from dlv3p_jax.inference.finding import Picture
from dlv3p_jax.inference.folder_record import Ledger
from dlv3p_jax.inference.predictor import Prediction
from dlv3p_jax.inference.segmenter import Segmenter
from dlv3p_jax.runtime import files, text

_TICKS = 90_000  # of a second, in which MP4 tells when a frame is shown


def write_all(
    paths: Sequence[str],
    segmenter: Segmenter,
    output: pathlib.Path,
    label_values: outputs.LabelValues | None,
    batch_size: int,
    ledger: Ledger,
) -> tuple[np.ndarray, list[Problem]]:
    """Writes OUTPUT/videos/NAME.mp4 of each video, a file that appears when it is whole.

    Args:
        paths: video files, of any format that FFmpeg reads.
        segmenter: predicts the frames.
        output: the folder.
        label_values: of labels/NAME/000001.png and so on, which are written with overlays/NAME/000001.jpg; None: they
            are not.
        batch_size: frames that are computed at once.
        ledger: knows what is there and was made in the same way of the same video, which stays.

    Returns:
        How many pixels of all frames each class has, int64 `[C]`, and what could not be predicted.

    Raises:
        ValueError: PyAV is not installed, two videos have one name, or what is there was made otherwise.
        OSError: something cannot be written.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError("videos need PyAV: pip install 'dlv3p_jax[video]'") from error
    pixels, problems = np.zeros(len(segmenter.classes), np.int64), []
    names = [pathlib.Path(path).stem for path in paths]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two videos are called {', '.join(sorted(twice))}: predict them into two folders")
    (output / "videos").mkdir(parents=True, exist_ok=True)
    files.remove_unfinished(output / "videos")
    targets = {
        path: [output / "videos" / f"{name}.mp4", *([] if label_values is None else [output / "labels" / name])]
        for path, name in zip(paths, names, strict=True)
    }
    there = ledger.begin({target: path for path, those in targets.items() for target in those})
    for path, name in zip(paths, names, strict=True):
        target = targets[path][0]
        if there.keys() >= {*targets[path]}:
            logging.info("%s is there already: --overwrite makes it anew", target)
            pixels += there[target]
            continue
        try:
            with files.replacing(target) as unfinished:
                found = _write(av, path, name, unfinished, segmenter, output, label_values, batch_size)
            for each in targets[path]:
                ledger.add(each, found)
            pixels += found
        except av.error.FFmpegError as error:
            problems.append(Problem(path, f"{path}: no video that can be read ({text.one_line(error)})"))
    return pixels, problems


def _write(
    av: Any,
    path: str,
    name: str,
    unfinished: Any,
    segmenter: Segmenter,
    output: pathlib.Path,
    label_values: outputs.LabelValues | None,
    batch_size: int,
) -> np.ndarray:
    """Writes one video; returns the pixels of each class."""
    pixels = np.zeros(len(segmenter.classes), np.int64)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(av.open(path))
        if not source.streams.video:
            raise av.error.InvalidDataError(0, "it holds no pictures", path)
        stream = source.streams.video[0]
        stream.thread_type = "AUTO"
        video = stack.enter_context(av.open(str(unfinished), "w", format="mp4"))
        made = None
        numbers = itertools.count(1)
        frames = tqdm(source.decode(stream), total=stream.frames or None, unit=" frames", disable=None, delay=1)
        for batch in _batches(frames, batch_size):
            images = [_upright(frame) for frame in batch]
            for frame, image, labels in zip(batch, images, segmenter(images, batch_size=batch_size), strict=True):
                number = next(numbers)
                pixels += np.bincount(labels.ravel(), minlength=len(pixels))
                overlay = viz.overlay(image, labels, segmenter.palette)
                height, width = (side // 2 * 2 for side in overlay.shape[:2])  # its colours are stored for 2x2 pixels
                if made is None:
                    made = video.add_stream("libx264", rate=stream.average_rate or 25, options={"crf": "20"})
                    made.width, made.height, made.pix_fmt = width, height, "yuv420p"
                    made.codec_context.time_base = Fraction(1, _TICKS)
                shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(overlay[:height, :width]), format="rgb24")
                seconds = frame.time if frame.time is not None else (number - 1) / (stream.average_rate or 25)
                shown.pts, shown.time_base = round(seconds * _TICKS), Fraction(1, _TICKS)
                video.mux(made.encode(shown))
                if label_values is not None:
                    picture = Picture(pathlib.Path(path), f"{name}/{number:06d}")
                    place = outputs.files_of([picture], output, None, False)[picture.name]
                    prediction = Prediction(picture, image, labels.astype(np.uint8), None)
                    outputs.write(place, prediction, segmenter.palette, label_values)
        if made is None:
            raise av.error.InvalidDataError(0, "it holds no pictures", path)
        video.mux(made.encode())
    if label_values is not None:
        _remove_frames_after(next(numbers) - 1, [output / "labels" / name, output / "overlays" / name])
    return pixels


def _remove_frames_after(last: int, folders: Sequence[pathlib.Path]) -> None:
    """Removes what is left there of a longer video."""
    for path in itertools.chain.from_iterable(map(pathlib.Path.iterdir, folders)):
        if path.stem.isdecimal() and int(path.stem) > last:
            path.unlink()


def _upright(frame: Any) -> np.ndarray:
    """A frame as it is shown, uint8 `[H, W, 3]`: telephones store some turned, and say by how much."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))


def _batches(frames: Any, batch_size: int) -> Iterator[list[Any]]:
    """Lists of frames, the last perhaps shorter."""
    frames = iter(frames)
    while batch := list(itertools.islice(frames, batch_size)):
        yield batch

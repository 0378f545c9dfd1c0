"""A run of predict into a folder, which goes on where it was killed.

`folder_record` knows what is there already.
"""

import contextlib
import dataclasses
import errno
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh
from tqdm import tqdm

from dlv3p_jax.data.example import Problem
from dlv3p_jax.inference import folder_record, outputs, predictor
from dlv3p_jax.inference.finding import RECORD, Picture
from dlv3p_jax.runtime import files
from dlv3p_jax.weights.trained import TrainedModel

LOCK = ".lock"


def write_predictions(
    trained: TrainedModel,
    pictures: Sequence[Picture],
    mesh: Mesh,
    output: pathlib.Path,
    *,
    label_ids: bool = False,
    submission: str | None = None,
    probabilities: bool = False,
    overwrite: bool = False,
) -> tuple[np.ndarray, list[Problem]]:
    """Predicts pictures into a folder, going on where a run before was killed, and ending as if it had not been.

    What is there is not made again if it was made in the same way of the same file.

    Args:
        trained: what `trained.load_checkpoint` gave.
        pictures: what `finding.find_pictures` gave.
        mesh: the devices.
        output: the folder; `outputs.files_of` says what goes where.
        label_ids, submission: what labels hold, and where they go; see `outputs`.
        probabilities: whether to write them too.
        overwrite: make everything again, whatever is there and however it was made.

    Returns:
        How many pixels of all pictures each class has, int64 `[C]`, and what could not be predicted, in the order of
        `pictures`.

    Raises:
        ValueError: another process writes there; what is there was made otherwise, of other pictures or by nothing
            that is known; the labels asked for are of other classes; a view or the mesh cannot be used.
        OSError: something cannot be written.
    """
    num_classes = len(trained.class_names)
    label_values = outputs.label_values(num_classes, trained.palette, label_ids, submission)
    places = outputs.files_of(pictures, output, submission, probabilities)
    how = folder_record.describe(trained, label_ids)
    with alone_in(output):
        for folder in {output, *(path.parent for place in places.values() for path in place.paths())}:
            files.remove_unfinished(folder)
        return _write_alone(trained, pictures, mesh, output, places, label_values, how, overwrite)


@contextlib.contextmanager
def alone_in(output: pathlib.Path) -> Iterator[None]:
    """Makes and locks a folder of outputs, where two that write would mix theirs; warns where there are no locks.

    Raises:
        ValueError: another process writes there.
    """
    output.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.lock(output / LOCK))
        except files.Locked as error:
            raise ValueError(
                f"{output} is in use by another predict ({error.holder or 'unknown'}): wait for its end, or give "
                "another --output"
            ) from error
        except files.NoLocks as error:
            logging.warning(
                "%s cannot be locked (%s): see to it that no other predict writes there", output, error.strerror
            )
        yield


def _write_alone(
    trained: TrainedModel,
    pictures: Sequence[Picture],
    mesh: Mesh,
    output: pathlib.Path,
    places: dict[str, outputs.Files],
    label_values: outputs.LabelValues,
    how: dict[str, Any],
    overwrite: bool,
) -> tuple[np.ndarray, list[Problem]]:
    """`write_predictions`, of which nothing but this may write to `output`."""
    num_classes = len(trained.class_names)
    before = folder_record.entries_before(output, how, overwrite)
    now = {picture.name: folder_record.entry_of(picture.name, picture.path) for picture in pictures}
    if not overwrite and (not (output / RECORD).exists() or folder_record.are_of_streams(before)):
        there = next((path for place in places.values() for path in place.paths() if path.exists()), None)
        if there is not None:
            raise ValueError(folder_record.of_unknown_origin(there, output))
    frames = folder_record.folders_of_frames(before)
    done = {}
    for name, entry in now.items():
        place = places[name]
        if not overwrite and frames.intersection(map(str, pathlib.PurePosixPath(name).parents)):
            raise ValueError(folder_record.of_another(place.label.parent, "of a video's frames", f"of {entry.path}"))
        if not overwrite and folder_record.is_done(entry, before.get(name), place.label) and place.are_there():
            done[name] = before[name]
    others = [entry for name, entry in before.items() if name not in now]
    folder_record.write_record(output, how, [*others, *done.values()])
    probabilities = any(place.probabilities is not None for place in places.values())
    predictions = predictor.predict_pictures(
        *(trained.config, trained.model, trained.variables, pictures, mesh),
        *(set(done), probabilities, trained.picture_range),
    )
    problems = {}
    with (
        (output / RECORD).open("a", encoding="utf-8") as record,
        tqdm(total=len(pictures), initial=len(done), unit=" pictures", disable=None, delay=1) as progress,
    ):
        for prediction in predictions:
            result = prediction
            if not isinstance(prediction, Problem):
                result = _written(places[prediction.picture.name], prediction, trained.palette, label_values)
            if isinstance(result, Problem):
                problems[result.id] = result
            else:
                name = result.picture.name
                pixels = np.bincount(result.label.ravel(), minlength=num_classes)
                done[name] = dataclasses.replace(now[name], pixels=tuple(pixels.tolist()))
                folder_record.add(record, done[name])
            progress.update()
            if progress.disable:
                logging.log_every_n_seconds(logging.INFO, "%d of %d pictures", 10, len(done) + len(problems), len(now))
    entries = [done[name] for name in now if name in done]
    folder_record.write_record(output, how, [*others, *entries])
    pixels = np.array([entry.pixels for entry in entries], np.int64).reshape(-1, num_classes).sum(axis=0)
    return pixels, [problems[name] for name in now if name in problems]


def _written(
    place: outputs.Files,
    prediction: predictor.Prediction,
    palette,
    label_values: outputs.LabelValues,
) -> predictor.Prediction | Problem:
    """Writes the outputs of a picture; gives a problem if it is the picture's alone, such as its name or its size."""
    try:
        outputs.write(place, prediction, palette, label_values)
    except OSError as error:
        # Pillow's own have none: no JPEG has a side over 65,500. The others: a.png is the folder of another's outputs.
        if error.errno not in (None, errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            raise
        picture = prediction.picture
        return Problem(picture.name, f"{picture.path}: its outputs cannot be written ({error.strerror or error})")
    return prediction

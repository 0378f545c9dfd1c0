"""A run of predict into a folder, which goes on where it was killed.

The folder's record, predict.jsonl, says in its first line how the outputs are made (checkpoint, network, views). Then
comes a line for each picture: its file, and how many pixels have each class. The line is added when all outputs of the
picture are whole under their names. Each line has a seal.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from tqdm import tqdm

from dlv3p_jax.data.example import Problem
from dlv3p_jax.evaluation.views import Views
from dlv3p_jax.inference import outputs, predictor
from dlv3p_jax.inference.finding import RECORD, Picture
from dlv3p_jax.runtime import configuration, files, sealing
from dlv3p_jax.weights.trained import TrainedModel

LOCK = ".lock"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A picture whose outputs are written: `Picture.name`, its file as it was then, and the pixels of each class."""

    name: str
    path: str
    num_bytes: int
    mtime_ns: int
    pixels: tuple[int, ...]

    def is_of(self, other: "Entry") -> bool:
        """Whether both are of the same picture file, unchanged."""
        return dataclasses.replace(self, pixels=()) == dataclasses.replace(other, pixels=())


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
    how = _describe(trained, label_ids)
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
    before = {} if overwrite else read_record(output, how)
    now = {picture.name: _entry(picture) for picture in pictures}
    if not (overwrite or (output / RECORD).exists()):
        there = next((path for place in places.values() for path in place.paths() if path.exists()), None)
        if there is not None:
            raise ValueError(
                f"{there} is there already, and without {output / RECORD} nothing says that predict wrote it: give "
                "another --output, or --overwrite to write over it"
            )
    for name, entry in now.items():
        if name in before and before[name].path != entry.path:
            raise ValueError(
                f"{places[name].label} is of {before[name].path}, and would now be of {entry.path}: give another "
                "--output, or --overwrite to make all anew"
            )
    done = {
        name: before[name]
        for name, entry in now.items()
        if name in before and before[name].is_of(entry) and places[name].are_there()
    }
    others = [entry for name, entry in before.items() if name not in now]
    write_record(output, how, [*others, *done.values()])
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
                _add(record, done[name])
            progress.update()
            if progress.disable:
                logging.log_every_n_seconds(logging.INFO, "%d of %d pictures", 10, len(done) + len(problems), len(now))
    entries = [done[name] for name in now if name in done]
    write_record(output, how, [*others, *entries])
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
        if error.errno not in (None, errno.ENAMETOOLONG):  # Pillow's own have none: no JPEG has a side over 65,500
            raise
        picture = prediction.picture
        return Problem(picture.name, f"{picture.path}: its outputs cannot be written ({error.strerror or error})")
    return prediction


def _describe(trained: TrainedModel, label_ids: bool) -> dict[str, Any]:
    """All that decides what is written for a picture, as JSON values.

    The size of a batch is not among it: another one changes nothing but rounding.
    """
    digest = hashlib.sha256()
    for name, array in sorted(flatten_dict(trained.variables, sep="/").items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.asarray(array).tobytes())
    values = {
        "checkpoint": trained.source,
        "weights": digest.hexdigest(),
        "model": trained.config.model.to_dict(),
        "views": Views.of(trained.config.eval).settings,
        "pad_to": trained.config.eval_size,
        "label_ids": label_ids,
        "class_names": trained.class_names,
    }
    if trained.picture_range is not None:
        values["picture_range"] = trained.picture_range
    return json.loads(json.dumps(values))


def _entry(picture: Picture) -> Entry:
    """A picture as its file is now; one that is not there has -1 bytes."""
    try:
        stat = os.stat(picture.path)
    except OSError:
        return Entry(picture.name, str(picture.path), -1, 0, ())
    return Entry(picture.name, str(picture.path), stat.st_size, stat.st_mtime_ns, ())


def read_record(output: pathlib.Path, how: dict[str, Any]) -> dict[str, Entry]:
    """What the record of a folder holds, by name; nothing where there is none.

    Args:
        output: the folder.
        how: what `_describe` gave.

    Raises:
        ValueError: it is of predictions made otherwise, or the file is no such record, or damaged.
    """
    path = output / RECORD
    if not path.exists():
        return {}
    try:
        ended, _, _ = path.read_text(encoding="utf-8").rpartition("\n")  # the rest is what a killed run began to write
        then, *lines = (sealing.unseal(json.loads(line)) for line in ended.split("\n"))
        entries = {line["name"]: Entry(**line | {"pixels": tuple(line["pixels"])}) for line in lines}
        same_weights = then["weights"] == how["weights"]
    except (ValueError, TypeError, LookupError) as error:
        mend = "give another --output, or --overwrite to make all anew"
        raise ValueError(f"{path} is no record of predictions, or damaged: {mend}") from error
    if same_weights:
        then["checkpoint"] = how["checkpoint"]  # wherever it lies
    found = configuration.differences(then, how)
    if found:
        keys = "".join(f"\n  {key}: {before!r} then, {now!r} now" for key, (before, now) in found.items())
        raise ValueError(
            f"{output} holds predictions that were made otherwise:{keys}\n"
            "give the values of then to go on with them, another --output, or --overwrite to make all anew"
        )
    return entries


def write_record(output: pathlib.Path, how: dict[str, Any], entries: Iterable[Entry]) -> None:
    """Writes a record that appears whole or not at all."""
    with files.replacing(output / RECORD) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        file.write(json.dumps(sealing.seal(how)) + "\n")
        for entry in entries:
            _add(file, entry)


def _add(file: TextIO, entry: Entry) -> None:
    with files.naming(file.name):
        file.write(json.dumps(sealing.seal(dataclasses.asdict(entry))) + "\n")
        file.flush()

"""The record of a folder of outputs, predict.jsonl: how they are made, and of which files they are.

Its first line says how (checkpoint, network, views). Then comes a line for each picture, video and raster: its file,
and how many pixels have each class. The line is added when all outputs of it are whole under their names. Each line has
a seal.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

import numpy as np
from flax.traverse_util import flatten_dict
from PIL import Image

from dlv3p_jax.evaluation.views import Views
from dlv3p_jax.inference.finding import RECORD
from dlv3p_jax.runtime import configuration, files, sealing
from dlv3p_jax.weights.trained import TrainedModel

_OF_A_STREAM = "./"  # before the names of videos and rasters, as before that of no picture
_OF_FRAMES = f"{_OF_A_STREAM}labels/"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A picture whose outputs are written: `Picture.name`, its file as it was then, and the pixels of each class.

    Of a video or a raster, the name is the path of what was written, within the folder, as ./videos/a.mp4.
    """

    name: str
    path: str
    num_bytes: int
    mtime_ns: int
    pixels: tuple[int, ...]

    def is_of(self, other: "Entry") -> bool:
        """Whether both are of the same picture file, unchanged."""
        return dataclasses.replace(self, pixels=()) == dataclasses.replace(other, pixels=())


def describe(trained: TrainedModel, label_ids: bool) -> dict[str, Any]:
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


class Ledger:
    """The record of a folder for videos and rasters, which are written one after the other, each into one place.

    Nothing but its user may write into the folder meanwhile (`alone_in`).
    """

    def __init__(self, output: pathlib.Path, how: dict[str, Any], overwrite: bool):
        """Reads the record of `output`, if there is one.

        Args:
            output: the folder.
            how: what `describe` gave.
            overwrite: make everything again, whatever is there and however it was made.

        Raises:
            ValueError: the record is of predictions made otherwise, or damaged.
        """
        self._output, self._how, self._overwrite = output, how, overwrite
        self._entries = entries_before(output, how, overwrite)
        self._now: dict[pathlib.Path, Entry] = {}

    def begin(self, sources: Mapping[pathlib.Path, str | os.PathLike]) -> dict[pathlib.Path, np.ndarray]:
        """Looks at all targets before any is made, and writes the record anew.

        Args:
            sources: by what they are to be made into, a file, or the folder of a video's frames.

        Returns:
            How many pixels of each class, int64 `[C]`, those have that need not be made.

        Raises:
            ValueError: one is there, made of another source or by nothing that is known.
        """
        done = {}
        for target, source in sources.items():
            name = _OF_A_STREAM + target.relative_to(self._output).as_posix()
            now, before = entry_of(name, source), self._entries.get(name)
            self._now[target] = now
            # Frames lie where those of pictures in a folder of the video's name would.
            inside = f"{target.name}/" if name.startswith(_OF_FRAMES) else None
            if pictures := [entry for entry in self._entries if inside is not None and entry.startswith(inside)]:
                if not self._overwrite:
                    raise ValueError(of_another(target, f"of the picture {pictures[0]}", f"of {source}"))
                self._entries = {entry: kept for entry, kept in self._entries.items() if entry not in pictures}
            if self._overwrite or not target.exists():
                continue
            if is_done(now, before, target):
                if not target.is_dir() or _has_all_frames(target, sum(self._entries[name].pixels)):
                    done[target] = np.array(self._entries[name].pixels, np.int64)
            elif before is None and not target.is_dir():  # a killed run leaves frames
                raise ValueError(of_unknown_origin(target, self._output))
        self._output.mkdir(parents=True, exist_ok=True)
        write_record(self._output, self._how, self._entries.values())
        return done

    def add(self, target: pathlib.Path, pixels: np.ndarray) -> None:
        """Says that a target is whole, with its pixels of each class."""
        entry = dataclasses.replace(self._now[target], pixels=tuple(pixels.tolist()))
        self._entries[entry.name] = entry
        with (self._output / RECORD).open("a", encoding="utf-8") as record:
            add(record, entry)


def are_of_streams(entries: Mapping[str, Entry]) -> bool:
    """Whether all of a record's entries, and there are some, are of videos and rasters."""
    return bool(entries) and all(name.startswith(_OF_A_STREAM) for name in entries)


def folders_of_frames(entries: Iterable[str]) -> set[str]:
    """Of the names in a record, those of videos whose frames have labels."""
    return {name.removeprefix(_OF_FRAMES) for name in entries if name.startswith(_OF_FRAMES)}


def entry_of(name: str, path: str | os.PathLike) -> Entry:
    """A picture as its file is now; one that is not there has -1 bytes."""
    try:
        stat = os.stat(path)
    except OSError:
        return Entry(name, os.fspath(path), -1, 0, ())
    return Entry(name, os.fspath(path), stat.st_size, stat.st_mtime_ns, ())


def is_done(now: Entry, before: Entry | None, target: pathlib.Path) -> bool:
    """Whether what was written is of the same file, unchanged; raises ValueError where it is of another file."""
    if before is not None and before.path != now.path:
        raise ValueError(of_another(target, f"of {before.path}", f"of {now.path}"))
    return before is not None and before.is_of(now)


def _has_all_frames(labels: pathlib.Path, pixels: int) -> bool:
    """Whether the folder of a video's frames, and that of its overlays, are as they were written, of so many pixels."""
    overlays, found = labels.parents[1] / "overlays" / labels.name, 0
    for path in labels.glob("*.png"):
        try:
            with Image.open(path) as frame:
                found += math.prod(frame.size)
        except OSError:  # no picture any more
            return False
        if not (overlays / f"{path.stem}.jpg").exists():
            return False
    return found == pixels


def of_another(target: pathlib.Path, then: str, now: str) -> str:
    return f"{target} is {then}, and would now be {now}: give another --output, or --overwrite to make all anew"


def of_unknown_origin(there: pathlib.Path, output: pathlib.Path) -> str:
    return (
        f"{there} is there already, and nothing in {output / RECORD} says that predict wrote it: give another "
        "--output, or --overwrite to write over it"
    )


def entries_before(output: pathlib.Path, how: dict[str, Any], overwrite: bool) -> dict[str, Entry]:
    """`read_record`; to be overwritten, what was made otherwise, or is damaged, counts for nothing."""
    try:
        return read_record(output, how)
    except ValueError:
        if overwrite:
            return {}
        raise


def read_record(output: pathlib.Path, how: dict[str, Any]) -> dict[str, Entry]:
    """What the record of a folder holds, by name; nothing where there is none.

    Args:
        output: the folder.
        how: what `describe` gave.

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
            add(file, entry)


def add(file: TextIO, entry: Entry) -> None:
    with files.naming(file.name):
        file.write(json.dumps(sealing.seal(dataclasses.asdict(entry))) + "\n")
        file.flush()

"""The curves of a run, read from its TensorBoard events without TensorFlow."""

import contextlib
import dataclasses
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from absl import logging
from etils import epath
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.util import tensor_util

from dlv3p_jax.runtime import files
from dlv3p_jax.runtime.errors import UserError

_LARGEST = 1 << 16  # bytes of an event; what is larger is a picture


@dataclasses.dataclass(frozen=True)
class Point:
    """A value that was logged, after which step and when (seconds since 1970)."""

    step: int
    value: float
    time: float


class DamageError(UserError):
    """A record is not what was written; the message names the file and says what is lost."""


def _warn(line: str) -> None:
    logging.warning("%s", line)


def read_scalars(workdir: epath.Path, tell: Callable[[str], None] = _warn) -> dict[str, list[Point]]:
    """All scalars in WORKDIR's event files by name, such as 'train/loss', with rising steps.

    Where a run was stopped and went on, what it logged again takes the place of what it had logged. Files follow each
    other by time, unless one cannot be next since the steps before it are of another: a machine's clock may be wrong.
    An event file that ends in the middle, since its writer was killed or still writes, counts up to there. Of one that
    is damaged, what comes from there on is left out, and `tell` is given a line on it.
    """
    logged: dict[str, dict[str, list[Point]]] = defaultdict(dict)  # by tag, what each file has of it
    for path in sorted(workdir.glob("events.out.tfevents.*"), key=lambda path: path.name.split(".")[3:]):
        ours = defaultdict(list)
        try:
            for event in _read_events(path):
                for value in event.summary.value:
                    if value.metadata.plugin_data.plugin_name == "scalars":
                        number = float(tensor_util.make_ndarray(value.tensor))
                        ours[value.tag].append(Point(event.step, number, event.wall_time))
        except DamageError as error:
            tell(str(error))
        for tag, points in ours.items():
            logged[tag][path.name] = points
    # What is logged most often tells the order of the files best: an evaluation may be logged by two that follow.
    finest = max(logged.values(), key=lambda parts: sum(map(len, parts.values())), default={})
    ordered = list(_in_order(finest))
    scalars: dict[str, list[Point]] = {}
    for tag, parts in logged.items():
        names = [name for name in ordered if name in parts] if parts.keys() <= finest.keys() else _in_order(parts)
        curve: list[Point] = []
        for points in (parts[name] for name in names):
            first = min(point.step for point in points)
            curve = [point for point in curve if point.step < first] + points
        scalars[tag] = curve
    return scalars


def _in_order(parts: Mapping[str, Sequence[Point]]) -> Iterator[str]:
    """The files that have points of one scalar: each time the earliest that can follow, else the one of lowest steps.

    It can follow if it begins at most an interval, as it logs itself, beyond the last step so far. One that logged once
    has the largest interval of all; it can follow, too, if a later one has steps before and after: the run began anew.
    """
    steps = [[point.step for point in points] for points in parts.values()]
    names = list(parts)
    intervals = [min((b - a for a, b in zip(s, s[1:], strict=False) if b > a), default=0) for s in steps]
    usual = max(intervals, default=0)
    left, reached = list(range(len(parts))), 0

    def can_follow(index: int) -> bool:
        first, last = min(steps[index]), max(steps[index])
        anew = first == last and any(min(steps[later]) <= first <= max(steps[later]) for later in left if later > index)
        return anew or first <= reached + (intervals[index] or usual)

    while left:
        can = list(filter(can_follow, left))
        index = can[0] if can else min(left, key=lambda index: min(steps[index]))
        left.remove(index)
        reached = max(reached, *steps[index])
        yield names[index]


def _read_events(path: epath.Path) -> Iterator[Event]:
    """All events that are no pictures; raises DamageError at a record that is not what was written."""
    for start, _, data in _records(path):
        try:
            if data is not None:
                yield Event.FromString(data)
        except DecodeError as error:
            raise _damage(path, start) from error


def count_whole(path: epath.Path, start: int) -> tuple[int, int]:
    """How many events from byte `start` on are whole, and where the last of them ends.

    Raises:
        OSError: the file cannot be read; it names it.
    """
    ends = [start]
    with contextlib.suppress(DamageError):
        for _, end, _ in _records(path, start):
            ends.append(end)  # those before the damage count
    return len(ends) - 1, ends[-1]


def _records(path: epath.Path, start: int = 0) -> Iterator[tuple[int, int, bytes | None]]:
    """Where each whole record of TensorFlow's format begins and ends, and its data, None where they are large.

    A record is a length (8 bytes), its checksum (4), the event, and its checksum (4).
    """
    with files.naming(path), path.open("rb") as file:
        file.seek(start)
        while len(header := file.read(12)) == 12:
            length, checksum = struct.unpack("<QI", header)
            if masked_crc32c(header[:8]) != checksum:
                raise _damage(path, start)
            data = file.read(length) if length <= _LARGEST else None
            if data is None:
                file.seek(length, 1)
            if len(end := file.read(4)) < 4:
                return
            if data is not None and struct.pack("<I", masked_crc32c(data)) != end:
                raise _damage(path, start)
            yield start, file.tell(), data
            start = file.tell()


def _damage(path: epath.Path, position: int) -> DamageError:
    return DamageError(f"{path} is damaged at byte {position:,}: what it logged from there on is not in the curves")

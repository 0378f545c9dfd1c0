"""The curves of a run, read from its TensorBoard events without TensorFlow."""

import dataclasses
import struct
from collections import defaultdict
from collections.abc import Iterator

from etils import epath
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.util import tensor_util

_LARGEST = 1 << 16  # bytes of an event; what is larger is a picture


@dataclasses.dataclass(frozen=True)
class Point:
    """A value that was logged, after which step and when (seconds since 1970)."""

    step: int
    value: float
    time: float


def read_scalars(workdir: epath.Path) -> dict[str, list[Point]]:
    """All scalars in WORKDIR's event files by name, such as 'train/loss', with rising steps.

    Where a run was stopped and went on, what it logged again takes the place of what it had logged. An event file that
    ends in the middle, since its writer was killed or still writes, counts up to there.
    """
    scalars: dict[str, list[Point]] = defaultdict(list)
    for path in sorted(workdir.glob("events.out.tfevents.*"), key=lambda path: path.name.split(".")[3:]):
        ours = defaultdict(list)
        for event in _read_events(path):
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    number = float(tensor_util.make_ndarray(value.tensor))
                    ours[value.tag].append(Point(event.step, number, event.wall_time))
        for tag, points in ours.items():
            first = min(point.step for point in points)
            scalars[tag] = [point for point in scalars[tag] if point.step < first] + points
    return dict(scalars)


def _read_events(path: epath.Path) -> Iterator[Event]:
    """Records of TensorFlow's format: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    with path.open("rb") as file:
        while len(header := file.read(12)) == 12:
            (length,) = struct.unpack("<Q", header[:8])
            if length > _LARGEST:
                file.seek(length + 4, 1)
                continue
            data = file.read(length)
            if len(data) < length or len(file.read(4)) < 4:
                return
            try:
                yield Event.FromString(data)
            except DecodeError:
                return

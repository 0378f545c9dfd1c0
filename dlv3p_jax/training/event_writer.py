"""Writes the curves and sheets of a run, and makes sure that they are in its event file.

TensorFlow's writer gives no error where a write to its file fails, and what it writes from then on is lost as well.
"""

import errno
import os
from collections.abc import Mapping

import jax
import numpy as np
from clu import metric_writers
from etils import epath

from dlv3p_jax.runtime import events, files


class EventWriter:
    """Writes values to a new event file of a folder, in process 0 alone; to be used with `with`.

    In a bucket, TensorFlow writes an object when it is closed, and nothing is compared there.
    """

    def __init__(self, workdir: epath.Path):
        writes = jax.process_index() == 0
        before = _event_files(workdir) if writes else set()
        self._writer = metric_writers.MultiWriter([])
        if writes:
            self._writer = metric_writers.AsyncMultiWriter([metric_writers.SummaryWriter(str(workdir))])
        self._path: epath.Path | None = None
        self._position, self._pending = 0, 1  # what has been found in the file; the first event is the format's version
        if writes and "://" not in str(workdir):
            path = max(_event_files(workdir) - before, default=None, key=str)
            if path is None:
                raise OSError(errno.EIO, "TensorFlow could not begin an event file", str(workdir))
            self._path = path

    def __enter__(self) -> "EventWriter":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.flush()
        else:
            self._writer.flush()

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        self._pending += len(scalars)
        self._writer.write_scalars(step, scalars)

    def write_hparams(self, hparams: Mapping[str, bool | int | float | str]) -> None:
        """Writes what the run is made with, for TensorBoard's page HPARAMS."""
        self._pending += 1
        self._writer.write_hparams(hparams)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes pictures of shape (1, height, width, 3), uint8."""
        self._pending += len(images)
        self._writer.write_images(step, images)

    def flush(self) -> None:
        """Writes what is not written yet, and looks for it in the file.

        Call it before a state is saved from which a run goes on that will not log these values again.

        Raises:
          OSError: the file does not hold all that was to be written.
        """
        self._writer.flush()
        if self._path is None or not self._pending:
            return
        found, end = events.count_whole(self._path, self._position)
        if found != self._pending or end != os.stat(self._path).st_size:
            files.try_to_write(self._path)  # says why, where that lasts
            raise OSError(errno.EIO, f"{self._pending} events were written, but {found} are there", str(self._path))
        self._position, self._pending = end, 0


def _event_files(workdir: epath.Path) -> set[epath.Path]:
    return set(workdir.glob("events.out.tfevents.*"))

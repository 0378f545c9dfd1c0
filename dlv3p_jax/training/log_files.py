"""The log of a run in its workdir: `train.log`, what was said, and `metrics.csv`, a row for each log line."""

import contextlib
import csv
import io
import logging as stdlib_logging
import pathlib
from collections.abc import Mapping

import jax
from absl import logging
from etils import epath

from dlv3p_jax.runtime import files, terminal

_PACKAGE = str(pathlib.Path(__file__).parents[1])


class LogFiles:
    """Writes the two files, in process 0 alone; to be used with `with`.

    What this package logs meanwhile is in `train.log`. A run that goes on goes on in both files.
    """

    def __init__(self, workdir: epath.Path):
        self._writes = jax.process_index() == 0
        self._log, self._handler = _Growing(workdir / "train.log"), _Handler(self._write_record)
        self._metrics = _Growing(workdir / "metrics.csv")
        self._columns: list[str] = []  # none before the first row
        self._error: OSError | None = None

    def __enter__(self) -> "LogFiles":
        if self._writes:
            logging.get_absl_logger().addHandler(self._handler)
        return self

    def __exit__(self, kind, error, _) -> None:
        if isinstance(error, Exception | KeyboardInterrupt):  # which the terminal gets too, and a lost one takes away
            self.say(f"The run ends: {' '.join(str(error).split()) or kind.__name__}")
        logging.get_absl_logger().removeHandler(self._handler)
        if kind is None:
            self.flush()
        else:
            with contextlib.suppress(Exception):  # the error that ends the run is the one to tell
                self._log.flush()

    def say(self, text: str) -> None:
        """Writes a line to `train.log` that is not in the log."""
        if self._writes:
            record = {"msg": text, "levelno": stdlib_logging.INFO, "pathname": __file__}
            self._handler.handle(stdlib_logging.makeLogRecord(record))

    def write_metrics(self, step: int, values: Mapping[str, float], first_step: int) -> None:
        """Writes a row to `metrics.csv`; the first one removes rows of steps after `first_step`, which are made again.

        Raises:
          OSError: it could not be read or written; it names the file.
        """
        if not self._writes:
            return
        row = {"step": str(step)} | {name: f"{value:.6g}" for name, value in values.items()}
        if self._columns:
            self._metrics.append(_to_csv(self._columns, [row]))
            return
        self._columns = list(row)
        text = self._metrics.read()
        before = _read_rows(text)
        if not before and text.count("\n") > 1:  # other programs may have saved it with other separators
            logging.warning("%s cannot be read: it is kept as %s, and begins anew", *self._metrics.set_aside())
        rows = [old for old in before if int(old["step"]) <= first_step]
        self._metrics.replace(",".join(row) + "\n" + _to_csv(self._columns, [*rows, row]))

    def flush(self) -> None:
        """Makes sure that all is in the files. Call it before a state is saved from which a run goes on.

        Raises:
          OSError: a line could not be written since the start; it names the file.
        """
        if self._error is not None:
            raise self._error
        if self._writes:
            self._log.flush()
            self._metrics.flush()

    def _write_record(self, line: str) -> None:
        if self._error is None:
            try:
                self._log.append(line)
            except OSError as error:  # whoever logs is not to fail; `flush` tells
                self._error = error


class _Growing:
    """A text file that grows. In a bucket, where files do not grow, it is written whole by `flush`."""

    def __init__(self, path: epath.Path):
        self._path, self._remote = path, "://" in str(path)
        self._text: str | None = None  # of a file in a bucket, when it is known
        self._is_written = True

    def read(self) -> str:
        """The text that is there; "" without a file. What is damaged is replaced by question marks."""
        if self._text is not None:
            return self._text
        with files.naming(self._path):
            return self._path.read_bytes().decode("utf-8-sig", errors="replace") if self._path.exists() else ""

    def set_aside(self) -> tuple[epath.Path, epath.Path]:
        """Gives the file another name; returns both."""
        kept = self._path.with_name(f"{self._path.name}.damaged")
        with files.naming(self._path):
            kept.write_bytes(self._path.read_bytes())
        return self._path, kept

    def replace(self, text: str) -> None:
        if self._remote:
            self._text, self._is_written = text, False
            return
        files.write(self._path, text)

    def append(self, text: str) -> None:
        if self._remote:
            self._text, self._is_written = self.read() + text, False
            return
        with files.naming(self._path), pathlib.Path(self._path).open("a", encoding="utf-8") as file:
            file.write(text)

    def flush(self) -> None:
        if not self._is_written and self._text is not None:
            files.write(self._path, self._text)
            self._is_written = True


class _Handler(stdlib_logging.Handler):
    """Gives the lines that this package logs to a function."""

    def __init__(self, write):
        super().__init__()
        self._write = write
        self.setFormatter(terminal.LineFormatter())
        self.addFilter(lambda record: record.pathname.startswith(_PACKAGE))

    def emit(self, record: stdlib_logging.LogRecord) -> None:
        self._write(self.format(record) + "\n")


def _read_rows(text: str) -> list[dict[str, str]]:
    """The rows that are whole."""
    rows = []
    with contextlib.suppress(csv.Error):
        for row in csv.DictReader(io.StringIO(text)):
            if None not in row and None not in row.values() and row.get("step", "").isdecimal():
                rows.append(row)
    return rows


def _to_csv(columns: list[str], rows: list[dict[str, str]]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n").writerows(rows)
    return text.getvalue()

"""What commands write to: terminals and files of any encoding, pipes that somebody closes, and how the log looks."""

import io
import logging
import os
import sys
from typing import TextIO

from absl import logging as absl_logging


class LineFormatter(logging.Formatter):
    """Lines of the log: when, and what; a warning or an error says that it is one."""

    def __init__(self):
        super().__init__("%(asctime)s %(message)s", "%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        level = record.levelname.lower() if record.levelno > logging.INFO else ""
        return f"{record.asctime} {level}{': ' if level else ''}{record.message}"


class AboveBars:
    """A stream to a terminal on which bars of tqdm may be; what is written comes to stand above them."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode(file=self._stream):
            self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()


class _Patient(io.FileIO):
    """A file whose reader may go away, as that of `--help | head` does: what comes then goes nowhere.

    A command goes on. It may be training, and nobody has to read along.
    """

    def write(self, data) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(data).nbytes


def prepare() -> None:
    r"""Makes stdout and stderr take every text.

    A character that their encoding lacks (a class name under LANG=C, a file name that is no UTF-8) is written as its
    escape, such as \u9053.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper) or stream is not getattr(sys, f"__{name}__"):
            continue  # closed, or another's, which is left alone
        stream.flush()
        patient = io.TextIOWrapper(
            io.BufferedWriter(_Patient(stream.fileno(), "w", closefd=False)),
            stream.encoding,
            "backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, patient)
        for handler in (*logging.root.handlers, absl_logging.get_absl_handler().python_handler):
            if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
                handler.setStream(patient)

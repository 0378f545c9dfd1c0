"""What commands write to: terminals and files of any encoding, and pipes that somebody closes."""

import io
import logging
import os
import sys

from absl import logging as absl_logging


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

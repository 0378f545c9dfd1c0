"""Output that an encoding lacks, and that nobody reads."""

import os
import subprocess
import sys

import pytest

WRITE = r"""
import sys
from absl import logging
from dlv3p_jax import terminal
terminal.prepare()
for stream in (sys.stdout, sys.stderr):
    for _ in range(3):
        print("Stra\u00dfe \u9053\u8def \udcff", file=stream, flush=True)
logging.error("\u9053")
sys.stdout.write("no line's end")
"""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, b"Stra\\xdfe \\u9053\\u8def \\udcff\n"),
        ({"PYTHONIOENCODING": "latin-1"}, b"Stra\xdfe \\u9053\\u8def \\udcff\n"),
        ({"PYTHONIOENCODING": "utf-8"}, "Straße 道路 \\udcff\n".encode()),
    ],
)
def test_what_an_encoding_lacks_is_escaped(environment, expected):
    process = subprocess.run([sys.executable, "-c", WRITE], env=os.environ | environment, capture_output=True)
    assert process.returncode == 0
    assert process.stdout == expected * 3 + b"no line's end"
    assert process.stderr.startswith(expected * 3) and b"Traceback" not in process.stderr


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_goes_away_does_not_end_a_command(stream):
    reader, writer = os.pipe()
    os.close(reader)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: writer}
    process = subprocess.run([sys.executable, "-c", WRITE], env=os.environ | {"PYTHONIOENCODING": "utf-8"}, **pipes)
    os.close(writer)
    assert process.returncode == 0
    other = process.stderr if stream == "stdout" else process.stdout
    assert other.count(b"Stra") == 3 and b"BrokenPipe" not in other

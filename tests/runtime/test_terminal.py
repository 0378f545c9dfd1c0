"""Output that an encoding lacks, and that nobody reads."""

import ast
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
WRITE = r"""
import sys
from absl import logging
from dlv3p_jax.runtime import terminal
logging.warning("before the handlers are set")
terminal.prepare()
logging.use_absl_handler()
for stream in (sys.stdout, sys.stderr):
    for _ in range(3):
        print("Stra\u00dfe \u9053\u8def \udcff", file=stream, flush=True)
logging.error("said")
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
    assert expected * 3 in process.stderr and b"Traceback" not in process.stderr
    assert process.stderr.count(b"said\n") == 1  # no handler is there twice


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


NO_TEXT = ("av", "rasterio", "Image", "PIL.Image", "gzip", "opener", "os", "tarfile")


def lacks_encoding(call: ast.Call) -> bool:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    if name in ("open", "fdopen") and not (name == "open" and ast.unparse(function).rpartition(".")[0] in NO_TEXT):
        given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
        values = [value for argument in given for value in ast.walk(argument)]
        return not any(isinstance(mode, ast.Constant) and re.match(r"[rwax]\+?b", str(mode.value)) for mode in values)
    return name in ("read_text", "write_text") or any(keyword.arg == "text" for keyword in call.keywords)


def test_what_is_read_and_written_as_text_names_its_encoding():
    """The locale's is another one elsewhere. Ruff's rule for it sees no paths whose type it cannot infer."""
    assert lacks_encoding(ast.parse("path.open('w')").body[0].value)
    files = [path for folder in ("dlv3p_jax", "launch", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    calls = [(path, node) for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    found = [f"{path}:{node.lineno}" for path, node in calls if isinstance(node, ast.Call) and lacks_encoding(node)]
    assert len(files) > 80 and found == []

"""The command that writes the pages of runs."""

import os
import subprocess

import pytest
import warm

COMMAND = """
import sys
from dlv3p_jax.runtime import cli
from dlv3p_jax import report
assert not {"jax", "matplotlib", "tensorflow"} & set(sys.modules)
report.define_flags()
try:
    cli.run(report.main, "report")
finally:
    assert "tensorflow" not in sys.modules
"""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--compare", "{run}", "{run}", "--output={out}"], 0, "No real difference is seen"),
        (["--workdir={out}"], 1, "report: {out} is no folder"),
        (["--compare", "{run}"], 1, "report: --compare takes two to six workdirs"),
        (["--workdir={run}", "{run}"], 1, "report: unexpected argument"),
        ([], 1, "report: give --workdir=WORKDIR"),
    ],
)
def test_the_command(arguments, code, message, logged_run, tmp_path):
    names = {"run": logged_run, "out": tmp_path / "page.html"}
    arguments = [argument.format(**names) for argument in arguments]
    process = subprocess.run(
        [*warm.ANEW, "-c", COMMAND, *arguments], capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": ""}
    )
    assert process.returncode == code, process.stderr
    assert message.format(**names) in process.stdout + process.stderr and "Traceback" not in process.stderr
    assert (tmp_path / "page.html").exists() == (code == 0)

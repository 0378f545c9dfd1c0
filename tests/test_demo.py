"""The command that serves the demo's page."""

import pathlib
import re
import signal
import socket
import subprocess
import sys
import types

import drawn
import numpy as np
import pytest
from absl import app
from demo_visits import encode, expected_legend, legend, shown, status, upload, visits

from dlv3p_jax import demo
from dlv3p_jax.inference.segmenter import Segmenter

pytest.importorskip("nicegui", reason="nicegui is not installed (the extra demo)")

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
COMMAND = """
import sys
from dlv3p_jax.runtime import cli
from dlv3p_jax import demo
demo.define_flags()
try:
    cli.run(demo.main, "demo")
finally:
    assert "jax" not in sys.modules
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workdir")
    drawn.save_checkpoint(folder, drawn.make_config())
    return folder


@pytest.fixture
def visit(browser):
    with visits(browser) as open_page:
        yield open_page


def test_the_command_serves_a_checkpoint_until_ctrl_c(workdir, visit):
    process = subprocess.Popen(
        [sys.executable, "-m", "dlv3p_jax.demo", f"--checkpoint={workdir}", "--port=0"],
        **dict(cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True),
    )
    try:
        url = re.search(r"http://127.0.0.1:\d+/?", process.stdout.readline())[0]
        assert status(url, Host="rebound.example") == 400
        page = visit(url)
        image = drawn.draw_picture(np.random.default_rng(0), 40, 56)
        upload(page, encode(image))
        page.get_by_text("street.png: 56 x 40 pixels").wait_for()
        process.send_signal(signal.SIGINT)
        output, log = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0 and output.strip() == "Stopped", log
    assert "Traceback" not in log and "WARNING" not in log
    segmenter = Segmenter.from_checkpoint(workdir)
    assert legend(page) == expected_legend(segmenter(image), segmenter.classes)
    assert np.abs(shown(page) - segmenter.overlay(image)).max() <= 2


def test_only_a_loopback_address_has_known_names():
    assert set(demo._known_hosts("mine", "127.0.1.1")) == {"mine", "localhost", "127.0.0.1", "[::1]"}
    assert demo._known_hosts("0.0.0.0", "0.0.0.0") == demo._known_hosts("[::]", "::") == ["*"]


@pytest.mark.parametrize(
    ("words", "values", "message"),
    [
        (["picture.png"], {}, "unexpected argument 'picture.png'"),
        ([], {"checkpoint": None}, "give --checkpoint=WORKDIR"),
        ([], {"scales": ["0.5", "big"]}, "--scales=0.5,big: give positive numbers"),
        ([], {"scales": ["0", "1"]}, "--scales=0,1: give positive numbers"),
        ([], {"scales": ["0.5"]}, "pip install '.[demo]'"),
    ],
)
def test_wrong_flags_are_answered(monkeypatch, words, values, message):
    monkeypatch.setattr(
        demo.flags, "FLAGS", types.SimpleNamespace(**{"checkpoint": "w", "flip": None, "scales": None} | values)
    )
    monkeypatch.setitem(sys.modules, "nicegui", None)
    with pytest.raises((app.UsageError, ValueError, SystemExit), match=re.escape(message)):
        demo.main(["demo", *words])


def test_a_port_in_use_is_told_before_jax_is_imported():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = f"--port={listening.getsockname()[1]}"
        command = [sys.executable, "-c", COMMAND, "--checkpoint=w", port]
        process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr == f"demo: cannot listen at --host=127.0.0.1 {port}: Address already in use; give others\n"

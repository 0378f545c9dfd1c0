"""The command that converts MMSegmentation's files and writes them."""

import pathlib
import runpy
import subprocess
import sys

import numpy as np

from dlv3p_jax.runtime import configuration
from dlv3p_jax.weights import checkpoint_reading, pth

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(*arguments):
    command = [sys.executable, "-m", "dlv3p_jax.convert_mmseg", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_commands_convert_a_file_and_give_it_back_bit_for_bit(shared, tmp_path):
    make_state = runpy.run_path(str(shared / "parity" / "mmseg" / "weights.py"))["make_state"]
    state = make_state(shared / "parity" / "mmseg" / "deeplabv3plus_r18b-d8_c19.json")
    meta = {"CLASSES": tuple(f"c{number}" for number in range(19)), "PALETTE": [[number] * 3 for number in range(19)]}
    pth.save_pth(state, tmp_path / "iter_80000.pth", meta)
    result = run(f"--pth={tmp_path / 'iter_80000.pth'}", f"--output={tmp_path / 'model'}")
    assert result.returncode == 0, result.stderr
    assert "resnet18_vd DeepLabV3+, 19 classes" in result.stdout
    config = configuration.read(tmp_path / "model" / "config.json")
    assert (config.num_classes, config.model.stem, config.model.low_level_channels) == (19, "plain", 12)
    assert checkpoint_reading.read_meta(tmp_path / "model")["class_names"] == list(meta["CLASSES"])

    result = run("--reverse", f"--checkpoint={tmp_path / 'model'}", f"--output={tmp_path / 'back.pth'}")
    assert result.returncode == 0, result.stderr
    assert "zeros" not in result.stdout
    written, back = pth.load_pth(tmp_path / "back.pth")
    assert (written["CLASSES"], written["PALETTE"]) == (meta["CLASSES"], meta["PALETTE"])
    assert list(back) == list(state)
    for name, value in back.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(value, state[name], err_msg=name)

    without = {name: value for name, value in state.items() if not name.startswith("auxiliary_head.")}
    pth.save_pth(without, tmp_path / "without.pth", meta)
    assert run(f"--pth={tmp_path / 'without.pth'}", f"--output={tmp_path / 'without'}").returncode == 0
    result = run("--reverse", f"--checkpoint={tmp_path / 'without'}", f"--output={tmp_path / 'zeros.pth'}")
    assert "its auxiliary head is zeros, as the checkpoint has none" in result.stdout
    assert list(pth.load_pth(tmp_path / "zeros.pth")[1]) == list(state)


def test_wrong_flags_and_files_end_in_one_line(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"<html>")
    for arguments, message in (
        ([f"--pth={tmp_path / 'a.pth'}", f"--output={tmp_path / 'b'}"], "HTML or XML page"),
        ([f"--output={tmp_path / 'b'}"], "give --pth=FILE or --weights=NAME"),
    ):
        result = run(*arguments)
        assert result.returncode != 0 and message in result.stderr and "Traceback" not in result.stderr

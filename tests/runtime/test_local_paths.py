"""Files of an owner and a group without names, and folders with brackets in theirs."""

import errno
import os
import re

import drawn
import numpy as np
import pytest
from etils import epath

from dlv3p_jax.runtime import local_paths
from dlv3p_jax.weights import checkpoint_reading

NAMELESS = 54321


def test_a_file_of_nobody_has_a_size_and_its_owner_s_number(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    local_paths.mend()
    mine = epath.Path(path).stat()
    os.chown(path, 0, NAMELESS)  # as in a set-gid folder
    of_no_group = epath.Path(path).stat()
    os.chown(path, NAMELESS, NAMELESS)
    of_nobody = epath.Path(path).stat()
    assert (mine.length, mine.owner, of_no_group.length, of_no_group.group) == (5, "root", 5, str(NAMELESS))
    assert (of_nobody.length, of_nobody.owner, of_nobody.is_directory) == (5, str(NAMELESS), False)
    assert of_nobody.mtime == int(path.stat().st_mtime) and of_nobody.mode == path.stat().st_mode


def test_a_folder_with_brackets_is_no_pattern(tmp_path):
    local_paths.mend()
    folder = epath.Path(tmp_path) / "run [1]*"
    folder.mkdir()
    (folder / "a.txt").write_text("")
    assert [path.name for path in folder.glob("*.txt")] == ["a.txt"] and list(folder.glob("*.png")) == []


def test_a_folder_that_cannot_be_read_holds_not_nothing(tmp_path, monkeypatch):
    local_paths.mend()

    def away(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(os, "scandir", away)
    with pytest.raises(OSError, match=re.escape(str(tmp_path))):
        list(epath.Path(tmp_path).glob("*.txt"))


def test_a_checkpoint_below_a_folder_with_brackets_is_whole(tmp_path):
    config = drawn.make_config(num_classes=3)
    drawn.save_checkpoint(
        tmp_path / "run [1]", config, checkpoint_reading.describe_classes(["a", "b", "c"], [[0] * 3] * 3, 255)
    )
    variables, _ = checkpoint_reading.read_model(checkpoint_reading.find(tmp_path / "run [1]"))
    assert np.isfinite(variables["params"]["decoder"]["classifier"]["bias"]).all()

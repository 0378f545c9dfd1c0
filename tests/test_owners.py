"""Files of an owner and a group without names."""

import os

import pytest
from etils import epath

from dlv3p_jax import owners

NAMELESS = 54321


def test_a_file_of_nobody_has_a_size_and_its_owner_s_number(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    owners.allow_nameless()
    mine = epath.Path(path).stat()
    os.chown(path, 0, NAMELESS)  # as in a set-gid folder
    of_no_group = epath.Path(path).stat()
    os.chown(path, NAMELESS, NAMELESS)
    of_nobody = epath.Path(path).stat()
    assert (mine.length, mine.owner, of_no_group.length, of_no_group.group) == (5, "root", 5, str(NAMELESS))
    assert (of_nobody.length, of_nobody.owner, of_nobody.is_directory) == (5, str(NAMELESS), False)
    assert of_nobody.mtime == int(path.stat().st_mtime) and of_nobody.mode == path.stat().st_mode

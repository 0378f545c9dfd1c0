"""Files that are whole or not there, whoever else writes them, and locks."""

import errno
import pathlib
import pwd
import subprocess
import sys

import pytest

from dlv3p_jax.runtime import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("before")
    with files.replacing(path) as unfinished:
        unfinished.write_text("half")
        assert path.read_text() == "before"
    assert path.read_text() == "half" and names(tmp_path) == ["a.json"]


def test_what_fails_leaves_the_file_before_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("before")
    with pytest.raises(OSError) as raised, files.replacing(path) as unfinished:
        unfinished.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.filename == str(path)
    with (
        pytest.raises(FileNotFoundError, match="gone/a.json'$"),
        files.replacing(tmp_path / "gone" / "a.json") as unfinished,
    ):
        unfinished.write_text("half")
    assert path.read_text() == "before" and names(tmp_path) == ["a.json"]


def test_two_that_write_one_file_at_once_each_write_it_whole(tmp_path):
    path = tmp_path / ("a" * 250 + ".json")  # nearly as long as names may be
    with files.replacing(path) as one, files.replacing(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one" and names(tmp_path) == [path.name]


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / files.unfinished_name()).write_text("half")
    (tmp_path / files.unfinished_name()).mkdir()
    (tmp_path / "mine.unfinished").write_text("a user's")
    files.remove_unfinished(tmp_path, older_than=60)
    assert len(names(tmp_path)) == 3
    files.remove_unfinished(tmp_path)
    assert names(tmp_path) == ["mine.unfinished"]


def test_a_folder_is_replaced_when_it_is_whole_whoever_else_writes_it(tmp_path):
    folder = tmp_path / "a"
    with files.replacing_folder(folder) as one, files.replacing_folder(folder) as other:  # does not remove the first's
        (one / "of").write_text("one")
        (other / "of").write_text("other")
        assert not folder.exists()
    assert (folder / "of").read_text() == "one" and names(tmp_path) == ["a"]
    with pytest.raises(KeyError), files.replacing_folder(folder) as unfinished:
        (unfinished / "of").write_text("half")
        raise KeyError
    assert (folder / "of").read_text() == "one" and names(tmp_path) == ["a"]


@pytest.mark.parametrize("aside", [".a.old", ".a.1234.old"])
def test_a_folder_that_a_killed_process_set_aside_comes_back_and_what_it_left_goes(tmp_path, aside):
    (tmp_path / aside).mkdir()
    (tmp_path / aside / "kept").touch()
    (tmp_path / ".1-2.unfinished-folder").mkdir()
    (tmp_path / ".ab.1234.old").mkdir()  # of another
    with pytest.raises(KeyError), files.replacing_folder(tmp_path / "a"):
        assert names(tmp_path / "a") == ["kept"]
        raise KeyError
    assert names(tmp_path) == [".ab.1234.old", "a"]


HOLD = """
import sys, time
from dlv3p_jax.runtime import files
with files.lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_of_one_process_says_whose_and_ends_with_it(tmp_path):
    path = tmp_path / ".lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    root = pathlib.Path(files.__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(files.Locked, match=f"process {holder.pid} on "), files.lock(path):
            pass
        holder.kill()
        holder.wait()
        with files.lock(path):
            pass


def test_a_cache_for_whom_nobody_knows_a_home_is_asked_for(monkeypatch):
    def getpwuid(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("DLV3P_CACHE", raising=False)
    with pytest.raises(OSError, match="DLV3P_CACHE"):
        files.cache_folder()
    monkeypatch.setenv("DLV3P_CACHE", "/cache")
    assert files.cache_folder() == pathlib.Path("/cache")


def test_the_lock_of_another_user_can_be_held_too(tmp_path, monkeypatch):
    path = tmp_path / ".lock"
    path.write_text("process 1 on host\n")

    def refuse(file, mode="r", **options):
        if mode != "r":
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return open(file, mode, **options)

    monkeypatch.setattr(files, "open", refuse, raising=False)
    with files.lock(path), pytest.raises(files.Locked, match="process 1 on host"), files.lock(path):
        pass
    path.unlink()
    with pytest.raises(PermissionError), files.lock(path):
        pass


def test_a_lock_is_waited_for_only_so_long(tmp_path, caplog):
    path = tmp_path / ".lock"
    with files.lock(path), files.lock_if_possible(path, "waiting", seconds=0) as locked:
        assert not locked and f"{path} is held by process" in caplog.text
    with files.lock_if_possible(path, "waiting") as locked:
        assert locked

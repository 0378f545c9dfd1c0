"""Counting the starts of a run that does not get on."""

import contextlib
import errno
import time

import pytest

from dlv3p_jax.runtime import starts


def save(workdir, step):
    (workdir / "checkpoints" / "latest" / str(step)).mkdir(parents=True)


def hang(workdir) -> int:
    """A start that hangs; its exit code."""
    return starts.Start(workdir).code()


def test_the_third_start_that_hangs_without_a_newer_checkpoint_gives_up(tmp_path):
    assert [hang(tmp_path) for _ in range(2)] == [75, 75]
    save(tmp_path, 8)
    assert [hang(tmp_path) for _ in range(3)] == [75, 75, 70]
    assert hang(tmp_path) == 75  # who starts it nonetheless has mended something


def test_a_start_that_gets_on_or_ends_in_order_is_not_counted(tmp_path):
    save(tmp_path, 8)
    assert [hang(tmp_path) for _ in range(2)] == [75, 75]
    with pytest.raises(KeyError), starts.Start(tmp_path):  # an error that is told
        raise KeyError
    start = starts.Start(tmp_path)
    save(tmp_path, 16)
    assert start.code() == 75
    assert [hang(tmp_path) for _ in range(3)] == [75, 75, 70]


def test_a_run_that_is_killed_again_and_again_is_not_begun_once_more(tmp_path):
    for _ in range(5):
        starts.Start(tmp_path)  # and a kill
    with pytest.raises(starts.GivenUp, match="5 starts in a row were killed"):
        starts.Start(tmp_path)
    starts.Start(tmp_path)


def test_a_disk_that_never_comes_back_gives_up_after_starts_over_an_hour_and_no_newer_checkpoint(tmp_path, monkeypatch):
    now = [1e9]
    monkeypatch.setattr(time, "time", lambda: now[0])

    def outage(minutes):
        """A start that a disk's error ends, so long after the one before; its exit code, and the wait."""
        with contextlib.suppress(OSError), starts.Start(tmp_path):
            raise OSError
        now[0] += 60 * minutes
        code, _, wait = starts.away(tmp_path)
        return code, wait

    # Several minutes, and as many starts as there may be: it goes on.
    assert [outage(1) for _ in range(6)] == [(75, 0), (75, 15), (75, 30), (75, 60), (75, 120), (75, 240)]
    save(tmp_path, 8)
    assert [outage(20)[0] for _ in range(4)] == [75] * 4  # over an hour, but only four
    assert outage(1) == (70, 0)
    assert outage(1) == (75, 0)  # who starts it nonetheless has mended something
    assert [outage(30)[0] for _ in range(2)] == [75] * 2
    with starts.Start(tmp_path):  # and so it had
        pass
    assert [outage(30)[0] for _ in range(4)] == [75] * 4


def test_where_the_workdir_itself_is_away_the_command_goes_on(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(starts, "_newest", fail)
    assert [starts.away(tmp_path)[0] for _ in range(9)] == [75] * 9


@pytest.mark.parametrize("content", ["", "[]", '{"newest": 1}', '{"newest": -1, "starts": 2, "away": 1}', "\0"])
def test_a_count_that_cannot_be_read_begins_anew(tmp_path, content):
    (tmp_path / starts.NAME).write_text(content)
    assert hang(tmp_path) == 75

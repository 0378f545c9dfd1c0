"""Counting the starts of a run that does not get on."""

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


@pytest.mark.parametrize("content", ["", "[]", '{"newest": 1}', "\0"])
def test_a_count_that_cannot_be_read_begins_anew(tmp_path, content):
    (tmp_path / starts.NAME).write_text(content)
    assert hang(tmp_path) == 75

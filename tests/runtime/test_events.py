"""The curves of a run out of its event files: after kills, by clocks that differ, and where a file ends too early."""

import pytest
from etils import epath
from made_runs import write_events

from dlv3p_jax.runtime import events


def test_curves_of_a_run_that_was_killed_are_those_of_what_counts(logged_run):
    scalars = events.read_scalars(epath.Path(logged_run))
    assert [(point.step, point.value) for point in scalars["train/loss"]] == [
        *((10, 10.0), (20, 20.0), (30, 30.0), (40, 3040.0), (50, 3050.0), (60, 3060.0)),
    ]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([(200, (10, 20, 30)), (190, (40, 50))], (10, 20, 30, 40, 50)),  # the clock of the second host is behind
        ([(200, (10, 20, 30)), (190, (30, 40, 50)), (180, (60,))], (10, 20, 30, 40, 50, 60)),
        ([(100, (10, 20, 30, 40)), (110, (50, 60)), (120, (30, 40))], (10, 20, 30, 40)),  # from an older checkpoint
        ([(100, (70, 80)), (110, (90, 100))], (70, 80, 90, 100)),  # the first file was removed
        ([(100, (10, 20)), (110, (10, 20, 30))], (10, 20, 30)),  # begun anew
        ([(100, (50,)), (110, (10, 20, 30, 40, 50, 60))], (10, 20, 30, 40, 50, 60)),  # which logs more often
        ([(100, (50,)), (110, (45, 50, 55))], (45, 50, 55)),  # from a checkpoint at 40
    ],
)
def test_curves_follow_the_steps_where_clocks_do_not(files, expected, tmp_path):
    for time, steps in files:
        write_events(tmp_path / f"events.out.tfevents.{time}.host.1.0.v2", steps, time)
    points = events.read_scalars(epath.Path(tmp_path))["train/loss"]
    assert [point.step for point in points] == list(expected)
    newest = max(files)
    assert [point.time for point in points if point.step == newest[1][0]] == [newest[0]]


def test_an_evaluation_that_both_files_hold_follows_the_order_of_the_losses(tmp_path):
    """Killed in the evaluation of step 20, made up for by a host whose clock is behind."""
    for time, losses, evaluated in ((200, (10, 20), (20,)), (190, (30, 40), (20, 40))):
        path = tmp_path / f"events.out.tfevents.{time}.host.1.0.v2"
        write_events(path, losses, time)
        write_events(path, evaluated, time, "eval/mIoU")
    scalars = events.read_scalars(epath.Path(tmp_path))
    assert {tag: [point.step for point in points] for tag, points in scalars.items()} == {
        "train/loss": [10, 20, 30, 40],
        "eval/mIoU": [20, 40],
    }


def test_curves_of_a_file_that_ends_in_the_middle(logged_run, tmp_path):
    (source, _) = sorted(logged_run.glob("events*"))
    data = source.read_bytes()
    for end in (len(data) - 1, len(data) // 2, 40, 5):
        (tmp_path / source.name).write_bytes(data[:end])
        points = events.read_scalars(epath.Path(tmp_path)).get("train/loss", [])
        assert [point.step for point in points] == [10, 20, 30, 40][: len(points)]
    assert not points

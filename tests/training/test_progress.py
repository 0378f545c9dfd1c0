"""What a log line says of the steps since the last, and the one line that moves on a terminal."""

import csv
import io
import re
import sys

import jax
import numpy as np
import pytest
import tiny
from absl import logging
from etils import epath

from dlv3p_jax import models
from dlv3p_jax.runtime import events, memory, preemption, sharding, terminal
from dlv3p_jax.training import loop, progress, run

CHANGES = {"num_train_steps": 8, "eval_every_steps": 8, "checkpoint_every_steps": 8}
LOSS = {"loss": 1.0, "learning_rate": 0.1}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Gives a list whose only number is the time."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def rows_of(workdir):
    with (workdir / "metrics.csv").open() as file:
        return {int(row["step"]): {name: float(value) for name, value in row.items()} for row in csv.DictReader(file)}


def test_a_line_has_the_mean_since_the_one_before_also_where_the_run_went_on_in_between(
    data_dir, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(models, "build_model", tiny.build_model)
    loop.train_and_evaluate(tiny.make_config(data_dir, log_every_steps=1, **CHANGES), tmp_path / "each")
    config = tiny.make_config(data_dir, log_every_steps=3, **CHANGES)
    assert "Initialising resnet50_vd" in caplog.text
    with pytest.raises(preemption.Preempted):
        loop.train_and_evaluate(config, tmp_path / "third", tiny.Told(6))  # five steps are done
    initialise = run.init_variables

    def forbidden(config, model):
        def fail(_):
            raise AssertionError("weights were initialised that are thrown away")

        return jax.tree.map(lambda x: jax.pure_callback(fail, x, x), initialise(config, model))

    monkeypatch.setattr(run, "init_variables", forbidden)
    loop.train_and_evaluate(config, tmp_path / "third")

    each, third = rows_of(tmp_path / "each"), rows_of(tmp_path / "third")
    assert list(each) == list(range(1, 9)) and list(third) == [3, 6, 8]
    for name in ("loss", "cross_entropy", "grad_norm"):
        means = [np.mean([each[step][name] for step in steps]) for steps in ((1, 2, 3), (4, 5, 6), (7, 8))]
        np.testing.assert_allclose([row[name] for row in third.values()], means, rtol=1e-5)
    assert [row["learning_rate"] for row in third.values()] == [each[step]["learning_rate"] for step in third]
    assert [row["epoch"] for row in third.values()] == pytest.approx([4 * step / 11 for step in third], rel=1e-5)
    for folder, rows in ((tmp_path / "each", each), (tmp_path / "third", third)):
        curves = events.read_scalars(epath.Path(folder))
        for name in rows[3].keys() - {"step"}:
            points = curves[f"train/{name}"]
            assert [point.step for point in points] == list(rows), name
            np.testing.assert_allclose([p.value for p in points], [row[name] for row in rows.values()], rtol=1e-5)
    log = (tmp_path / "third" / "train.log").read_text()
    assert re.findall(r"step (\d)/8  epoch", log) == ["3", "6", "8"] and log.count("Resumed from") == 1
    assert len({line.index("pictures/s") for line in log.splitlines() if "pictures/s" in line}) == 1  # aligned


def test_speed_waiting_and_time_left_are_those_of_the_clock_without_evaluations(clock, monkeypatch):
    monkeypatch.setattr(memory, "used", lambda mesh: 3e9)
    config = tiny.make_config("", batch_size=4, num_train_steps=100, eval_every_steps=30)
    meter = progress.Meter(config, 40, sharding.make_mesh(1, 1))
    for _ in range(5):
        with meter.waiting_for_input():
            clock[0] += 0.5
        clock[0] += 1.5
        meter.add(LOSS)
    with meter.evaluating():
        clock[0] += 60
    values, left = meter.read(30)
    assert values["pictures_per_second"] == pytest.approx(4 * 5 / 10)
    assert values["waiting_for_input"] == pytest.approx(0.25) and values["epoch"] == 3
    assert values["memory_gb"] == 3
    assert left == pytest.approx(70 * 2 + 3 * 60)  # evaluations of 60, 90 and 100
    clock[0] += 8
    meter.add(LOSS)
    assert meter.read(31)[0]["pictures_per_second"] == pytest.approx(4 / 8)
    assert "left  1:02:03" in progress.to_text(values | LOSS, 3723) and " 05:20 " in progress.to_text(
        values | LOSS, 320
    )


def test_on_a_terminal_one_line_moves_and_the_log_stands_above_it(monkeypatch, caplog):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    values = LOSS | {"epoch": 1.5, "pictures_per_second": 12.0, "waiting_for_input": 0.1, "memory_gb": 2.0}
    with progress.Line(0, 200) as line:
        monkeypatch.setattr(line._bar, "mininterval", 0)
        for step in range(1, 31):
            line.move(step)
        text = line.write(30, values, 90)
        terminal.AboveBars(screen).write("warning: something\n")
    assert not line.in_log and text not in caplog.text
    assert text.startswith("step  30/200  epoch    1.50  loss     1.000  lr 1.00e-01  left    01:30")
    lines = screen.getvalue().split("\n")
    assert len(lines) == 3 and lines[0].endswith("\rwarning: something") and lines[2] == ""
    assert lines[0].count("step ") > 10 and text in lines[1]


def test_elsewhere_a_line_is_one_of_the_log(monkeypatch, caplog):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    values = LOSS | {"epoch": 1.5, "pictures_per_second": 12.0, "waiting_for_input": 0.1, "memory_gb": 2.0}
    with progress.Line(0, 200) as line:
        line.move(1)
        text = line.write(1, values, 90)
    assert line.in_log and caplog.messages == [text] and sys.stderr.getvalue() == ""
    monkeypatch.setattr(logging, "level_info", lambda: False)  # as from Python: then `LogFiles` has to be told
    assert not progress.Line(0, 200).in_log


def test_lines_of_the_log_have_no_process_and_no_file():
    record = logging.get_absl_logger().makeRecord("absl", logging.INFO, "/a/b.py", 7, "loss of %d", (3,), None)
    assert re.fullmatch(r"\d\d-\d\d \d\d:\d\d:\d\d loss of 3", terminal.LineFormatter().format(record))
    record = logging.get_absl_logger().makeRecord("absl", 30, "/a/b.py", 7, "little memory", (), None)
    assert re.fullmatch(r"\d\d-\d\d \d\d:\d\d:\d\d warning: little memory", terminal.LineFormatter().format(record))

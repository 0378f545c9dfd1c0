"""The log of a run in its workdir: gone on with, and on a disk that does not take what is written."""

import errno
import resource

import pytest
from absl import logging
from etils import epath

from dlv3p_jax.training import log_files


@pytest.fixture
def limit():
    """Gives a function that lets no file grow beyond some bytes: Linux answers EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write(folder, steps, first_step, **more):
    with log_files.LogFiles(epath.Path(folder)) as logs:
        for step in steps:
            logs.write_metrics(step, {"loss": step / 3, **more}, first_step)


def test_steps_that_are_made_again_are_there_once(tmp_path):
    write(tmp_path, [2, 4, 6, 8], 0)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("9,2.")  # killed while it wrote
    write(tmp_path, [6, 8, 10], 5)
    expected = "step,loss\n2,0.666667\n4,1.33333\n6,2\n8,2.66667\n10,3.33333\n"
    assert (tmp_path / "metrics.csv").read_text() == expected


def test_other_columns_of_another_version_and_damage_do_no_harm(tmp_path):
    write(tmp_path, [2, 4], 0, old=1.0)
    with (tmp_path / "metrics.csv").open("ab") as file:
        file.write(b"\xff\x00,1,2\n3\n")
    write(tmp_path, [6], 4, new=7.0)
    assert (tmp_path / "metrics.csv").read_text() == "step,loss,new\n2,0.666667,\n4,1.33333,\n6,2,7\n"
    (tmp_path / "metrics.csv").write_bytes(b"\x93" * 300_000)
    write(tmp_path, [8], 6)
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n8,2.66667\n"


def test_what_a_spreadsheet_saved_is_kept(tmp_path, caplog):
    write(tmp_path, (5, 10), 0)
    path = tmp_path / "metrics.csv"
    rows = path.read_text().splitlines()
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    write(tmp_path, (15,), 10)
    assert path.read_text().splitlines()[:3] == rows and "cannot be read" not in caplog.text
    changed = path.read_text().replace(",", ";")
    path.write_text(changed)
    write(tmp_path, (20,), 15)
    assert (tmp_path / "metrics.csv.damaged").read_text() == changed and "metrics.csv cannot be read" in caplog.text


def test_what_this_package_logs_meanwhile_is_kept_and_a_run_goes_on_in_it(tmp_path):
    for text in ("first", "second"):
        with log_files.LogFiles(epath.Path(tmp_path)) as logs:
            # As the package's own modules log: the record has their path.
            record = logging.get_absl_logger().makeRecord("absl", 30, log_files.__file__, 1, text, (), None)
            logging.get_absl_logger().handle(record)
            logging.info("of another library")
            logs.say("step 3")
        logging.get_absl_logger().handle(record)
    lines = [line.split(" ", 2)[2] for line in (tmp_path / "train.log").read_text().splitlines()]
    assert lines == ["warning: first", "step 3", "warning: second", "step 3"]


def test_what_ends_a_run_is_in_its_log(tmp_path):
    with pytest.raises(ValueError), log_files.LogFiles(epath.Path(tmp_path)):
        raise ValueError("step 3 is not finite\nTry a lower learning_rate")
    assert (
        (tmp_path / "train.log").read_text().endswith(" The run ends: step 3 is not finite Try a lower learning_rate\n")
    )


def test_a_disk_that_takes_nothing_is_told_with_the_file(tmp_path, limit):
    logs = log_files.LogFiles(epath.Path(tmp_path))
    logs.say("short")
    logs.write_metrics(1, {"loss": 1.0}, 0)
    logs.flush()
    limit(40)
    logs.say("x" * 100)  # who logs does not fail
    with pytest.raises(OSError) as caught:
        logs.flush()
    assert caught.value.filename == str(tmp_path / "train.log") and caught.value.errno == errno.EFBIG
    with pytest.raises(OSError) as caught:
        for step in range(2, 20):
            logs.write_metrics(step, {"loss": 1.0}, 0)
    assert caught.value.filename == str(tmp_path / "metrics.csv") and caught.value.errno == errno.EFBIG


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(log_files.jax, "process_index", lambda: 1)
    with log_files.LogFiles(epath.Path(tmp_path)) as logs:
        logs.say("step 3")
        logs.write_metrics(1, {"loss": 1.0}, 0)
    assert list(tmp_path.iterdir()) == []

"""What the page of a run says of files that are damaged, cut short, absent, not to be read now, or of old versions."""

import errno
import json
import os

import pytest
from etils import epath
from made_runs import write_evaluation, write_events

from dlv3p_jax.evaluation import files
from dlv3p_jax.evaluation.files import ReportError
from dlv3p_jax.reporting import run_page
from dlv3p_jax.runtime import disk_errors, events


def damage_json(folder):
    (folder / "eval" / "40.plain.json").write_text('{"mIoU": 0.5')


def change_json(**changes):
    def change(folder):
        path = folder / "eval" / "40.plain.json"
        report = {k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not ...}
        path.write_text(json.dumps(report))

    return change


def damage_npz(folder):
    path = folder / "eval" / "40.plain.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
    path.write_bytes(data)


def no_npz(folder):
    (folder / "eval" / "40.plain.npz").write_bytes(b"")


def other_npz(folder):
    write_evaluation(folder / "other", "plain", 40, 0.1)
    (folder / "other" / "eval" / "40.plain.npz").rename(folder / "eval" / "40.plain.npz")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_json, r"eval/40\.plain\.json is damaged \(Expecting .*: evaluate .*--mode=eval again, or remove it"),
        (change_json(class_names=["a"]), r"40\.plain\.json is damaged \(it is not of 1 classes throughout\)"),
        (change_json(flip=...), r"40\.plain\.json is damaged \(it lacks 'flip'\)"),
        (change_json(dataset=...), r"40\.plain\.json is damaged \(it lacks 'dataset'\)"),
        (damage_npz, r"eval/40\.plain\.npz is damaged \(.*: evaluate .* again, or remove it"),
        (no_npz, r"eval/40\.plain\.npz is damaged"),
        (other_npz, r"40\.plain\.json and the \.npz beside it are not of one evaluation"),
    ],
)
def test_damaged_files_are_named(damage, message, tmp_path):
    write_evaluation(tmp_path, "plain", 40, 0.4)
    damage(tmp_path)
    with pytest.raises(ReportError, match=message) as caught:
        run_page.write_report(tmp_path)
    assert "\n" not in str(caught.value) and not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_what_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch, suffix):
    write_evaluation(tmp_path, "plain", 4, 0.4)
    (tmp_path / "eval" / "4.plain.npz").touch()

    def away(path, *arguments, **options):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(disk_errors, "WAITS", ())
    monkeypatch.setattr(type(epath.Path()), "read_text" if suffix == ".json" else "read_bytes", away)
    with pytest.raises(ReportError, match=rf"4\.plain\{suffix} cannot be read now: Input/output error") as caught:
        run_page.write_report(tmp_path)
    assert "damaged" not in str(caught.value) and "remove" not in str(caught.value)


def test_a_damaged_event_file_is_named_in_the_log_and_on_the_page(tmp_path, caplog):
    write_evaluation(tmp_path, "plain", 4, 0.4)
    path = tmp_path / "events.out.tfevents.1.host.1.0.v2"
    write_events(path, range(10, 70, 10), 1)
    data = bytearray(path.read_bytes())
    record = len(data) // 6
    data[2 * record] ^= 1 << 5  # the length of the third
    path.write_bytes(data)
    assert f"{path} is damaged at byte {2 * record}" in run_page.write_report(tmp_path).read_text()
    assert f"{path} is damaged" in caplog.text
    assert [point.step for point in events.read_scalars(epath.Path(tmp_path))["train/loss"]] == [10, 20]


@pytest.mark.parametrize(("step", "said"), [(38, False), (60, True)])
def test_curves_that_end_long_before_the_evaluation_are_told(tmp_path, caplog, step, said):
    """A file that is cut short at a record's end looks whole by itself."""
    write_evaluation(tmp_path, "plain", step, 0.4)
    write_events(tmp_path / "events.out.tfevents.1.host.1.0.v2", (10, 20, 30), 1)
    for text in (run_page.write_report(tmp_path).read_text(), caplog.text):
        assert (f"ends at step 30, before step {step}" in text) == said


FIRST = ("absent_class", "checkpoint", "model", "version", "synthetic")  # what the first versions did not write


@pytest.mark.parametrize("missing", [(), FIRST])
def test_a_run_of_an_older_version_is_reported_without_pictures(missing, tmp_path, caplog):
    write_evaluation(tmp_path / "made", "plain", 40, 0.4)
    (tmp_path / "eval").mkdir()
    for name in ("40.plain.json", "40.json"):
        report = json.loads((tmp_path / "made" / "eval" / name).read_text())
        for key in ("devices", "git_revision", "versions", "date", "palette", *missing):
            del report[key]
        (tmp_path / "eval" / name).write_text(json.dumps(report))
    text = run_page.write_report(tmp_path).read_text()
    assert "Calibration" not in text and "doubts" not in text
    assert "There are no intervals and pictures here" in text and "<figure" not in text and "Training" not in text
    assert ">None" not in text and ("does not say absent_class, checkpoint," in text) == bool(missing)
    assert ("40.plain.json (without absent_class, checkpoint," in caplog.text) == bool(missing)
    write_evaluation(tmp_path, "flip", 40, 0.4, flip=True, sealed=True)  # and beside one of today, if of one run
    assert len(files.read(epath.Path(tmp_path))) == (2 if missing else 1)


def test_a_workdir_without_evaluations_is_told(tmp_path):
    with pytest.raises(ReportError, match="nowhere is no folder: give the --workdir of a run"):
        run_page.write_report(tmp_path / "nowhere")
    (tmp_path / "my run").mkdir()
    for _ in range(2):  # without and with the folder
        with pytest.raises(
            ReportError, match="eval holds no evaluations: evaluate with python -m dlv3p_jax.main --mode.*'.*/my run'"
        ):
            run_page.write_report(tmp_path / "my run")
        (tmp_path / "my run" / "eval").mkdir(exist_ok=True)


def test_a_report_that_fails_at_the_end_of_a_run_is_a_warning(tmp_path, caplog, capsys):
    run_page.write_after_run(tmp_path)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{tmp_path} has no report.html: " in caplog.text and not capsys.readouterr().out

"""Checkpoints that are damaged, and disks that are full."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import pytest
import tiny
from test_checkpoints import assert_equal_trees, make_state, steps_in

from dlv3p_jax import checkpoint_files, checkpoints, train
from dlv3p_jax.checkpoints import CheckpointError, Checkpoints, SaveError

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def workdir(tmp_path):
    """Steps 2, 4 and 6, of which 4 is the best."""
    with Checkpoints(tmp_path) as saved:
        for step in (2, 4, 6):
            saved.save(make_state(step))
        saved.save_best(make_state(4), 0.5)
    return tmp_path


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def pick(folder, pattern):
    return max(folder.glob(pattern), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("item", ["variables", "optimizer", "meta"])
@pytest.mark.parametrize("harm", [truncate, pathlib.Path.unlink])
def test_a_run_goes_on_from_the_newest_whole_checkpoint(workdir, item, harm, caplog):
    latest = workdir / "checkpoints" / "latest"
    harm(latest / "6" / "meta" / "metadata" if item == "meta" else pick(latest / "6" / item, "d/*"))
    with Checkpoints(workdir) as saved:
        assert_equal_trees(saved.restore(make_state(0)), make_state(4))
        assert saved.latest_step == 4
        assert f"{latest}/6 is damaged ({item}: " in caplog.text and "now called 6.damaged, and is not" in caplog.text
        saved.save(make_state(6, seed=1))  # the run comes to this step once more
        saved.wait()
    assert (latest / "6.damaged").is_dir() and checkpoints.find(latest) == latest / "6"
    with Checkpoints(workdir) as saved:
        assert_equal_trees(saved.restore(make_state(0)), make_state(6, seed=1))
    harm(pick(latest / "6", "variables/d/*"))
    with Checkpoints(workdir) as saved:
        saved.restore(make_state(0))
    assert sorted(path.name for path in latest.iterdir()) == ["2", "4", "6.damaged", "6.damaged-2"]


def test_every_file_that_matters_is_noticed(workdir):
    """Whatever file of a checkpoint is cut short: either it is as good as before, or the run goes on from another."""
    latest = workdir / "checkpoints" / "latest"
    files = [path.relative_to(latest) for path in (latest / "6").rglob("*") if path.is_file()]
    small = [path for path in files if "ocdbt.process" not in str(path) and path.name != "commit_success.txt"]
    assert len(small) >= 10
    copy = workdir / "copy"
    for file in small:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(workdir / "checkpoints", copy / "checkpoints")
        truncate(copy / "checkpoints" / "latest" / file)
        with Checkpoints(copy) as saved:
            restored = saved.restore(make_state(0))
        assert_equal_trees(restored, make_state(int(restored.step)))


def test_where_none_is_whole_all_are_named_and_left_as_they_are(workdir):
    latest = workdir / "checkpoints" / "latest"
    for step in (2, 4, 6):
        truncate(pick(latest / str(step), "variables/d/*"))
    for _ in range(2):  # also when it is started again
        with Checkpoints(workdir) as saved, pytest.raises(CheckpointError) as caught:
            saved.restore(make_state(0))
        lines = str(caught.value).splitlines()
        assert lines[0] == f"no checkpoint in {latest} is whole:" and "another --workdir" in lines[-1]
        assert [re.match(r"  (\S+): variables: ", line)[1] for line in lines[1:4]] == [
            f"{latest}/{n}" for n in (6, 4, 2)
        ]
        assert steps_in(latest) == [2, 4, 6]


def test_what_cannot_be_read_now_is_not_called_damaged(workdir, monkeypatch):
    def restore(*_, **__):
        raise ValueError('PERMISSION_DENIED: Error opening "x"')

    monkeypatch.setattr(checkpoint_files.ocp.PyTreeCheckpointHandler, "restore", restore)
    folder = workdir / "checkpoints" / "latest"
    with pytest.raises(CheckpointError, match="latest/6/variables cannot be read now: PERMISSION_DENIED"):
        checkpoint_files.set_damaged_aside(folder, ("variables",))
    assert steps_in(folder) == [2, 4, 6]


@pytest.mark.parametrize("file", ["metrics/metrics", "variables/d/*"])
def test_a_damaged_best_is_named_with_the_others_and_makes_room_for_the_next(workdir, file, caplog):
    best = workdir / "checkpoints" / "best"
    truncate(pick(best / "4", file))
    if "variables" in file:
        with pytest.raises(CheckpointError, match=f"^{best}/4/variables is damaged: .*Others of this run: ") as caught:
            checkpoints.read_model(checkpoints.find(workdir))
        others = str(caught.value).rpartition("run: ")[2].split(", ")
        assert others == [f"{workdir}/checkpoints/latest/{step}" for step in (2, 4, 6)]
        checkpoints.read_model(others[-1])
    with Checkpoints(workdir) as saved:
        assert saved.best_path is None and f"{best}/4 is damaged" in caplog.text
        assert saved.save_best(make_state(6), 0.1)
    assert sorted(path.name for path in best.iterdir()) == ["4.damaged", "6"]


def test_a_run_whose_newest_checkpoint_was_cut_short_ends_as_any(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "build_model", tiny.build_model)
    config = tiny.make_config(data_dir, checkpoint_every_steps=1, eval_every_steps=4, num_train_steps=4)
    train.train_and_evaluate(config, tmp_path)
    latest = tmp_path / "checkpoints" / "latest"
    expected = checkpoints.read_variables(latest / "4")
    truncate(pick(latest / "4", "variables/d/*"))
    truncate(pick(latest / "3", "optimizer/d/*"))
    train.train_and_evaluate(config, tmp_path)
    assert_equal_trees(checkpoints.read_variables(latest / "4"), expected)
    assert {path.name for path in latest.iterdir()} == {"2", "3", "4", "3.damaged", "4.damaged"}


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small file system to fill")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_ends_the_saving_in_one_line_and_costs_nothing_saved(small_disk):
    def big(step):
        state = make_state(step)
        return state.replace(
            params=state.params | {"aspp": {"kernel": jax.random.normal(jax.random.key(step), (350, 1000))}}
        )

    folder = small_disk / "checkpoints"
    message = (
        f"^a checkpoint could not be written in {folder}: no space is left on the device: make room; what was saved "
        rf"before is whole \({folder}/latest/2\), and the same command goes on$"
    )
    with pytest.raises(SaveError, match=message), Checkpoints(small_disk, keep=2) as saved:
        for step in (1, 2, 3):
            saved.save(big(step))
        while True:  # what fails is written in the background: a run asks after each step
            saved.check()
    assert {path.name for path in checkpoint_files.steps_in(folder / "latest")} == {"1", "2"}
    with Checkpoints(small_disk, keep=2) as saved:
        assert_equal_trees(saved.restore(big(0)), big(2))


def test_a_run_on_a_full_disk_says_so_once(small_disk, data_dir):
    (small_disk / "other").write_bytes(bytes(2_850_000))
    settings = tiny.SETTINGS | {"data_dir": data_dir, "log_every_steps": 1, "num_train_steps": 1000}
    found = subprocess.run(
        [
            *(sys.executable, "-c", tiny.MAIN, "--config=configs/common.py", f"--workdir={small_disk}"),
            *(f"--config.{key}={value}" for key, value in settings.items()),
        ],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": f"{REPOSITORY / 'tests'}:{REPOSITORY}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 1
    assert "no space is left on the device" in found.stderr.splitlines()[-1] and str(small_disk) in found.stderr
    assert "Traceback" not in found.stderr

"""Checkpoints that are damaged, and disks that are full."""

import errno
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny
from test_checkpoints import assert_equal_trees, make_state, steps_in

from dlv3p_jax import models
from dlv3p_jax.runtime import disk_errors
from dlv3p_jax.training import loop
from dlv3p_jax.weights import checkpoint_digests, checkpoint_files, checkpoint_reading
from dlv3p_jax.weights.checkpoint_files import CheckpointError, UnreadableError
from dlv3p_jax.weights.checkpoints import Checkpoints, SaveError

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Steps 2, 4 and 6, of which 4 is the best."""
    folder = tmp_path_factory.mktemp("whole")
    with Checkpoints(folder) as saved:
        for step in (2, 4, 6):
            saved.save(make_state(step))
        saved.save_best(make_state(4), 0.5)
    return folder


@pytest.fixture
def workdir(whole, tmp_path):
    """A copy of these, to be damaged."""
    return shutil.copytree(whole, tmp_path, dirs_exist_ok=True)


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
    assert (latest / "6.damaged").is_dir() and checkpoint_reading.find(latest) == latest / "6"
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


def answering(monkeypatch, *errors):
    """Has the reading of arrays fail with these errors, one after the other, and the last for ever; [] when done."""
    left, restore = list(errors), checkpoint_files.ocp.PyTreeCheckpointHandler.restore

    def fail(self, *arguments, **options):
        if left and left[0] is not None:
            raise left.pop(0) if len(left) > 1 else left[0]
        return restore(self, *arguments, **options)

    monkeypatch.setattr(checkpoint_files.ocp.PyTreeCheckpointHandler, "restore", fail)
    monkeypatch.setattr(disk_errors, "WAITS", (0, 0))


AWAY = [OSError(number, os.strerror(number)) for number in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE)]
AWAY += [
    ValueError(f"Error reading local file [OS error {number}: EIO {os.strerror(number)}]") for number in (errno.EIO,)
]


@pytest.mark.parametrize(
    ("error", "words"),
    [*((error, disk_errors.passing(error)) for error in AWAY)]
    + [
        (OSError(errno.EACCES, "x"), "Permission denied"),
        (ValueError("Error reading [OS error 13: EACCES Permission denied]"), "Permission denied"),
        (ValueError("FAILED_PRECONDITION: Error opening [os_error_code='40']"), "Too many levels of symbolic links"),
        (ValueError('PERMISSION_DENIED: Error opening "x"'), "PERMISSION_DENIED"),
    ],
)
def test_what_cannot_be_read_now_is_not_called_damaged(workdir, monkeypatch, error, words):
    answering(monkeypatch, error)
    folder = workdir / "checkpoints"
    with pytest.raises(UnreadableError, match=f"best/4/variables cannot be read now: {words}"):
        Checkpoints(workdir)
    with pytest.raises(UnreadableError, match=f"latest/6/variables cannot be read now: {words}"):
        checkpoint_files.set_damaged_aside(folder / "latest", ("variables",))
    with pytest.raises(UnreadableError, match=f"best/4/variables cannot be read now: {words}"):
        checkpoint_reading.read_model(checkpoint_reading.find(workdir))
    assert steps_in(folder / "latest") == [2, 4, 6] and steps_in(folder / "best") == [4]


def test_a_file_system_that_is_away_for_a_moment_costs_nothing(workdir, monkeypatch, caplog):
    answering(monkeypatch, AWAY[0], AWAY[1], None)
    with Checkpoints(workdir) as saved:
        assert saved.best_path.name == "4"
        assert_equal_trees(saved.restore(make_state(0)), make_state(6))
    assert "damaged" not in caplog.text


def test_main_leaves_with_75_where_the_disk_is_away(workdir, data_dir):
    """The code on which launchers start it again; nothing is renamed."""
    fail = """
import errno
from dlv3p_jax.runtime import disk_errors
from dlv3p_jax.weights import checkpoint_files
def fail(*arguments, **options):
    raise OSError(errno.ESTALE, "Stale file handle", "/a/file")
disk_errors.WAITS = ()
checkpoint_files.ocp.PyTreeCheckpointHandler.restore = fail
"""
    found = tiny.run_main(workdir, data_dir, before=fail)
    assert found.returncode == 75, found.stderr
    last = found.stderr.splitlines()[-1]
    assert f"{workdir}/checkpoints/best/4/variables cannot be read now: Stale file handle" in last
    assert steps_in(workdir / "checkpoints" / "best") == [4]


def test_a_checkpoint_of_another_network_ends_in_its_own_lines(workdir):
    """And not in those of all that Orbax was reading at once."""
    program = """
import sys
from dlv3p_jax.weights import checkpoint_files, checkpoints
from dlv3p_jax.runtime import cli
from test_checkpoints import make_state
cli.configure_logging()
other = make_state(0)
kernel = other.params["backbone"]["kernel"]
other = other.replace(params=other.params | {"backbone": {"kernel": kernel[:, :5]}})
try:
    with checkpoints.Checkpoints(sys.argv[1]) as saved:
        saved.restore(other)
except checkpoint_files.CheckpointError as error:
    sys.exit(f"main: {error}")
"""
    found = subprocess.run(
        [sys.executable, "-c", program, workdir],
        cwd=REPOSITORY / "tests",
        env=os.environ | {"PYTHONPATH": f"{REPOSITORY / 'tests'}:{REPOSITORY / 'tests/weights'}:{REPOSITORY}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.stderr.splitlines()[-1] == "  params/backbone/kernel is (16, 8) there and (16, 5) in this model"
    assert "Traceback" not in found.stderr and "ignored" not in found.stderr


def flip(path, bit=3):
    """Turns one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1 << bit
    path.write_bytes(content)


def test_one_turned_bit_is_noticed_wherever_it_is(workdir):
    """In each file of a checkpoint but two that nothing is read from, and in the file of the digests."""
    best = workdir / "checkpoints" / "best" / "4"
    files = [path for path in best.rglob("*") if path.is_file()]
    files = [
        path for path in files if path.parent != best or path.name not in ("_CHECKPOINT_METADATA", "commit_success.txt")
    ]
    assert len(files) > 15
    items = ("variables", "meta", "metrics")
    assert checkpoint_files.damage(best, items) == ""
    for file in files:
        flip(file)
        assert checkpoint_files.damage(best, items) != "", file
        flip(file)
    digests = best / "digests.json"
    digests.rename(workdir / "digests.json")
    assert "digests.json is missing" in checkpoint_files.damage(best, items)


@pytest.mark.parametrize("item", ["variables", "meta", "metrics"])
def test_a_turned_bit_is_named_and_the_run_goes_on_from_what_is_whole(workdir, item, caplog):
    checkpoint = workdir / "checkpoints" / ("best/4" if item == "metrics" else "latest/6")
    file = pick(checkpoint, f"{item}/*" if item != "variables" else "variables/**/d/*")
    flip(file)
    read = checkpoint_reading.read_meta if item == "meta" else checkpoint_reading.read_variables
    if item != "metrics":
        with pytest.raises(CheckpointError, match=f"{checkpoint}/{item} is damaged: {file.relative_to(checkpoint)} "):
            read(checkpoint)
    with Checkpoints(workdir) as saved:
        assert (saved.best_path is None) == (item == "metrics")
        expected = 6 if item == "metrics" else 4
        assert_equal_trees(saved.restore(make_state(0)), make_state(expected))
    assert f"{checkpoint} is damaged ({item}: {file.relative_to(checkpoint)}" in caplog.text


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    whole, broken = make_state(2), make_state(4)
    broken.params["backbone"]["kernel"] = broken.params["backbone"]["kernel"].at[3, 2].set(value)
    with Checkpoints(tmp_path) as saved:
        saved.save(whole)
        saved.save(broken)
    with pytest.raises(CheckpointError, match="latest/4/variables .*params/backbone/kernel holds 1 values"):
        checkpoint_reading.read_model(checkpoint_reading.find(tmp_path))
    with Checkpoints(tmp_path) as saved:
        assert_equal_trees(saved.restore(make_state(0)), whole)


def test_without_its_digests_nothing_is_a_checkpoint(workdir, monkeypatch):
    """A kill, or a full disk, between Orbax's last file and them."""

    def fail(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint_digests, "write", fail)
    with pytest.raises(SaveError, match="no space is left"), Checkpoints(workdir) as saved:
        saved.save(make_state(8))
    monkeypatch.undo()
    with Checkpoints(workdir) as saved:
        assert_equal_trees(saved.restore(make_state(0)), make_state(6))


@pytest.mark.parametrize("revision", ["476edfa", "bb8d702"])
def test_checkpoints_of_older_versions_are_read_to_the_bit(tmp_path, revision):
    """As these wrote them: by Orbax's managers as they are, with a step in `meta` and with or without views."""
    state, root = make_state(4, ema=True), tmp_path / "checkpoints"
    items = {"variables": ocp.args.StandardSave(state.variables), "ema": ocp.args.StandardSave(state.ema)}
    meta, metrics = {"step": 4}, {"mIoU": 0.5}
    if revision == "bb8d702":
        meta |= {"class_names": ["a", "b"], "palette": [[0, 0, 0]] * 2, "ignore_label": 255}
        metrics |= {"views": "plain"}
    items["meta"] = ocp.args.JsonSave(meta)
    optimizer = {"optimizer": ocp.args.StandardSave({"opt_state": state.opt_state})}
    with ocp.CheckpointManager(root / "latest", options=ocp.CheckpointManagerOptions(max_to_keep=3)) as manager:
        manager.save(4, args=ocp.args.Composite(**items | optimizer))
    options = ocp.CheckpointManagerOptions(max_to_keep=1, best_fn=lambda metrics: metrics["mIoU"], best_mode="max")
    with ocp.CheckpointManager(root / "best", options=options) as manager:
        manager.save(4, args=ocp.args.Composite(**items), metrics=metrics)

    now = checkpoint_reading.describe_classes(["a", "b"], np.zeros((2, 3)), 255) | {"data": {"train": {"content": "x"}}}
    with Checkpoints(tmp_path, meta=now) as saved:
        assert_equal_trees(saved.restore(make_state(0, ema=True)), state)
        assert saved.best_is_of("plain", {"content": "x"}) and not saved.save_best(
            state, 0.5, "plain", {"content": "x"}
        )
        assert saved.save_best(make_state(5, ema=True), 0.6, "plain", {"content": "x"})
        saved.save(make_state(5, ema=True))
    assert checkpoint_reading.read_meta(checkpoint_reading.find(root / "latest" / "4")) == meta
    assert_equal_trees(checkpoint_reading.read_variables(root / "latest" / "4", "ema"), state.ema)
    assert checkpoint_reading.find(tmp_path).name == "5"


def test_a_name_that_this_locale_cannot_say_is_not_damage(workdir):
    """A folder made where another encoding of names is used, or LANG=C; TensorStore takes UTF-8 alone."""
    folder = workdir / os.fsdecode(b"Stra\xdfe")
    shutil.copytree(workdir / "checkpoints", folder / "checkpoints")
    for use in (checkpoint_reading.find, checkpoint_reading.read_meta, checkpoint_reading.read_variables, Checkpoints):
        with pytest.raises(CheckpointError, match="Stra.*is not UTF-8 in this locale: set PYTHONUTF8=1"):
            use(folder)
    assert steps_in(folder / "checkpoints" / "latest") == [2, 4, 6]


@pytest.mark.parametrize("file", ["metrics/metrics", "variables/d/*"])
def test_a_damaged_best_is_named_with_the_others_and_makes_room_for_the_next(workdir, file, caplog):
    best = workdir / "checkpoints" / "best"
    truncate(pick(best / "4", file))
    if "variables" in file:
        with pytest.raises(CheckpointError, match=f"^{best}/4/variables is damaged: .*Others of this run: ") as caught:
            checkpoint_reading.read_model(checkpoint_reading.find(workdir))
        others = str(caught.value).rpartition("run: ")[2].split(", ")
        assert others == [f"{workdir}/checkpoints/latest/{step}" for step in (2, 4, 6)]
        checkpoint_reading.read_model(others[-1])
    with Checkpoints(workdir) as saved:
        assert saved.best_path is None and f"{best}/4 is damaged" in caplog.text
        assert saved.save_best(make_state(6), 0.1)
    assert sorted(path.name for path in best.iterdir()) == ["4.damaged", "6"]


def test_a_run_whose_newest_checkpoint_was_cut_short_ends_as_any(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "build_model", tiny.build_model)
    config = tiny.make_config(data_dir, checkpoint_every_steps=1, eval_every_steps=4, num_train_steps=4)
    loop.train_and_evaluate(config, tmp_path)
    latest = tmp_path / "checkpoints" / "latest"
    expected = checkpoint_reading.read_variables(latest / "4")
    truncate(pick(latest / "4", "variables/d/*"))
    truncate(pick(latest / "3", "optimizer/d/*"))
    loop.train_and_evaluate(config, tmp_path)
    assert_equal_trees(checkpoint_reading.read_variables(latest / "4"), expected)
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
    found = tiny.run_main(small_disk, data_dir, log_every_steps=1, num_train_steps=1000)
    assert found.returncode == 1
    assert "no space is left on the device" in found.stderr.splitlines()[-1] and str(small_disk) in found.stderr
    assert "Traceback" not in found.stderr

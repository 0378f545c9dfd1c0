"""Saving, finding, restoring and refusing checkpoints, with states small enough to write in milliseconds."""

import errno
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from dlv3p_jax.configs import common
from dlv3p_jax.models import build_model
from dlv3p_jax.runtime import sharding
from dlv3p_jax.training import steps
from dlv3p_jax.weights import checkpoint_reading
from dlv3p_jax.weights.checkpoint_files import CheckpointError
from dlv3p_jax.weights.checkpoints import Checkpoints, SaveError

# Coroutines of Orbax that a damaged checkpoint ends, beside the error that it raises.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def make_state(step, seed=None, ema=False, mesh=None):
    """A state whose every value follows from `seed` (the step unless given)."""
    config = common.get_config()
    config.ema_decay = 0.9 if ema else None
    rng = np.random.default_rng(step if seed is None else seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    variables = {
        "params": {"backbone": {"kernel": draw(16, 8)}, "decoder": {"classifier": {"bias": draw(3)}}},
        "batch_stats": {"backbone": {"mean": draw(8)}},
    }
    state = steps.create_train_state(config, jax.tree.map(jnp.asarray, variables))
    opt_state, average = jax.tree.map(
        lambda x: x + step if x.ndim == 0 else jnp.asarray(draw(*x.shape)), (state.opt_state, state.ema)
    )
    state = state.replace(step=jnp.int32(step), opt_state=opt_state, ema=average)
    return state if mesh is None else jax.device_put(state, sharding.replicated(mesh))


def assert_equal_trees(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def save(workdir, *states, keep=3):
    with Checkpoints(workdir, keep) as saved:
        for state in states:
            saved.save(state)
    return workdir / "checkpoints" / "latest"


def steps_in(folder):
    return sorted(int(entry.name) for entry in folder.iterdir())


@pytest.mark.parametrize("ema", [False, True])
def test_a_state_comes_back_bit_for_bit_from_another_opening(tmp_path, ema):
    state = make_state(7, ema=ema)
    latest = save(tmp_path, state)
    with Checkpoints(tmp_path) as saved:
        assert saved.latest_step == 7 and saved.latest_path == latest / "7"
        restored = saved.restore(make_state(0, seed=1, ema=ema))
    assert_equal_trees(restored, state)
    assert restored.step.dtype == jnp.int32 and restored.params["backbone"]["kernel"].dtype == jnp.float32


def test_relative_workdirs_are_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path.relative_to(tmp_path) / "runs" / "a", make_state(2))
    assert checkpoint_reading.find("runs/a") == tmp_path / "runs/a/checkpoints/latest/2"
    assert checkpoint_reading.read_meta("runs/a/checkpoints/latest/2") == {"step": 2}
    assert checkpoint_reading.read_variables("runs/a/checkpoints/latest/2")["params"]["backbone"]["kernel"].shape == (
        16,
        8,
    )


def test_the_latest_few_are_kept_and_saving_a_step_twice_is_no_error(tmp_path):
    latest = save(tmp_path, *map(make_state, (1, 2, 3, 4)), make_state(4, seed=99), keep=2)
    assert steps_in(latest) == [3, 4]
    with Checkpoints(tmp_path, keep=2) as saved:
        saved.save(make_state(4, seed=99))
        assert_equal_trees(saved.restore(make_state(0)), make_state(4))


@pytest.mark.parametrize("reopened", [False, True])
def test_the_best_stays_until_a_better_one_comes(tmp_path, reopened):
    best = tmp_path / "checkpoints" / "best"
    saved = Checkpoints(tmp_path, keep=1)
    assert saved.best_metrics == {} and saved.best_path is None
    assert saved.save_best(make_state(2), 0.5)
    for step in range(3, 8):
        saved.save(make_state(step))
    if reopened:
        saved.close()
        saved = Checkpoints(tmp_path, keep=1)
    assert saved.best_metrics["mIoU"] == 0.5
    for step, mean_iou in ((8, 0.4), (9, 0.5), (10, float("nan"))):
        assert not saved.save_best(make_state(step), mean_iou)
    assert saved.best_metrics["mIoU"] == 0.5
    assert saved.save_best(make_state(11), 0.6) and saved.best_metrics["mIoU"] == 0.6
    saved.close()
    assert steps_in(best) == [11]
    assert checkpoint_reading.find(tmp_path) == best / "11"
    assert_equal_trees(checkpoint_reading.read_variables(best / "11"), make_state(11).variables)


@pytest.mark.parametrize("step", [5, 8])
def test_a_better_one_replaces_a_best_of_the_same_or_a_later_step(tmp_path, step):
    """A killed run goes on from before its best; its cadence and the way it is evaluated may have changed."""
    with Checkpoints(tmp_path) as saved:
        saved.save_best(make_state(8), 0.5)
    with Checkpoints(tmp_path) as saved:
        assert not saved.save_best(make_state(step, seed=3), 0.4)
        assert saved.save_best(make_state(step, seed=4), 0.6)
    with Checkpoints(tmp_path) as saved:
        assert saved.best_metrics["mIoU"] == 0.6
    assert_equal_trees(
        checkpoint_reading.read_variables(checkpoint_reading.find(tmp_path)), make_state(step, seed=4).variables
    )


def test_what_was_measured_otherwise_is_not_compared_with(tmp_path):
    with Checkpoints(tmp_path) as saved:
        saved.save_best(make_state(4), 0.8, "plain")
        assert not saved.save_best(make_state(6), 0.7, "plain")
        assert not saved.save_best(make_state(6), float("nan"), "flip")
        assert saved.save_best(make_state(6), 0.6, "flip") and not saved.save_best(make_state(8), 0.5, "flip")
    with Checkpoints(tmp_path) as saved:
        assert saved.best_metrics["mIoU"] == 0.6 and saved.best_metrics["views"] == "flip"
    assert steps_in(tmp_path / "checkpoints" / "best") == [6]


def test_scores_on_other_data_are_not_compared_but_those_measured_again_are(tmp_path):
    then, now = {"sizes": "a", "content": "b"}, {"sizes": "a", "content": "c", "lengths": "d"}
    with Checkpoints(tmp_path) as saved:
        saved.save_best(make_state(4), 0.8, data=then)
    with Checkpoints(tmp_path) as saved:
        assert saved.best_is_of("plain", then) and saved.best_is_of("plain", {"sizes": "a"})
        assert not saved.best_is_of("plain", now) and not saved.best_is_of("flip", then)
        saved.measured_again(0.6, "plain", now)
        assert not saved.save_best(make_state(6), 0.5, data=now)
        assert saved.save_best(make_state(8), 0.7, data=now)
    assert steps_in(tmp_path / "checkpoints" / "best") == [8]


@pytest.mark.parametrize(("step", "views"), [(4, "plain"), (4, "flip"), (6, "flip"), (3, "plain")])
def test_the_best_is_there_until_its_successor_is_whole(tmp_path, monkeypatch, step, views):
    """A full disk, say: whatever takes the place of whatever, something whole is found, then and at the next start."""
    with Checkpoints(tmp_path) as saved:
        saved.save_best(make_state(4), 0.8)

    def fail(self, *_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", fail)
        with pytest.raises(SaveError, match="no space is left"), Checkpoints(tmp_path) as saved:
            saved.save_best(make_state(step, seed=9), 0.9, views)
    assert_equal_trees(checkpoint_reading.read_variables(checkpoint_reading.find(tmp_path)), make_state(4).variables)
    with Checkpoints(tmp_path) as saved:
        assert saved.best_path.name == "4" and saved.best_metrics["mIoU"] == 0.8
        assert saved.save_best(make_state(step, seed=9), 0.9, views)
    assert steps_in(tmp_path / "checkpoints" / "best") == [step]
    variables = checkpoint_reading.read_variables(checkpoint_reading.find(tmp_path))
    assert_equal_trees(variables, make_state(step, seed=9).variables)


def test_a_folder_that_cannot_be_made_keeps_no_process_from_its_end(tmp_path):
    """Of the checkpoint, and of an item; threads that wait for it would be waited for when Python ends."""
    script = r"""
import errno, os, pathlib, re, sys, test_checkpoints as tests
real = os.mkdir
def mkdir(path, *args, **kwargs):
    if re.search(r"whole/.*best/4\.[^/]*$|item/.*best/4\.[^/]*/variables\.[^/]*$", str(path)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    real(path, *args, **kwargs)
os.mkdir = mkdir
for name in ("whole", "item"):
    try:
        with tests.Checkpoints(pathlib.Path(sys.argv[1], name)) as saved:
            saved.save(tests.make_state(4))
            saved.save_best(tests.make_state(4), 0.5)
    except tests.SaveError as error:
        print(error)
"""
    here = pathlib.Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": f"{here / 'weights'}:{here}:{here.parent}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", script, tmp_path]
    ended = subprocess.run(command, cwd=here.parent, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0 and ended.stdout.count("no space is left") == 2, ended.stderr
    for name in ("whole", "item"):
        found = checkpoint_reading.find(tmp_path / name)
        assert found == tmp_path / name / "checkpoints" / "latest" / "4"
        assert_equal_trees(checkpoint_reading.read_variables(found), make_state(4).variables)


def test_of_two_bests_that_a_kill_left_the_new_one_stays(tmp_path):
    """Between the moment when the new one is whole and that when the old one is gone."""
    best, old = tmp_path / "checkpoints" / "best", tmp_path / "old"
    # Of a later step; of an earlier one, which had replaced a 6 itself, half deleted too; and of the same.
    earlier = ((4, "4", None), (4, "4", "digests.json"), (4, "4", "metrics/metrics"))
    for step, name, lost in ((8, "8", None), *earlier, (6, "6.before", None)):
        with Checkpoints(tmp_path) as saved:
            saved.save_best(make_state(step), 0.9, "flip")
        shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(best / str(step), old)
        with Checkpoints(tmp_path) as saved:
            saved.save_best(make_state(6, seed=step), 0.4)
        assert steps_in(best) == [6]
        shutil.copytree(old, best / name)
        if lost is not None:
            (best / name / lost).unlink()
        assert checkpoint_reading.find(tmp_path) == best / "6"
        with Checkpoints(tmp_path) as saved:
            assert saved.best_path == best / "6" and saved.best_metrics["mIoU"] == 0.4
        assert steps_in(best) == [6]


def test_checkpoints_tell_what_their_classes_are(tmp_path):
    meta = checkpoint_reading.describe_classes(("floor", "wall"), np.uint8([[0, 0, 0], [9, 9, 9]]), 255)
    with Checkpoints(tmp_path, meta=meta) as saved:
        saved.save(make_state(3))
        saved.save_best(make_state(3), 0.5)
    for folder in ("latest", "best"):
        read = checkpoint_reading.read_meta(tmp_path / "checkpoints" / folder / "3")
        assert read == {
            "step": 3,
            "class_names": ["floor", "wall"],
            "palette": [[0, 0, 0], [9, 9, 9]],
            "ignore_label": 255,
        }
    assert (
        checkpoint_reading.other_classes(read, ["floor", "wall"])
        == checkpoint_reading.other_classes({"step": 1}, ["x"])
        == ""
    )
    assert checkpoint_reading.other_classes(read, ["floor", "road"]) == "\n  class 1: 'wall' then, 'road' now"
    many = [f"name {number}" for number in range(30)]
    lines = checkpoint_reading.other_classes({"class_names": many}, many[1:] + many[:1]).splitlines()
    assert len(lines) == 22 and lines[-1] == "  …"


def test_a_run_goes_on_only_with_classes_of_the_same_names(tmp_path):
    save(tmp_path, make_state(2))  # as older versions did, without names
    named = [checkpoint_reading.describe_classes(names, np.zeros((2, 3)), 255) for names in (["a", "b"], ["a", "c"])]
    with Checkpoints(tmp_path, meta=named[0]) as saved:
        saved.restore(make_state(0))
        saved.save(make_state(3))
    with Checkpoints(tmp_path, meta=named[0]) as saved:
        assert_equal_trees(saved.restore(make_state(0)), make_state(3))
    message = "latest/3 was trained with .*\n  class 1: 'b' then, 'c' now\n"
    with Checkpoints(tmp_path, meta=named[1]) as saved, pytest.raises(CheckpointError, match=message):
        saved.restore(make_state(0))


def test_a_run_goes_on_only_with_the_training_data_that_it_was_begun_with(tmp_path):
    data = [
        {"data": {"train": digests}} for digests in ({"sizes": "a", "content": "b"}, {"sizes": "a", "content": "c"})
    ]
    save(tmp_path, make_state(2))  # as older versions did, without digests
    with Checkpoints(tmp_path, meta=data[0]) as saved:
        saved.restore(make_state(0))
        saved.save(make_state(3))
    with Checkpoints(tmp_path, meta=data[1]) as saved:
        with pytest.raises(CheckpointError, match="latest/3 was trained on other .*content.*allow_changed_data=True"):
            saved.restore(make_state(0))
        saved.restore(make_state(0), allow_changed_data=True)
    # Of what both say all is compared; where both know the contents, how they are cut into files does not matter.
    assert checkpoint_reading.other_digests({"sizes": "a", "lengths": "b"}, {"sizes": "c", "content": "d"}) == ["sizes"]
    assert checkpoint_reading.other_digests({"lengths": "a", "content": "d"}, {"lengths": "b", "content": "d"}) == []


def test_donating_the_state_right_after_saving_changes_nothing_that_is_saved(tmp_path):
    update = jax.jit(lambda state: jax.tree.map(lambda x: x * 2 + 1, state), donate_argnums=0)
    state = make_state(3, ema=True)
    big = jax.random.normal(jax.random.key(0), (1000, 1000))  # long enough on its way to be overtaken
    state = state.replace(params=state.params | {"aspp": {"kernel": big}})
    expected = jax.tree.map(np.array, state)
    with Checkpoints(tmp_path) as saved:
        saved.save(state)
        saved.save_best(state, 0.5)
        for _ in range(100):
            state = update(state)
        restored = saved.restore(state)
    assert_equal_trees(restored, expected)
    assert_equal_trees(checkpoint_reading.read_variables(tmp_path / "checkpoints/best/3"), expected.variables)
    assert_equal_trees(checkpoint_reading.read_variables(tmp_path / "checkpoints/best/3", "ema"), expected.ema)


@pytest.mark.parametrize(("before", "after"), [((8, 1), (1, 1)), ((1, 1), (4, 2)), ((2, 2), (8, 1))])
def test_restored_onto_another_mesh(tmp_path, before, after):
    state = make_state(4, ema=True, mesh=sharding.make_mesh(*before))
    save(tmp_path, state)
    mesh = sharding.make_mesh(*after)
    with Checkpoints(tmp_path) as saved:
        restored = saved.restore(make_state(0, ema=True, mesh=mesh))
    assert_equal_trees(restored, jax.tree.map(np.array, state))
    for leaf in jax.tree.leaves(restored):
        assert leaf.sharding == sharding.replicated(mesh)


def test_the_best_is_found_before_the_newest_in_a_workdir_and_in_its_parts(tmp_path):
    latest = save(tmp_path, make_state(9), make_state(10))
    assert checkpoint_reading.find(tmp_path) == latest / "10"
    with Checkpoints(tmp_path) as saved:
        saved.save_best(make_state(4), 0.5)
    best = tmp_path / "checkpoints" / "best"
    for path in (tmp_path, tmp_path / "checkpoints", best, best / "4"):
        assert checkpoint_reading.find(path) == best / "4"
    assert checkpoint_reading.find(latest) == checkpoint_reading.find(latest / "10") == latest / "10"
    (latest / "11.orbax-checkpoint-tmp").mkdir()  # what a killed run leaves
    (latest / "12").mkdir()
    assert checkpoint_reading.find(latest) == latest / "10"


def test_where_there_is_no_checkpoint_the_message_says_what_was_looked_for(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match=f"no checkpoint in {path}: give a workdir .* one checkpoint's"):
            checkpoint_reading.find(path)
    with Checkpoints(tmp_path) as saved:
        assert saved.latest_step is None and saved.latest_path is None
        with pytest.raises(CheckpointError, match=f"no checkpoint in {tmp_path}/checkpoints/latest"):
            saved.restore(make_state(0))


def test_the_step_is_read_from_inside_and_the_config_from_above(tmp_path):
    folder = save(tmp_path, make_state(6)) / "6"
    assert checkpoint_reading.find_config(folder) is None
    (tmp_path / "config.json").write_text("{}")
    assert checkpoint_reading.find_config(folder) == tmp_path / "config.json"
    moved = tmp_path / "elsewhere" / "final"
    shutil.copytree(folder, moved)
    assert checkpoint_reading.find(moved) == moved and checkpoint_reading.read_meta(moved)["step"] == 6
    (moved / "config.json").write_text("{}")
    assert checkpoint_reading.find_config(moved) == moved / "config.json"


def test_variables_are_numpy_arrays_and_the_averaged_ones_are_none_where_absent(tmp_path):
    state = make_state(6)
    folder = save(tmp_path, state, make_state(7, ema=True))
    assert checkpoint_reading.read_variables(folder / "6", "ema") is None
    assert_equal_trees(checkpoint_reading.read_variables(folder / "7", "ema"), make_state(7, ema=True).ema)
    variables = checkpoint_reading.read_variables(folder / "6")
    assert_equal_trees(variables, state.variables)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(variables))


def test_a_checkpoint_that_lacks_files_is_named(tmp_path):
    whole = save(tmp_path, make_state(6)) / "6"
    files = [
        path.relative_to(whole) for part in ("variables/d/*", "variables/_METADATA", "variables/manifest.ocdbt")
        for path in whole.glob(part)
    ]  # fmt: skip
    assert len(files) >= 3
    for number, file in enumerate(files):
        damaged = tmp_path / f"damaged{number}"
        shutil.copytree(whole, damaged)
        (damaged / file).unlink()
        with pytest.raises(CheckpointError, match=f"{damaged}/variables is damaged"):
            checkpoint_reading.read_variables(damaged)
    with pytest.raises(CheckpointError, match=f"{tmp_path}/nowhere/variables is damaged"):
        checkpoint_reading.read_variables(tmp_path / "nowhere")
    shutil.rmtree(damaged / "meta")
    with pytest.raises(CheckpointError, match=f"{damaged}/meta is damaged"):
        checkpoint_reading.read_meta(damaged)

    for part in ("optimizer", "variables"):
        shutil.rmtree(whole / part)
        with Checkpoints(tmp_path) as saved, pytest.raises(CheckpointError, match=f"is whole:\n  {whole}: {part}: "):
            saved.restore(make_state(0))


def test_a_checkpoint_of_another_model_is_not_restored(tmp_path):
    save(tmp_path, make_state(6))
    other = make_state(0)
    other = other.replace(params=other.params | {"backbone": {"kernel": jnp.zeros((16, 9))}})
    with Checkpoints(tmp_path) as saved, pytest.raises(CheckpointError, match="latest/6 is of another model"):
        saved.restore(other)
    with Checkpoints(tmp_path) as saved:
        assert_equal_trees(saved.restore(make_state(0)), make_state(6))


@pytest.fixture(scope="module")
def shapes():
    """Shapes of the variables of the real network, by the number of classes."""

    def init(num_classes):
        config = common.get_config()
        config.num_classes, config.model.backbone, config.model.multi_grid = num_classes, "resnet18_vd", (1, 1)
        model = build_model(config)
        return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))

    return {num_classes: init(num_classes) for num_classes in (2, 3)}


CLASSIFIER = ["params/decoder/classifier/bias", "params/decoder/classifier/kernel"]


def test_only_the_classifier_may_be_new_for_another_number_of_classes(shapes):
    variables, fresh = checkpoint_reading.fit_variables(shapes[2], shapes[2], allow_new_head=True)
    assert variables == shapes[2] and fresh == []
    variables, fresh = checkpoint_reading.fit_variables(shapes[2], shapes[3], allow_new_head=True)
    assert fresh == CLASSIFIER
    assert jax.tree.map(lambda leaf: leaf.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, shapes[3])
    with pytest.raises(CheckpointError, match="2 differences") as caught:
        checkpoint_reading.fit_variables(shapes[2], shapes[3], allow_new_head=False)
    for name, before, after in zip(CLASSIFIER, ((2,), (1, 1, 256, 2)), ((3,), (1, 1, 256, 3)), strict=True):
        assert f"{name} is {before} there and {after} in this model" in str(caught.value)


def test_loaded_values_are_taken_and_new_ones_keep_their_initial_values():
    loaded = {"params": {"decoder": {"classifier": {"bias": np.ones(2)}}, "aspp": {"bias": np.full(4, 2.0)}}}
    expected = {"params": {"decoder": {"classifier": {"bias": np.zeros(3)}}, "aspp": {"bias": np.zeros(4)}}}
    variables, fresh = checkpoint_reading.fit_variables(loaded, expected, allow_new_head=True)
    assert fresh == ["params/decoder/classifier/bias"]
    np.testing.assert_array_equal(variables["params"]["decoder"]["classifier"]["bias"], np.zeros(3))
    np.testing.assert_array_equal(variables["params"]["aspp"]["bias"], np.full(4, 2.0))


def test_every_difference_is_listed_up_to_five():
    loaded = {"params": {"a": np.zeros(2), "b": np.zeros(2), "decoder": {"classifier": {"kernel": np.zeros((2, 2))}}}}
    expected = {"params": {"a": np.zeros(3), "c": np.zeros(2), "decoder": {"classifier": {"kernel": np.zeros((2, 2))}}}}
    with pytest.raises(CheckpointError) as caught:
        checkpoint_reading.fit_variables(loaded, expected, allow_new_head=True)
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("the checkpoint is of another model (3 differences): give the config.model")
    with pytest.raises(CheckpointError, match="^workdir/a is of another model"):
        checkpoint_reading.fit_variables(loaded, expected, allow_new_head=True, source="workdir/a")
    assert [line.strip() for line in lines] == [
        "missing: params/c",
        "params/a is (2,) there and (3,) in this model",
        "unexpected: params/b",
    ]
    many = {"params": {f"layer{number:02d}": np.zeros(2) for number in range(30)}}
    with pytest.raises(CheckpointError, match="30 differences") as caught:
        checkpoint_reading.fit_variables(many, {"params": {}}, allow_new_head=True)
    lines = str(caught.value).splitlines()
    assert len(lines) == 7 and lines[-1].strip() == "…"


def test_an_auxiliary_head_may_be_in_one_of_both_alone():
    network = {"backbone": {"kernel": np.ones(2)}, "decoder": {"kernel": np.ones(3)}}
    without, with_ = (
        {"params": network | more}
        for more in ({}, {"auxiliary_head": {"classifier": {"bias": np.zeros(4)}, "conv": {"kernel": np.zeros(5)}}})
    )
    fit = checkpoint_reading.fit_variables
    names = ["params/auxiliary_head/classifier/bias", "params/auxiliary_head/conv/kernel"]
    assert fit(with_, without, allow_new_head=False) == (without, [])
    assert fit(without, with_, allow_new_head=False) == (without, [])  # only training would miss it
    variables, fresh = fit(without, with_, allow_new_head=True)
    assert (variables["params"].keys(), fresh) == (with_["params"].keys(), names)
    other = {
        "params": network | {"auxiliary_head": {"classifier": {"bias": np.zeros(9)}, "conv": {"kernel": np.ones(5)}}}
    }
    variables, fresh = fit(other, with_, allow_new_head=True)
    assert fresh == names[:1] and variables["params"]["auxiliary_head"]["conv"]["kernel"][0] == 1

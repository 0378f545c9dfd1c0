"""Sources in memory in place of prepared data: checked, trained on, resumed to the bit; and hooks."""

import dataclasses

import drawn
import jax
import numpy as np
import pytest
import tiny

from dlv3p_jax import models
from dlv3p_jax.configs import common
from dlv3p_jax.data import sources
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.runtime.preemption import Preempted
from dlv3p_jax.training import loop, trackers
from dlv3p_jax.weights import checkpoint_reading

SIZES = [(40, 36), (32, 48), (36, 40), (40, 36), (50, 33)]


@dataclasses.dataclass
class Drawn:
    """Pictures whose labels are where they are bright."""

    seed: int
    class_names = ("dark", "bright")

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, index):
        rng = np.random.default_rng([self.seed, index])
        image = drawn.draw_picture(rng, *SIZES[index])
        label = np.uint8(image.mean(-1) > 128)
        label[0] = 255
        return image, label


def make_config(**changes):
    config = common.get_config()
    settings = tiny.SETTINGS | {"num_classes": 2, "optimizer": "adamw", "ema_decay": 0.9, "dataset": None}
    config.update_from_flattened_dict(settings | {"loss.class_weights": "balanced"} | changes)
    return config


def test_sources_train_as_prepared_data_do_and_a_stopped_run_ends_as_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "build_model", tiny.build_model)
    seen, tracked = [], []
    monkeypatch.setattr(trackers, "_open_mlflow", lambda *_: trackers._Opened(lambda *call: tracked.append(call), id))

    def hook(step, scalars, state):
        assert int(state.step) == step  # and it can be read
        seen.append((step, sorted(name for name in scalars if name.endswith(("/loss", "/mIoU")))))

    summary = loop.train_and_evaluate(
        make_config(), tmp_path / "a", tracker="mlflow", train=Drawn(0), val=Drawn(1), hooks=[hook]
    )
    evaluated = [("eval", ["eval/loss", "eval/mIoU"]), ("ema", ["eval_ema/loss", "eval_ema/mIoU"])]
    expected = [(step, names) for step in (2, 4, 6) for names in (["train/loss"], *(names for _, names in evaluated))]
    assert seen == expected
    assert [step for step, _ in tracked] == [step for step, _ in seen] and "train/loss" in tracked[0][1]
    pixels = sum(int((Drawn(1)[index][1] != 255).sum()) for index in range(len(SIZES)))
    assert summary["label_pixels"].sum() == pixels

    with pytest.raises(Preempted):
        loop.train_and_evaluate(make_config(), tmp_path / "b", tiny.Told(3), train=Drawn(0), val=Drawn(1))
    loop.train_and_evaluate(make_config(), tmp_path / "b", train=Drawn(0), val=Drawn(1))
    for item in ("variables", "ema"):
        trees = [checkpoint_reading.read_variables(tmp_path / run / "checkpoints/latest/6", item) for run in "ab"]
        jax.tree.map(np.testing.assert_array_equal, *trees)
    with pytest.raises(ValueError, match="trained on other pictures"):
        loop.train_and_evaluate(make_config(), tmp_path / "b", train=Drawn(2), val=Drawn(1))


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (np.zeros((4, 5, 3), np.float32), np.zeros((4, 5), np.uint8), r"picture is float32 \[4, 5, 3\]"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 6), np.uint8), r"picture is uint8 \[4, 5, 3\]"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.int64), "label is int64"),
        (np.zeros((4, 5, 3), np.uint8), np.full((4, 5), 2, np.uint8), "label holds 2"),
    ],
)
def test_what_is_no_picture_or_label_is_named(image, label, message):
    with pytest.raises(DatasetError, match=rf"train\[1\]: .*{message}"):
        sources.open_sources(make_config(), {"train": [Drawn(0)[0], (image, label)]})


@pytest.mark.parametrize("given", [None, np.zeros((4, 5, 3), np.uint8), (np.zeros((4, 5, 3), np.uint8),)])
def test_what_is_no_pair_is_named(given):
    with pytest.raises(DatasetError, match=r"train\[1\] is no pair, but of <class"):
        sources.open_sources(make_config(), {"train": [Drawn(0)[0], given]})


def test_a_hook_that_cannot_be_called_is_told_before_anything_is_made(tmp_path):
    with pytest.raises(ValueError, match="hooks: 'log' cannot be called"):
        loop.train_and_evaluate(make_config(), tmp_path / "a", train=Drawn(0), val=Drawn(1), hooks=["log"])
    assert not (tmp_path / "a").exists()


def test_a_source_of_nothing_and_of_unknown_classes_is_told():
    with pytest.raises(DatasetError, match="train: the source is empty"):
        sources.open_sources(make_config(), {"train": []})
    with pytest.raises(DatasetError, match="num_classes=None"):
        sources.open_sources(make_config(num_classes=None), {"train": Drawn(0)})
    with pytest.raises(DatasetError, match="num_classes=3, but the source has 2 class_names"):
        sources.open_sources(make_config(num_classes=3), {"train": Drawn(0)})

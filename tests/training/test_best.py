"""Which checkpoint is the best of a run: measured anew, of the averaged weights, and where no new one comes."""

import jax
import numpy as np
import pytest
import tiny
from etils import epath
from scored import Killed, best

from dlv3p_jax.evaluation import files
from dlv3p_jax.training import loop
from dlv3p_jax.weights import checkpoint_reading, trained
from dlv3p_jax.weights.checkpoint_files import CheckpointError


def test_the_best_is_measured_again_where_evaluation_changed_and_kept_where_training_is_done(
    data_dir, killed, scores, caplog
):
    """What was the best stays until something is better under one measure."""
    scores |= {2: 0.45, 4: None}
    with caplog.at_level("INFO"), pytest.raises(Killed):
        loop.train_and_evaluate(tiny.make_config(data_dir, **{"eval.flip": True}), killed)
    assert "found with plain, and this evaluates flip: the comparison begins anew" in caplog.text
    assert "checkpoints/best/2, has a mIoU of 0.4500 so" in caplog.text
    assert best(killed) == (2, 0.9)
    scores |= {4: 0.4, 6: 0.5}
    loop.train_and_evaluate(tiny.make_config(data_dir, **{"eval.flip": True}), killed)
    assert best(killed) == (6, 0.5)
    scores[6] = 0.99
    with caplog.at_level("INFO"):
        loop.train_and_evaluate(tiny.make_config(data_dir), killed)
    assert "found with flip, and this evaluates plain: it stays" in caplog.text
    assert best(killed) == (6, 0.5)


def test_the_better_of_the_averaged_and_the_plain_weights_is_the_best(data_dir, tmp_path, scores, caplog):
    scores |= {(2, ""): 0.3, (2, "ema"): 0.2, (4, ""): 0.1, (4, "ema"): 0.25, 6: None}
    config = tiny.make_config(data_dir, ema_decay=0.5)
    with pytest.raises(Killed):
        loop.train_and_evaluate(config, tmp_path)
    path = checkpoint_reading.find(tmp_path)
    assert path.name == "2" and "Best so far: step 2, mIoU 0.3000\n" in f"{caplog.text}\n"
    variables, averaged = checkpoint_reading.read_model(path)
    assert not averaged
    latest = checkpoint_reading.read_variables(tmp_path / "checkpoints" / "latest" / "2")
    jax.tree.map(np.testing.assert_array_equal, variables, latest)
    assert [found.title for found in files.read(epath.Path(tmp_path))] == ["plain", "plain (EMA)"]

    scores |= {(6, ""): 0.4, (6, "ema"): 0.5}
    loop.train_and_evaluate(config, tmp_path)
    path = checkpoint_reading.find(tmp_path)
    assert path.name == "6" and "Best so far: step 6, mIoU 0.5000, of the averaged weights" in caplog.text
    assert checkpoint_reading.read_model(path)[1]
    assert [found.title for found in files.read(epath.Path(tmp_path))] == ["plain (EMA)", "plain"]


def test_the_averaged_weights_are_started_from_and_a_wrong_source_is_named(data_dir, tmp_path, scores, caplog):
    scores |= {2: 0.1}
    config = tiny.make_config(data_dir, ema_decay=0.5, num_train_steps=2)
    loop.train_and_evaluate(config, tmp_path)
    path = checkpoint_reading.find(tmp_path)
    averaged = checkpoint_reading.read_variables(path, "ema")
    model = tiny.Tiny(3)
    fresh = jax.tree.map(np.zeros_like, averaged)
    with caplog.at_level("INFO"):
        loaded = trained.fit_pretrained(trained.read_pretrained(str(tmp_path), model), fresh)
    jax.tree.map(np.testing.assert_array_equal, loaded, averaged)
    assert f"arrays from {path}, the averaged ones" in caplog.text
    fresh["params"]["norm"]["scale"] = np.zeros(5, np.float32)
    with pytest.raises(CheckpointError, match=f"^{path} is of another model"):
        trained.fit_pretrained(trained.read_pretrained(str(tmp_path), model), fresh)


def test_a_run_that_finds_no_new_best_ends_and_stays_ended(data_dir, tmp_path, scores, caplog):
    scores |= {2: 0.5, 4: 0.4, 6: 0.45, 8: None}
    config = tiny.make_config(data_dir, **{"num_train_steps": 10, "early_stopping.patience": 2})
    for _ in range(2):  # started again, it evaluates the last step once more, as every finished run
        caplog.clear()
        with caplog.at_level("INFO"):
            loop.train_and_evaluate(config, tmp_path)
        assert "No new best since step 2: training ends at step 6 of 10" in caplog.text
        assert best(tmp_path) == (2, 0.5)
    assert "step 6/10" not in caplog.text.replace("  ", " ")
    scores |= {6: 0.6, 8: 0.7, 10: 0.65}  # as if it had been killed before it knew the score of step 6
    loop.train_and_evaluate(config, tmp_path)
    assert best(tmp_path) == (8, 0.7) and (tmp_path / "checkpoints/latest/10").exists()

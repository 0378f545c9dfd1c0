"""What an older version of this program left behind is read here, and goes on to where that version came itself.

fixtures/run_of_bb8d702.tar.xz was made with the code of commit bb8d702 by the script in it, make.py: a prepared data
set, a run of the network of `tiny` that was ended after step 6 of 8, without the pictures of its evaluations, and what
that version reached when it went on with it.
"""

import json
import pathlib
import tarfile

import jaxlib
import kill_at_random
import numpy as np
import tensorflow as tf
import tiny

from dlv3p_jax.data import records
from dlv3p_jax.training import loop

ARCHIVE = pathlib.Path(__file__).parent / "fixtures" / "run_of_bb8d702.tar.xz"


def is_same_machine(made_on: dict) -> bool:
    """Whether this is the processor and the versions by which the archive was made: others round otherwise."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    cpu = {line.partition(":")[2].strip() for line in lines if line.startswith(("flags", "model name"))}
    return made_on == {"cpu": sorted(cpu), "jaxlib": jaxlib.__version__, "tensorflow": tf.__version__}


def test_a_run_of_an_older_version_goes_on_as_it_would_have_there(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "build_model", tiny.build_model)
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    assert records.open_dataset("image_folder", tmp_path / "data").num_pictures("train") == 7
    settings = {"num_train_steps": 8, "eval_every_steps": 4, "log_every_steps": 1, "keep_checkpoints": 2}
    config = tiny.make_config(tmp_path / "data", **settings, ema_decay=0.9, seed=3)
    begun_from = tmp_path / "run" / "checkpoints" / "latest" / "6" / "commit_success.txt"
    before = begun_from.stat()
    loop.train_and_evaluate(config, tmp_path / "run")
    assert (begun_from.stat().st_ino, begun_from.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    with np.load(tmp_path / "expected.npz") as expected:
        assert len(expected.files) > 50
        found = kill_at_random.outcome(tmp_path / "run")
        same = is_same_machine(json.loads((tmp_path / "machine.json").read_text()))
        for name in expected.files:
            if same:
                np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
            else:
                np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-5, err_msg=name)

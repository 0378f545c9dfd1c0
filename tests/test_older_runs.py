"""What an older version of this program left behind is read here, and goes on to where that version came itself.

fixtures/run_of_bb8d702.tar.xz was made with the code of commit bb8d702 by the script in it, make.py: a prepared data
set, a run of the network of `tiny` that was ended after step 6 of 8, without the pictures of its evaluations, and what
that version reached when it went on with it.
"""

import os
import pathlib
import subprocess
import sys
import tarfile

import kill_at_random
import numpy as np

from dlv3p_jax.data import records

ROOT = pathlib.Path(__file__).resolve().parents[1]
ARCHIVE = ROOT / "tests" / "fixtures" / "run_of_bb8d702.tar.xz"
PATHS = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "JAX_PLATFORMS": "cpu"}
GO_ON = """
import pathlib, sys
import tiny
from dlv3p_jax import models
from dlv3p_jax.training import loop

folder = pathlib.Path(sys.argv[1])
settings = dict(num_train_steps=8, eval_every_steps=4, log_every_steps=1, keep_checkpoints=2, ema_decay=0.9, seed=3)
models.build_model = tiny.build_model
loop.train_and_evaluate(tiny.make_config(folder / "data", **settings), folder / "run")
"""


def is_close(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two values differ as between processors; true of what is no number."""
    return one.dtype.kind not in "fiu" or np.allclose(one, other, rtol=1e-3)


def test_a_run_of_an_older_version_goes_on_as_it_would_have_there(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    assert records.open_dataset("image_folder", tmp_path / "data").num_pictures("train") == 7
    begun_from = tmp_path / "run" / "checkpoints" / "latest" / "6" / "commit_success.txt"
    before = begun_from.stat()
    # In a process of its own, as it was made: on the virtual devices of the other tests, sums are ordered otherwise.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
    subprocess.run([sys.executable, "-c", GO_ON, str(tmp_path)], cwd=ROOT, env=environment | PATHS, check=True)
    assert (begun_from.stat().st_ino, begun_from.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    # Processors round differently, and one name of a processor does not say which: so within 1e-3. Another order of the
    # pictures, another seed or another step's rate is much further away.
    found = kill_at_random.outcome(tmp_path / "run", same=is_close)
    with np.load(tmp_path / "expected.npz") as expected:
        assert len(expected.files) > 50 and found.keys() >= set(expected.files)
        for name in expected.files:
            if expected[name].dtype.kind in "fiu":  # not of reports, which are text
                pixels = 1e-3 if "eval" in name else 0  # that round to another class
                np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-5 + pixels, err_msg=name)

"""The notebook of examples/ from its first cell to its last, in a folder of its own."""

import os
import pathlib
import re
import sys

import numpy as np
import pytest
import quick
import safetensors.numpy

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_the_notebook_trains_a_model_that_finds_the_shapes(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PATH", os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))
    monkeypatch.setenv("XLA_FLAGS", quick.XLA_FLAGS_OF_LONG_RUNS)  # one device, as a user has
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(ROOT / "examples" / "own_data.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # which are of one machine, and large
    nbclient.NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    assert float(re.search(r"^mIoU (\d\.\d+)$", said, re.MULTILINE)[1]) > 0.5 and said.rstrip().endswith("True"), said
    arrays = safetensors.numpy.load_file(tmp_path / "shapes_model" / "model.safetensors")
    assert all(np.isfinite(array).all() for array in arrays.values())

"""The table of recipes on TPU slices: what it compiles, how a row reads, and that the documentation has this one."""

import json
import pathlib

import pytest

from benchmarks import scaling_table
from dlv3p_jax.performance import tpu

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize(
    ("recipe", "name", "mesh", "batch_size", "steps"),
    [
        ("cityscapes_r50", "v5e-8", (8, 1), 8, 80_000),
        ("cityscapes_r50", "v5e-16", (8, 2), 8, 80_000),
        ("cityscapes_r101_769", "v4-32", (16, 1), 16, 40_000),  # 769 rows divide over no two chips
        ("voc_r50", "v4-32", (16, 1), 16, 40_000),
        ("voc_r101", "v4-8", (4, 1), 16, 40_000),
    ],
)
def test_the_mesh_of_a_row(recipe, name, mesh, batch_size, steps):
    config, _ = scaling_table.make_config(recipe, tpu.find(name))
    assert (config.mesh.data, config.mesh.space) == mesh
    assert (config.batch_size, config.num_train_steps, config.model.dtype) == (batch_size, steps, "bfloat16")


def test_rows():
    program = {
        "fits": True,
        "total_bytes": 3 * 2**30,
        "flops": 1.5e12,
        "moved_bytes": 2e10,
        "collectives": [{"sent_bytes": 9e7}, {"sent_bytes": 1e7}],
        "estimate": {"total": 0.0296},
    }
    row = {"batch_size": 8, "usable_bytes": 15.75 * 2**30, "mesh": {"data": 8, "space": 1}, "programs": [program]}
    row["recipe"] = {"hours": 0.654, "chip_hours": 5.23}
    too_large = row | {"programs": [{"fits": False, "needed_bytes": 20 * 2**30}]}
    text = scaling_table.to_markdown({"cityscapes_r50 v5e-8": row, "cityscapes_r50 v5e-16": too_large})
    first, second, third = text.splitlines()[2:5]
    assert first == "| `cityscapes_r50` | v5e-8 | 8 | 8x1 | 3.00 of 15.75 GiB | 1.50 | 20.0 | 100 | 29.6 | 0.65 | 5.2 |"
    assert "does not fit: 20.00 of 15.75 GiB" in second and "not compiled" in third
    assert {line.count("|") for line in text.splitlines()} == {len(scaling_table.HEAD) + 1}


def test_the_documentation_has_the_table_of_the_results():
    results = json.loads((DOCS / "scaling_table.json").read_text())
    assert scaling_table.to_markdown(results) in (DOCS / "scaling.md").read_text()

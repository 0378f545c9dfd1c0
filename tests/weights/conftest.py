"""What tests of weights share."""

import runpy

import pytest


@pytest.fixture(scope="session")
def make_state(shared):
    """Arrays by MMSegmentation's names, of one of its models: r50-d8_c19 for one."""
    make = runpy.run_path(str(shared / "parity" / "mmseg" / "weights.py"))["make_state"]
    return lambda name: make(shared / "parity" / "mmseg" / f"deeplabv3plus_{name}.json")

"""Fixtures that the whole suite shares."""

import os
import pathlib

import pytest

# Eight virtual devices, so that every test may build the mesh it likes; set before JAX starts.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of recorded numbers beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} with the numbers recorded from PaddleSeg is not here")
    return SHARED

"""Fixtures that the whole suite shares."""

import atexit
import gc
import os
import pathlib
import shutil
import signal
import tempfile

import pytest
import quick
import warm
from absl import logging

# Eight virtual devices, so that every test may build the mesh it likes; set before JAX starts.
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {quick.XLA_FLAGS}")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("GCS_STAT_CACHE_MAX_AGE", "0")  # TensorFlow's client of buckets; tests change what is in them
# Programs that several of the processes that tests start compile are compiled once.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="dlv3p_jax_tests_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "2"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

warm.install()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background commands, and theirs, have none

CHROMIUM = "/usr/bin/chromium"


SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_finish():
    """Spares the packing of programs for files that nobody reads, and looking through jaxprs for cycles."""
    import jax

    jax.config.update("jax_enable_compilation_cache", False)  # it is for the processes that tests start
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture(autouse=True)
def information():
    """What absl's log shows depends on no test before: whoever parses flags sets it back to warnings."""
    logging.set_verbosity(logging.INFO)


@pytest.fixture
def in_float64():
    import jax

    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of recorded numbers beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} with the numbers recorded from PaddleSeg is not here")
    return SHARED


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> pathlib.Path:
    """A small prepared image_folder of three classes: 11 training pictures of 40x56, 5 to validate on, of two sizes.

    The classes are rectangles of brightness, which a network can learn.
    """
    import functools

    import numpy as np
    from PIL import Image

    from dlv3p_jax.datasets.image_folder import make_builder
    from dlv3p_jax.datasets.preparing import prepare_dataset

    source = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    sizes = {"train": [(40, 56)] * 11, "val": [(40, 56), (33, 47), (40, 56), (40, 56), (33, 47)]}
    for split, shapes in sizes.items():
        for kind in ("images", "labels"):
            (source / kind / split).mkdir(parents=True)
        for number, (height, width) in enumerate(shapes):
            label = np.zeros((height, width), np.uint8)
            y, x = rng.integers(2, height // 2), rng.integers(2, width // 2)
            label[y : y + height // 2, x:] = 1
            label[: y // 2 + 1] = 2
            label[-2:] = 255
            image = np.clip(label[..., None] * 90.0 + rng.normal(20, 15, (height, width, 3)), 0, 255).astype(np.uint8)
            suffix = "jpg" if number % 2 else "png"
            Image.fromarray(image).save(source / "images" / split / f"{number:02d}.{suffix}")
            Image.fromarray(label).save(source / "labels" / split / f"{number:02d}.png")
    (source / "classes.txt").write_text("floor\nwall\nlamp\n")
    target = tmp_path_factory.mktemp("data")
    prepare_dataset("image_folder", functools.partial(make_builder, source=source), target, overwrite=False)
    return target


@pytest.fixture(scope="session")
def logged_run(tmp_path_factory) -> pathlib.Path:
    """A workdir with curves, three evaluations of the best checkpoint, step 40, and one of a later; not to be changed.

    Pages beside what it holds are allowed.
    """
    import made_runs

    return made_runs.make_logged_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, driven by Playwright.

    Of a module, not of the session: as long as it lives, asyncio (which Orbax uses) takes this thread's loop for busy,
    so ask for it after the checkpoints that a test reads in its own thread.
    """
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not os.path.exists(CHROMIUM):
        pytest.skip(f"{CHROMIUM} is not here (Debian's package chromium)")
    quiet = ("background-networking", "component-update", "sync")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*arguments, *(f"--disable-{name}" for name in quiet)]
        )
        yield chromium
        chromium.close()

"""A network of two convolutions in place of the real one, for tests of what runs around it: it compiles in a second."""

import os
import pathlib
import subprocess
import sys

import flax.linen as nn

from dlv3p_jax.configs import common
from dlv3p_jax.models import resizing, tiles
from dlv3p_jax.runtime import preemption

HERE = pathlib.Path(__file__).resolve().parent
SETTINGS = {
    "dataset": "image_folder",
    "crop_size": (32, 32),
    "batch_size": 4,
    "num_train_steps": 6,
    "log_every_steps": 2,
    "eval_every_steps": 2,
    "checkpoint_every_steps": 2,
    "eval.batch_size": 2,
    "mesh.data": 1,
}

# What to run with `python -c` in place of dlv3p_jax.main.
MAIN = """
import tiny
from dlv3p_jax.runtime import cli
from dlv3p_jax.training import loop
from dlv3p_jax import main, models
models.build_model = tiny.build_model
cli.run(main.main, "main")
"""


class Tiny(nn.Module):
    """Takes and gives what the real network does."""

    num_classes: int
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)

    @nn.compact
    def __call__(self, images, train, output_size=None, sizes=None, output_sizes=None):
        x = nn.Conv(4, (3, 3), name="backbone")(tiles.cleared(tiles.Tiled(images, sizes=sizes)))
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.Dropout(0.1, deterministic=not train)(nn.relu(x))
        logits = nn.Conv(self.num_classes, (1, 1), name="decoder")(x)
        to = images.shape[1:3], False, output_size, sizes, output_sizes
        return resizing.resize(tiles.Tiled(logits, sizes=sizes), *to).array


def build_model(config) -> Tiny:
    return Tiny(config.num_classes)


def make_config(data_dir, **changes):
    config = common.get_config()
    config.update_from_flattened_dict(SETTINGS | {"data_dir": str(data_dir)} | changes)
    return config


def start_main(
    workdir, data_dir, *flags, before="", environment=None, stderr=subprocess.STDOUT, **settings
) -> subprocess.Popen:
    """Starts `main` with this network, as a user starts it; its process runs `before` first."""
    settings = SETTINGS | {"data_dir": data_dir} | settings
    return subprocess.Popen(
        [
            *(sys.executable, "-c", before + MAIN, "--config=configs/common.py", f"--workdir={workdir}", *flags),
            *(f"--config.{key}={value}" for key, value in settings.items()),
        ],
        cwd=HERE.parent,
        env=os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parent}"} | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def finish(process: subprocess.Popen, seconds: float = 200) -> subprocess.CompletedProcess:
    """Its exit code and what it wrote; it is killed after so many seconds."""
    try:
        written = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, *written)


def run_main(*arguments, stderr=subprocess.PIPE, **options) -> subprocess.CompletedProcess:
    """Runs what `start_main` starts to its end."""
    return finish(start_main(*arguments, stderr=stderr, **options))


class Told(preemption.Preemption):
    """Has a run leave when it asks whether to for the `number`th time; None: never."""

    def __init__(self, number: int | None):
        super().__init__()
        self._number = number

    def reached(self) -> bool:
        super().reached()
        return self._asked == self._number

"""What has to work on machines without TensorFlow, TFDS and clu, such as those that only compute."""

import subprocess
import sys

SCRIPT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "tensorflow_datasets", "clu", "array_record"):
            raise ImportError(name)

sys.meta_path.insert(0, Absent())
import dlv3p_jax
from dlv3p_jax.training import losses, optim, steps
from dlv3p_jax.evaluation import metrics
from dlv3p_jax.data import colors
from dlv3p_jax.runtime import sharding
from dlv3p_jax import models
from dlv3p_jax.convert_paddle import convert, revert
from dlv3p_jax.evaluation.views import predict_logits
"""


def test_models_losses_metrics_and_steps_import_without_tensorflow():
    process = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


COMMANDS = """
import importlib, sys
for name in ("main", "convert_mmseg", "convert_paddle", "convert_timm", "reproduce", "benchmark"):
    importlib.import_module(f"dlv3p_jax.{name}")
    assert not {"jax", "flax", "tensorflow"} & set(sys.modules), name
"""


def test_commands_look_at_their_flags_before_they_import_jax():
    process = subprocess.run([sys.executable, "-u", "-c", COMMANDS], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr

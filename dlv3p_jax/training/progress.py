"""How far training is: means, speed and time left since the last line, and the line that says so."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh
from tqdm import tqdm

from dlv3p_jax.runtime import memory


@dataclasses.dataclass
class Meter:
    """Adds up what steps say, and reads it for a log line. Evaluations do not count as time of training.

    Attributes:
      config: of the run; its steps and sizes are read.
      num_pictures: of an epoch.
      mesh: whose memory is looked at.
      sums: of each value since the last line.
      steps: that are in the sums; those before a run went on count as well.
    """

    config: Any
    num_pictures: int
    mesh: Mesh
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    steps: int = 0

    def __post_init__(self):
        self._learning_rate, self._evaluations = 0.0, []
        self._restart()

    def _restart(self) -> None:
        self._start, self._waited, self._timed = time.monotonic(), 0.0, 0

    def add(self, values: Mapping[str, float]) -> None:
        """Adds what one step says: 'learning_rate', of which the last counts, and others, of which the mean does."""
        self._learning_rate = values["learning_rate"]
        self.sums = {
            name: self.sums.get(name, 0.0) + value for name, value in values.items() if name != "learning_rate"
        }
        self.steps += 1
        self._timed += 1

    @contextlib.contextmanager
    def waiting_for_input(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._evaluations.append(time.monotonic() - start)
        self._start += self._evaluations[-1]

    def read(self, step: int) -> tuple[dict[str, float], float]:
        """What there is to say after `step`, and the seconds that are left; begins anew.

        Returns:
          The values are 'epoch', 'loss' and others as means since the last line, 'learning_rate' of this step,
          'pictures_per_second', 'waiting_for_input' (a share, 0..1) and 'memory_gb' (the most so far, see
          `memory.used`). The time left is that of the steps at this speed and of the evaluations, which take as long
          as those before.
        """
        config, seconds = self.config, time.monotonic() - self._start
        values = {"epoch": step * config.batch_size / self.num_pictures, "loss": 0.0}
        values |= {name: total / self.steps for name, total in self.sums.items()}
        values |= {
            "learning_rate": self._learning_rate,
            "pictures_per_second": self._timed * config.batch_size / seconds,
            "waiting_for_input": self._waited / seconds,
            "memory_gb": memory.used(self.mesh) / 1e9,
        }
        last, every = config.num_train_steps, config.eval_every_steps
        left = (last - step) * seconds / self._timed
        if self._evaluations:
            to_evaluate = math.ceil(last / every) - step // every
            left += to_evaluate * sum(self._evaluations) / len(self._evaluations)
        self.sums, self.steps = {}, 0
        self._restart()
        return values, left


class Line:
    """Shows how far training is: on a terminal, one line that moves; elsewhere a line of the log. Process 0 alone.

    `in_log` says whether what is written is in the log.
    """

    def __init__(self, first_step: int, last_step: int):
        self._last, self._width = last_step, len(str(last_step))
        self._bar = tqdm(
            total=last_step,
            initial=first_step,
            bar_format=f"step {{n_fmt:>{self._width}}}/{{total_fmt}}{{desc}}  {{bar}}",
            dynamic_ncols=True,
            disable=None if jax.process_index() == 0 else True,  # None: where stderr is no terminal
        )
        self.in_log = bool(self._bar.disable) and logging.level_info()  # from Python, absl logs warnings alone

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def move(self, step: int) -> None:
        """Says on a terminal that `step` is done."""
        self._bar.update(step - self._bar.n)

    def write(self, step: int, values: Mapping[str, float], seconds_left: float) -> str:
        """Shows what `Meter.read` gave, and returns it as text."""
        told = to_text(values, seconds_left)
        text = f"step {step:>{self._width}}/{self._last}{told}"
        if not self.in_log:
            self._bar.set_description_str(told)
        elif jax.process_index() == 0:
            logging.info("%s", text)
        return text


def to_text(values: Mapping[str, float], seconds_left: float) -> str:
    """What `Meter.read` gave, in columns; what matters most comes first, as a narrow terminal cuts the end off."""
    return (
        f"  epoch {values['epoch']:7.2f}  loss {values['loss']:#9.4g}  lr {values['learning_rate']:.2e}"
        f"  left {tqdm.format_interval(seconds_left):>8}  {values['pictures_per_second']:7.2f} pictures/s"
        f"  waiting {values['waiting_for_input']:4.0%}  memory {values['memory_gb']:5.1f} GB"
    )

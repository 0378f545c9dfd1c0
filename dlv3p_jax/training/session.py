"""What one process has open while it trains, and how it saves and leaves."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from dlv3p_jax.evaluation.evaluator import Evaluator
from dlv3p_jax.runtime import preemption
from dlv3p_jax.runtime.preemption import Preempted
from dlv3p_jax.runtime.watchdog import Watchdog
from dlv3p_jax.training import event_writer, log_files, steps, trackers
from dlv3p_jax.training.run import Run
from dlv3p_jax.weights import checkpoints

Hook = Callable[[int, dict[str, float], steps.TrainState], Any]


@dataclasses.dataclass(frozen=True)
class Session:
    """A run, and what this process has open while it trains.

    Attributes:
      run: what is trained.
      saved: its checkpoints.
      writer: of its curves.
      tracker: gets them too.
      logs: its train.log and metrics.csv.
      told: says whether to leave.
      watchdog: is fed.
      evaluator: evaluates variables as `measured` says.
      measured: the views, and the digests of the pictures, by which scores can be compared with that of the best.
      hooks: see `train_and_evaluate`.
    """

    run: Run
    saved: checkpoints.Checkpoints
    writer: event_writer.EventWriter
    tracker: trackers.Tracker
    logs: log_files.LogFiles
    told: preemption.Preemption
    watchdog: Watchdog
    evaluator: Evaluator
    measured: tuple[str, dict[str, str]]
    hooks: Sequence[Hook]

    def write_scalars(self, step: int, scalars: dict[str, float], state: steps.TrainState) -> None:
        self.writer.write_scalars(step, scalars)
        self.tracker.write_scalars(step, scalars)
        for hook in self.hooks:
            hook(step, scalars, state)

    def save(self, state: steps.TrainState) -> None:
        self.writer.flush()  # what a run that goes on from here will not log again
        self.logs.flush()
        self.saved.save(state)

    def save_and_leave(self, state: steps.TrainState) -> NoReturn:
        step = int(state.step)
        if step == 0:
            raise Preempted("told to leave before the first step; the same command begins")
        self.save(state)
        self.saved.wait()
        raise Preempted(f"told to leave; {self.describe_saved(step)}")

    def describe_saved(self, step: int) -> str:
        return f"step {step} is saved in {self.saved.latest_path}, and the same command goes on from it"

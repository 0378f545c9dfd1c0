"""Trackers of experiments, Weights & Biases and MLflow: they get what TensorBoard gets, and cannot end a run."""

import importlib.util
import json
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from absl import logging
from etils import epath
from flax.traverse_util import flatten_dict

from dlv3p_jax.runtime import configuration, files, text
from dlv3p_jax.runtime.errors import UserError

RECORD = "tracker.json"  # in a workdir: the id of the tracker's run, by the tracker's name

_WAITING = 1000  # calls that wait for a tracker which is slow; what comes then is lost to it
_SECONDS_TO_END = 10.0
_AT_ONCE = 100  # parameters that MLflow takes in one call
_LONGEST = 500  # characters of a parameter that every version of MLflow takes


class _Opened(NamedTuple):
    """What a tracker does with (step, scalars), and at the end, told whether the run is done."""

    log: Callable[[int, dict[str, float]], None]
    end: Callable[[bool], None]


def check(name: str) -> None:
    """Raises UserError where the package of a tracker is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:  # a folder of that name, where W&B or MLflow kept runs, is no package
        raise UserError(f"--tracker={name} needs {name}: pip install 'dlv3p_jax[{name}]'")


class Tracker:
    """Passes scalars on in a thread of its own, in process 0 alone; to be used with `with`.

    The workdir's RECORD keeps the id of the tracker's run, so that a run that goes on goes on there. What the tracker
    cannot take is warned of, and lost to it alone.
    """

    def __init__(self, name: str | None, workdir: epath.Path, config):
        self._name, self._workdir, self._config = name, workdir, config
        self._calls: queue.Queue[tuple[int, dict[str, float]] | bool] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None
        if name is not None and jax.process_index() == 0:
            self._thread = threading.Thread(target=self._pass_on, daemon=True)
            self._thread.start()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind, *_) -> None:
        self._put(kind is None)
        if self._thread is not None:
            self._thread.join(_SECONDS_TO_END)
            if self._thread.is_alive():
                logging.warning("--tracker=%s has not taken all values; metrics.csv has them", self._name)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        self._put((step, dict(scalars)))

    def _put(self, call: tuple[int, dict[str, float]] | bool) -> None:
        if self._thread is not None:
            try:
                self._calls.put_nowait(call)
            except queue.Full:
                logging.log_first_n(logging.WARNING, "--tracker=%s is too slow, and misses values", 1, self._name)

    def _calls_to_make(self) -> Iterator[tuple[int, dict[str, float]] | bool]:
        while True:
            yield (call := self._calls.get())
            if isinstance(call, bool):
                return

    def _pass_on(self) -> None:
        opened: _Opened | None = None
        lost = False
        for call in self._calls_to_make():
            try:
                if opened is None:
                    opened = (_open_wandb if self._name == "wandb" else _open_mlflow)(self._workdir, self._config)
                if isinstance(call, bool):
                    opened.end(call)
                else:
                    opened.log(*call)
                lost = False
            except Exception as error:  # of its library and of the network
                if not lost:
                    reason = text.one_line(error)
                    logging.warning("--tracker=%s is lost, and training goes on without it: %s", self._name, reason)
                    lost = True


def to_flat(config) -> dict[str, bool | int | float | str]:
    """A configuration by dotted keys, whose values trackers and TensorBoard take: others become text."""
    flat = flatten_dict(config.to_dict(), sep=".")
    return {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in flat.items()}


def _read(workdir: epath.Path) -> dict[str, str]:
    try:
        return dict(json.loads((workdir / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _remember(workdir: epath.Path, name: str, run_id: str) -> None:
    files.write_json(workdir / RECORD, _read(workdir) | {name: run_id}, indent=None)


def _open_wandb(workdir: epath.Path, config) -> _Opened:
    """WANDB_PROJECT, WANDB_MODE and its other variables say where to."""
    import wandb

    if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.login(prompt=False, verify=False):
        raise UserError("log in with wandb login, or set WANDB_MODE=offline")  # it would ask, and wait
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "dlv3p_jax"),
        name=workdir.name,
        id=_read(workdir).get("wandb"),
        resume="allow",
        dir=None if "://" in str(workdir) else str(workdir),
        config=configuration.to_dict(config),
        settings=wandb.Settings(console="off", silent=True),
    )
    _remember(workdir, "wandb", run.id)

    def log(step: int, scalars: dict[str, float]) -> None:
        run.log(scalars, step=step)

    def end(done: bool) -> None:
        run.finish(exit_code=0 if done else 1)

    return _Opened(log, end)


def _open_mlflow(workdir: epath.Path, config) -> _Opened:
    """MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say where to."""
    import mlflow
    from mlflow.entities import Metric, Param

    client: Any = mlflow.MlflowClient()
    run_id = _read(workdir).get("mlflow")
    if run_id is None:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "dlv3p_jax")
        experiment = client.get_experiment_by_name(name)
        experiment_id = client.create_experiment(name) if experiment is None else experiment.experiment_id
        run_id = client.create_run(experiment_id, run_name=workdir.name).info.run_id
        _remember(workdir, "mlflow", run_id)
        params = [Param(key, str(value)[:_LONGEST]) for key, value in to_flat(config).items()]
        for start in range(0, len(params), _AT_ONCE):
            client.log_batch(run_id, params=params[start : start + _AT_ONCE])
    else:
        client.update_run(run_id, status="RUNNING")

    def log(step: int, scalars: dict[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [Metric(re.sub(r"[^\w\-. /]", "_", key), value, now, step) for key, value in scalars.items()]
        client.log_batch(run_id, metrics=metrics)

    def end(done: bool) -> None:
        client.set_terminated(run_id, "FINISHED" if done else "KILLED")

    return _Opened(log, end)

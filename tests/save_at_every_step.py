"""Several processes save the newest and the best checkpoint at every step, in a folder or in a bucket. By hand:

    python -m tests.save_at_every_step --processes=2 --steps=200 --workdir=/tmp/every_step [--bucket]

The network is of two convolutions and every step scores better than the one before, so that what the two kinds of
checkpoint do in background threads overlaps all the time. The processes have to end together and without an error, the
last step's two checkpoints to be whole and to hold the same weights.
"""

import argparse
import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import jax  # noqa: E402
import numpy as np  # noqa: E402
import quick  # noqa: E402
import tiny  # noqa: E402

from dlv3p_jax.weights import checkpoint_reading  # noqa: E402

# As tiny.MAIN; what an evaluated step scores is set, and a process may be told to leave right after a best was found.
MAIN = """
import dataclasses, os, signal
import jax, tiny
from absl import app
from dlv3p_jax.weights import checkpoints
from dlv3p_jax.runtime import cli
from dlv3p_jax.training import loop
from dlv3p_jax import main, models
models.build_model = tiny.build_model
make, save_best = loop.make_evaluator, checkpoints.Checkpoints.save_best

def make_evaluator(*arguments, **options):
    run = make(*arguments, **options)
    def scored(variables, step, suffix):
        result = run(variables, step, suffix)
        return dataclasses.replace(result, summary=result.summary | {"mIoU": step / 1e4})
    return scored

def save_and_tell(self, state, *arguments, **options):
    found = save_best(self, state, *arguments, **options)
    if found and os.environ.get("LEAVE_AT") == f"{state.step} in {jax.process_index()}":
        os.kill(os.getpid(), signal.SIGTERM)
    return found

loop.make_evaluator, checkpoints.Checkpoints.save_best = make_evaluator, save_and_tell
app.run(main.main, flags_parser=cli.make_flags_parser("main"))
"""


def run(workdir, data_dir, processes, environment=None, timeout=300, **settings) -> tuple[list[int], str]:
    """The exit codes of all processes, and what they printed, together."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    values = {"log_every_steps": 100, "eval_every_steps": 1, "checkpoint_every_steps": 1, "data_dir": data_dir}
    values |= {"mesh.data": processes, "eval.batch_size": 4} | settings
    flags = [f"--config.{key}={value}" for key, value in (tiny.SETTINGS | values).items()]
    variables = {
        "PYTHONPATH": f"{HERE}:{HERE.parent}",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=1 {quick.XLA_FLAGS}",
    }
    variables["no_grpc_proxy"] = "localhost"  # the processes meet without the proxy that leads to the bucket
    variables |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(processes)}
    started, outputs = [], []
    try:
        for index in range(processes):
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", MAIN, "--config=configs/common.py", f"--workdir={workdir}", *flags],
                    cwd=HERE.parent,
                    env=os.environ | variables | {"JAX_PROCESS_ID": str(index)} | (environment or {}),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        for process in started:
            outputs.append(process.communicate(timeout=timeout)[0])
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], "\n".join(outputs)


def check(workdir, steps: int) -> None:
    """Raises AssertionError unless the last checkpoints of both kinds are whole, of step `steps`, and alike."""
    paths = [
        checkpoint_reading.find(checkpoint_reading.absolute(workdir) / "checkpoints" / kind)
        for kind in ("latest", "best")
    ]
    assert [path.name for path in paths] == [str(steps)] * 2, paths
    jax.tree.map(np.testing.assert_array_equal, *map(checkpoint_reading.read_variables, paths))


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="where all of it goes; has to be new")
    parser.add_argument("--bucket", action="store_true", help="save to a local server that speaks as Google's does")
    given = parser.parse_args()
    given.workdir.mkdir(parents=True)
    import fake_gcs
    from kill_at_random import make_data

    data, start = make_data(given.workdir), time.monotonic()
    with contextlib.ExitStack() as stack:
        workdir, environment = given.workdir / "run", {}
        if given.bucket:
            gcs = stack.enter_context(fake_gcs.FakeGcs(given.workdir))
            workdir, environment = "gs://bucket/run", gcs.environment
            os.environ.update(environment)
        codes, output = run(workdir, data, given.processes, environment, timeout=7200, num_train_steps=given.steps)
        (given.workdir / "output").write_text(output)
        print(
            f"{given.steps} steps in {given.processes} processes: exit codes {codes}, {time.monotonic() - start:.0f} s"
        )
        assert not any(codes), output[-3000:]
        check(workdir, given.steps)
    print("the last checkpoints of both kinds are whole and alike")


if __name__ == "__main__":
    _main()

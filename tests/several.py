"""Several real processes of one run on this machine, without a launcher, of the small network of `tiny`."""

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Sequence

import quick

HERE = pathlib.Path(__file__).resolve().parent


def start(script: str, arguments: Sequence[Sequence[str]]) -> list[subprocess.Popen]:
    """`python -c script` once for each list of arguments, each with one CPU device."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    common = {
        "PYTHONPATH": f"{HERE}:{HERE.parent}",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=1 {quick.XLA_FLAGS}",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(len(arguments)),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, *more],
            cwd=HERE.parent,
            env=os.environ | common | {"JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index, more in enumerate(arguments)
    ]


def end(processes: Sequence[subprocess.Popen], seconds: float = 120) -> list[tuple[int, str]]:
    """The exit code and the output of each; kills what is left after `seconds`, and fails."""
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]

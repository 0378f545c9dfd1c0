"""Runs commands of the package in forks of one process that has imported what they need: a start takes no 6 seconds.

`Server` starts the process, with tests/faults.c preloaded. Nothing of JAX or TensorFlow has run in it, so a fork is as
good as a new process: it defines the flags of its command, runs it, and ends as Python does.
"""

import ctypes
import json
import os
import pathlib
import runpy
import select
import shutil
import signal
import subprocess
import sys
from typing import Any

import quick

HERE = pathlib.Path(__file__).resolve().parent
KINDS = ("open", "read", "write", "fsync", "rename", "readdir")  # as in faults.c


def compile_faults(folder: pathlib.Path) -> pathlib.Path | None:
    """Compiles faults.c in `folder`; None where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "faults.so"
    source = HERE / "faults.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


class Server:
    """One process that runs one command at a time; close it, or use `with`."""

    def __init__(self, library: pathlib.Path, root: pathlib.Path, cache: pathlib.Path, clock: int = 0):
        """Starts a process that has imported all.

        Args:
          library: what `compile_faults` gave.
          root: calls that touch what is below this folder are counted, and fail where a fault is armed.
          cache: of compiled programs; outside of `root`.
          clock: seconds that the clock is ahead; below 0, that it is late.
        """
        environment = {
            "PYTHONPATH": f"{HERE}:{HERE.parent}",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": quick.XLA_FLAGS,
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
            "OPENBLAS_NUM_THREADS": "1",
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "LD_PRELOAD": str(library),
            "FAULTS_ROOT": str(root),
            "FAULTS_CLOCK": str(clock),
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=HERE.parent,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def run(
        self,
        command: str,
        arguments: list[str],
        log: pathlib.Path,
        fault: tuple[list[str], int, int, int] | None = None,
        timeout: float = 120,
    ) -> dict[str, Any]:
        """Runs `python -m dlv3p_jax.COMMAND ARGUMENTS` with the small network of tiny.py.

        Args:
          command: a module of the package.
          arguments: its flags.
          log: gets its output.
          fault: (kinds of calls, the first that fails, how many fail (-1: all that follow), errno), if any.
          timeout: seconds after which it is killed.

        Returns:
          "code" (of the exit; -number of the signal that ended it), "seconds" (of the processor), "counts" (of calls by
          kind), "fired" (how many calls failed) and "what" (the first that did).
        """
        request = {"command": command, "arguments": arguments, "log": str(log), "fault": fault, "timeout": timeout}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def _serve() -> tuple[str, list[str]]:
    """Forks for each line of stdin; returns, in the child, the command and its arguments."""
    from dlv3p_jax.datasets import builder, image_folder  # noqa: F401
    from dlv3p_jax.training import loop  # noqa: F401

    library = ctypes.CDLL(None)
    library.faults_what.restype = ctypes.c_char_p
    library.faults_count.restype = library.faults_fired.restype = ctypes.c_long

    def arm(kinds, first, times, number) -> None:
        mask = sum(1 << KINDS.index(kind) for kind in kinds)
        library.faults_arm(mask, ctypes.c_long(first), ctypes.c_long(times), number)

    for line in sys.stdin:
        request = json.loads(line)
        arm(*(request["fault"] or ((), 1, 0, 0)))
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            descriptor = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            return request["command"], request["arguments"]
        watched = os.pidfd_open(child)
        if not select.select([watched], [], [], request["timeout"])[0]:
            os.killpg(child, signal.SIGKILL)
        os.close(watched)
        _, status, usage = os.wait4(child, 0)
        answer = {
            "code": os.waitstatus_to_exitcode(status),
            "seconds": usage.ru_utime + usage.ru_stime,
            "counts": {kind: library.faults_count(number) for number, kind in enumerate(KINDS)},
            "fired": library.faults_fired(),
            "what": library.faults_what().decode(errors="replace"),
        }
        print(json.dumps(answer), flush=True)
    os._exit(0)


if __name__ == "__main__":
    command, arguments = _serve()
    import tiny

    from dlv3p_jax import models
    from dlv3p_jax.runtime import disk_errors

    disk_errors.WAITS = (0.05, 0.05)
    models.build_model = tiny.build_model
    sys.argv = [f"{command}.py", *arguments]
    runpy.run_module(f"dlv3p_jax.{command}", run_name="__main__", alter_sys=True)

"""Starts `compile_child`, which compiles one program for a TPU slice, and waits for it."""

import contextlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from dlv3p_jax.performance import tpu
from dlv3p_jax.runtime import configuration

_SECONDS_BETWEEN_LINES = 30  # of progress, where it goes to a file


def compile_for(
    config,
    piece: tpu.Slice,
    name: str,
    views: tuple[tuple[float, ...], bool] | None,
    size: tuple[int, int],
    effort: str,
    remark: str = "",
) -> dict[str, Any]:
    """Compiles a training step or an evaluation for a slice, and tells on stderr how long that has taken so far.

    Args:
        config: a configuration.
        piece: the slice, of which `config.mesh` has to take all chips.
        name: of the program, for the progress line.
        views: (scales, flip) of an evaluation; None: a training step.
        size: (height, width) of the evaluated pictures.
        effort: 'low' or 'full': how hard the compiler tries to make the program fast.
        remark: for the progress line, after the program's name.

    Returns:
        What `compile_child.compile_program` returns, with 'name' and 'compile_seconds'.

    Raises:
        ValueError: configuration and slice do not go together.
        RuntimeError: the compiler is not here, or failed.
    """
    require_compiler()
    with tempfile.TemporaryDirectory(prefix="dlv3p_jax_plan_") as path:
        folder = pathlib.Path(path)
        configuration.write(config, folder / "config.json")
        request = {
            "config": str(folder / "config.json"),
            "slice": piece.topology,
            "views": None if views is None else {"scales": views[0], "flip": views[1]},
            "size": size,
        }
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        start = time.monotonic()
        arguments = [
            sys.executable,
            "-m",
            "dlv3p_jax.performance.compile_child",
            *(str(folder / f"{x}.json") for x in ("request", "result")),
        ]
        with (folder / "log").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                arguments, stdout=log, stderr=log, env=_environment(effort), start_new_session=True
            )
            try:
                _wait(process, f"compiling {name}{remark} for {piece.name}")
            finally:
                process.kill()  # where we were interrupted
                process.wait()
        if not (folder / "result.json").exists():
            tail = (folder / "log").read_text(errors="replace", encoding="utf-8").strip()[-1000:]
            raise RuntimeError(f"the compiler ended with code {process.returncode} while it compiled {name}:\n{tail}")
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    if "error" in result:
        raise ValueError(result["error"])
    return {"name": name} | result | {"compile_seconds": time.monotonic() - start}


def require_compiler() -> None:
    """Raises RuntimeError where Google's compiler is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise RuntimeError(
            "libtpu, Google's compiler, is not installed here: pip install '.[plan]' (Linux on x86-64; it needs no TPU)"
        )


def _environment(effort: str) -> dict[str, str]:
    root = str(pathlib.Path(__file__).resolve().parents[2])
    paths = [root, os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [root]
    changes = {
        "PYTHONPATH": os.pathsep.join(paths),
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TPU_SKIP_MDS_QUERY": "1",  # it would ask Google's metadata server what machine this is
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # the lock is for those that use the chips
    }
    if effort == "low":
        changes["JAX_EXEC_TIME_OPTIMIZATION_EFFORT"] = "-1.0"
    return os.environ | changes


def _wait(process: subprocess.Popen, what: str) -> None:
    start = time.monotonic()
    on_terminal = sys.stderr.isatty()
    interval = 1 if on_terminal else _SECONDS_BETWEEN_LINES
    finished = False
    while not finished:
        line = f"{what}: {time.monotonic() - start:.0f} s"
        print(f"\r{line}" if on_terminal else line, end="" if on_terminal else "\n", file=sys.stderr, flush=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(interval)
            finished = True
    if on_terminal:
        print(f"\r{what}: {time.monotonic() - start:.0f} s, done", file=sys.stderr, flush=True)

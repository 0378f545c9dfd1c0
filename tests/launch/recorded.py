"""What the tests of launch/ share: programs that record how they were called."""

import importlib.util
import json
import os
import pathlib
import shlex
import subprocess
import sys
import types

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
TOOLS = pathlib.Path(sys.executable).parent
MAIN = ["--config=configs/voc_r50.py", "--config.crop_size=(256, 512)", "--workdir=gs://lab/run"]


def script(path: str) -> types.ModuleType:
    """A Python file of launch/ as a module."""
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, LAUNCH / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*command, **changes) -> subprocess.CompletedProcess:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "TPU_"))}
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=60,
        env=clean | changes.pop("env", {}),
        **changes,
    )


def lines(*command, **changes) -> list[list[str]]:
    """The commands that a dry run prints, as the shell would take them apart."""
    found = run(*command, **changes)
    assert found.returncode == 0, found.stderr
    return split(found.stdout)


def split(printed: str) -> list[list[str]]:
    return [shlex.split(line) for line in printed.splitlines() if not line.startswith("#")]


def program(folder: pathlib.Path, name: str, body: str) -> None:
    """A program that appends its arguments to folder/calls, one JSON list a line, and then does `body`."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    record = f"import json, sys; open({str(folder / 'calls')!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')"
    file.write_text(f'#!/usr/bin/env bash\n{sys.executable} -S -c {shlex.quote(record)} {name} "$@"\n{body}\n')
    file.chmod(0o755)


def calls(folder: pathlib.Path) -> list[list[str]]:
    file = folder / "calls"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

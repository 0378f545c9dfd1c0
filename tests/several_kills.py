"""Kills processes of a run of several, or their launcher, again and again; for `kill_at_random --processes`."""

import collections
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from dlv3p_jax.weights import checkpoint_files

HERE = pathlib.Path(__file__).resolve().parent
WHEN = ("in a save", "in the start", "in the steps", "in a save", "in an evaluation", "in the first seconds")
LAST = 3  # kills that come when all steps are done, in the last evaluation and the report
SITE = """
import sys
if "dlv3p_jax.main" in sys.orig_argv:
    import tiny
    from dlv3p_jax import models
    models.build_model = tiny.build_model
"""


class WrongEndError(Exception):
    """The launcher ended otherwise than it should; the message has what it wrote last."""


def start(workdir: pathlib.Path, settings: dict, environment: dict[str, str], count: int) -> subprocess.Popen:
    """launch/local.py with `count` processes of the small network."""
    site = workdir.parent / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(SITE)
    path = os.pathsep.join(map(str, (site, HERE, HERE.parent)))
    launcher = ["launch/local.py", f"--processes={count}", "--devices=1", "--grace=20", "--"]
    flags = ["--config=configs/common.py", f"--workdir={workdir}", "--heartbeat_timeout=20"]
    flags += [f"--config.{key}={value}" for key, value in (settings | {"mesh.data": -1}).items()]
    with log_of(workdir).open("a") as log:
        return subprocess.Popen(
            [sys.executable, *launcher, *flags],
            cwd=HERE.parent,
            env=os.environ | environment | {"PYTHONPATH": path},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def log_of(workdir: pathlib.Path) -> pathlib.Path:
    return workdir.with_name(f"{workdir.name}.log")


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(
    run: Callable[[], subprocess.Popen],
    workdir: pathlib.Path,
    kills: int,
    steps: int,
    rng: random.Random,
    being_written: Callable[[pathlib.Path], set],
) -> collections.Counter:
    """Starts a run by `run()` and kills it `kills` times, and lets it go on to its end; counts when what got what.

    Raises:
        WrongEndError: a launcher ended with another code than it should, or something hung.
    """

    def now() -> str:
        """What the processes of now have written."""
        return log_of(workdir).read_text(errors="replace").rpartition("meet at port")[2]

    def newest() -> int:
        found = checkpoint_files.steps_in(workdir / "checkpoints" / "latest")
        return int(found[-1].name) if found else -1

    def wait(condition, seconds=240) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and launcher.poll() is None:
            if time.monotonic() > deadline:
                raise WrongEndError(f"nothing came for {seconds} s: see {log_of(workdir)}")
            time.sleep(0.002)

    def pids() -> list[int]:
        found = re.findall(r"processes, ([\d, ]+), meet", log_of(workdir).read_text(errors="replace"))
        return [int(pid) for pid in found[-1].split(",")] if found else []

    counted: collections.Counter = collections.Counter()
    launcher, seen, without = run(), set(), 0
    for number in range(kills):
        when = "at the end" if number >= kills - LAST else WHEN[number % len(WHEN)]
        before = newest()
        wait(lambda known=seen: set(pids()) - known)
        old = being_written(workdir)
        if without >= 2:  # three starts without a newer checkpoint may not go on, if they lost a process
            wait(lambda base=before: newest() > base)
        if when == "in the first seconds":
            time.sleep(rng.uniform(0, 2))
        elif when == "in the start":
            time.sleep(rng.uniform(2, 8))
        elif when == "at the end":
            wait(lambda: f"step {steps}/{steps}" in now() or "steps were done before" in now())
            time.sleep(rng.uniform(0, 1.5))
        else:
            wait(lambda: "Compiled in" in now())
            if when == "in a save":
                for _ in range(rng.randint(1, 2)):
                    wait(lambda base=old: being_written(workdir) - base)
                    wait(lambda base=old: rng.random() < 0.1 or not being_written(workdir) - base)
            elif when == "in an evaluation":
                wait(lambda: "Evaluating" in now())
                time.sleep(rng.uniform(0, 0.3))
            else:
                time.sleep(rng.uniform(0, 1))
        sent, target = rng.choice([signal.SIGKILL, signal.SIGTERM]), rng.choice(["0", "1", "launcher"])
        ours = pids()
        seen = set(ours)
        begin = time.monotonic()
        if target == "launcher":
            launcher.send_signal(sent)
            code = launcher.wait(timeout=120)
            if sent == signal.SIGTERM and code not in (0, 75):
                raise WrongEndError(f"the launcher ended with {code} after SIGTERM: see {log_of(workdir)}")
            for pid in ours:  # of a launcher that was killed
                while alive(pid):
                    if time.monotonic() - begin > 120:
                        raise WrongEndError(f"process {pid} does not end after SIGTERM")
                    os.kill(pid, signal.SIGTERM)
                    time.sleep(0.2)
        else:
            try:
                os.kill(ours[int(target)], sent)
            except ProcessLookupError:
                when = "after its end"
            wait(lambda known=seen: set(pids()) - known)
            if launcher.poll() not in (None, 0):
                code = launcher.poll()
                raise WrongEndError(f"the launcher ended with {code} after {sent.name}: see {log_of(workdir)}")
        without = without + 1 if newest() == before else 0
        counted[f"{sent.name} of {'the launcher' if target == 'launcher' else 'process ' + target} {when}"] += 1
        took = time.monotonic() - begin
        print(
            f"kill {number + 1}: {sent.name} of {target} {when}; {took:.0f} s later, newest checkpoint {newest()}",
            flush=True,
        )
        if launcher.poll() is not None:
            launcher = run()
    code = launcher.wait(timeout=1200)
    if code:
        raise WrongEndError(f"the run did not go on after the kills, but ended with {code}: see {log_of(workdir)}")
    return counted

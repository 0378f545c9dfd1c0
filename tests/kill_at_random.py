"""Kills a small run again and again, and compares its end with that of a run that was left alone. By hand:

    python -m tests.kill_at_random --kills=30 --workdir=/tmp/kills
    python -m tests.kill_at_random --processes=2 --kills=36 --workdir=/tmp/kills_of_two

With --processes=2 it is a run of launch/local.py, of which SIGKILL and SIGTERM hit either process or the launcher
(`several_kills`).

SIGKILL comes while a checkpoint is being written, every second time, and else in the start, between steps or in an
evaluation. Parameters, statistics, averages, optimiser state, the best checkpoint, reports and logged scalars have to
come out equal to the last bit. The network is of two convolutions, with augmentation, dropout and averaged weights.
"""

import argparse
import collections
import functools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from PIL import Image

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import quick  # noqa: E402
import several_kills  # noqa: E402
import tiny  # noqa: E402

from dlv3p_jax.datasets.image_folder import make_builder  # noqa: E402
from dlv3p_jax.datasets.preparing import prepare_dataset  # noqa: E402
from dlv3p_jax.weights import checkpoint_files  # noqa: E402

SETTINGS = {
    "checkpoint_every_steps": 7,
    "ema_decay": 0.9,
    "eval_every_steps": 25,
    "keep_checkpoints": 2,
    "log_every_steps": 1,
    "seed": 3,
}
STEPS_A_KILL = 20  # more than a run takes before it is killed
OF_TIME = ("pictures_per_second", "waiting_for_input", "memory_gb")


def make_data(folder: pathlib.Path) -> pathlib.Path:
    source, rng = folder / "source", np.random.default_rng(0)
    for split, count in (("train", 11), ("val", 4)):
        for number in range(count):
            label = np.zeros((40, 56), np.uint8)
            label[rng.integers(2, 20) :, rng.integers(2, 28) :] = 1
            image = np.clip(label[..., None] * 90.0 + rng.normal(20, 15, (40, 56, 3)), 0, 255).astype(np.uint8)
            for kind, picture in (("images", image), ("labels", label)):
                (source / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(source / kind / split / f"{number}.png")
    (source / "classes.txt").write_text("floor\nwall\n")
    prepare_dataset("image_folder", functools.partial(make_builder, source=source), folder / "data", overwrite=False)
    return folder / "data"


def start(
    workdir: pathlib.Path, data: pathlib.Path, steps: int, cache: pathlib.Path, processes: int = 1
) -> subprocess.Popen:
    settings = tiny.SETTINGS | SETTINGS | {"data_dir": data, "num_train_steps": steps}
    command = [sys.executable, "-c", tiny.MAIN, "--config=configs/common.py", f"--workdir={workdir}"]
    environment = {
        "PYTHONPATH": f"{HERE}:{HERE.parent}",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": quick.XLA_FLAGS,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    if processes > 1:
        return several_kills.start(workdir, settings, environment, processes)
    with log_of(workdir).open("w") as log:
        return subprocess.Popen(
            [*command, *(f"--config.{key}={value}" for key, value in settings.items())],
            cwd=HERE.parent,
            env=os.environ | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def log_of(workdir: pathlib.Path) -> pathlib.Path:
    return workdir.with_name(f"{workdir.name}.log")


def being_written(workdir: pathlib.Path) -> set[tuple[str, int]]:
    """The unfinished folders of checkpoints, which Orbax renames when they are whole, and their inodes."""
    folders = [workdir / "checkpoints" / name for name in ("latest", "best")]
    entries = [entry for folder in folders if folder.is_dir() for entry in os.scandir(folder)]
    return {(entry.path, entry.inode()) for entry in entries if "orbax-checkpoint-tmp" in entry.name}


def wait(process: subprocess.Popen, condition, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)


def start_and_kill(run, workdir: pathlib.Path, number: int, rng: random.Random, starting: float) -> str:
    """Starts a run by `run()`, kills it, and tells what it was doing; a start takes up to `starting` seconds."""

    def said(text: str) -> bool:
        time.sleep(0.01)
        return text in log_of(workdir).read_text(errors="replace")

    before = being_written(workdir)  # by one that was killed, until this one has removed it
    process = run()
    if number % 6 == 3:
        time.sleep(rng.uniform(0, starting / 2))
    else:
        wait(process, lambda: said("Compiled in"))
        if number % 6 == 5:
            wait(process, lambda: said("Evaluating"))
            time.sleep(rng.uniform(0, 0.15))
        elif number % 6 == 1:
            time.sleep(rng.uniform(0, 0.5))
        else:
            for _ in range(rng.randint(1, 2)):
                wait(process, lambda: being_written(workdir) - before)
                wait(process, lambda: rng.random() < 0.1 or not being_written(workdir) - before)
    process.send_signal(signal.SIGKILL)
    if process.wait() == 0:
        return "after its end"
    log = log_of(workdir).read_text(errors="replace")
    if being_written(workdir) - before:
        return "in a save"
    if "Compiled in" not in log:
        return "in the start"
    return "in an evaluation" if log.rfind("Evaluating") > log.rfind("  loss ") else "between steps"


def outcome(workdir: pathlib.Path, same: Callable[..., bool] = np.array_equal) -> dict[str, np.ndarray]:
    """All that a run leaves behind and that is not of the clock, by name; `same` of a scalar and the one of before."""
    import tensorflow as tf

    values = {}
    for name, items in (("latest", ("variables", "ema", "optimizer")), ("best", ("variables", "ema"))):
        path = checkpoint_files.steps_in(workdir / "checkpoints" / name)[-1]
        for item in filter(lambda item: (path / item).exists(), items):  # of the best, the better of the two models
            tree = checkpoint_files.read_arrays(path, item)
            for key, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
                values[f"checkpoint {name} {path.name} {item}{jax.tree_util.keystr(key)}"] = leaf
    for file in (workdir / "eval").glob("*.json"):
        for key, value in json.loads(file.read_text()).items():
            if key not in ("seconds", "checkpoint", "date", "seal", "git_revision"):
                values[f"report {file.name} {key}"] = np.array(json.dumps(value))
    for file in sorted(workdir.glob("events.out.tfevents.*")):
        try:
            for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
                event = tf.compat.v1.Event.FromString(record)
                for value in event.summary.value:
                    if value.tag.split("/")[0] in ("train", "eval", "eval_ema") and not value.tag.endswith(OF_TIME):
                        name = f"scalar {value.tag} {event.step}"
                        array = tf.make_ndarray(value.tensor)
                        if not same(array, values.setdefault(name, array)):
                            raise SystemExit(f"{workdir}: {name} was {values[name]} and, after a kill, {array}")
        except tf.errors.DataLossError:  # the kill cut it short
            pass
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--processes", type=int, default=1, help="of the run, on this machine")
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=0, help="decides when it is killed")
    arguments = parser.parse_args()
    arguments.workdir.mkdir(parents=True)
    data, steps = make_data(arguments.workdir), STEPS_A_KILL * arguments.kills
    cache, alone, killed = (arguments.workdir / name for name in ("cache", "alone", "killed"))

    begin = time.monotonic()
    process = start(alone, data, steps, cache, arguments.processes)
    wait(process, lambda: time.sleep(0.1) or "Compiled in" in log_of(alone).read_text(errors="replace"))
    starting = time.monotonic() - begin
    if process.wait():
        sys.exit(f"the run that was left alone failed: see {log_of(alone)}")
    print(
        f"left alone: {steps} steps in {time.monotonic() - begin:.0f} s, of which {starting:.0f} s to start", flush=True
    )

    run = functools.partial(start, killed, data, steps, cache, arguments.processes)
    rng, when = random.Random(arguments.seed), collections.Counter()
    if arguments.processes > 1:
        try:
            when = several_kills.kill(run, killed, arguments.kills, steps, rng, being_written)
        except several_kills.WrongEndError as error:
            sys.exit(str(error))
    else:
        for number in range(arguments.kills):
            where = start_and_kill(run, killed, number, rng, starting)
            when[where] += 1
            newest = checkpoint_files.steps_in(killed / "checkpoints" / "latest")[-1:]
            print(f"kill {number + 1}: {where}; newest checkpoint {newest[0].name if newest else 'none'}", flush=True)
        if run().wait():
            sys.exit(f"the run did not go on after the kills: see {log_of(killed)}")

    expected, found = outcome(alone), outcome(killed)
    different = sorted(expected.keys() ^ found.keys())
    different += [name for name in expected.keys() & found.keys() if not np.array_equal(expected[name], found[name])]
    kinds = collections.Counter(name.split()[0] for name in expected)
    print(f"{arguments.kills} kills: {', '.join(f'{count} {where}' for where, count in sorted(when.items()))}")
    print(f"compared {', '.join(f'{count} {kind} values' for kind, count in kinds.items())}: {len(different)} differ")
    for name in different[:20]:
        print(f"  {name}: {expected.get(name)} alone, {found.get(name)} killed")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()

"""Fails calls to the file system while commands run, and compares what comes of it with an undisturbed run. By hand:

    python -m tests.disk_faults --faults=300 [--seed=0] [--only=read] [--command=resume] [--workdir=/tmp/faults]

Each command (prepare, train, resume, eval, predict, report) is run once undisturbed, which tells how many calls of each
kind it makes below its folder. Then, from the same beginning, one of these calls fails, with EIO, ESTALE, ETIMEDOUT,
EMFILE, ENOSPC or EDQUOT, once or from then on. The command has to go on, or end in one line with the code 1 or 75;
every checkpoint that was whole has to be there with the same bytes; and the same command, undisturbed, has to give
arrays, scalars, scores, labels and pages that are equal to the last bit.
"""

import argparse
import collections
import errno
import functools
import hashlib
import json
import pathlib
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import fork_server  # noqa: E402
import kill_at_random  # noqa: E402
import tiny  # noqa: E402

ONCE, FROM_THEN_ON = 1, -1
# What can fail, how, and for how long.
FULL = [(number, times) for number in (errno.ENOSPC, errno.EDQUOT) for times in (ONCE, FROM_THEN_ON)]
AWAY = [(number, times) for number in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT) for times in (ONCE, FROM_THEN_ON)]
ERRORS = {
    "open": [*AWAY, (errno.EMFILE, ONCE), (errno.EMFILE, FROM_THEN_ON)],
    "read": AWAY,
    "write": [*AWAY, *FULL],
    "fsync": [*AWAY, *FULL],
    "rename": [*AWAY, *FULL],
    "readdir": AWAY,
}
# What fails together, where it fails from then on.
TOGETHER = {errno.ENOSPC: ["write", "fsync"], errno.EDQUOT: ["write", "fsync"], errno.EMFILE: ["open"]}
SETTINGS = {
    "checkpoint_every_steps": 2,
    "ema_decay": 0.9,
    "eval_every_steps": 2,
    "keep_checkpoints": 20,  # so that none has to go
    "log_every_steps": 1,
    "num_train_steps": 4,
    "seed": 3,
}
SHARES = {"prepare": 3, "prepare again": 1, "train": 6, "resume": 8, "eval": 3, "predict": 4, "report": 2}


class Chain:
    """The commands in a folder of their own, what each begins with, and what it gives undisturbed."""

    def __init__(self, folder: pathlib.Path, server: fork_server.Server, root: pathlib.Path):
        self.folder, self.server, self.root = folder, server, root
        self.log = folder / "log.txt"
        self.begins: dict[str, pathlib.Path] = {}
        self.expected: dict[str, Mapping[str, Any]] = {}
        self.counts: dict[str, dict[str, int]] = {}

    def prepare(self) -> None:
        """Runs the whole chain undisturbed."""
        draw(self.root)
        self._keep("prepare")
        self._first("prepare")
        self._keep("prepare again", "train")
        self._first("prepare again")
        self._first("train")
        self._keep("eval", "predict", "report")
        for name in ("eval", "predict", "report"):
            self.begin(name)
            self._first(name)
        self.begin("train")
        middle = int(self.counts["train"]["rename"] * 0.55)
        killed = self.run("train", (["rename"], middle, ONCE, -9))
        steps = checkpoint_steps(self.root / "run")
        if killed["code"] != -9 or steps["latest"] != ["2"]:
            raise RuntimeError(f"{killed}, {steps}: the run that was to be killed half way was not; see {self.log}")
        self._keep("resume")
        self._first("resume")
        if other := differences(self.expected["train"], self.expected["resume"]):
            raise RuntimeError(f"a run that was killed and went on gave something else: {other}")

    def take(self, *names: str) -> None:
        """Runs commands that train nothing undisturbed, each with what the folder holds now."""
        self._keep(*names)
        for name in names:
            self.begin(name)
            self._first(name)

    def _keep(self, *names: str) -> None:
        target = self.folder / f"before {names[0]}"
        shutil.copytree(self.root, target, symlinks=True)
        self.begins |= dict.fromkeys(names, target)

    def begin(self, name: str) -> None:
        """Makes the folder what it was before a command."""
        shutil.rmtree(self.root)
        shutil.copytree(self.begins[name], self.root, symlinks=True)

    def _first(self, name: str) -> None:
        result = self.run(name)
        if result["code"] != 0:
            raise RuntimeError(f"{name} undisturbed: {result}; see {self.log}\n{self.log.read_text()[-3000:]}")
        print(f"{name}: {result['seconds']:.1f} s, {result['counts']}", flush=True)
        self.counts[name], self.expected[name] = result["counts"], self.outcome(name)

    def run(self, name: str, fault=None) -> dict[str, Any]:
        """Runs a command, with a fault (`fork_server.Server.run`) if given."""
        root = self.root
        settings = tiny.SETTINGS | SETTINGS | {"data_dir": root / "data"}
        flags = ["--config=configs/common.py", *(f"--config.{key}={value}" for key, value in settings.items())]
        source = ["--workers=1", "--dataset=image_folder", f"--source={root / 'source'}", f"--data_dir={root / 'data'}"]
        command, arguments = {
            "prepare": ("prepare", source),
            "prepare again": ("prepare", [*source, "--overwrite"]),
            "train": ("main", [*flags, f"--workdir={root / 'run'}"]),
            "resume": ("main", [*flags, f"--workdir={root / 'run'}"]),
            "eval": ("main", [*flags, f"--workdir={root / 'run'}", "--mode=eval", "--config.eval.flip=True"]),
            "predict": (
                "predict",
                [
                    f"--checkpoint={root / 'run'}",
                    f"--output={root / 'out'}",
                    "--pad_to=40,56",
                    str(root / "source" / "images" / "val"),
                ],
            ),
            "report": ("report", [f"--workdir={root / 'run'}"]),
        }[name]
        return self.server.run(command, arguments, self.log, fault)

    def outcome(self, name: str) -> dict[str, Any]:
        """What a command leaves behind and that is not of the clock."""
        if name in ("prepare", "prepare again"):
            return data_outcome(self.root / "data")
        if name == "predict":
            return prediction_outcome(self.root / "out")
        if name == "report":
            page = (self.root / "run" / "report.html").read_text(encoding="utf-8")
            return {"page": re.sub(r"Written by .*", "", page)}
        with _READING:
            values = kill_at_random.outcome(self.root / "run")
        page = self.root / "run" / "report.html"
        return values | {"page is there": page.exists()}

    def disturb(self, name: str, fault) -> tuple[str, dict[str, Any], list[str]]:
        """One fault: what the command answered, what `run` gave, and all that is wrong with it."""
        self.begin(name)
        before = checkpoint_files_of(self.root / "run")
        result = self.run(name, fault)
        log = self.log.read_text(errors="replace")
        answer = (log.strip().splitlines() or [""])[-1]
        wrong = []
        if result["code"] not in (0, 1, 75):
            wrong.append(f"ended with {result['code']}: {answer}")
        if "Traceback (most recent call last)" in log or "Exception ignored" in log:
            wrong.append("a traceback")
        command = "main" if name in ("train", "resume", "eval") else name.split()[0]
        if result["code"] in (1, 75) and not re.search(rf"^{command}: ", last_paragraph(log), re.MULTILINE):
            wrong.append(f"ended with {result['code']}, but not in a line of {command}: {answer}")
        kept = checkpoint_files_of(self.root / "run")
        wrong += lost(before, kept)
        (self.folder / "disturbed.txt").write_text(log)
        if result["code"] == 0 and not wrong:
            found = self._differences(name)
            if not found:
                return f"0: {answer}", result, wrong
            if not re.search(r"^[\d-]+ [\d:]+ warning: ", log, re.MULTILINE):
                wrong += [f"without a word: {text}" for text in found]
        again = self.run(name)
        text = self.log.read_text(errors="replace").strip()
        if name == "prepare" and "is prepared already" in text:  # the fault came after the end
            again["code"] = 0
        if again["code"] != 0:
            wrong.append(f"the same command, undisturbed, ends with {again['code']}: {text.splitlines()[-1:]}")
        else:
            wrong += [f"lost by the next: {text}" for text in lost(kept, checkpoint_files_of(self.root / "run"))]
            wrong += self._differences(name)
        return f"{result['code']}: {answer}", result, wrong

    def _differences(self, name: str) -> list[str]:
        try:
            return differences(self.expected[name], self.outcome(name))
        except Exception as error:  # what is there cannot be read, whatever is wrong with it
            return [f"the outcome cannot be read: {error!r}"[:300]]


_READING = threading.Lock()  # Orbax reads in one thread at a time


def draw(root: pathlib.Path) -> None:
    """Pictures to prepare, in root/source."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 7), ("val", 3)):
        for number in range(count):
            label = np.zeros((40, 56), np.uint8)
            label[rng.integers(2, 20) :, rng.integers(2, 28) :] = 1
            image = np.clip(label[..., None] * 90.0 + rng.normal(20, 15, (40, 56, 3)), 0, 255).astype(np.uint8)
            for kind, picture in (("images", image), ("labels", label)):
                (root / "source" / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(root / "source" / kind / split / f"{number}.png")
    (root / "source" / "classes.txt").write_text("floor\nwall\n")


def last_paragraph(log: str) -> str:
    """What a command says at its end: the lines after the last of the log's."""
    lines = log.strip().splitlines()
    logged = [number for number, line in enumerate(lines) if re.match(r"[IWE]\d{4} ", line)]
    return "\n".join(lines[max(logged, default=-1) + 1 :])


def checkpoint_steps(workdir: pathlib.Path) -> dict[str, list[str]]:
    folders = {name: workdir / "checkpoints" / name for name in ("latest", "best")}
    return {
        name: sorted(entry.name for entry in folder.iterdir() if entry.name.isdigit()) if folder.is_dir() else []
        for name, folder in folders.items()
    }


def checkpoint_files_of(workdir: pathlib.Path) -> dict[str, dict[str, str]]:
    """The sha256 of each file of the checkpoints that have their final names, by 'latest/STEP' or 'best/STEP'."""
    found = {}
    for name, steps in checkpoint_steps(workdir).items():
        for step in steps:
            folder = workdir / "checkpoints" / name / step
            found[f"{name}/{step}"] = {
                str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
    return found


def lost(before: Mapping[str, dict[str, str]], after: Mapping[str, dict[str, str]]) -> list[str]:
    """The checkpoints that are gone or changed; of the best, one has to be there."""
    gone = [name for name in before if name.startswith("latest/") and name not in after]
    if any(name.startswith("best/") for name in before) and not any(name.startswith("best/") for name in after):
        gone.append("best")
    changed = [
        name
        for name in before.keys() & after.keys()
        if any(after[name].get(file) != digest for file, digest in before[name].items())
    ]
    return [f"checkpoint {name} is gone" for name in gone] + [f"checkpoint {name} is changed" for name in changed]


def data_outcome(data: pathlib.Path) -> dict[str, Any]:
    """Records and metadata of the data set, and what else lies beside it."""
    from dlv3p_jax.data import records

    dataset = records.open_dataset("image_folder", data)
    values: dict[str, Any] = {"metadata": json.dumps(dataset.metadata, sort_keys=True)}
    for split in dataset.splits:
        for number, record in enumerate(dataset.source(split)):
            values[f"record {split} {number}"] = b"|".join(np.asarray(record[key]).tobytes() for key in sorted(record))
    values["folders"] = str(sorted(path.name for path in (data / "image_folder").iterdir() if path.is_dir()))
    return values


def prediction_outcome(output: pathlib.Path) -> dict[str, Any]:
    """The files that predict wrote; of its record, what is not of the time of pictures' files."""
    values: dict[str, Any] = {}
    for path in sorted(output.rglob("*")):
        if path.is_file() and path.name != ".lock":
            values[str(path.relative_to(output))] = path.read_bytes()
    record = values["predict.jsonl"].decode()
    values["predict.jsonl"] = re.sub(r'"mtime_ns": \d+', '"mtime_ns": 0', record)
    return values


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What two outcomes do not have in common, in a line each."""
    lines = [f"{name} is missing" for name in expected.keys() - found.keys()]
    lines += [f"{name} is more than there was undisturbed" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        if not np.array_equal(expected[name], found[name]):
            lines.append(f"{name} is another")
    return sorted(lines)


def draw_fault(rng: random.Random, counts: Mapping[str, int], only: str | None = None):
    """A fault of a command that makes so many calls; the first calls of a kind fail as often as the later ones."""
    kinds = [kind for kind in ERRORS if counts[kind] and only in (None, kind)]
    kind = rng.choice(kinds)
    number, times = rng.choice(ERRORS[kind])
    first = rng.randint(1, counts[kind])
    kinds = [kind] if times == ONCE else TOGETHER.get(number, list(ERRORS))
    if times != ONCE:
        first = rng.randint(1, sum(counts[kind] for kind in kinds))
    return kinds, first, times, number


def describe(name: str, fault) -> str:
    kinds, first, times, number = fault
    return f"{name}: {'+'.join(kinds)} {first}{'' if times == ONCE else ' on'} {errno.errorcode[number]}"


def work(chain: Chain, faults: list, results: list, failures: list, lock: threading.Lock, seed: int, only) -> None:
    chain.prepare()
    while True:
        with lock:
            if not faults:
                return
            number, name = faults.pop()
        fault = draw_fault(random.Random(f"{seed} {number}"), chain.counts[name], only)
        start = time.monotonic()
        answer, result, wrong = chain.disturb(name, fault)
        with lock:
            results.append((name, fault, result))
            text = f"{number} {describe(name, fault)} [{result['what']}] -> {answer[:300]}"
            print(f"{len(results)} ({time.monotonic() - start:.1f} s) {text}", flush=True)
            for line in wrong[:6]:
                print(f"   WRONG: {line}", flush=True)
            if wrong:
                failures.append((text, wrong))
                shutil.copy(chain.folder / "disturbed.txt", chain.folder.parent / f"fault-{number}.log")


def run(workdir: pathlib.Path, number: int, seed: int = 0, only=None, command=None, jobs=1, single=None) -> list:
    """Runs the faults; returns what was wrong, as (fault, lines)."""
    library = fork_server.compile_faults(workdir)
    if library is None:
        raise SystemExit("no compiler for faults.c: install gcc")
    rng = random.Random(seed)
    names = [command] if command else list(SHARES)
    drawn = [rng.choices(names, [SHARES[name] for name in names])[0] for _ in range(number)]
    faults = [pair for pair in enumerate(drawn) if single is None or pair[0] in single][::-1]
    results: list = []
    failures: list = []
    lock, threads = threading.Lock(), []
    for job in range(jobs):
        folder = workdir / f"job{job}"
        root = folder / "chain"
        root.mkdir(parents=True)
        server = fork_server.Server(library, root, workdir / "cache")
        chain = Chain(folder, server, root)
        threads.append(threading.Thread(target=work, args=(chain, faults, results, failures, lock, seed, only)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    codes = collections.Counter(result["code"] for _, _, result in results)
    kinds = collections.Counter(kind for _, fault, _ in results for kind in fault[0][:1])
    fired = sum(result["fired"] > 0 for _, _, result in results)
    listed = ", ".join(f"{kind} {count}" for kind, count in kinds.items())
    print(
        f"{len(results)} faults ({listed}), of which {fired} came to pass; exit codes "
        f"{dict(codes)}; {len(failures)} wrong",
        flush=True,
    )
    return failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(ERRORS), help="the kind of calls that fail")
    parser.add_argument("--command", choices=list(SHARES))
    parser.add_argument("--single", type=int, nargs="*", help="numbers of the faults to run, of those that are drawn")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--workdir", type=pathlib.Path, help="a new folder, which stays")
    arguments = parser.parse_args()
    take = functools.partial(
        run,
        number=arguments.faults,
        seed=arguments.seed,
        only=arguments.only,
        command=arguments.command,
        jobs=arguments.jobs,
        single=arguments.single,
    )
    if arguments.workdir is not None:
        arguments.workdir.mkdir(parents=True)
        failures = take(arguments.workdir.absolute())
    else:
        with tempfile.TemporaryDirectory() as folder:
            failures = take(pathlib.Path(folder))
    for text, wrong in failures:
        print("\n  ".join([text, *wrong[:6]]))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()

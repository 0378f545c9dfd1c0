"""Damages every kind of file that the program reads back, and reads it as the commands do. By hand:

    python -m tests.damage_files --damages=200 [--seed=0] [--only=events]

A bit is flipped, the end is cut off, or a part is overwritten with zeros. Whoever reads the file has to end with an
error that commands say in a line, or to warn, or to give what it gives of the whole file: never another number without
a word.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from absl import logging as absl_logging  # noqa: E402
from etils import epath  # noqa: E402
from flax.traverse_util import flatten_dict  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import disk_faults  # noqa: E402
import tiny  # noqa: E402

from dlv3p_jax import models  # noqa: E402
from dlv3p_jax.data import labels, records  # noqa: E402
from dlv3p_jax.datasets.image_folder import make_builder  # noqa: E402
from dlv3p_jax.datasets.preparing import prepare_dataset  # noqa: E402
from dlv3p_jax.evaluation import evaluator  # noqa: E402
from dlv3p_jax.evaluation.result import EvaluationError  # noqa: E402
from dlv3p_jax.inference import finding, folder_run, segmenter  # noqa: E402
from dlv3p_jax.reporting import run_page  # noqa: E402
from dlv3p_jax.runtime import events, sharding  # noqa: E402
from dlv3p_jax.training import loop  # noqa: E402
from dlv3p_jax.training.run import Run, configure_run, first_state  # noqa: E402
from dlv3p_jax.weights import checkpoints, download, trained  # noqa: E402

Values = Mapping[str, Any]
WEIGHTS = "http://localhost:9/weights/model.pdparams"  # nothing answers there


def small_network() -> contextlib.AbstractContextManager:
    """Has the package build the network of tiny.py."""
    return mock.patch.object(models, "build_model", tiny.build_model)


def make(folder: pathlib.Path) -> None:
    """Fills `folder` with all that the readers below read: source, data, run, out and cache."""
    disk_faults.draw(folder)
    source = functools.partial(make_builder, source=folder / "source")
    prepare_dataset("image_folder", source, folder / "data", overwrite=False)
    loop.train_and_evaluate(tiny.make_config(folder / "data", **disk_faults.SETTINGS), folder / "run")
    run_page.write_report(folder / "run")
    read_predictions(folder)
    path = folder / "cache" / "weights" / "model.pdparams"
    path.parent.mkdir(parents=True)
    path.write_bytes(np.random.default_rng(0).bytes(3000))
    download.download(WEIGHTS, path)  # put there by hand: its digest is written down


def arrays_of(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def read_resume(folder: pathlib.Path) -> Values:
    """The state that training goes on from, and the score that the next is compared with."""
    config, dataset, mesh = evaluator.prepare_run(tiny.make_config(folder / "data", **disk_faults.SETTINGS))
    run = Run(config, dataset, mesh, tiny.build_model(config), epath.Path(folder / "run"))
    with checkpoints.Checkpoints(run.workdir, config.keep_checkpoints, run.describe()) as saved:
        configure_run(run, saved)
        state = first_state(run, saved)
        return arrays_of(state) | {"best": repr(saved.best_metrics), "path": str(saved.latest_path)}


def read_segmenter(folder: pathlib.Path) -> Values:
    """A picture's labels, and all that a Segmenter knows."""
    ours = segmenter.Segmenter.from_checkpoint(folder / "run")
    loaded = trained.load_checkpoint(None, str(folder / "run"))
    return arrays_of(loaded.variables) | {
        "classes": repr(ours.classes),
        "palette": ours.palette,
        "source": ours.source,
        "config": repr(sorted(flatten_dict(ours.config.to_dict(), sep=".").items())),
    }


def read_report(folder: pathlib.Path) -> Values:
    """The report's page, but for the time of its making."""
    page = run_page.write_report(folder / "run", folder / "page.html").read_text(encoding="utf-8")
    return {"page": re.sub(r"Written by .*", "", page)}


def read_events(folder: pathlib.Path) -> Values:
    """The curves of a report, which warns where they end too early."""
    run_page.write_report(folder / "run", folder / "page.html")
    return events.read_scalars(epath.Path(folder / "run"))


@functools.lru_cache(1)
def _trained(run: str) -> trained.TrainedModel:
    return trained.load_checkpoint(None, run)


def read_predictions(folder: pathlib.Path) -> Values:
    """What predict gives where it ran before."""
    loaded, output = _trained(str(folder / "run")), folder / "out"
    found, problems = finding.find_pictures([str(folder / "source" / "images" / "val")], output)
    assert not problems
    pixels, problems = folder_run.write_predictions(loaded, found, sharding.make_mesh(1, 1), output)
    assert not problems
    files = {path.name: path.read_bytes() for path in sorted((output / "labels").iterdir())}
    return files | {"pixels": pixels}


def read_data(folder: pathlib.Path) -> Values:
    """All of a data set that training and evaluation read."""
    dataset = records.open_dataset("image_folder", folder / "data")
    values: dict[str, Any] = {"metadata": repr(sorted(dataset.metadata.items())), "title": dataset.title}
    for split in dataset.splits:
        values |= {f"{split} sizes": repr(dataset.sizes(split)), f"{split} digest": repr(dataset.digest(split))}
        for number, record in enumerate(dataset.source(split)):
            values[f"{split} {number}"] = b"|".join(np.asarray(record[key]).tobytes() for key in ("id", "image"))
            values[f"{split} {number} label"] = labels.read_label(record["label"])
    return values


def read_cache(folder: pathlib.Path) -> Values:
    """Weights that were downloaded."""
    path = download.download(WEIGHTS, folder / "cache" / "weights" / "model.pdparams", attempts=1)
    return {"bytes": path.read_bytes()}


@dataclasses.dataclass(frozen=True)
class Kind:
    """Files, by patterns below the folder, and who reads them."""

    patterns: tuple[str, ...]
    readers: tuple[Callable[[pathlib.Path], Values], ...]


KINDS = {
    "newest arrays": Kind(("run/checkpoints/latest/4/*/d/*", "run/checkpoints/latest/4/*/ocdbt*/d/*"), (read_resume,)),
    "newest, all else": Kind(("run/checkpoints/latest/4/**/*",), (read_resume,)),
    "best arrays": Kind(("run/checkpoints/best/*/*/d/*", "run/checkpoints/best/*/*/ocdbt*/d/*"), (read_segmenter,)),
    "best, all else": Kind(("run/checkpoints/best/*/**/*",), (read_segmenter, read_resume)),
    "config.json": Kind(("run/config.json",), (read_resume, read_segmenter, read_report)),
    "evaluations": Kind(("run/eval/*.json",), (read_report,)),
    "their pictures": Kind(("run/eval/*.npz",), (read_report,)),
    "events": Kind(("run/events.out.tfevents.*",), (read_events,)),
    "predict.jsonl": Kind(("out/predict.jsonl",), (read_predictions,)),
    "records": Kind(("data/image_folder/*/*.array_record*",), (read_data,)),
    "data set's description": Kind(
        ("data/image_folder/*/dataset_info.json", "data/image_folder/*/features.json"), (read_data,)
    ),
    "metadata.json": Kind(("data/image_folder/*/metadata.json",), (read_data,)),
    "weights": Kind(("cache/weights/model.pdparams",), (read_cache,)),
    "the digest of weights": Kind(("cache/weights/model.pdparams.json",), (read_cache,)),
}


def damage(path: pathlib.Path, rng: random.Random) -> str:
    """Damages a file in one of three ways, and says how."""
    data = bytearray(path.read_bytes())
    how = rng.choice(("flip", "flip", "cut", "zeros"))
    if how == "flip":
        at, bit = rng.randrange(len(data)), rng.randrange(8)
        data[at] ^= 1 << bit
        said = f"bit {bit} of byte {at} of {len(data)} flipped"
    elif how == "cut":
        keep = rng.choice((0, rng.randrange(len(data))))
        said = f"{keep} bytes left of {len(data)}"
        del data[keep:]
    else:
        at, count = rng.randrange(len(data)), rng.choice((1, 16, 512, 4096))
        said = f"{count} zeros at byte {at} of {len(data)}"
        data[at : at + count] = bytes(len(data[at : at + count]))
    path.write_bytes(data)
    return said


class _Warnings(logging.Handler):
    """Collects what is logged as warnings or worse."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record) -> None:
        self.lines.append(record.getMessage())


def answer(reader: Callable[[pathlib.Path], Values], folder: pathlib.Path, expected: Values) -> tuple[str, str]:
    """('same' | 'error' | 'warning' | 'WRONG', details) of reading damaged files."""
    collected = _Warnings()
    absl_logging.get_absl_logger().addHandler(collected)
    try:
        found = reader(folder)
    except (ValueError, OSError, EvaluationError, loop.TrainingError) as error:
        if not str(error).strip() or len(str(error)) > 1500:
            return "WRONG", f"an error without words, or with too many: {error!r}"[:400]
        return "error", str(error)
    except Exception as error:  # what commands would show with its traceback
        return "WRONG", f"{type(error).__name__}: {error}"[:400]
    finally:
        absl_logging.get_absl_logger().removeHandler(collected)
    if reader is read_events:  # a file that is cut short is what a killed run leaves: its curves end earlier
        found = {
            name: points
            for name, points in expected.items()
            if points[: len(found.get(name, []))] == found.get(name, [])
        }
    differing = sorted(
        name
        for name in expected.keys() | found.keys()
        if name not in expected or name not in found or not np.array_equal(expected[name], found[name])
    )
    if not differing:
        return "same", "; ".join(collected.lines)
    if collected.lines:
        return "warning", "; ".join(collected.lines)
    return "WRONG", f"other values without a word: {', '.join(differing[:5])}"


def files_of(folder: pathlib.Path, kind: Kind) -> list[pathlib.Path]:
    found = {path for pattern in kind.patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.stat().st_size)


def run(base: pathlib.Path, work: pathlib.Path, number: int, seed: int = 0, only=None, single=None) -> list[str]:
    """Damages `number` files of a copy of `base` (see `make`), one at a time; returns what was wrong, in lines.

    Args:
      base: what `make` filled, at the path `work`: it was moved away, since paths are written into files.
      work: where each copy is made; what is there goes.
    """
    wrong, answers = [], collections.Counter()
    kinds = {name: kind for name, kind in KINDS.items() if only in (None, name)}
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(base, work)
    expected = {reader: reader(work) for kind in kinds.values() for reader in kind.readers}
    begin = time.monotonic()
    for index in range(number):
        rng = random.Random(f"{seed} {index}")
        name = list(kinds)[index % len(kinds)]
        if single is not None and index not in single:
            continue
        for reader in kinds[name].readers:
            rng = random.Random(f"{seed} {index}")
            shutil.rmtree(work)
            shutil.copytree(base, work)
            path = rng.choice(files_of(work, kinds[name]))
            said = damage(path, rng)
            kind, details = answer(reader, work, expected[reader])
            answers[kind] += 1
            line = f"{index} {path.relative_to(work)}: {said}, {reader.__name__}: {kind}: {details}"
            if kind == "WRONG":
                wrong.append(line)
            print(line[:500], flush=True)
    print(
        f"{number} damages of {len(kinds)} kinds of files, read {answers.total()} times in "
        f"{time.monotonic() - begin:.0f} s: "
        f"{answers['error']} errors, {answers['warning']} warnings, {answers['same']} as before, {len(wrong)} wrong"
    )
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--damages", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(KINDS))
    parser.add_argument("--single", type=int, nargs="*", help="numbers of the damages to do, of those that are drawn")
    parser.add_argument("--workdir", type=pathlib.Path, help="a new folder, which stays")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = arguments.workdir or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(small_network())
        make(folder / "work")
        (folder / "work").rename(folder / "base")
        wrong = run(
            folder / "base", folder / "work", arguments.damages, arguments.seed, arguments.only, arguments.single
        )
    print("\n".join(wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

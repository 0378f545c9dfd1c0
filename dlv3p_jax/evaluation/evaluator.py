"""Evaluation of a model on a prepared split: batches in, tables, JSON and pictures out."""

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import ml_collections
import numpy as np
import PIL.Image
from absl import logging
from etils import epath
from jax.sharding import Mesh
from tqdm import tqdm

from dlv3p_jax import models
from dlv3p_jax.data import padding, pipeline, records, size_buckets, viz
from dlv3p_jax.evaluation import files, metrics, picture_scores
from dlv3p_jax.evaluation.result import (
    EvaluationError,
    Result,
    check_pixels,
    describe,
    print_result,
    warn_of_degenerate,
)
from dlv3p_jax.evaluation.step import INPUTS, jit_eval_step, run_step
from dlv3p_jax.evaluation.views import Views
from dlv3p_jax.models import Variables, variable_shapes
from dlv3p_jax.runtime import agreement, configuration, sharding, text
from dlv3p_jax.weights import checkpoint_reading, foreign

NUM_SAMPLES = 4  # pictures on the contact sheet, the same at every step


def prepare_run(
    config, dataset: records.Dataset | None = None
) -> tuple[ml_collections.FrozenConfigDict, records.Dataset, Mesh]:
    """A checked configuration with what its data set fills in, that data set, and the devices, which are logged.

    Args:
      config: a configuration.
      dataset: in place of the prepared one that `config` names.

    Raises:
      ValueError: configuration, data set or mesh cannot be used; subclasses name what.
      DifferenceError: another process of the run has another data set.
    """
    check_values(config)
    dataset = records.open_dataset(config.dataset, config.data_dir) if dataset is None else dataset
    config = config.copy_and_resolve_references()
    config.model.dtype = sharding.dtype(config.model.dtype)
    pixels = dataset.metadata["class_pixels"].get(config.train_split)
    config = configuration.resolve(config, len(dataset.class_names), dataset.ignore_label, pixels)
    splits = (config.train_split, config.eval_split)
    agreement.require("data", agreement.data(dataset, splits) | {"config": agreement.configured(config)})
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.space)
    logging.info("Devices: %s", sharding.describe(mesh))
    return config, dataset, mesh


def check_values(config) -> None:
    """Checks what no data are needed for; whoever trains checks more (`run.check_values`).

    Raises:
      ValueError: a key has a value that cannot be used; the message names it.
    """
    configuration.check(config)
    Views.of(config.eval)
    config = config.copy_and_resolve_references()
    config.num_classes = config.num_classes or 2
    models.build_model(config)


class Evaluator(Protocol):
    """What `make_evaluator` returns."""

    def __call__(self, variables: Variables, step: int, suffix: str = "") -> Result: ...


def make_evaluator(
    config,
    dataset: records.Dataset,
    mesh: Mesh,
    model,
    workdir: epath.Path,
    absent_class: str = "nan",
    checkpoint: epath.PathLike | None = None,
    before_batch: Callable[[bool], None] = lambda compiles: None,
    between_batches: Callable[[], None] = lambda: None,
) -> Evaluator:
    """A function that evaluates variables and writes what it finds; pictures of many sizes share few programs.

    `run(variables, step, suffix) -> Result` writes what `files.write` does below WORKDIR/eval. `suffix` ('' or 'ema')
    tells two models of one step apart. `absent_class` is how `metrics.summarize` counts a class that occurs nowhere.
    `checkpoint` is where the variables are from, for the reports; None: from the run of `workdir`. `before_batch` is
    called with each batch that was read, and whether it is the first of its bucket, for which a program is compiled;
    `between_batches` is called after each batch, and what it raises ends the evaluation.

    Raises:
      ValueError: the split or the mesh cannot be used.
      EvaluationError: from `run`, if not every labelled pixel of the split was counted once.
    """
    source = checkpoint_reading.absolute(workdir if checkpoint is None else checkpoint)
    dataset.require_labels(config.eval_split)
    plan = _plan(config, dataset, mesh)
    for height, _ in {batch.room for batch in plan}:
        sharding.check_batch(mesh, config.eval.batch_size, height, "config.eval.batch_size")
    step_for = functools.cache(functools.partial(jit_eval_step, config, mesh, model))
    views = files.evaluation_name(config)
    samples = [index for batch in plan[:NUM_SAMPLES] for index in batch.indices][:NUM_SAMPLES]
    compiled: set[tuple] = set()

    def eval_step(variables, batch):
        return step_for(batch["view_rooms"])(variables, {name: batch[name] for name in INPUTS if name in batch})

    def run(variables: Variables, step: int, suffix: str = "") -> Result:
        num_pictures = dataset.num_pictures(config.eval_split)
        logging.info(
            "Evaluating %s of %s %s (%s), %d at a time, by %s, compiled at the first batch",
            *(text.count(num_pictures, "picture"), dataset.title, config.eval_split, views, config.eval.batch_size),
            text.count(len({(batch.room, batch.view_rooms) for batch in plan}), "program"),
        )
        start = time.monotonic()
        collector = picture_scores.Collector(dataset.sizes(config.eval_split), config.num_classes, samples)
        batches = _on_devices(config, dataset, mesh, plan, compiled, before_batch)
        ids, loss = _count(eval_step, variables, batches, collector, between_batches)
        seconds = time.monotonic() - start
        check_pixels(collector.matrix, dataset, config.eval_split)
        summary = metrics.summarize(collector.matrix, absent_class) | {"loss": loss}
        sheet, name = None, f"{step}.{suffix}" if suffix else str(step)
        if jax.process_index() == 0:
            sheet, pictures = _show(config, dataset, samples, collector, ids)
            report = metrics.to_json(summary) | describe(config, dataset, mesh, collector.matrix)
            report |= {"checkpoint": str(source), "step": step, "absent_class": absent_class, "seconds": seconds}
            files.write(workdir / "eval", name, views, report, sheet, pictures)
        warn_of_degenerate(collector.matrix, dataset.class_names, absent_class)
        title = f"{dataset.title} {config.eval_split}, {views}: {source}, step {step}{' (ema)' if suffix else ''}"
        return Result(summary, sheet, num_pictures, seconds, title, workdir / "eval" / name, step)

    return run


def evaluate_checkpoint(
    config, workdir: epath.PathLike | None, checkpoint: epath.PathLike | None = None, absent_class: str = "nan"
) -> Result:
    """Evaluates a checkpoint, or the best one of `workdir`, with the views of `config.eval`, and prints the table.

    Args:
      config: a configuration; its data, model and evaluation keys are read.
      workdir: gets eval/STEP.json and eval/STEP.png; None: the workdir that the checkpoint belongs to, which holds its
        config.json, or where there is none, the checkpoint's folder.
      checkpoint: a workdir or a checkpoint's folder; None for `workdir` itself.
      absent_class: see `metrics.summarize`.

    Returns:
      The result; of the averaged model where the checkpoint holds one, which is evaluated as well.

    Raises:
      ValueError: configuration, data set, mesh or checkpoint cannot be used; subclasses name what.
    """
    if checkpoint is not None:
        foreign.require_converted(checkpoint)
    config, dataset, mesh = prepare_run(config)
    path = checkpoint_reading.find(workdir if checkpoint is None else checkpoint)
    trained = checkpoint_reading.read_config(path)
    if trained is not None:
        configuration.check_model(config, trained, path)
    if workdir is None:
        config_path = checkpoint_reading.find_config(path)
        workdir = path if config_path is None else config_path.parent
    meta = checkpoint_reading.read_meta(path)
    lines = checkpoint_reading.other_classes(meta, dataset.class_names)
    if lines:
        logging.warning("%s was trained with other classes than %s has:%s", path, dataset.title, lines)
    (epath.Path(workdir) / "eval").mkdir(
        parents=True, exist_ok=True
    )  # a folder that is read-only is told before the work
    model = models.build_model(config)
    expected = variable_shapes(model)
    run = make_evaluator(config, dataset, mesh, model, epath.Path(workdir), absent_class, path)
    for suffix, item in (("", "variables"), ("ema", "ema")):
        variables = checkpoint_reading.read_variables(path, item)
        loaded = {"step": meta["step"], "sha256": None if variables is None else agreement.digest(variables)}
        agreement.require(f"weights ({item})", loaded)
        if variables is None:
            continue
        variables, _ = checkpoint_reading.fit_variables(variables, expected, allow_new_head=False, source=path)
        result = run(sharding.replicate(mesh, variables), meta["step"], suffix)
        print_result(result, dataset)
    return result


def init_variables(config, model) -> Variables:
    """Fresh variables, decided by the seed; a small picture will do, since no parameter's shape depends on its size."""
    return model.init(jax.random.key(config.seed), np.zeros((1, 32, 32, 3), np.float32), train=False)


def _plan(config, dataset: records.Dataset, mesh: Mesh) -> tuple[size_buckets.Bucket, ...]:
    views = Views.of(config.eval)
    sizes = [views.all_sizes(padding.padded_size(size, config.eval_size)) for size in dataset.sizes(config.eval_split)]
    return size_buckets.batches(sizes, config.eval.batch_size, config.eval.buckets, mesh.shape[sharding.SPACE])


def _on_devices(config, dataset, mesh, plan, compiled, before_batch) -> Iterator[dict[str, Any]]:
    """The evaluation batches on the mesh, one ahead of what is being computed, each announced to `before_batch`.

    'indices' are the positions of a batch's pictures, and 'ids' {position: id} of those that this process has read.
    """
    rows, views = sharding.local_rows(mesh, config.eval.batch_size), Views.of(config.eval)
    batches = pipeline.eval_batches(dataset, config.eval_split, plan, ignore_label=config.ignore_label, rows=rows)
    for planned, batch in zip(plan, batches, strict=True):
        ids = {
            planned.indices[row]: name
            for row, name in zip(rows, batch["id"], strict=True)
            if row < len(planned.indices)
        }
        if planned.view_rooms is not None:
            sizes = (padding.padded_size(size, config.eval_size) for size in batch["size"].tolist())
            batch["view_sizes"] = views.sizes_of_each(sizes)
        arrays = sharding.put_batch(mesh, {name: batch[name] for name in INPUTS if name in batch})
        program = planned.room, planned.view_rooms
        before_batch(program not in compiled)
        compiled.add(program)
        yield arrays | {"indices": planned.indices, "ids": ids, "view_rooms": planned.view_rooms}


def _count(
    eval_step, variables: Variables, batches, collector: picture_scores.Collector, between_batches
) -> tuple[list[str], float]:
    """Evaluates all batches into `collector`; returns the ids of the pictures by position, and the loss of the split.

    Raises:
      EvaluationError: a picture was not among them.
    """
    ids: dict[int, bytes] = {}
    losses = np.zeros(2)
    bar = tqdm(
        desc="Evaluating",
        total=len(collector.counts),
        unit=" pictures",
        leave=False,
        disable=None if jax.process_index() == 0 else True,  # None: where stderr is no terminal
    )
    with bar:
        for batch, counts, predictions in run_step(eval_step, variables, batches):
            ids |= batch["ids"]
            collector.add(batch["indices"], counts, functools.partial(sharding.gather, predictions))
            losses += counts["losses"].sum(0, dtype=np.float64)
            bar.update(len(batch["indices"]))
            between_batches()
    names = picture_scores.gather_ids(ids, len(collector.counts))
    if not all(names):
        raise EvaluationError(f"{len(names) - names.count('')} pictures were evaluated instead of {len(names)}")
    total, weight = losses
    return names, total / weight if weight else math.nan


def _show(
    config, dataset: records.Dataset, samples: Sequence[int], collector: picture_scores.Collector, ids: Sequence[str]
) -> tuple[PIL.Image.Image, picture_scores.PictureScores]:
    """The contact sheet of `samples`, and what is kept of single pictures."""
    source = dataset.source(config.eval_split)
    triples = [picture_scores.open_record(source[i], collector.predictions[i]) for i in samples]
    images, labels, found = ([triple[part] for triple in triples] for part in range(3))
    sheet = viz.contact_sheet(images, labels, found, dataset.class_names, dataset.palette, config.ignore_label)
    shown = [
        picture_scores.make_shown(kind, index, source[index], collector.predictions[index], dataset.palette)
        for kind, index in collector.choose()
    ]
    return sheet, collector.finish(ids, shown, dataset.palette)

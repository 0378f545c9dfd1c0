"""Evaluation of a model on a prepared split: batches in, tables, JSON and pictures out."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import ml_collections
import numpy as np
import PIL.Image
from absl import logging
from etils import epath
from jax.sharding import Mesh

from dlv3p_jax.data import pipeline, records, viz
from dlv3p_jax.evaluation import files, metrics, picture_scores
from dlv3p_jax.evaluation import views as evaluate
from dlv3p_jax.models import Variables, build_model, variable_shapes
from dlv3p_jax.runtime import agreement, configuration, provenance, sharding
from dlv3p_jax.weights import checkpoint_reading

NUM_SAMPLES = 4  # pictures shown with label and prediction


class EvaluationError(RuntimeError):
    """What was evaluated is not what was asked for; the message has both numbers."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One evaluation: what `metrics.summarize` gave, and a contact sheet of some pictures, labels and predictions.

    `title` says what was evaluated and how, and `path` is that of its files, without .json and .png. Of several
    processes, only process 0 has a sheet, of pictures that it read.
    """

    summary: dict[str, Any]
    sheet: PIL.Image.Image | None
    num_pictures: int
    seconds: float
    title: str
    path: epath.Path
    step: int


def prepare_run(config) -> tuple[ml_collections.FrozenConfigDict, records.Dataset, Mesh]:
    """A checked configuration with what its data set fills in, that data set, and the devices, which are logged.

    Raises:
      ValueError: configuration, data set or mesh cannot be used; subclasses name what.
      DifferenceError: another process of the run has another data set.
    """
    configuration.check(config)
    dataset = records.open_dataset(config.dataset, config.data_dir)
    config = configuration.resolve(config, len(dataset.class_names), dataset.ignore_label)
    splits = (config.train_split, config.eval_split)
    agreement.require("data", agreement.data(dataset, splits) | {"config": agreement.configured(config)})
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.space)
    logging.info("Devices: %s", sharding.describe(mesh))
    return config, dataset, mesh


def views_name(config) -> str:
    """A name for how `config` evaluates, such as 'plain', 'scales-0.75-1-1.25-flip' or 'plain-padded-512x512-train'.

    Two evaluations of the same name were made in the same way, but maybe of different data sets, or with another
    `absent_class`. The split is named where it is not 'val'.
    """
    scales = tuple(config.eval.scales)
    parts = []
    if scales != (1.0,):
        parts += ["scales", *(f"{scale:g}" for scale in scales)]
    if config.eval.flip:
        parts.append("flip")
    if config.eval.window is not None:
        parts += ["window", *map(str, config.eval.window)]
    if config.eval.stride is not None:
        parts += ["stride", *map(str, config.eval.stride)]
    if config.eval.average != "logits" and parts:
        parts.append(config.eval.average)
    parts = parts or ["plain"]
    if config.eval_size is not None:
        parts += ["padded", "x".join(map(str, config.eval_size))]
    if config.eval_split != "val":
        parts.append(config.eval_split)
    return "-".join(parts)


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
    """A function that evaluates variables and writes what it finds; the program is compiled once for each picture size.

    `run(variables, step, suffix) -> Result` writes, below WORKDIR/eval, STEP.json and STEP.png and the same once more
    with the views in the name, so that another evaluation of this step does not lose them, and STEP.VIEWS.npz with what
    `picture_scores` keeps. `suffix` ('' or 'ema') tells two models of one step apart. `absent_class` is how
    `metrics.summarize` counts a class that occurs nowhere. `checkpoint` is where the variables are from, for the
    reports; None: from the run of `workdir`. `before_batch` is called with each batch that was read, and whether it is
    the first of its size, for which a program is compiled; `between_batches` is called after each batch, and what it
    raises ends the evaluation.

    Raises:
      ValueError: the split or the mesh cannot be used.
      EvaluationError: from `run`, if not every labelled pixel of the split was counted once.
    """
    checkpoint = checkpoint_reading.absolute(workdir if checkpoint is None else checkpoint)
    dataset.require_labels(config.eval_split)
    sizes = dataset.sizes(config.eval_split)
    batch_size = config.eval.batch_size
    plan = pipeline.plan_evaluation(sizes, batch_size, config.eval_size)
    for height, _ in plan.sizes:
        sharding.check_batch(mesh, batch_size, height, "config.eval.batch_size")
    eval_step = sharding.jit(
        mesh,
        evaluate.make_eval_step(config, model),
        in_shardings=(
            sharding.replicated(mesh),
            {"image": sharding.batched(mesh), "label": sharding.batched(mesh), "size": sharding.per_picture(mesh)},
        ),
        out_shardings=(sharding.replicated(mesh), sharding.batched(mesh)),
    )
    views = views_name(config)
    our_rows = sharding.local_rows(mesh, batch_size)
    compiled: set[tuple[int, ...]] = set()

    def announced(batches):
        for batch in batches:
            shape = batch["image"].shape
            before_batch(shape not in compiled)
            compiled.add(shape)
            yield batch

    def run(variables: Variables, step: int, suffix: str = "") -> Result:
        logging.info(
            "Evaluating %d pictures of %s %s (%s), %d at a time, in %d sizes, each compiled at its first batch",
            *(len(sizes), dataset.title, config.eval_split, views, batch_size, len(plan.sizes)),
        )
        start = time.monotonic()
        samples: list[list[np.ndarray]] = []
        ids: dict[int, bytes] = {}
        pictures = picture_scores.Collector(sizes, config.num_classes)
        numbered = enumerate(plan.batches)

        def look_at(batch, matrices, predictions):
            number, indices = next(numbered)
            filled = [place for place, row in enumerate(our_rows) if row < len(indices)]
            ids.update((indices[our_rows[place]], batch["id"][place]) for place in filled)
            everything = functools.cache(lambda: sharding.whole(predictions))  # of all processes, which ask together
            if number < NUM_SAMPLES:  # every batch has at least one picture
                found = everything()
                for place in filled:
                    height, width = batch["host_size"][place]
                    triple = (batch["host_image"][place], batch["host_label"][place], found[our_rows[place]])
                    samples.append([array[:height, :width] for array in triple])
            pictures.add(indices, matrices, everything)
            between_batches()

        batches = announced(_on_devices(config, dataset, mesh))
        matrix = evaluate.evaluate(eval_step, variables, batches, config.num_classes, look_at)
        seconds = time.monotonic() - start
        names = picture_scores.gather_ids(ids, len(sizes))
        if not all(names):
            raise EvaluationError(f"{len(names) - names.count('')} pictures were evaluated instead of {len(sizes)}")
        _check_pixels(matrix, dataset, config.eval_split)
        summary = metrics.summarize(matrix, absent_class)
        sheet = None
        name = f"{step}.{suffix}" if suffix else str(step)
        if jax.process_index() == 0:
            images, labels, found = ([sample[part] for sample in samples[:NUM_SAMPLES]] for part in range(3))
            sheet = viz.contact_sheet(images, labels, found, dataset.class_names, dataset.palette, config.ignore_label)
            report = (
                metrics.to_json(summary)
                | provenance.describe()
                | {
                    "checkpoint": str(checkpoint),
                    "step": step,
                    "model": configuration.to_dict(config)["model"],
                    "dataset": config.dataset,
                    "synthetic": dataset.metadata["synthetic"],
                    "split": config.eval_split,
                    "num_pictures": len(sizes),
                    "num_pixels": int(matrix.sum()),
                    "class_names": list(dataset.class_names),
                    "palette": np.asarray(dataset.palette).tolist(),
                    "scales": list(config.eval.scales),
                    "flip": config.eval.flip,
                    "window": config.eval.window,
                    "stride": config.eval.stride,
                    "average": config.eval.average,
                    "absent_class": absent_class,
                    "eval_size": config.eval_size,
                    "confusion_matrix": matrix.tolist(),
                    "seconds": seconds,
                    "devices": sharding.describe(mesh),
                }
            )
            source = dataset.source(config.eval_split)
            shown = tuple(
                picture_scores.make_shown(kind, index, source[index], pictures.predictions[index], dataset.palette)
                for kind, index in pictures.choose()
            )
            kept = picture_scores.PictureScores(tuple(names), pictures.counts, shown)
            files.write(workdir / "eval", name, views, report, sheet, kept)
        _warn_of_degenerate(matrix, dataset.class_names, absent_class)
        title = f"{dataset.title} {config.eval_split}, {views}: {checkpoint}, step {step}{' (ema)' if suffix else ''}"
        return Result(summary, sheet, len(sizes), seconds, title, workdir / "eval" / name, step)

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
    model = build_model(config)
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


def print_result(result: Result, dataset: records.Dataset) -> None:
    """Process 0 prints what was evaluated and how, the per-class table, and where the report and the pictures lie."""
    if jax.process_index() > 0:
        return
    table = metrics.table(result.summary, dataset.class_names)
    print(f"\n{result.title}\n{table}\nreport: {result.path}.json\npictures: {result.path}.png", flush=True)


def _on_devices(config, dataset, mesh):
    """The evaluation batches on the mesh, one ahead of what is being computed, with their host pictures beside."""
    batches = pipeline.eval_batches(
        dataset,
        config.eval_split,
        batch_size=config.eval.batch_size,
        ignore_label=config.ignore_label,
        eval_size=config.eval_size,
        rows=sharding.local_rows(mesh, config.eval.batch_size),
    )
    for batch in batches:
        arrays = sharding.put_batch(mesh, {name: batch[name] for name in evaluate.STEP_INPUTS})
        yield arrays | {"id": batch["id"]} | {f"host_{name}": batch[name] for name in evaluate.STEP_INPUTS}


def _check_pixels(matrix: np.ndarray, dataset: records.Dataset, split: str) -> None:
    """Holds the labelled pixels of each class against those that were counted when the data set was prepared."""
    counted, expected = matrix.sum(axis=1).tolist(), list(dataset.metadata["class_pixels"][split])
    if counted != expected:
        raise EvaluationError(
            f"{sum(counted)} labelled pixels of {dataset.title} {split} were counted, {counted} by class, but "
            f"{sum(expected)}, {expected}, when it was prepared: is {dataset.folder} damaged? Prepare it again"
        )


def _warn_of_degenerate(matrix: np.ndarray, class_names, absent_class: str) -> None:
    """Says what usually means that labels or training went wrong: absent classes, and one answer to everything."""
    labelled, predicted = matrix.sum(axis=1) > 0, matrix.sum(axis=0) > 0
    absent = [name for name, seen in zip(class_names, labelled | predicted, strict=True) if not seen]
    missed = [name for name, there, found in zip(class_names, labelled, predicted, strict=True) if there and not found]
    if predicted.sum() == 1 and labelled.sum() > 1:
        logging.warning("Only one class is ever predicted: %s", class_names[int(np.argmax(predicted))])
    elif missed:
        logging.warning("Labelled but never predicted: %s", ", ".join(missed))
    if absent:
        how = "left out of the means" if absent_class == "nan" else "counted as an IoU of 1"
        logging.warning("In neither labels nor predictions, so %s: %s", how, ", ".join(absent))

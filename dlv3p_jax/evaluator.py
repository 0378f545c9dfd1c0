"""Evaluation of a model on a prepared split: batches in, tables, JSON and pictures out."""

import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import PIL.Image
from absl import logging
from etils import epath
from jax.sharding import Mesh

from dlv3p_jax import checkpoints, configuration, evaluate, metrics, sharding, steps, viz
from dlv3p_jax.data import pipeline, records
from dlv3p_jax.models import build_model

NUM_SAMPLES = 4  # pictures shown with label and prediction


@dataclasses.dataclass(frozen=True)
class Result:
    """One evaluation: what `metrics.summarize` gave, and a contact sheet of some pictures, labels and predictions."""

    summary: dict[str, Any]
    sheet: PIL.Image.Image
    num_pictures: int
    seconds: float


def views_name(config) -> str:
    """A name for the views that `config.eval` asks for, such as 'plain', 'flip' or 'scales-0.75-1-1.25-flip'."""
    scales = tuple(config.eval.scales)
    parts = []
    if scales != (1.0,):
        parts += ["scales", *(f"{scale:g}" for scale in scales)]
    if config.eval.flip:
        parts.append("flip")
    if config.eval.window is not None:
        parts += ["window", *map(str, config.eval.window)]
    if config.eval.average != "logits" and parts:
        parts.append(config.eval.average)
    return "-".join(parts) or "plain"


def make_evaluator(
    config, dataset: records.Dataset, mesh: Mesh, model, workdir: epath.Path, absent_class: str = "nan"
) -> Callable[[steps.Variables, int, str], Result]:
    """A function that evaluates variables and writes what it finds; the program is compiled once for each picture size.

    `run(variables, step, suffix) -> Result` writes, below WORKDIR/eval, STEP.json and STEP.png and the same once more
    with the views in the name, so that another evaluation of this step does not lose them. `suffix` ('' or 'ema') tells
    two models of one step apart. `absent_class` is how `metrics.summarize` counts a class that occurs nowhere.

    Raises:
      ValueError: the split or the mesh cannot be used.
    """
    dataset.require_labels(config.eval_split)
    sizes = dataset.sizes(config.eval_split)
    batch_size = config.eval.batch_size
    plan = pipeline.plan_evaluation(sizes, batch_size, config.eval_size)
    for height, _ in plan.sizes:
        sharding.check_batch(mesh, batch_size, height, "config.eval.batch_size")
    eval_step = jax.jit(
        evaluate.make_eval_step(config, model),
        in_shardings=(
            sharding.replicated(mesh),
            {"image": sharding.batched(mesh), "label": sharding.batched(mesh), "size": sharding.rows(mesh)},
        ),
        out_shardings=(sharding.replicated(mesh), sharding.batched(mesh)),
    )
    palette = dataset.palette

    def run(variables: steps.Variables, step: int, suffix: str = "") -> Result:
        logging.info(
            "Evaluating %d pictures of %s %s (%s), %d at a time, in %d sizes, each compiled at its first batch",
            *(len(sizes), dataset.title, config.eval_split, views_name(config), batch_size, len(plan.sizes)),
        )
        start = time.monotonic()
        samples, seen = [], 0

        def look_at(batch, predictions):
            nonlocal seen
            filled = [row for row, picture_id in enumerate(batch["id"]) if picture_id]
            seen += len(filled)
            if len(samples) < NUM_SAMPLES:
                local = np.asarray(predictions)
                for row in filled:
                    height, width = batch["host_size"][row]
                    triple = (batch["host_image"][row], batch["host_label"][row], local[row])
                    samples.append([array[:height, :width] for array in triple])

        batches = _on_devices(config, dataset, mesh)
        matrix = evaluate.evaluate(eval_step, variables, batches, config.num_classes, look_at)
        seconds = time.monotonic() - start
        summary = metrics.summarize(matrix, absent_class)
        sheet = viz.contact_sheet(*zip(*samples[:NUM_SAMPLES], strict=True), dataset.class_names, palette)
        if jax.process_index() == 0:
            report = metrics.to_json(summary) | {
                "step": step,
                "dataset": config.dataset,
                "synthetic": dataset.metadata["synthetic"],
                "split": config.eval_split,
                "num_pictures": len(sizes),
                "num_pixels": int(matrix.sum()),
                "class_names": list(dataset.class_names),
                "scales": list(config.eval.scales),
                "flip": config.eval.flip,
                "window": config.eval.window,
                "stride": config.eval.stride,
                "average": config.eval.average,
                "absent_class": absent_class,
                "eval_size": config.eval_size,
                "confusion_matrix": matrix.tolist(),
                "seconds": seconds,
            }
            name = f"{step}.{suffix}" if suffix else str(step)
            write_report(workdir / "eval", name, views_name(config), report, sheet)
        _warn_of_degenerate(matrix, dataset.class_names, absent_class)
        if seen != len(sizes) and jax.process_count() == 1:
            raise RuntimeError(f"{seen} pictures were evaluated instead of {len(sizes)}")
        return Result(summary, sheet, len(sizes), seconds)

    return run


def evaluate_checkpoint(
    config, workdir: epath.PathLike, checkpoint: epath.PathLike | None = None, absent_class: str = "nan"
) -> dict[str, Any]:
    """Evaluates a checkpoint, or the best one of `workdir`, with the views of `config.eval`, and prints the table.

    Args:
      config: a configuration; its data, model and evaluation keys are read.
      workdir: gets eval/STEP.json and eval/STEP.png.
      checkpoint: a workdir or a checkpoint's folder; None for `workdir` itself.
      absent_class: see `metrics.summarize`.

    Returns:
      What `metrics.summarize` says; of the averaged model where the checkpoint holds one, which is evaluated as well.

    Raises:
      ValueError: configuration, data set, mesh or checkpoint cannot be used; subclasses name what.
    """
    workdir = epath.Path(workdir)
    configuration.check(config)
    path = checkpoints.find(workdir if checkpoint is None else checkpoint)
    dataset = records.open_dataset(config.dataset, config.data_dir)
    config = configuration.resolve(config, len(dataset.class_names), dataset.metadata["ignore_label"])
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.space)
    logging.info("Devices: %s", sharding.describe(mesh))
    trained = checkpoints.find_config(path)
    if trained is not None:
        configuration.warn_of_another_model(config, configuration.read(trained), path)
    model = build_model(config)
    expected = jax.eval_shape(lambda: init_variables(config, model))
    run = make_evaluator(config, dataset, mesh, model, workdir, absent_class)
    step = checkpoints.read_step(path)
    for suffix, item in (("", "variables"), ("ema", "ema")):
        variables = checkpoints.read_variables(path, item)
        if variables is None:
            continue
        variables, _ = checkpoints.fit_variables(variables, expected, allow_new_head=False)
        result = run(jax.device_put(variables, sharding.replicated(mesh)), step, suffix)
        what = f"{path}{' (ema)' if suffix else ''}, step {step}"
        print_result(result, dataset, what, workdir / "eval" / f"{step}{'.ema' if suffix else ''}")
    return result.summary


def init_variables(config, model) -> steps.Variables:
    """Fresh variables, decided by the seed; a small picture will do, since no parameter's shape depends on its size."""
    return model.init(jax.random.key(config.seed), np.zeros((1, 32, 32, 3), np.float32), train=False)


def write_report(folder: epath.Path, name: str, views: str, report: dict[str, Any], sheet) -> None:
    """Writes NAME.json and NAME.png, and the same as NAME.VIEWS.*; each file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem in (name, f"{name}.{views}"):
        unfinished = folder / f".{stem}.unfinished"
        unfinished.write_text(json.dumps(report, indent=2) + "\n")
        unfinished.replace(folder / f"{stem}.json")
        with unfinished.open("wb") as file:
            sheet.save(file, format="PNG")
        unfinished.replace(folder / f"{stem}.png")


def print_result(result: Result, dataset: records.Dataset, what: str, path: epath.Path) -> None:
    """Prints the per-class table and where the report and the pictures lie."""
    table = metrics.table(result.summary, dataset.class_names)
    print(f"\n{dataset.title}, {what}\n{table}\nreport: {path}.json\npictures: {path}.png", flush=True)


def _on_devices(config, dataset, mesh):
    """The evaluation batches on the mesh, one ahead of what is being computed, with their host pictures beside."""
    batches = pipeline.eval_batches(
        dataset,
        config.eval_split,
        batch_size=config.eval.batch_size,
        ignore_label=config.ignore_label,
        eval_size=config.eval_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    for batch in batches:
        arrays = sharding.put_batch(mesh, {name: batch[name] for name in evaluate.STEP_INPUTS})
        yield arrays | {"id": batch["id"]} | {f"host_{name}": batch[name] for name in evaluate.STEP_INPUTS}


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

"""A published row, measured here: python -m dlv3p_jax.reproduce cityscapes_r50 --data_dir=data

fetches the published weights, evaluates them as their publisher did, and prints published against measured: PaddleSeg's
plain, with flip, and with flip + scales in both of its definitions; MMSegmentation's (mmseg/…) plain, and with flip +
scales, of the picture and of the resized one, as it is not said which. OUTPUT gets report.json and report.md, which
grow by a line with every evaluation: one that was stopped goes on with the next line. --list shows the tables.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any, NamedTuple

import ml_collections
from absl import app, flags, logging
from etils import epath

from dlv3p_jax.runtime import arguments, cli, files, provenance, sealing, text
from dlv3p_jax.weights import mmseg_models, published

SCALES = (0.75, 1.0, 1.25)  # PaddleSeg's documentation has these; its table does not say which
MMSEG_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
Row = published.Published | mmseg_models.Published
_PUBLISHED_PICTURES = {"cityscapes": 500, "voc2012": 1449}  # that the published figures are of


class Column(NamedTuple):
    """One evaluation of a row: its title, the field of `Published` that it is held against, and what `Views` it has."""

    title: str
    field: str | None
    views: dict[str, Any]


def published_rows() -> dict[str, Row]:
    """The published models by name, PaddleSeg's and MMSegmentation's."""
    return {**published.PUBLISHED, **mmseg_models.PUBLISHED}


def columns(row: Row, scales: tuple[float, ...], resize: tuple[int, int] | None) -> list[Column]:
    """The evaluations of a row: `scales` of ms + flip, and the size that its publisher resizes pictures to fit."""
    return mmseg_columns(scales, resize) if isinstance(row, mmseg_models.Published) else paddle_columns(scales)


def mmseg_columns(scales: tuple[float, ...], resize: tuple[int, int] | None) -> list[Column]:
    """Its version 1 makes scales of the picture, its version 0 made them of the picture resized."""
    resized = {} if resize is None else {"resize": list(resize)}
    several = {"scales": list(scales), "flip": True, "average": "probabilities"}
    return [
        Column("plain", "plain", {"scales": [1.0], "flip": False, "average": "logits"} | resized),
        Column("ms + flip", "ms_flip", several),
        *([Column("ms + flip, of the resized", "ms_flip", several | resized)] if resized else []),
    ]


def paddle_columns(scales: tuple[float, ...]) -> list[Column]:
    """PaddleSeg measured the flip column that its page still shows in the old definition."""
    return [
        Column(title, field, {"scales": list(scales), "flip": flip, "average": average})
        for title, field, scales, flip, average in (
            ("plain", "plain", (1.0,), False, "logits"),
            ("flip, legacy", "flip", (1.0,), True, "legacy"),
            ("flip, logits", None, (1.0,), True, "logits"),
            ("ms + flip, legacy", "ms_flip_legacy", scales, True, "legacy"),
            ("ms + flip, logits", "ms_flip_logits", scales, True, "logits"),
        )
    ]


def define_flags() -> None:
    """Defines the command's flags; not at import, since tests import this module beside others."""
    arguments.DEFINE_config(
        "config",
        "The configuration to evaluate with; configs/NAME.py by default. --config.KEY=VALUE with it.",
        reads=("data_dir", "eval", "mesh.", "model."),
    )
    flags.DEFINE_string("data_dir", None, "The folder of prepared data sets; config.data_dir by default.")
    flags.DEFINE_string("weights", None, "The published file, where it is there already; fetched by default.")
    flags.DEFINE_string("output", None, "Where the reports go; workdir/reproduce/NAME by default.")
    flags.DEFINE_list(
        "scales", None, "The scales of ms + flip; 0.75, 1, 1.25 by default, or of MMSegmentation's 0.5, 0.75, … 1.75."
    )
    flags.DEFINE_bool("list", False, "Show the published table.")


def main(argv: list[str]) -> None:
    values = flags.FLAGS
    if values.list:
        print(published_table())
        return
    if len(argv) != 2 or argv[1] not in published_rows():
        raise app.UsageError(f"give one of {', '.join(published.PUBLISHED)}, or an mmseg/…; --list shows them")
    name = argv[1]
    row = published_rows()[name]
    cli.configure_logging()
    from dlv3p_jax.data import records  # imports TensorFlow, which wrong flags do not wait for

    config = values.config or published.config_of(name)
    if values.data_dir is not None:
        config.data_dir = values.data_dir
    usual = MMSEG_SCALES if isinstance(row, mmseg_models.Published) else SCALES
    scales = usual if values.scales is None else cli.parse_scales(values.scales)
    output = epath.Path(values.output or os.path.join("workdir", "reproduce", name))
    records.open_dataset(config.dataset, config.data_dir)  # before anything large is downloaded
    file = pathlib.Path(values.weights) if values.weights else published.fetch(name)
    report = reproduce(name, row, config, file, scales, output)
    print(f"\n{to_markdown(report)}\nreport: {output / 'report.json'}\nas Markdown: {output / 'report.md'}", flush=True)


def published_table() -> str:
    """The published rows as two Markdown tables, PaddleSeg's and MMSegmentation's; the latter are shown alone."""
    head = ("name", "data set", "backbone", "crop (w x h)", "steps", "mIoU", "flip", "ms + flip, legacy", "… logits")
    rows = [
        (name, row.dataset, row.backbone, "x".join(map(str, reversed(row.crop_size))), f"{row.num_train_steps:,}")
        + tuple(f"{row._asdict()[column.field]:.2f}" for column in paddle_columns(SCALES) if column.field)
        for name, row in published.PUBLISHED.items()
    ]
    others = [
        (name, row.dataset, row.backbone, "x".join(map(str, reversed(row.crop_size))), f"{row.num_train_steps:,}")
        + tuple("" if score is None else f"{score:.2f}" for score in (row.plain, row.ms_flip))
        for name, row in mmseg_models.PUBLISHED.items()
    ]
    other_head = (*head[:6], "ms + flip, probabilities")
    return f"{text.markdown([head, *rows])}\n\n{text.markdown([other_head, *others])}"


def reproduce(
    name: str, row: Row, config, file: pathlib.Path, scales: tuple[float, ...], output: epath.Path
) -> dict[str, Any]:
    """Evaluates a published model in all columns and writes OUTPUT/report.json, report.md and eval/.

    Args:
      name: of the row, for the report.
      row: what was published of it.
      config: the configuration to evaluate with; its data, model, evaluation batch and mesh are read.
      file: the published `.pdparams` or `.pth`.
      scales: of ms + flip.
      output: a folder; columns that its report.json has already, of the same weights, data, settings and version of
        the program, are kept.

    Returns:
      The report, as it is written: {'name', 'weights', …, 'columns': [{'title', 'published', 'measured', …}]}; all
      mIoU in percent, with the publisher's convention for a class that occurs nowhere: 1, MMSegmentation leaves it out.

    Raises:
      ValueError, OSError: data set, weights or mesh cannot be used; the message names what.
    """
    import jax  # which wrong flags do not wait for

    from dlv3p_jax import models
    from dlv3p_jax.evaluation import evaluator
    from dlv3p_jax.evaluation.views import Views
    from dlv3p_jax.runtime import configuration, sharding
    from dlv3p_jax.weights import trained

    config, dataset, mesh = evaluator.prepare_run(config)
    model = models.build_model(config)
    variables = trained.load_foreign(file, model, allow_new_head=False)
    if "decoder" not in variables["params"]:
        raise ValueError(f"{file} holds only a backbone: give the file of the whole model")
    variables = jax.device_put(variables, sharding.replicated(mesh))

    circumstances = provenance.describe()
    report = {
        "name": name,
        "weights": str(file),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "dataset": config.dataset,
        "split": config.eval_split,
        "num_pictures": dataset.num_pictures(config.eval_split),
        "published_num_pictures": _PUBLISHED_PICTURES.get(row.dataset),
        "model": configuration.to_dict(config)["model"],
        "eval_size": config.eval_size and list(config.eval_size),
        "window": config.eval.window and list(config.eval.window),
        "stride": config.eval.stride and list(config.eval.stride),
        "data": dataset.digest(config.eval_split),
        "version": circumstances["version"],
        "git_revision": circumstances["git_revision"],
    }
    if config.eval.align_corners:
        report["align_corners"] = True
    absent_class = "nan" if isinstance(row, mmseg_models.Published) else "one"
    done = _measured_before(output, report)
    report["columns"] = []
    for column in columns(row, scales, config.eval.resize):
        entry = {"title": column.title, "published": column.field and row._asdict()[column.field]} | column.views
        views = Views.of(report | entry)
        measured = next((old["measured"] for old in done if Views.of(report | old) == views), None)
        if measured is None:
            changed = ml_collections.ConfigDict(config)
            changed.eval.update(dataclasses.asdict(views))
            run = evaluator.make_evaluator(
                changed, dataset, mesh, model, output, absent_class=absent_class, checkpoint=file
            )
            measured = 100 * run(variables, 0).summary["mIoU"]
        report["columns"].append(entry | {"measured": measured})
        _write(output, report)
        logging.info("%s, %s: %.2f, published %s", name, column.title, measured, entry["published"] or "nowhere")
    return report


def to_markdown(report: dict[str, Any]) -> str:
    """A report as a table of published against measured, and what to know when comparing them."""
    rows = []
    for column in report["columns"]:
        expected, measured = column["published"], column["measured"]
        compared = ("", f"{measured:.2f}", "")
        if expected is not None:
            compared = (f"{expected:.2f}", f"{measured:.2f}", f"{measured - expected:+.2f}")
        rows.append((column["title"], " ".join(f"{scale:g}" for scale in column["scales"]), *compared))
    lines = [
        f"{report['name']}: mIoU in percent on {report['num_pictures']} pictures of {report['dataset']} "
        f"{report['split']}, with {report['weights']} (sha256 {report['sha256'][:12]}…)",
        "",
        text.markdown([("column", "scales", "published", "measured", "difference"), *rows]),
    ]
    if report["published_num_pictures"] not in (None, report["num_pictures"]):
        lines += ["", f"**Not comparable**: the published figures are of {report['published_num_pictures']} pictures."]
    return "\n".join(lines)


def _measured_before(output: epath.Path, report: dict[str, Any]) -> list[dict[str, Any]]:
    """The columns of an earlier report in `output` that says the same of weights, data, settings and program.

    Where one says something else, or is damaged, the log says so: all is measured anew.
    """
    from dlv3p_jax.evaluation.views import Views

    path = output / "report.json"
    if not path.exists():
        return []
    try:
        before = sealing.unseal(json.loads(path.read_text(encoding="utf-8")))
        other = [key for key in report if before.get(key) != report[key]]
        columns = [dict(column, measured=float(column["measured"])) for column in before["columns"]]
        _ = [Views.of(report | column) for column in columns]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logging.warning("%s is damaged (%s): all is measured anew", path, error)
        return []
    if other and columns:
        logging.warning("%s was measured with another %s: all is measured anew", path, ", ".join(other))
    return [] if other else columns


def _write(output: epath.Path, report: dict[str, Any]) -> None:
    for name, content in (
        ("report.json", json.dumps(sealing.seal(report), indent=2)),
        ("report.md", to_markdown(report)),
    ):
        files.write(output / name, content + "\n")


if __name__ == "__main__":
    define_flags()
    cli.run(main, "reproduce")

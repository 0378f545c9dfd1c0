"""The card of a model, README.md in its folder: what it is, what its evaluations found, and how to load it."""

import json
from typing import Any

from etils import epath

from dlv3p_jax import __version__
from dlv3p_jax.evaluation import files
from dlv3p_jax.runtime import text
from dlv3p_jax.weights import checkpoint_reading, model_folder
from dlv3p_jax.weights.trained import TrainedModel


def write(trained: TrainedModel, name: str) -> str:
    """The card as Markdown, with what Hugging Face's hub reads at its head.

    Args:
        trained: the model; its scores are those of its run's evaluations, and of a folder that was shared, its own card
            is given.
        name: what to load it by, a folder or USER/MODEL.
    """
    path = epath.Path(trained.path)
    if model_folder.is_one(path) and (path / model_folder.CARD).exists():
        return (path / model_folder.CARD).read_text(encoding="utf-8")
    evaluations = _evaluations(trained, path)
    model = trained.config.model
    lines = [
        *("---", *_head(trained, name, evaluations), "---", ""),
        *(f"# {name}", ""),
        f"DeepLabV3+ on {model.backbone} (output stride {model.output_stride}) for semantic segmentation: of "
        f"{len(trained.class_names)} classes, one for each pixel. From step {trained.step:,} of a training with "
        f"dlv3p_jax {__version__}.",
        *("", "```python", "from dlv3p_jax import Segmenter", ""),
        f"segmenter = Segmenter.from_pretrained({json.dumps(name, ensure_ascii=False)})",
        *('labels = segmenter("picture.jpg")  # int32 [height, width]', "```", "", "## Scores", ""),
    ]
    if not evaluations:
        lines.append("There is no evaluation of it.")
    for evaluation in evaluations[:1]:
        report = evaluation.report
        made = " These pictures are synthetic: a program drew them." if report["synthetic"] else ""
        lines += [f"On {report['num_pictures']:,} pictures of {report['dataset']} {report['split']}.{made}", ""]
        rows: list[tuple[str, ...]] = [("views", "mIoU %", "pixel accuracy %")]
        rows += [(each.title, *(_percent(each.report[key]) for key in ("mIoU", "accuracy"))) for each in evaluations]
        lines += [text.markdown(rows), ""]
    rows = [("class", "colour", "IoU %")]
    scores = evaluations[0].report["IoU"] if evaluations else [None] * len(trained.class_names)
    for class_name, color, score in zip(trained.class_names, trained.palette, scores, strict=True):
        rows.append((class_name.replace("|", "\\|"), f"#{bytes(color).hex()}", _percent(score)))
    return "\n".join([*lines, "## Classes", "", text.markdown(rows), ""])


def _evaluations(trained: TrainedModel, path: epath.Path) -> list[files.Evaluation]:
    """Those of this very model, the simplest first."""
    config = checkpoint_reading.find_config(path) if path.is_dir() else None
    try:
        found = [] if config is None else files.read(config.parent, trained.step)
    except files.ReportError:
        return []
    names = list(trained.class_names)
    averaged = trained.source.endswith("(ema)")
    return [
        each
        for each in found
        if each.run in (".", None) and each.is_ema == averaged and each.report["class_names"] == names
    ]


def _head(trained: TrainedModel, name: str, evaluations: list[files.Evaluation]) -> list[str]:
    """Lines of YAML, whose values are JSON, which is YAML."""
    head: dict[str, Any] = {
        "library_name": "dlv3p_jax",
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "deeplabv3plus", "jax", "flax"],
    }
    if evaluations:
        report = evaluations[0].report
        result = {
            "task": {"type": "image-segmentation"},
            "dataset": {"name": report["dataset"], "type": report["dataset"], "split": report["split"]},
            "metrics": [
                {"type": key, "name": title, "value": report[key]}
                for key, title in (("mIoU", "mIoU"), ("accuracy", "pixel accuracy"))
            ],
        }
        head["model-index"] = [{"name": name, "results": [result]}]
    # YAML does not know the pairs of \u that JSON has for what lies beyond 16 bits.
    return [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]


def _percent(score: float | None) -> str:
    return "" if score is None else f"{100 * score:.2f}"

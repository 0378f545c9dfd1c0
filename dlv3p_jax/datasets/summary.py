"""What a prepared data set holds, as a table and as warnings for people."""

import collections

from dlv3p_jax.data.example import UNTOLD_TURN
from dlv3p_jax.data.records import Dataset

_DOMINANT = 0.95  # a class above this share of the pixels drowns the others


def table(dataset: Dataset) -> str:
    """Pictures and sizes of every split, and the share of pixels of every class."""
    lines = []
    if dataset.metadata["synthetic"]:
        lines.append(f"{dataset.name} is synthetic: {dataset.metadata['description']}")
    for split in dataset.splits:
        sizes = collections.Counter(dataset.sizes(split)).most_common()
        shown = ", ".join(f"{width}x{height} ({count})" for (height, width), count in sizes[:4])
        more = f" and {len(sizes) - 4} other sizes" if len(sizes) > 4 else ""
        if not sizes:
            lines.append(f"{split}: nothing is left of it: each picture or its label is bad or missing")
            continue
        unlabelled = "" if dataset.has_labels(split) else " without labels"
        lines.append(f"{split}: {dataset.num_pictures(split)} pictures{unlabelled}; width x height {shown}{more}")
    labelled = [split for split in dataset.splits if dataset.has_labels(split)]
    width = max(len("of all pixels"), *map(len, dataset.class_names))
    lines.append(f"{'class':>5}  {'':{width}}" + "".join(f"{split:>10}" for split in labelled))
    shares = {split: _shares(dataset, split) for split in labelled}
    for index, name in enumerate(dataset.class_names):
        lines.append(f"{index:5}  {name:{width}}" + "".join(f"{shares[split][index]:10.2%}" for split in labelled))
    ignored = "".join(f"{shares[split][-1]:10.2%}" for split in labelled)
    lines.append(f"{dataset.ignore_label:5}  {'ignored':{width}}{ignored}")
    for note, count in dataset.metadata["notes"].items():
        lines.append(f"{count} of {sum(map(dataset.num_pictures, dataset.splits))}: {note}")
    return "\n".join(lines)


def warnings(dataset: Dataset) -> list[str]:
    """What is unlikely to be meant: classes that never occur in a split, one class nearly everywhere."""
    found = []
    if untold := dataset.metadata["notes"].get(UNTOLD_TURN):
        found.append(
            f"EXIF turns {untold} pictures whose labels would fit turned or not: they are taken as drawn on the "
            "picture as it is shown. Look at them with --preview; if they lie otherwise, remove the EXIF "
            "orientation of the pictures"
        )
    for split in filter(dataset.has_labels, dataset.splits):
        pixels = dataset.metadata["class_pixels"][split]
        absent = [f"{index} ({dataset.class_names[index]})" for index, count in enumerate(pixels) if not count]
        if absent:
            found.append(f"{split}: class {', '.join(absent)} never occurs")
        if max(pixels) > _DOMINANT * sum(pixels):
            top = pixels.index(max(pixels))
            share = pixels[top] / sum(pixels)
            found.append(
                f"{split}: {share:.1%} of the pixels are class {top} ({dataset.class_names[top]}); if little else is "
                "learnt, weigh the classes (--config.loss.class_weights=balanced)"
            )
    return found


def _shares(dataset: Dataset, split: str) -> list[float]:
    """The share of all pixels of every class, then of the ignored ones."""
    counts = [*dataset.metadata["class_pixels"][split], dataset.metadata["ignored_pixels"][split]]
    return [count / sum(counts) for count in counts]

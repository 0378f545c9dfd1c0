"""Random-access sources of pictures and labels in place of a prepared data set: read, checked and counted once."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from absl import logging

from dlv3p_jax.data import pictures, records, viz
from dlv3p_jax.data.errors import DatasetError


class Source(Protocol):
    """What can be trained on: how many pictures there are, and each of them, whenever it is asked for.

    It is asked by several threads at once, and has to give the same whenever it is asked for the same.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[np.ndarray, np.ndarray]:
        """A picture, uint8 `[H, W, 3]` in RGB, and its label, uint8 `[H, W]`: class indices or the ignored label."""
        ...


@dataclasses.dataclass(frozen=True)
class SourceDataset(records.Dataset):
    """Sources by split, as a data set; `digests` has the SHA-256 of all pictures and labels of each."""

    sources: dict[str, Source] = dataclasses.field(kw_only=True, repr=False)
    digests: dict[str, str] = dataclasses.field(kw_only=True)

    def source(self, split: str) -> Sequence[dict[str, bytes]]:
        return _Encoded(self.sources[self._known(split)], split)

    def digest(self, split: str) -> dict[str, str]:
        parts = {"sizes": self.sizes(split), "class_pixels": self.metadata["class_pixels"][split]}
        found = {name: hashlib.sha256(json.dumps(part).encode()).hexdigest() for name, part in parts.items()}
        return found | {"content": self.digests[split]}

    def damaged(self, split: str, index: int, reason: str, picture_id: bytes = b"") -> DatasetError:
        return DatasetError(f"{split}[{index}]: {reason}; a source has to give the same whenever it is asked")


def open_sources(config, sources: dict[str, Source]) -> SourceDataset:
    """The data set of `sources`, by the names of their splits; each is read once, and checked and counted.

    Args:
        config: `num_classes`, `ignore_label` and `dataset`, its name for people, are read. The names of the classes are
            the `class_names` of the first source, where it has them.
        sources: at least one picture each.

    Raises:
        DatasetError: a picture or label is not as in `Source`, or `num_classes` is not set; the message names which.
    """
    if config.num_classes is None:
        raise DatasetError("config.num_classes=None: sources do not tell how many classes there are; set it")
    number, ignore_label = config.num_classes, config.ignore_label
    names = getattr(next(iter(sources.values())), "class_names", [f"class {index}" for index in range(number)])
    if len(names) != number:
        raise DatasetError(f"config.num_classes={number}, but the source has {len(names)} class_names")
    metadata: dict[str, Any] = dict(description="sources", synthetic=False, class_names=list(names), notes={})
    metadata |= dict(palette=viz.palette(number).tolist(), ignore_label=ignore_label)
    metadata |= dict(sizes={}, class_pixels={}, ignored_pixels={})
    digests = {}
    for split, source in sources.items():
        logging.info("Reading the %d pictures of %s once, to check and count them", len(source), split)
        if len(source) == 0:
            raise DatasetError(f"{split}: the source is empty")
        counts, digest, sizes = np.zeros(256, np.int64), hashlib.sha256(), []
        for index in range(len(source)):
            image, label = _checked(source, split, index)
            counts += np.bincount(label.ravel(), minlength=256)
            if outside := [value for value in np.flatnonzero(counts[number:]) + number if value != ignore_label]:
                raise DatasetError(
                    f"{split}[{index}]: the label holds {outside[0]}, which is none of the {number} classes and not "
                    f"config.ignore_label={ignore_label}"
                )
            sizes.append([*label.shape, 1])
            digest.update(image.tobytes() + label.tobytes())
        classes = [int(count) if value != ignore_label else 0 for value, count in enumerate(counts[:number])]
        metadata["sizes"][split], metadata["class_pixels"][split] = sizes, classes
        metadata["ignored_pixels"][split] = int(counts.sum()) - sum(classes)
        digests[split] = digest.hexdigest()
    folder, builder = pathlib.Path(config.dataset), None
    return SourceDataset(config.dataset, folder, metadata, builder, sources=sources, digests=digests)


class _Encoded(Sequence[dict[str, bytes]]):
    """A source as records, whose pictures are files: PNGs that are not compressed."""

    def __init__(self, source: Source, split: str):
        self._source, self._split = source, split

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, bytes]:  # type: ignore[override]  # nobody takes slices
        pair = _checked(self._source, self._split, index)
        image, label = (pictures.encode(array, compress_level=0) for array in pair)
        return {"id": str(index).encode(), "image": image, "label": label}


def _checked(source: Source, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    pair = source[index]
    try:
        image, label = map(np.asarray, pair)
    except (TypeError, ValueError):  # no pair, or what no array is made of
        raise DatasetError(
            f"{split}[{index}] is no pair, but of {type(pair)}: give a picture and its label, as in Source"
        ) from None
    for what, array, shape in (("picture", image, (*label.shape[:2], 3)), ("label", label, image.shape[:2])):
        if array.dtype != np.uint8 or array.shape != shape or not array.size:
            raise DatasetError(
                f"{split}[{index}]: the {what} is {array.dtype} {list(array.shape)}: give a picture, uint8 [H, W, 3], "
                "and its label, uint8 [H, W]"
            )
    return image, label

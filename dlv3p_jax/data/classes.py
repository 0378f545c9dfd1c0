"""The classes of Cityscapes and of Pascal VOC 2012, and what the values of Cityscapes' label files mean.

Nothing here imports TensorFlow: worker processes run it.
"""

from typing import NamedTuple

import numpy as np

from dlv3p_jax.data import viz
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.label_map import count_values, list_counts
from dlv3p_jax.data.labels import read_label

IGNORED = 255


class Classes(NamedTuple):
    """The names and colours of a data set's classes, class 0 first."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]


class Label(NamedTuple):
    """A class of Cityscapes: the value in *_labelIds.png, the index that is trained on, and the official colour."""

    name: str
    id: int
    train_id: int
    color: tuple[int, int, int]


# As defined by the authors of the data (cityscapesScripts, helpers/labels.py); IGNORED is trained and scored nowhere.
CITYSCAPES_LABELS = (
    Label("unlabeled", 0, IGNORED, (0, 0, 0)),
    Label("ego vehicle", 1, IGNORED, (0, 0, 0)),
    Label("rectification border", 2, IGNORED, (0, 0, 0)),
    Label("out of roi", 3, IGNORED, (0, 0, 0)),
    Label("static", 4, IGNORED, (0, 0, 0)),
    Label("dynamic", 5, IGNORED, (111, 74, 0)),
    Label("ground", 6, IGNORED, (81, 0, 81)),
    Label("road", 7, 0, (128, 64, 128)),
    Label("sidewalk", 8, 1, (244, 35, 232)),
    Label("parking", 9, IGNORED, (250, 170, 160)),
    Label("rail track", 10, IGNORED, (230, 150, 140)),
    Label("building", 11, 2, (70, 70, 70)),
    Label("wall", 12, 3, (102, 102, 156)),
    Label("fence", 13, 4, (190, 153, 153)),
    Label("guard rail", 14, IGNORED, (180, 165, 180)),
    Label("bridge", 15, IGNORED, (150, 100, 100)),
    Label("tunnel", 16, IGNORED, (150, 120, 90)),
    Label("pole", 17, 5, (153, 153, 153)),
    Label("polegroup", 18, IGNORED, (153, 153, 153)),
    Label("traffic light", 19, 6, (250, 170, 30)),
    Label("traffic sign", 20, 7, (220, 220, 0)),
    Label("vegetation", 21, 8, (107, 142, 35)),
    Label("terrain", 22, 9, (152, 251, 152)),
    Label("sky", 23, 10, (70, 130, 180)),
    Label("person", 24, 11, (220, 20, 60)),
    Label("rider", 25, 12, (255, 0, 0)),
    Label("car", 26, 13, (0, 0, 142)),
    Label("truck", 27, 14, (0, 0, 70)),
    Label("bus", 28, 15, (0, 60, 100)),
    Label("caravan", 29, IGNORED, (0, 0, 90)),
    Label("trailer", 30, IGNORED, (0, 0, 110)),
    Label("train", 31, 16, (0, 80, 100)),
    Label("motorcycle", 32, 17, (0, 0, 230)),
    Label("bicycle", 33, 18, (119, 11, 32)),
    Label("license plate", -1, IGNORED, (0, 0, 142)),  # -1 is 255 where a file of 8 bits holds it
)
_TRAINED = sorted((label for label in CITYSCAPES_LABELS if label.train_id != IGNORED), key=lambda label: label.train_id)
CITYSCAPES = Classes(tuple(label.name for label in _TRAINED), tuple(label.color for label in _TRAINED))
_VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
VOC2012 = Classes(_VOC_NAMES, tuple(map(tuple, viz.palette(len(_VOC_NAMES)).tolist())))
CITYSCAPES_ADVICE = (
    "Cityscapes has train ids 0..18 and 255, labelIds 0..33 and 255: take the label files as distributed"
)

_UNKNOWN = 254  # in the table below: no label has this value


def _train_id_table() -> np.ndarray:
    table = np.full(256, _UNKNOWN, np.uint8)
    for label in CITYSCAPES_LABELS:
        table[label.id % 256] = label.train_id
    return table


_TRAIN_IDS = _train_id_table()  # by labelId as stored in 8 bits
CITYSCAPES_IDS = np.array([label.id for label in _TRAINED], np.uint8)  # by train id


def to_train_ids(label_ids: np.ndarray) -> np.ndarray:
    """labelIds, integers [H, W], as train ids: uint8 [H, W] of 0..18 and 255.

    Raises:
        DatasetError: a value that no class of Cityscapes has.
    """
    train_ids = _TRAIN_IDS[np.where(label_ids > 255, _UNKNOWN, label_ids)]
    unknown = label_ids[train_ids == _UNKNOWN]
    if unknown.size:
        found = [(str(value), count) for value, count in count_values(unknown)]
        raise DatasetError(f"{list_counts(found)} outside the labelIds of Cityscapes; {CITYSCAPES_ADVICE}")
    return train_ids


def read_train_ids(path: str) -> np.ndarray:
    """The train ids, uint8 [H, W], of a *_labelIds.png; what a *_labelTrainIds.png holds, as it is.

    Raises:
        DatasetError: see `labels.decode` and `to_train_ids`.
    """
    values = read_label(path, advice=CITYSCAPES_ADVICE)
    if path.endswith("_labelTrainIds.png"):
        return values
    try:
        return to_train_ids(values)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error

"""What an evaluation keeps of its single pictures: the counts of all, and a few of them to be looked at.

The counts are what intervals and tests over pictures are computed from. The pictures that are kept have the worst, the
best and a typical mIoU of their own, which is not that of the data set: it is over the classes that the picture shows.
Others have labels that the model doubts, or show the most frequent errors.
"""

import dataclasses
import hashlib
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from PIL import Image

from dlv3p_jax.data import viz
from dlv3p_jax.data.labels import read_label
from dlv3p_jax.data.pictures import encode, read_rgb
from dlv3p_jax.evaluation import calibration, metrics
from dlv3p_jax.runtime import disk_errors, files
from dlv3p_jax.runtime.errors import UserError

KINDS = ("worst", "typical", "best")
SHOWN = 3  # of each kind
DOUBTED = 6  # pictures whose labels are doubted most
CONFUSED = 6  # the most frequent errors, of each of which the picture that shows most of it is kept
PER_CELL = 3  # pictures that are remembered for each cell of the confusion matrix
SHOWN_WIDTH = 480
_TYPICAL_FROM = 100  # typical pictures are looked for among at least so many, evenly spread, and not among all
_LATER = ("label_probability", "calibration", "confused")  # what files of the first versions lack


class PictureScoresError(UserError):
    """A file of picture scores cannot be read; the message names it."""


@dataclasses.dataclass(frozen=True)
class Shown:
    """A picture to look at, at most SHOWN_WIDTH wide: a JPEG, and palette PNGs of its label and its prediction."""

    kind: str
    index: int
    image: bytes
    label: bytes
    prediction: bytes


@dataclasses.dataclass(frozen=True)
class PictureScores:
    """The pictures of a split by position. What the first versions did not keep is None, or empty.

    Attributes:
      ids: their names.
      counts: int32 `[N, 3, C]` (`metrics.pixel_counts`).
      shown: those to look at.
      predictions: palette PNGs by position, at most SHOWN_WIDTH wide: of up to about 100 pictures, evenly spread.
      label_probability: float32 `[N, C]` (`calibration.sum_probabilities`).
      calibration: float64 `[3, BINS]` (`calibration.calibration_error`).
      confused: int32 `[2, C, C, PER_CELL]`: for each cell [label, prediction] the pixels of the pictures that have
        most of it, and the positions of these.
    """

    ids: tuple[str, ...]
    counts: np.ndarray
    shown: tuple[Shown, ...]
    predictions: Mapping[int, bytes] = dataclasses.field(default_factory=dict)
    label_probability: np.ndarray | None = None
    calibration: np.ndarray | None = None
    confused: np.ndarray | None = None

    def prediction(self, index: int) -> bytes | None:
        """The palette PNG of a prediction, where it was kept."""
        shown = (shown.prediction for shown in self.shown if shown.index == index)
        return self.predictions.get(index) or next(shown, None)


def own_scores(counts: np.ndarray) -> np.ndarray:
    """The mIoU of each picture alone, over the classes that its label or prediction shows; NaN if it shows none."""
    return metrics.scores(counts)["mIoU"]


class Collector:
    """Takes the batches of an evaluation and keeps the counts of all pictures, and predictions of a few.

    In every process alike: all of them see the same counts, and so ask for predictions together.

    Attributes:
      matrix: int64 `[C, C]` confusion matrix [label, prediction] of all: over a data set, int32 would overflow.
      counts, label_probability, calibration, confused: see `PictureScores`.
      predictions: uint8 `[h, w]` by position, at most SHOWN_WIDTH wide.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], num_classes: int, samples: Collection[int] = ()):
        """Args: the (height, width) of the split's pictures by position; the number of classes; what to keep anyway."""
        self._sizes, self._samples = sizes, frozenset(samples)
        self.matrix = np.zeros((num_classes, num_classes), np.int64)
        self.counts = np.zeros((len(sizes), 3, num_classes), np.int32)
        self.label_probability = np.zeros((len(sizes), num_classes), np.float32)
        self.calibration = np.zeros((3, calibration.BINS))
        self.confused = np.zeros((2, num_classes, num_classes, PER_CELL), np.int32)
        # Of each class, the pictures whose labels are least probable: minus that probability, and their positions.
        self._least = np.stack([np.full((num_classes, DOUBTED), -np.inf), np.zeros((num_classes, DOUBTED))])
        self._probability = np.zeros(num_classes)
        self._scores = np.full(len(sizes), np.nan)
        self._maybe_typical = set(range(0, len(sizes), max(len(sizes) // _TYPICAL_FROM, 1)))
        self.predictions: dict[int, np.ndarray] = {}

    def add(
        self,
        indices: Sequence[int],
        counts: Mapping[str, np.ndarray],
        read_predictions: Callable[[], np.ndarray],
    ) -> None:
        """Takes a batch.

        Args:
          indices: the positions of its pictures, which come before what fills it up.
          counts: what `make_eval_step`'s function counts, on the host.
          read_predictions: fetches uint8 `[B, H, W]`; called only if one of them is to be kept.
        """
        indices = list(indices)
        matrices = counts["matrices"][: len(indices)]
        self.matrix += matrices.sum(0, dtype=np.int64)
        self.counts[indices] = metrics.pixel_counts(matrices)
        self._scores[indices] = own_scores(self.counts[indices])
        self.label_probability[indices] = counts["label_probability"][: len(indices)]
        self._probability += counts["label_probability"].sum(0, dtype=np.float64)
        self.calibration += np.vstack([counts["confident"].sum(0, dtype=np.int64), counts["confidence"].sum(0)])
        self.confused = _keep_largest(self.confused, np.moveaxis(matrices, 0, -1), indices)
        doubts = -calibration.doubts(self.label_probability[indices], self.counts[indices]).T
        self._least = _keep_largest(self._least, np.where(np.isnan(doubts), -np.inf, doubts), indices)
        order = self._order()
        wanted = {*order[:SHOWN], *order[-SHOWN:], *self._maybe_typical.intersection(order), *self._samples}
        wanted |= {*self._doubted(), *self._confused()}
        self.predictions = {index: kept for index, kept in self.predictions.items() if index in wanted}
        if wanted.isdisjoint(indices):
            return
        for index, prediction in zip(indices, read_predictions(), strict=False):
            if index in wanted:
                height, width = self._sizes[index]
                self.predictions[index] = _shrink(Image.fromarray(prediction[:height, :width]))

    def choose(self) -> list[tuple[str, int]]:
        """(kind, position) of the pictures to look at, of each kind the worst first; no picture comes twice.

        Of what the model doubts and confuses, only what was still kept when it became one of these.
        """
        order = self._order()
        extreme = min(SHOWN, len(order) // 3)
        worst, best = order[:extreme], order[len(order) - extreme :]
        median = np.nanmedian(self._scores) if order else 0
        rest = [index for index in order if index in self._maybe_typical and index not in {*worst, *best}]
        typical = sorted(rest, key=lambda index: abs(self._scores[index] - median))[:SHOWN]
        groups = zip(KINDS, (worst, sorted(typical, key=order.index), best), strict=True)
        chosen = {index: kind for kind, group in groups for index in group}
        for kind, group in (("doubted", self._doubted()), ("confused", self._confused())):
            chosen |= {index: kind for index in group if index not in chosen and index in self.predictions}
        return [(kind, index) for index, kind in chosen.items()]

    def finish(self, ids: Sequence[str], shown: Sequence[Shown], palette: viz.Palette) -> PictureScores:
        """All that is kept, of pictures of these `ids`."""
        spread = sorted(self._maybe_typical.intersection(self.predictions))
        predictions = {index: encode(viz.label_png(self.predictions[index], palette)) for index in spread}
        found = self.label_probability, self.calibration, self.confused
        return PictureScores(tuple(ids), self.counts, tuple(shown), predictions, *found)

    def _doubted(self) -> list[int]:
        """The positions of the pictures with the labels that are doubted most, these first."""
        usual = self._probability / np.maximum(self.matrix.sum(1), 1)
        below = (usual[:, None] + self._least[0]).ravel()  # how far, of each class
        order = np.argsort(-below, kind="stable")[: np.count_nonzero(np.isfinite(below))]
        return [int(index) for index in dict.fromkeys(self._least[1].ravel()[order])][:DOUBTED]

    def _confused(self) -> list[int]:
        """The positions of pictures with the most frequent errors, these first."""
        return [
            int(self.confused[1][cell][0])
            for cell in largest_errors(self.matrix, CONFUSED)
            if self.confused[0][cell][0]
        ]

    def _order(self) -> list[int]:
        """The positions of what was seen so far, the worst first, without pictures that show no class."""
        seen = np.flatnonzero(~np.isnan(self._scores))
        return seen[np.argsort(self._scores[seen], kind="stable")].tolist()


def largest_errors(matrix: np.ndarray, number: int) -> list[tuple[int, int]]:
    """The cells [label, prediction] off the diagonal with the most pixels, at most `number`; none without pixels."""
    errors = matrix * ~np.eye(len(matrix), dtype=bool)
    cells = np.argsort(-errors, axis=None, kind="stable")[:number]
    label, prediction = np.unravel_index(cells[errors.ravel()[cells] > 0], errors.shape)
    return list(zip(label.tolist(), prediction.tolist(), strict=True))


def gather_ids(ours: dict[int, bytes], num_pictures: int) -> list[str]:
    """The ids of all pictures by position, from what each process has read; '' where nobody has.

    All processes have to call this together.
    """
    if jax.process_count() == 1:
        return [ours.get(index, b"").decode() for index in range(num_pictures)]
    width = max(map(len, ours.values()), default=0)
    width = int(multihost_utils.process_allgather(np.int32(width)).max())
    letters = np.zeros((num_pictures, width), np.uint8)
    for index, picture_id in ours.items():
        letters[index, : len(picture_id)] = np.frombuffer(picture_id, np.uint8)
    letters = multihost_utils.process_allgather(letters).max(axis=0)
    return [bytes(row).rstrip(b"\0").decode() for row in letters]


def open_record(record: dict[str, bytes], prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture, uint8 `[h, w, 3]`, and its label and its prediction, uint8 `[h, w]`, all of the prediction's size.

    Args: its record, in which `image` and `label` are files; the prediction as it was collected.
    """
    size = prediction.shape[::-1]
    image = Image.fromarray(read_rgb(record["image"])).resize(size, Image.Resampling.BICUBIC, reducing_gap=2)
    return np.asarray(image), _shrink(Image.fromarray(read_label(record["label"]))), prediction


def make_shown(kind: str, index: int, record: dict[str, bytes], prediction: np.ndarray, palette) -> Shown:
    """A picture to look at; see `open_record`."""
    image, *maps = open_record(record, prediction)
    label_png, prediction_png = (encode(viz.label_png(pixels, palette)) for pixels in maps)
    return Shown(kind, index, encode(image, "JPEG", quality=85), label_png, prediction_png)


def write(path: epath.Path, scores: PictureScores) -> str:
    """Writes a compressed NumPy archive, which appears whole or not at all, and returns its SHA-256."""
    arrays: dict[str, Any] = {"ids": np.array(scores.ids), "counts": scores.counts}
    arrays["shown_kinds"] = np.array([shown.kind for shown in scores.shown], "U8")
    arrays["shown_indices"] = np.array([shown.index for shown in scores.shown], np.int64)
    for number, shown in enumerate(scores.shown):
        for part in ("image", "label", "prediction"):
            arrays[f"{part}_{number}"] = np.frombuffer(getattr(shown, part), np.uint8)
    for name in _LATER:
        if getattr(scores, name) is not None:
            arrays[name] = getattr(scores, name)
    arrays |= {f"kept_{index}": np.frombuffer(data, np.uint8) for index, data in scores.predictions.items()}
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    files.write(path, file.getvalue())
    return hashlib.sha256(file.getvalue()).hexdigest()


def read(path: epath.Path, sha256: str | None = None) -> PictureScores | None:
    """What `write` wrote; None if there is no such file.

    Args:
      path: of the file.
      sha256: what `write` returned; None: not compared, since what is older does not say.

    Raises:
      PictureScoresError: the file is damaged, or another than that, or it cannot be read now.
    """
    if not path.exists():
        return None
    try:
        data = disk_errors.patiently(path.read_bytes)
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError("it is not what was written with the .json beside it")
        with np.load(io.BytesIO(data)) as arrays:
            shown = [
                Shown(str(kind), int(index), *(arrays[f"{p}_{n}"].tobytes() for p in ("image", "label", "prediction")))
                for n, (kind, index) in enumerate(zip(arrays["shown_kinds"], arrays["shown_indices"], strict=True))
            ]
            kept = (name for name in arrays if name.startswith("kept_"))
            predictions = {int(name.removeprefix("kept_")): arrays[name].tobytes() for name in kept}
            later = {name: arrays[name] for name in _LATER if name in arrays}
            ids = tuple(map(str, arrays["ids"]))
            scores = PictureScores(ids, arrays["counts"], tuple(shown), predictions, **later)
    except Exception as error:  # of many classes, from zipfile, zlib and NumPy
        if (words := disk_errors.passing(error)) is not None:
            raise PictureScoresError(f"{path} cannot be read now: {words}") from error
        raise PictureScoresError(f"{path} is damaged ({error})") from error
    return scores


def _keep_largest(kept: np.ndarray, values: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    """The largest of `kept` (values and positions, `[2, ..., K]`) and a batch (`[..., B]`); of equals, the earlier."""
    positions = np.broadcast_to(np.array(indices), values.shape)
    both = np.concatenate([kept, np.stack([values, positions]).astype(kept.dtype)], -1)
    best = np.argsort(-both[0], axis=-1, kind="stable")[..., : kept.shape[-1]]
    return np.take_along_axis(both, best[None], -1)


def _shrink(label: Image.Image) -> np.ndarray:
    """A label map, at most SHOWN_WIDTH wide, without mixing classes."""
    width = min(label.width, SHOWN_WIDTH)
    height = max(round(label.height * width / label.width), 1)
    return np.asarray(label.resize((width, height), Image.Resampling.NEAREST))

"""The files that predict writes for a picture: where they are, what they hold, and that they are whole or not there."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath
from PIL import Image

from dlv3p_jax.data import classes, viz
from dlv3p_jax.inference.finding import Picture
from dlv3p_jax.inference.predictor import Prediction
from dlv3p_jax.runtime import files

_VOC_FOLDER = pathlib.Path("results", "VOC2012", "Segmentation", "comp6_test_cls")
_OVERLAY_ROWS = 512  # at a time, as it takes 55 bytes a pixel
_ID_PALETTE = [label.color for label in classes.CITYSCAPES_LABELS if label.id >= 0]


@dataclasses.dataclass(frozen=True)
class Files:
    """Where the outputs of a picture go; `probabilities` None: they are not written."""

    label: pathlib.Path
    overlay: pathlib.Path
    probabilities: pathlib.Path | None

    def paths(self) -> list[pathlib.Path]:
        """Those that are written."""
        return [path for path in (self.label, self.overlay, self.probabilities) if path is not None]

    def are_there(self) -> bool:
        return all(path.is_file() for path in self.paths())


@dataclasses.dataclass(frozen=True)
class LabelValues:
    """What a label PNG holds for each class, uint8 `[C]`, and the palette that it shows these values in."""

    values: np.ndarray
    palette: viz.Palette


def label_folder(submission: str | None) -> pathlib.Path:
    """The folder of labels, below that of all outputs."""
    return _VOC_FOLDER if submission == "voc" else pathlib.Path("labels")


def files_of(
    pictures: Sequence[Picture], output: pathlib.Path, submission: str | None, probabilities: bool
) -> dict[str, Files]:
    """The `Files` of each picture in the folder `output`, by its name.

    Args:
        pictures: what `finding.find_pictures` gave.
        output: the folder.
        submission: 'voc' for the label folder that VOC's server takes, which wants all labels side by side; or None.
        probabilities: whether there are any.

    Raises:
        ValueError: two labels would be called the same.
    """
    outputs: dict[str, Files] = {}
    stems: dict[pathlib.Path, Picture] = {}
    labels = output / label_folder(submission)
    for picture in pictures:
        label = labels / f"{picture.name}.png"
        if submission == "voc":
            label = labels / f"{picture.path.stem}.png"
            other = stems.setdefault(label, picture)
            if other is not picture:
                raise ValueError(f"{other.path} and {picture.path} would both be {label.name} in the submission")
        overlay = output / "overlays" / f"{picture.name}.jpg"
        values = output / "probabilities" / f"{picture.name}.npy" if probabilities else None
        outputs[picture.name] = Files(label, overlay, values)
    return outputs


def label_values(num_classes: int, palette: viz.Palette, label_ids: bool, submission: str | None) -> LabelValues:
    """What label PNGs of a model hold: class indices, or Cityscapes' official ids.

    Args:
        num_classes, palette: of the model.
        label_ids: whether to write Cityscapes' official ids.
        submission: 'voc' where the labels are for VOC's server; or None.

    Raises:
        ValueError: the model has other classes than that.
    """
    if label_ids:
        _require(num_classes, len(classes.CITYSCAPES_IDS), "--label_ids is for the train ids of Cityscapes")
        return LabelValues(classes.CITYSCAPES_IDS, _ID_PALETTE)
    if submission == "voc":
        _require(num_classes, len(classes.VOC2012.names), "--submission=voc is for the classes of Pascal VOC")
    return LabelValues(np.arange(num_classes, dtype=np.uint8), palette)


def _require(num_classes: int, expected: int, what: str) -> None:
    if num_classes != expected:
        raise ValueError(f"{what}, of which there are {expected}; this checkpoint has {num_classes} classes")


def write(outputs: Files, prediction: Prediction, palette: viz.Palette, label_values: LabelValues) -> None:
    """Writes the outputs of a picture; a file appears under its name when it is whole.

    Args:
        outputs: where to.
        prediction: of the picture, with probabilities where `outputs` has a place for them.
        palette: the classes' colours, for the overlay.
        label_values: for the label.

    Raises:
        OSError: a file cannot be written; it names the file.
    """
    if outputs.probabilities is not None and prediction.probabilities is not None:
        array = np.ascontiguousarray(prediction.probabilities)
        with _replacing(outputs.probabilities) as path, path.open("wb") as file:
            # What np.save does, which does not say why it cannot write into a file.
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
            file.write(array.data)
    with _replacing(outputs.overlay) as path:
        parts = (slice(top, top + _OVERLAY_ROWS) for top in range(0, len(prediction.label), _OVERLAY_ROWS))
        overlay = [viz.overlay(prediction.image[rows], prediction.label[rows], palette) for rows in parts]
        Image.fromarray(np.concatenate(overlay)).save(path, "JPEG", quality=90)
    with _replacing(outputs.label) as path:
        viz.label_png(label_values.values[prediction.label], label_values.palette).save(path, "PNG")


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[epath.Path]:
    """`files.replacing`, in a folder that may have to be made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as unfinished:
        yield unfinished

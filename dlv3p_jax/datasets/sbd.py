"""Labels of the Semantic Boundaries Dataset (Hariharan et al., ICCV 2011), which come as MATLAB files.

Nothing here imports TensorFlow: worker processes run it.
"""

import io
import pathlib

import numpy as np
import scipy.io

from dlv3p_jax.data import opening
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.labels import read_label
from dlv3p_jax.datasets.pairs import read_lines

ADVICE = "Pascal VOC has 0..20 and 255, in palette or grey PNG: take the label files as distributed"


def read_segmentation(path: str) -> np.ndarray:
    """The class indices, uint8 [H, W] of 0..20, of a file of cls/: `GTcls.Segmentation`.

    Raises:
        DatasetError: the file cannot be read, or holds no segmentation.
    """
    data = opening.read_bytes(path)
    try:
        contents = scipy.io.loadmat(io.BytesIO(data), variable_names=["GTcls"])
    except Exception as error:  # a damaged file makes SciPy raise whatever its parsers do
        raise DatasetError(f"{path}: damaged, or no MATLAB file of SBD ({error})") from error
    try:
        label = contents["GTcls"]["Segmentation"][0, 0]
    except (KeyError, IndexError, ValueError) as error:
        raise DatasetError(f"{path}: holds no GTcls.Segmentation; take the files of SBD's cls folder") from error
    if label.ndim != 2 or not np.issubdtype(label.dtype, np.integer):
        raise DatasetError(f"{path}: GTcls.Segmentation is {label.dtype} {label.shape}, not integers [height, width]")
    return label


def read_values(path: str) -> np.ndarray:
    """What a label file of VOC (PNG) or SBD (.mat) holds, integers [H, W].

    Raises:
        DatasetError: see `read_segmentation` and `labels.decode`.
    """
    return read_segmentation(path) if path.endswith(".mat") else read_label(path, advice=ADVICE)


def find_labels(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The .mat files of SBD's train and val lists by name, or all of cls/ where there are no lists.

    Args:
        folder: benchmark_RELEASE, or what holds it, or its dataset folder.

    Raises:
        DatasetError: no cls folder, or nothing in it.
    """
    candidates = (folder, folder / "dataset", folder / "benchmark_RELEASE" / "dataset")
    root = next((path for path in candidates if (path / "cls").is_dir()), None)
    if root is None:
        raise DatasetError(f"--sbd={folder}: no folder of SBD; it holds dataset/cls/*.mat (or benchmark_RELEASE does)")
    lists = [path for path in (root / "train.txt", root / "val.txt") if path.is_file()]
    names = [name for path in lists for line in read_lines(path) for name in line.split()]
    names = names or sorted(path.stem for path in (root / "cls").glob("*.mat"))
    if not names:
        raise DatasetError(f"--sbd={folder}: {root / 'cls'} holds no .mat files")
    return {name: root / "cls" / f"{name}.mat" for name in names}

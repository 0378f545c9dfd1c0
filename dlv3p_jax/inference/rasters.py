"""GeoTIFFs in, GeoTIFFs of labels out, in the same place on the earth; window by window, so that any size will do."""

import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from tqdm import tqdm

from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.pictures import Problem, to_eight_bits
from dlv3p_jax.inference.finding import Picture
from dlv3p_jax.inference.segmenter import Segmenter
from dlv3p_jax.runtime import files, text

NOTHING = 255  # the label where the raster has no data
_SIDE, _MARGIN = 1024, 128  # of the windows, and what the network sees around each


def write_all(
    pictures: Sequence[Picture], segmenter: Segmenter, output: pathlib.Path, overwrite: bool
) -> tuple[np.ndarray, list[Problem]]:
    """Writes OUTPUT/geotiffs/NAME.tif of each raster, a file that appears when it is whole; one that is there stays.

    It has one band of class indices, in the classes' colours, and NOTHING where the raster has no data. Its place, its
    projection and its size are those of the raster. The first three bands are taken for red, green and blue, and one
    band for grey; more than 8 bits are read by the segmenter's `picture_range`.

    Returns:
        How many pixels of all rasters each class has, int64 `[C]`, and what could not be predicted.

    Raises:
        ValueError: rasterio is not installed.
        OSError: something cannot be written.
    """
    try:
        import rasterio
    except ImportError as error:
        raise ValueError("--geotiff needs rasterio: pip install 'dlv3p_jax[geo]'") from error
    pixels, problems = np.zeros(len(segmenter.classes), np.int64), []
    for picture in pictures:
        target = output / "geotiffs" / f"{picture.name}.tif"
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not overwrite:
            logging.info("%s is there already: --overwrite makes it anew", target)
            continue
        try:
            with files.replacing(target) as unfinished:
                pixels += _write(rasterio, picture, str(unfinished), segmenter)
        except (rasterio.errors.RasterioError, DatasetError) as error:
            problems.append(Problem(picture.name, f"{picture.path}: {text.one_line(error)}"))
    return pixels, problems


def _write(rasterio: Any, picture: Picture, unfinished: str, segmenter: Segmenter) -> np.ndarray:
    """Writes one raster; returns the pixels of each class."""
    pixels = np.zeros(NOTHING + 1, np.int64)
    with rasterio.open(picture.path) as source:
        height, width, bands = source.height, source.width, (1, 2, 3) if source.count >= 3 else (1, 1, 1)
        made_as = dict(driver="GTiff", height=height, width=width, count=1, dtype="uint8", nodata=NOTHING)
        made_as |= dict(crs=source.crs, transform=source.transform, compress="deflate", tiled=True, bigtiff="if_safer")
        with rasterio.open(unfinished, "w", **made_as) as made:
            if source.gcps[0]:
                made.gcps = source.gcps
            made.write_colormap(1, {index: tuple(color) for index, color in enumerate(segmenter.palette.tolist())})
            made.update_tags(1, **{f"class_{index}": name for index, name in enumerate(segmenter.classes)})
            starts = list(itertools.product(range(0, height, _SIDE), range(0, width, _SIDE)))
            for top, left in tqdm(starts, unit=" windows", disable=None, delay=1):
                bottom, right = min(top + _SIDE, height), min(left + _SIDE, width)
                window = (top, bottom), (left, right)
                valid = source.dataset_mask(window=window) > 0
                labels = np.full(valid.shape, NOTHING, np.uint8)
                if valid.any():
                    above, before = max(top - _MARGIN, 0), max(left - _MARGIN, 0)
                    around = (above, min(bottom + _MARGIN, height)), (before, min(right + _MARGIN, width))
                    values = np.moveaxis(source.read(bands, window=around), 0, -1)
                    found = segmenter(_eight_bits(str(picture.path), values, segmenter))
                    labels[valid] = found[top - above : bottom - above, left - before : right - before][valid]
                made.write(labels, 1, window=window)
                pixels += np.bincount(labels.ravel(), minlength=len(pixels))
    return pixels[: len(segmenter.classes)]


def _eight_bits(name: str, values: np.ndarray, segmenter: Segmenter) -> np.ndarray:
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    full = (0.0, 65535.0) if values.dtype == np.uint16 else None
    return to_eight_bits(name, values, segmenter.picture_range or full)

"""GeoTIFFs in, GeoTIFFs of labels out, in the same place on the earth; window by window, so that any size will do."""

import contextlib
import errno
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging
from tqdm import tqdm

from dlv3p_jax.data import ranges
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.example import Problem
from dlv3p_jax.data.pictures import to_eight_bits
from dlv3p_jax.inference.finding import Picture
from dlv3p_jax.inference.folder_record import Ledger
from dlv3p_jax.inference.segmenter import Segmenter
from dlv3p_jax.runtime import files, text

NOTHING = 255  # the label where the raster has no data
_SIDE, _MARGIN = 1024, 128  # of the windows, and what the network sees around each


def write_all(
    pictures: Sequence[Picture], segmenter: Segmenter, output: pathlib.Path, ledger: Ledger
) -> tuple[np.ndarray, list[Problem]]:
    """Writes OUTPUT/geotiffs/NAME.tif of each raster, a file that appears when it is whole.

    One that is there stays, if `ledger` knows that it was made in the same way of the same raster.

    It has one band of class indices, in the classes' colours, and NOTHING where the raster has no data. Its place, its
    projection and its size are those of the raster. The first three bands are taken for red, green and blue, and one
    band for grey; more than 8 bits are read by the segmenter's `picture_range`.

    Returns:
        How many pixels of all rasters each class has, int64 `[C]`, and what could not be predicted.

    Raises:
        ValueError: rasterio is not installed; or what is there was made otherwise.
        OSError: something cannot be written.
    """
    try:
        import rasterio
    except ImportError as error:
        raise ValueError("--geotiff needs rasterio: pip install 'dlv3p_jax[geo]'") from error
    if len(segmenter.classes) > NOTHING:
        raise ValueError(f"--geotiff: the value {NOTHING} is for no data, so {NOTHING} classes are the most")
    pixels, problems = np.zeros(len(segmenter.classes), np.int64), []
    targets = {output / "geotiffs" / f"{picture.name}.tif": picture for picture in pictures}
    there = ledger.begin({target: picture.path for target, picture in targets.items()})
    for target, picture in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        files.remove_unfinished(target.parent)
        if target in there:
            logging.info("%s is there already: --overwrite makes it anew", target)
            pixels += there[target]
            continue
        try:
            with files.replacing(target) as unfinished:
                found = _write(rasterio, picture, str(unfinished), segmenter)
            ledger.add(target, found)
            pixels += found
        except (rasterio.errors.RasterioError, DatasetError) as error:
            what = error.__cause__ or error  # rasterio's own is "Read failed. See previous exception for details."
            said = text.one_line(what).removeprefix(f"{picture.path}: ")
            problems.append(Problem(picture.name, f"{picture.path}: {said}"))
    return pixels, problems


def _write(rasterio: Any, picture: Picture, unfinished: str, segmenter: Segmenter) -> np.ndarray:
    """Writes one raster; returns the pixels of each class."""
    pixels, seen = np.zeros(NOTHING + 1, np.int64), ranges.Seen()
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(rasterio.open(picture.path))
        if source.colorinterp[0].name == "palette":
            raise DatasetError("its colours are a palette: turn them into bands, with gdal_translate -expand rgb")
        height, width, bands = source.height, source.width, (1, 2, 3) if source.count >= 3 else (1, 1, 1)
        made_as = dict(driver="GTiff", height=height, width=width, count=1, dtype="uint8", nodata=NOTHING)
        made_as |= dict(crs=source.crs, transform=source.transform, compress="deflate", tiled=True, bigtiff="if_safer")
        with _writing(rasterio, unfinished):
            made = stack.enter_context(rasterio.open(unfinished, "w", **made_as))
        if source.gcps[0]:
            made.gcps = source.gcps
        made.write_colormap(1, {index: tuple(color) for index, color in enumerate(segmenter.palette.tolist())})
        made.update_tags(1, **{f"class_{index}": name for index, name in enumerate(segmenter.classes)})
        starts = list(itertools.product(range(0, height, _SIDE), range(0, width, _SIDE)))
        for top, left in tqdm(starts, unit=" windows", disable=None, delay=1):
            bottom, right = min(top + _SIDE, height), min(left + _SIDE, width)
            above, before = max(top - _MARGIN, 0), max(left - _MARGIN, 0)
            around = (above, min(bottom + _MARGIN, height)), (before, min(right + _MARGIN, width))
            inside = slice(top - above, bottom - above), slice(left - before, right - before)
            known = source.dataset_mask(window=around) > 0
            labels = np.full(known[inside].shape, NOTHING, np.uint8)
            if known[inside].any():
                values = np.moveaxis(source.read(bands, window=around), 0, -1)
                found = segmenter(_eight_bits(source, values, known, segmenter, seen))
                labels[known[inside]] = found[inside][known[inside]]
            with _writing(rasterio, unfinished):
                made.write(labels, 1, window=((top, bottom), (left, right)))
            pixels += np.bincount(labels.ravel(), minlength=len(pixels))
    _check(rasterio, unfinished, pixels)
    if complaint := seen.complaint():
        logging.warning("%s", complaint)
    return pixels[: len(segmenter.classes)]


def _eight_bits(
    source: Any, values: np.ndarray, known: np.ndarray, segmenter: Segmenter, seen: ranges.Seen
) -> np.ndarray:
    """Values of a raster, [H, W, 3], as uint8: GDAL gives fewer bits and MINISWHITE as they are stored."""
    picture_range = segmenter.picture_range
    if values.dtype in (np.uint8, np.uint16):
        bits = int(source.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8 * values.itemsize))
        full = (0, 2**bits - 1)
        if source.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES":
            values = full[1] - values
        if values.dtype == np.uint8:
            return np.ascontiguousarray(values if bits == 8 else ranges.stretch(values, full))
        if picture_range is None:
            picture_range = full
            seen.add(source.name, (values[known].min(), values[known].max()), full)
    return to_eight_bits(source.name, values, picture_range)


@contextlib.contextmanager
def _writing(rasterio: Any, path: str) -> Iterator[None]:
    """Raises OSError, and if it can be found, with the reason, where GDAL cannot write."""
    try:
        yield
    except rasterio.errors.RasterioError as error:
        files.try_to_write(path)
        raise OSError(errno.EIO, text.one_line(error.__cause__ or error), path) from error


def _check(rasterio: Any, path: str, pixels: np.ndarray) -> None:
    """Raises OSError where the file does not hold these pixels: GDAL closes one on a full disk without an error."""
    found = np.zeros_like(pixels)
    with _writing(rasterio, path), rasterio.open(path) as made:
        for _, window in made.block_windows(1):
            found += np.bincount(made.read(1, window=window).ravel(), minlength=len(found))
        if not np.array_equal(found, pixels):
            raise rasterio.errors.RasterioIOError("not all of it is there")

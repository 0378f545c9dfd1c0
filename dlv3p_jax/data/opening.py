"""Opening picture files: ordinary files of any size, and of a TIFF the page that is the picture."""

import collections
import contextlib
import os
import pathlib
import stat
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from PIL import Image

from dlv3p_jax.data.errors import DatasetError, UnreadableError
from dlv3p_jax.runtime import disk_errors

_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
_REDUCED, _MASK, _SUBFILE_TYPE = 1, 4, 254  # of a TIFF's page, in its tag NewSubfileType
_lock = threading.Lock()
_inside: list[bool] = []
_limit: list[Any] = []


def read_bytes(path: str | os.PathLike) -> bytes:
    """The bytes of an ordinary file; another, such as a pipe, might never end.

    Raises:
        DatasetError: it is none, or cannot be read; `UnreadableError` where that is the disk's, and may pass.
    """
    check_ordinary(path)
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def check_ordinary(path: str | os.PathLike) -> None:
    """Raises DatasetError, as `read_bytes`, where `path` is a pipe, a socket or a device, or is not there."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise unreadable(path, error) from error
    if kind := _KINDS.get(stat.S_IFMT(mode)):
        raise DatasetError(f"{path}: is {kind}, not a picture file")


def unreadable(path: str | os.PathLike, error: OSError) -> DatasetError:
    """What to raise from an error of the system, met where a file was opened or read."""
    kind = UnreadableError if disk_errors.passing(error) else DatasetError
    return kind(f"{path}: cannot be read ({error.strerror or error})")


def is_file(path: str | os.PathLike) -> bool:
    """Whether an ordinary file is there; where the disk does not say, this raises UnreadableError, unlike os.path's."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        if disk_errors.passing(error):
            raise unreadable(path, error) from error
        return False


@contextlib.contextmanager
def of_any_size() -> Iterator[None]:
    """Sets Pillow's limit on pixels aside, which is against strangers' files: these are the user's own.

    It is one value for the whole process, and Pillow asks when a file is opened and when it is decoded. So it is back
    when the last of the threads that are in here leaves.
    """
    with _lock:
        if not _inside:
            _limit[:] = [Image.MAX_IMAGE_PIXELS]
            Image.MAX_IMAGE_PIXELS = None
        _inside.append(True)
    try:
        yield
    finally:
        with _lock:
            _inside.pop()
            if not _inside:
                Image.MAX_IMAGE_PIXELS = _limit[0]


def count_pictures(picture: Image.Image) -> int:
    """How many pictures an opened file holds; it is left at the first.

    Smaller copies and masks are pages of a TIFF too, as every cloud-optimised GeoTIFF has them: these are no pictures.
    """
    frames = getattr(picture, "n_frames", 1)
    if frames == 1 or picture.format != "TIFF":
        return frames
    pages = []
    for page in range(frames):
        picture.seek(page)
        if not int(picture.tag_v2.get(_SUBFILE_TYPE, 0)) & (_REDUCED | _MASK):  # type: ignore[attr-defined]
            pages.append(page)
    picture.seek(pages[0] if pages else 0)
    return max(len(pages), 1)


def by_suffix(paths: Iterable[str | os.PathLike]) -> str:
    """How many files there are of each ending, most first, such as "12 .heic, 3 .mp4"."""
    counts = collections.Counter(pathlib.PurePath(path).suffix.lower() or "without an ending" for path in paths)
    return ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.most_common(), key=lambda item: -item[1]))

"""What lies below a folder, each file once."""

import os
import pathlib
from collections.abc import Callable, Iterator


def below(
    folder: str | os.PathLike[str], onerror: Callable[[OSError], object] | None = None
) -> Iterator[tuple[pathlib.Path, bool]]:
    """Every (path, whether it is a folder) below a folder, in no order.

    Links are followed, but not those to a folder above, in which they lie themselves: they would lead to the same files
    again, and again below those.

    Args:
        folder: where to begin; it is not among the paths.
        onerror: is told of folders that cannot be read, and are left out.

    Raises:
        OSError: a folder that is there cannot be read, and there is no `onerror`.
    """

    def stop(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):  # what is not there holds nothing
            raise error

    for root, folders, files in os.walk(os.fspath(folder), onerror=onerror or stop, followlinks=True):
        folders[:] = [name for name in folders if not _leads_up(root, name, os.fspath(folder))]
        for names, is_folder in ((folders, True), (files, False)):
            for name in names:
                yield pathlib.Path(root, name), is_folder


def _leads_up(root: str, name: str, top: str) -> bool:
    """Whether ROOT/NAME is a link to a folder that holds one of those from `top` down to `root`."""
    path = os.path.join(root, name)
    if not os.path.islink(path):
        return False
    target = os.path.realpath(path)
    depth = len(pathlib.PurePath(os.path.relpath(root, top)).parts)
    on_the_way = [root, *map(str, pathlib.PurePath(root).parents)][: depth + 1]
    return any(pathlib.PurePath(os.path.realpath(folder)).is_relative_to(target) for folder in on_the_way)

"""Running a builder: a killed run leaves nothing behind, and what is there stays until a new version is whole."""

import contextlib
import io
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

from dlv3p_jax.data import records
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.datasets.builder import PictureBuilder
from dlv3p_jax.datasets.file_names import printable
from dlv3p_jax.runtime import disk_errors, files

_UNFINISHED = "incomplete"  # beside the finished versions; TFDS's own unfinished folders begin with this word too
_REPLACED = "replaced"  # in there: the version that makes room for a new one


def prepare_dataset(
    name: str, make_builder: Callable[[pathlib.Path], PictureBuilder], data_dir: str | os.PathLike, overwrite: bool
) -> tuple[records.Dataset, PictureBuilder]:
    """Runs a builder in a folder of its own and moves the result to data_dir/NAME/VERSION once it is complete.

    Until then a version that is already there stays untouched. What a killed run left behind is removed first; what it
    had set aside to replace comes back.

    Args:
        name: of the data set.
        make_builder: given a data_dir, makes the builder.
        data_dir: where data sets live, on a local file system.
        overwrite: replace a version that is there.

    Returns:
        The data set, opened, and the builder, whose `problems` were skipped.

    Raises:
        DatasetError: prepared already, being prepared by another process, what the builder finds wrong, a full disk.
    """
    root = pathlib.Path(data_dir).expanduser() / name
    if printable(str(root)) != str(root):  # array_record takes no other paths
        raise DatasetError(f"--data_dir={printable(str(data_dir))}: the name is not UTF-8; give another")
    final = root / records.VERSIONS.get(name, records.VERSION)
    unfinished = root / _UNFINISHED
    if not overwrite:
        _refuse_existing(name, data_dir)
    with _locked(root):
        _bring_back(unfinished, final)
        if not overwrite:
            _refuse_existing(name, data_dir)
        _remove_leftovers(root)
        try:
            builder = make_builder(unfinished)
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # TFDS's remarks on downloads
                    builder.download_and_prepare()
                records.write_digests(pathlib.Path(builder.data_dir))
            except (OSError, RuntimeError) as error:  # a full disk is either
                what = disk_errors.told(error, root) if isinstance(error, OSError) else error
                raise DatasetError(f"the records could not be written: {what}") from error
            written = records.open_dataset(name, unfinished)
            for split in written.splits:
                written.source(split)  # raises where a record did not reach the disk
            if final.exists():
                final.rename(unfinished / _REPLACED)
            written.folder.rename(final)
        finally:
            _bring_back(unfinished, final)
            shutil.rmtree(unfinished, ignore_errors=True)
    return records.open_dataset(name, data_dir), builder


@contextlib.contextmanager
def _locked(root: pathlib.Path) -> Iterator[None]:
    """Holds the folder's lock, which ends with the process; of what it makes, it removes what ends up empty."""
    made = [root, *(parent for parent in root.parents if not parent.exists())]
    with contextlib.ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(files.lock_folder(root))
        except files.Locked as error:
            raise DatasetError(f"another process is preparing {root}; wait for it") from error
        except files.NoLocks:
            pass
        except OSError as error:
            raise DatasetError(f"--data_dir: cannot make {root} ({error.strerror})") from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                for folder in made:
                    folder.rmdir()


def already_there(where: str | os.PathLike, description: str | None = None) -> DatasetError:
    """The error of a data set that is not to be replaced without a word; `description` says what it holds."""
    return DatasetError(
        f"{where} is prepared already{f' ({description})' if description else ''}; give another --data_dir to keep it "
        "beside this one, or add --overwrite to replace it"
    )


def _refuse_existing(name: str, data_dir: str | os.PathLike) -> None:
    """Whatever its version: a run that was begun on an older one would go on with the new one, which is read then."""
    there = records.newest(data_dir, name)
    if there is None:
        return
    try:
        description = records.open_dataset(name, data_dir).metadata["description"]
    except DatasetError:  # a damaged one
        description = None
    raise already_there(there, description)


def _bring_back(unfinished: pathlib.Path, final: pathlib.Path) -> None:
    """Undoes the first of the two renames that replace a version, where the second did not come to pass."""
    if (unfinished / _REPLACED).exists() and not final.exists():
        (unfinished / _REPLACED).rename(final)


def _remove_leftovers(root: pathlib.Path) -> None:
    for path in root.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(path)

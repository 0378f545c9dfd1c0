"""Copies of data sets in a bucket: array_record reads local files, so every host keeps its own copy of what it reads.

$DLV3P_CACHE (by default ~/.cache/dlv3p_jax) holds, for gs://BUCKET/data,

    data/gs/BUCKET/data/DATASET/VERSION/          the copy; it has this name only when it is whole
    data/gs/BUCKET/data/DATASET/VERSION.partial/  the copy until then; each file is NAME.part until it is whole
    data/gs/BUCKET/data/DATASET/.lock             keeps the other processes of this host out meanwhile

Either folder has .source.json, the size and date of each file in the bucket, by which a change there is noticed.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from absl import logging
from etils import epath

from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.runtime import files, text

_RECORD = ".source.json"
_LAST = "dataset_info.json"  # the file without which nothing is a data set, so that it goes last and comes first
_CHUNK = 1 << 22
_AT_ONCE = 4  # files; one stream does not fill a network connection of a cloud's machine
_SECONDS = 15  # between lines of progress
_RESERVE = 1 << 30  # bytes left free on the disk, for checkpoints, logs and whatever else is written there

Stats = dict[str, tuple[int, int]]  # {name of a file: (bytes, time of its last change in seconds)}


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is a URL, such as gs://BUCKET/data, and not a path of this machine or of something mounted."""
    return "://" in os.fspath(path)


def local_data_dir(data_dir: str) -> pathlib.Path:
    """The folder of this host that has the copies of what is below `data_dir`, a URL."""
    scheme, _, rest = data_dir.partition("://")
    return files.cache_folder() / "data" / scheme / rest.strip("/")


def fetch(dataset: str, data_dir: str) -> pathlib.Path | None:
    """Sees to it that this host has a copy of the newest version of a data set, and that it is the one of now.

    What is whole and unchanged is not copied again, also after a killed process. Processes that want the same data
    set at once wait for the one that copies it.

    Args:
        dataset: its name.
        data_dir: a URL that etils.epath knows, below which `prepare` or a copy of its folder put data sets.

    Returns:
        The folder of the copy; None: there is no such data set below `data_dir`.

    Raises:
        DatasetError: `data_dir` cannot be read, or its copy not written; the message says why, and what to do.
    """
    with _reading(data_dir):
        if not epath.Path(data_dir).exists():  # unlike is_dir, this raises what went wrong
            return None
        folder = epath.Path(data_dir) / dataset
        version = _newest_version(folder)
        if version is None:
            return None
        source = folder / version
        stats = _stats(source)
    target = local_data_dir(data_dir) / dataset / version
    with _writing(target), _lock(target.parent, f"{source} to {target}"):
        if _is_whole(target, stats):
            logging.info("%s is here in %s", source, target)
        else:
            _copy(source, target, stats)
    return target


def names(data_dir: str) -> list[str]:
    """The data sets below `data_dir`, a URL.

    Raises:
        DatasetError: it cannot be read.
    """
    with _reading(data_dir):
        root = epath.Path(data_dir)
        return sorted(path.name for path in root.iterdir() if _newest_version(path)) if root.is_dir() else []


def upload(dataset: str, version: str, data_dir: str) -> None:
    """Copies a version of a data set from `local_data_dir(data_dir)` to `data_dir`; whole or as if not there.

    Raises:
        DatasetError: it cannot be read or written.
    """
    source, target = local_data_dir(data_dir) / dataset / version, epath.Path(data_dir) / dataset / version
    sizes = {path.name: path.stat().st_size for path in sorted(source.iterdir()) if not path.name.startswith(".")}
    last = {_LAST: sizes.pop(_LAST)}
    with _lock(source.parent, f"{source} to {target}"), _writing(target):
        target.mkdir(parents=True, exist_ok=True)
        (target / _LAST).unlink(missing_ok=True)
        for path in target.iterdir():
            if path.name not in sizes:
                path.unlink()
        for part in (sizes, last):
            _copy_files({epath.Path(source / name): target / name for name in part}, part, f"{source} to {target}")
        files.write_json(source / _RECORD, _stats(target))  # so that it need not be copied back


def is_there(dataset: str, version: str, data_dir: str) -> bool:
    """Whether a version of a data set is below `data_dir`, a URL; raises DatasetError if that cannot be told."""
    with _reading(data_dir):
        return (epath.Path(data_dir) / dataset / version / _LAST).exists()


def _newest_version(folder: epath.Path) -> str | None:
    """The name of the highest version in a data set's folder; folders that are not versions do not count."""
    if not folder.is_dir():
        return None
    parts = {path.name: path.name.split(".") for path in folder.iterdir()}
    versions = {name: tuple(map(int, numbers)) for name, numbers in parts.items() if all(map(str.isdecimal, numbers))}
    whole = [name for name, numbers in versions.items() if len(numbers) == 3 and (folder / name / _LAST).exists()]
    return max(whole, key=lambda name: versions[name], default=None)


def _stats(folder: epath.Path) -> Stats:
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
        stats = dict(zip((path.name for path in paths), pool.map(lambda path: path.stat(), paths), strict=True))
    return {name: (stat.length, stat.mtime) for name, stat in sorted(stats.items()) if not stat.is_directory}


def _recorded(folder: pathlib.Path) -> Stats:
    """What the files of a copy, whole or partial, were in the bucket; {} if nothing is known."""
    try:
        return {name: tuple(stat) for name, stat in json.loads((folder / _RECORD).read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _is_here(path: pathlib.Path, recorded: Stats, stats: Stats) -> bool:
    return recorded.get(path.name) == stats[path.name] and path.is_file() and path.stat().st_size == stats[path.name][0]


def _is_whole(target: pathlib.Path, stats: Stats) -> bool:
    recorded = _recorded(target)
    return recorded.keys() == stats.keys() and all(_is_here(target / name, recorded, stats) for name in stats)


def _copy(source: epath.Path, target: pathlib.Path, stats: Stats) -> None:
    """Copies what differs beside `target`, then puts it in its place."""
    partial = target.with_name(f"{target.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    begun, here = _recorded(partial), _recorded(target)
    for path in partial.iterdir():
        if path.name not in stats or not _is_here(path, begun, stats):
            path.unlink()
    files.write_json(partial / _RECORD, stats)
    for name in stats:
        if not (partial / name).exists() and _is_here(target / name, here, stats):  # where only others have changed
            with contextlib.suppress(OSError):  # a file system without links
                os.link(target / name, partial / name)
    missing = {name: stats[name][0] for name in stats if not (partial / name).exists()}
    _check_space(source, partial, missing)
    _copy_files({source / name: partial / name for name in missing}, missing, f"{source} to {target}")
    old = target.with_name(f"{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _copy_files(paths: Mapping[epath.Path, epath.Path], sizes: Mapping[str, int], what: str) -> None:
    """Copies files, some at once, logging how far it is; each appears under its name only when it is whole.

    Args:
        paths: {from: to}; a file of this machine is written as NAME.part and renamed, one in a bucket needs no such.
        sizes: {name: bytes} of these files.
        what: for the log.

    Raises:
        OSError: one came with other bytes than `sizes` has.
    """
    total, start, told = sum(sizes.values()), time.monotonic(), time.monotonic()
    done, stopped, lock = 0, threading.Event(), threading.Lock()

    def progress(num_bytes: int) -> bool:
        nonlocal done, told
        with lock:
            done += num_bytes
            now = time.monotonic()
            if now - told > _SECONDS:
                told = now
                rate = done / (now - start)
                numbers = (done / 1e9, total / 1e9, rate / 1e6, (total - done) / rate)
                logging.info("Copying %s: %.1f of %.1f GB, %.0f MB/s, %.0f s more", what, *numbers)
        return not stopped.is_set()

    logging.info("Copying %s: %d files, %.1f GB", what, len(sizes), total / 1e9)
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        jobs = [pool.submit(_copy_file, path, to, sizes[path.name], progress) for path, to in paths.items()]
        try:
            for job in concurrent.futures.as_completed(jobs):
                job.result()
        except BaseException:  # Ctrl-C too
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    logging.info("Copied %s in %.0f s", what, time.monotonic() - start)


def _copy_file(source: epath.Path, target: epath.Path, size: int, progress: Callable[[int], bool]) -> None:
    part = target if is_remote(target) else target.with_name(f"{target.name}.part")
    copied = 0
    with source.open("rb") as reader, part.open("wb") as writer:
        while chunk := reader.read(_CHUNK):
            writer.write(chunk)
            copied += len(chunk)
            if not progress(len(chunk)):
                return
        if part is not target:
            writer.flush()
            os.fsync(writer.fileno())
    if copied != size:
        raise OSError(f"{source}: {copied:,} bytes came of {size:,}; has it changed just now? Start again")
    if part is not target:
        part.rename(target)


def _check_space(source: epath.Path, folder: pathlib.Path, missing: Mapping[str, int]) -> None:
    needed, free = sum(missing.values()), shutil.disk_usage(folder).free
    if needed and needed + _RESERVE > free:
        raise DatasetError(
            f"{source} needs {needed / 1e9:.1f} GB in {folder.parent}, and {_RESERVE / 1e9:.1f} GB have to stay free, "
            f"but {free / 1e9:.1f} GB are: make room, set DLV3P_CACHE to a folder of a larger disk, or mount the "
            "bucket with gcsfuse and give that path as data_dir"
        )


@contextlib.contextmanager
def _lock(folder: pathlib.Path, what: str) -> Iterator[None]:
    """Lets one process of this host at a time through; ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with files.lock_if_possible(folder / ".lock", f"Another process of this host copies {what}: waiting for it"):
        yield


@contextlib.contextmanager
def _reading(url: str) -> Iterator[None]:
    """Turns what the libraries behind epath raise, which is of many classes, into one line."""
    try:
        yield
    except Exception as error:
        scheme = url.partition("://")[0]
        reason = f"nothing here knows {scheme}://" if isinstance(error, KeyError) else text.one_line(error)
        raise DatasetError(
            f"{url} cannot be read: {reason}. Is the name right, is this machine logged in, and may it read there?"
        ) from error


@contextlib.contextmanager
def _writing(target: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(
            f"{target} could not be written: {text.one_line(error)}. What came whole stays: the same command goes on. "
            f"Copies of data sets are in {files.cache_folder() / 'data'}, which DLV3P_CACHE changes"
        ) from error

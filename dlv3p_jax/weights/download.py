"""Downloads a large file once: goes on after a broken connection, and notices a file that has changed since.

While it comes, PATH.part holds its bytes (see `receiving`), and PATH.lock keeps other processes out. When it is whole,
PATH is the file and PATH.json its url, bytes, sha256, etag and date.
"""

import contextlib
import datetime
import hashlib
import json
import math
import os
import pathlib
import urllib.parse

from absl import logging

from dlv3p_jax.runtime import files
from dlv3p_jax.weights import receiving
from dlv3p_jax.weights.receiving import DownloadError


def download(
    url: str,
    path: str | os.PathLike,
    *,
    min_bytes: int | None = None,
    max_bytes: int | None = None,
    timeout: float = 30.0,
    attempts: int = 6,
    backoff: float = 1.0,
) -> pathlib.Path:
    """Downloads a file, unless it is there; then its sha256 must be the one that was written down.

    A file that was put there by hand, so that no sha256 of it is written down yet, is taken for what it should be if
    its size is right. After a connection that breaks or stalls the server is asked again, for the rest if it can send
    that and its file is still the same. If a process is killed, the next call goes on. Processes that want the same
    file at once wait for the one that downloads it.

    Args:
        url: an http or https address.
        path: where the file goes; folders are made.
        min_bytes, max_bytes: other sizes are refused, so that no page of an error or a login passes for the file. None:
            any size but 0.
        timeout: seconds without a byte after which a connection counts as broken.
        attempts: how often to ask in all. A server that cannot be reached at all is asked once.
        backoff: seconds before the second attempt, doubled before each one after that.

    Returns:
        `path`, made absolute.

    Raises:
        DownloadError: the file cannot be had or written, has a wrong size, or was changed since it was downloaded.
    """
    path = pathlib.Path(path).absolute()
    bounds = (min_bytes or 1, max_bytes or math.inf)
    if path.exists():
        return _verify(path, bounds)
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise receiving.failure(url, path, ["this is no http or https address"])
    lock, part = receiving.beside(path, ".lock"), receiving.beside(path, ".part")
    with contextlib.ExitStack() as stack:
        with receiving.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(files.lock_if_possible(lock, f"Another process is downloading {path}: waiting for it"))
        if path.exists():  # by now, from the process that held the lock
            _verify(path, bounds)
        else:
            logging.info("Downloading %s to %s", url, path)
            version = receiving.receive(url, path, bounds, timeout, attempts, backoff)
            with receiving.writing(path):
                # The record first: a process killed in between leaves no file that looks as if put there by hand.
                sha256 = _sha256(part)
                _write_record(path, version["num_bytes"], sha256, url, version["etag"])
                part.replace(path)
                receiving.beside(part, ".json").unlink(missing_ok=True)
            logging.info("Downloaded %s, sha256 %s", path, sha256)
        # Only now that `path` is there: whoever locks another file of this name will find that nothing is left to do.
        with contextlib.suppress(OSError):
            lock.unlink()
    return path


def _verify(path: pathlib.Path, bounds) -> pathlib.Path:
    """The path of a file, which is compared with its record; writes the record of a file that has none."""
    record = receiving.beside(path, ".json")
    try:
        num_bytes = path.stat().st_size
        sha256 = _sha256(path)
        text = record.read_bytes() if record.exists() else None
    except OSError as error:
        raise DownloadError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error
    if text is not None:
        try:
            known, date = (json.loads(text)[key] for key in ("sha256", "date"))
        except (ValueError, KeyError, TypeError) as error:
            raise DownloadError(f"{record} is damaged: delete it to keep {path} as it is") from error
        if known != sha256:
            raise DownloadError(
                f"{path} has changed: its sha256 was {known} on {date}, and now it is {sha256}. "
                f"Delete the file to have it downloaded again, or delete {record} to keep the file as it is"
            )
        return path
    if not bounds[0] <= num_bytes <= bounds[1]:
        raise DownloadError(receiving.wrong_size(f"{path} has", num_bytes, bounds) + "; delete it")
    logging.info("%s was put there by hand; from now on its sha256 must stay %s", path, sha256)
    try:
        _write_record(path, num_bytes, sha256)
    except OSError as error:  # a cache that others only read
        logging.warning("%s cannot be written, so a change of %s will not be noticed: %s", record, path, error)
    return path


def _write_record(path: pathlib.Path, num_bytes: int, sha256: str, url: str | None = None, etag: str | None = None):
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record = {"url": url, "bytes": num_bytes, "sha256": sha256, "etag": etag, "date": date}
    files.write_json(receiving.beside(path, ".json"), record)


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

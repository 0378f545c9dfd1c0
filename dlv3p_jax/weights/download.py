"""Downloads a large file once: goes on after a broken connection, and notices a file that has changed since.

While it comes, PATH.part holds its bytes, PATH.part.json which version of the file they are of, and PATH.lock keeps
other processes out. When it is whole, PATH is the file and PATH.json its url, bytes, sha256, etag and date.
"""

import contextlib
import datetime
import hashlib
import http.client
import itertools
import json
import math
import os
import pathlib
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from absl import logging
from tqdm import tqdm

from dlv3p_jax.runtime import files
from dlv3p_jax.runtime.errors import UserError

_CHUNK = 1 << 18
_ASK_AGAIN = (408, 416, 425, 429, 500, 502, 503, 504)  # HTTP statuses that may be others the next time


class DownloadError(UserError):
    """A file cannot be had, or is not what it should be; the message says which, why, and what to do."""


class _Refusal(Exception):
    """An answer that will be the same however often one asks."""


# Which version of a file a server sends: its url, num_bytes, etag and last_modified.
Version = dict[str, Any]


class _HttpRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects over HTTP(S) only, and none that leaves encryption behind."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        schemes = urllib.parse.urlsplit(req.full_url).scheme, urllib.parse.urlsplit(newurl).scheme
        if schemes[1] not in ("http", "https") or schemes == ("https", "http"):
            raise _Refusal(f"it redirects to {newurl}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


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
        raise _failure(url, path, ["this is no http or https address"])
    lock, part = _beside(path, ".lock"), _beside(path, ".part")
    with contextlib.ExitStack() as stack:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(files.lock_if_possible(lock, f"Another process is downloading {path}: waiting for it"))
        if path.exists():  # by now, from the process that held the lock
            _verify(path, bounds)
        else:
            logging.info("Downloading %s to %s", url, path)
            version = _receive_persistently(url, path, bounds, timeout, attempts, backoff)
            with _writing(path):
                # The record first: a process killed in between leaves no file that looks as if put there by hand.
                sha256 = _sha256(part)
                _write_record(path, version["num_bytes"], sha256, url, version["etag"])
                part.replace(path)
                _beside(part, ".json").unlink(missing_ok=True)
            logging.info("Downloaded %s, sha256 %s", path, sha256)
        # Only now that `path` is there: whoever locks another file of this name will find that nothing is left to do.
        with contextlib.suppress(OSError):
            lock.unlink()
    return path


def _receive_persistently(url: str, path: pathlib.Path, bounds, timeout, attempts, backoff) -> Version:
    """Calls `_receive` until it returns; raises DownloadError when there is no point in going on."""
    tried: list[str] = []
    reached = False
    for attempt in range(attempts):
        if attempt:
            delay = backoff * 2 ** (attempt - 1)
            logging.warning("%s: %s; trying again in %g s", url, tried[-1], delay)
            time.sleep(delay)
        final = False
        try:
            return _receive(url, _beside(path, ".part"), bounds, timeout)
        except urllib.error.HTTPError as error:
            error.close()
            reached, final = True, error.code not in _ASK_AGAIN
            tried.append(f"the server answered {error.code} {error.reason}")
            if error.code == 416:  # it has no bytes after those that are here, so these are of another file
                _discard(_beside(path, ".part"))
        except urllib.error.URLError as error:
            final = not reached
            tried.append(f"no connection{_through_proxy(url)}: {_reason(error.reason, timeout)}")
        except (http.client.InvalidURL, UnicodeError):
            final = True
            tried.append("this is no valid address")
        except _Refusal as error:
            final = True
            tried.append(str(error))
        except (OSError, http.client.HTTPException) as error:
            reached = True
            tried.append(_reason(error, timeout))
        if final:
            break
    raise _failure(url, path, tried)


def _receive(url: str, part: pathlib.Path, bounds, timeout: float) -> Version:
    """Asks once for what `part` lacks; returns the version of the file, which is whole then."""
    offset, known = _progress(part, url)
    if known and offset == known["num_bytes"]:  # a process was killed between the last byte and the end
        return known
    headers = {"User-Agent": "dlv3p_jax", "Accept-Encoding": "identity"}
    if known:
        headers |= {"Range": f"bytes={offset}-", "If-Range": str(_validator(known))}
    opener = urllib.request.build_opener(_HttpRedirects)  # goes through the proxies of the environment, if any
    with contextlib.ExitStack() as stack:
        response = stack.enter_context(opener.open(urllib.request.Request(url, headers=headers), timeout=timeout))
        if response.status == 206:
            if known is None or not _continues(response, offset, known):
                _discard(part)
                raise ConnectionError("the server sent another part of the file than the one asked for")
            logging.info("Going on after %s of %s bytes", f"{offset:,}", f"{known['num_bytes']:,}")
        else:
            offset, known = 0, _check_answer(url, response, bounds)
        total = known["num_bytes"]
        with _writing(part):  # unbuffered, so that a full disk shows in write() and not in close()
            file = stack.enter_context(open(part, "ab" if offset else "wb", buffering=0))
            if not offset:
                _write_json(_beside(part, ".json"), known)
        bar = tqdm(desc=part.stem, total=total, initial=offset, unit="B", unit_scale=True, disable=None)
        progress = stack.enter_context(bar)
        while chunk := response.read1(_CHUNK):
            with _writing(part):
                rest = memoryview(chunk)
                while rest:
                    rest = rest[file.write(rest) :]
            offset += len(chunk)
            progress.update(len(chunk))
        with _writing(part):
            os.fsync(file.fileno())
    if offset < total:
        raise ConnectionError(f"the connection broke off after {offset:,} of {total:,} bytes")
    return known


def _check_answer(url: str, response, bounds) -> Version:
    """The version that a full answer is of; raises _Refusal where it cannot be the file."""
    if response.status != 200:
        raise _Refusal(f"the server answered {response.status} {response.reason}")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise _Refusal(f"the server sent it with Content-Encoding: {encoding}, which was not asked for")
    num_bytes = response.length  # as in Content-Length
    if num_bytes is None:
        raise _Refusal("the server does not state a Content-Length, so nobody could tell whether it came whole")
    if not bounds[0] <= num_bytes <= bounds[1]:
        kind = response.headers.get("Content-Type", "of unknown type")
        raise _Refusal(_wrong_size(f"what {response.url} has ({kind})", num_bytes, bounds))
    etag, last_modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
    return {"url": url, "num_bytes": num_bytes, "etag": etag, "last_modified": last_modified}


def _continues(response, offset: int, known: Version) -> bool:
    """Whether a partial answer begins where we stopped, in the same version of the file."""
    total, headers = known["num_bytes"], response.headers
    return (
        headers.get("Content-Range") == f"bytes {offset}-{total - 1}/{total}"
        and response.length == total - offset
        and headers.get("ETag", known["etag"]) == known["etag"]
        and headers.get("Last-Modified", known["last_modified"]) == known["last_modified"]
    )


def _validator(known: Version) -> str | None:
    """For If-Range, which takes no weak ETag: with those, equal does not mean the same bytes."""
    etag = known["etag"]
    return known["last_modified"] if etag is None or etag.startswith("W/") else etag


def _progress(part: pathlib.Path, url: str) -> tuple[int, Version | None]:
    """How many bytes are here, and of which version; 0 and None where nothing can be added to them."""
    try:
        known = json.loads(_beside(part, ".json").read_text(encoding="utf-8"))
        size = part.stat().st_size
        if known["url"] == url and _validator(known) and 0 < size <= known["num_bytes"]:
            return size, known
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return 0, None


def _verify(path: pathlib.Path, bounds) -> pathlib.Path:
    """The path of a file, which is compared with its record; writes the record of a file that has none."""
    record = _beside(path, ".json")
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
        raise DownloadError(_wrong_size(f"{path} has", num_bytes, bounds) + "; delete it")
    logging.info("%s was put there by hand; from now on its sha256 must stay %s", path, sha256)
    try:
        _write_record(path, num_bytes, sha256)
    except OSError as error:  # a cache that others only read
        logging.warning("%s cannot be written, so a change of %s will not be noticed: %s", record, path, error)
    return path


@contextlib.contextmanager
def _writing(path: pathlib.Path):
    """Tells errors of the disk from those of the network, which are OSErrors too."""
    try:
        yield
    except OSError as error:
        raise DownloadError(
            f"{path} cannot be written: {error.strerror or error}. Make room there, or choose another folder"
        ) from error


def _write_record(path: pathlib.Path, num_bytes: int, sha256: str, url: str | None = None, etag: str | None = None):
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record = {"url": url, "bytes": num_bytes, "sha256": sha256, "etag": etag, "date": date}
    _write_json(_beside(path, ".json"), record)


def _write_json(path: pathlib.Path, content: dict) -> None:
    with files.replacing(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _discard(part: pathlib.Path) -> None:
    with _writing(part):
        part.unlink(missing_ok=True)
        _beside(part, ".json").unlink(missing_ok=True)


def _beside(path: pathlib.Path, suffix: str) -> pathlib.Path:
    return path.with_name(path.name + suffix)


def _through_proxy(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy is None or urllib.request.proxy_bypass(parts.netloc):
        return ""
    return f" through the proxy {proxy.rpartition('@')[2]}"  # before the @ there may be a password


def _reason(error, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer for {timeout:g} s"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _wrong_size(what: str, num_bytes: int, bounds) -> str:
    expected = f"at least {bounds[0]:,}" if bounds[1] == math.inf else f"{bounds[0]:,} to {bounds[1]:,}"
    return f"{what} {num_bytes:,} bytes, but the file must have {expected}"


def _failure(url: str, path: pathlib.Path, tried: list[str]) -> DownloadError:
    runs = [(reason, len(list(group))) for reason, group in itertools.groupby(tried)]
    reasons = ", then ".join(reason + (f" ({count} times)" if count > 1 else "") for reason, count in runs)
    received, _ = _progress(_beside(path, ".part"), url)
    rest = f"; {received:,} bytes are here, and the next call goes on from there" if received else ""
    return DownloadError(
        f"{url} cannot be downloaded: {reasons}{rest}. To do without a download, put the file there by hand: {path}"
    )

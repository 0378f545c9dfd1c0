"""Receiving a file from a server into PATH.part: on after a broken connection, and never a part of another version.

PATH.part.json says which version of the file the bytes of PATH.part are of.
"""

import contextlib
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


def receive(url: str, path: pathlib.Path, bounds, timeout, attempts, backoff) -> Version:
    """Calls `_receive_once` until it returns; raises DownloadError when there is no point in going on."""
    tried: list[str] = []
    reached = False
    for attempt in range(attempts):
        if attempt:
            delay = backoff * 2 ** (attempt - 1)
            logging.warning("%s: %s; trying again in %g s", url, tried[-1], delay)
            time.sleep(delay)
        final = False
        try:
            return _receive_once(url, beside(path, ".part"), bounds, timeout)
        except urllib.error.HTTPError as error:
            error.close()
            reached, final = True, error.code not in _ASK_AGAIN
            tried.append(f"the server answered {error.code} {error.reason}")
            if error.code == 416:  # it has no bytes after those that are here, so these are of another file
                _discard(beside(path, ".part"))
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
    raise failure(url, path, tried)


def _receive_once(url: str, part: pathlib.Path, bounds, timeout: float) -> Version:
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
        with writing(part):  # unbuffered, so that a full disk shows in write() and not in close()
            file = stack.enter_context(open(part, "ab" if offset else "wb", buffering=0))
            if not offset:
                files.write_json(beside(part, ".json"), known)
        bar = tqdm(desc=part.stem, total=total, initial=offset, unit="B", unit_scale=True, disable=None)
        progress = stack.enter_context(bar)
        while chunk := response.read1(_CHUNK):
            with writing(part):
                rest = memoryview(chunk)
                while rest:
                    rest = rest[file.write(rest) :]
            offset += len(chunk)
            progress.update(len(chunk))
        with writing(part):
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
        raise _Refusal(wrong_size(f"what {response.url} has ({kind})", num_bytes, bounds))
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
        known = json.loads(beside(part, ".json").read_text(encoding="utf-8"))
        size = part.stat().st_size
        if known["url"] == url and _validator(known) and 0 < size <= known["num_bytes"]:
            return size, known
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return 0, None


def _discard(part: pathlib.Path) -> None:
    with writing(part):
        part.unlink(missing_ok=True)
        beside(part, ".json").unlink(missing_ok=True)


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


def failure(url: str, path: pathlib.Path, tried: list[str]) -> DownloadError:
    runs = [(reason, len(list(group))) for reason, group in itertools.groupby(tried)]
    reasons = ", then ".join(reason + (f" ({count} times)" if count > 1 else "") for reason, count in runs)
    received, _ = _progress(beside(path, ".part"), url)
    rest = f"; {received:,} bytes are here, and the next call goes on from there" if received else ""
    return DownloadError(
        f"{url} cannot be downloaded: {reasons}{rest}. To do without a download, put the file there by hand: {path}"
    )


def wrong_size(what: str, num_bytes: int, bounds) -> str:
    expected = f"at least {bounds[0]:,}" if bounds[1] == math.inf else f"{bounds[0]:,} to {bounds[1]:,}"
    return f"{what} {num_bytes:,} bytes, but the file must have {expected}"


@contextlib.contextmanager
def writing(path: pathlib.Path):
    """Tells errors of the disk from those of the network, which are OSErrors too."""
    try:
        yield
    except OSError as error:
        raise DownloadError(
            f"{path} cannot be written: {error.strerror or error}. Make room there, or choose another folder"
        ) from error


def beside(path: pathlib.Path, suffix: str) -> pathlib.Path:
    return path.with_name(path.name + suffix)

"""Pictures and videos that are given by their addresses: each is fetched once, into the folder of outputs."""

import hashlib
import pathlib
import re
import urllib.parse
from collections.abc import Sequence

from dlv3p_jax.data.example import Problem
from dlv3p_jax.inference.finding import DOWNLOADS
from dlv3p_jax.weights import download


def fetch(paths: Sequence[str], output: pathlib.Path) -> tuple[list[str], list[Problem]]:
    """`paths`, with files below OUTPUT/downloads in place of http and https addresses.

    A file that is there already is taken, if it has not changed since.

    Returns:
        The paths, and what could not be fetched.
    """
    found, problems = [], []
    for path in paths:
        if not path.lower().startswith(("http://", "https://")):
            found.append(path)
            continue
        try:
            found.append(str(download.download(path, output / DOWNLOADS / _place(path))))
        except (download.DownloadError, ValueError) as error:
            problems.append(Problem(path, str(error)))
    return found, problems


def _place(address: str) -> pathlib.Path:
    """HOST/FOLDERS/NAME, with digits in the name where these are not all of the address: two have two files."""
    parts = urllib.parse.urlsplit(address)
    host = f"{parts.hostname}_{parts.port}" if parts.port else str(parts.hostname)
    said = [host, *(urllib.parse.unquote(part) for part in parts.path.split("/") if part)]
    folders = [re.sub(r"[^\w.,+@=() -]|^\.+", "_", part[-50:]) for part in said]
    name = pathlib.PurePath(folders.pop() if len(folders) > 1 else "picture")
    if parts.query or [*folders, name.name][: len(said)] != said:
        name = name.with_stem(f"{name.stem}-{hashlib.sha256(address.encode()).hexdigest()[:8]}")
    return pathlib.Path(*folders, name)

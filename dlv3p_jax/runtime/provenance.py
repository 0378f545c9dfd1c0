"""Where a result is from: when, by which code, on what. For the reports beside the results."""

import datetime
import importlib.metadata
import pathlib
import platform
import subprocess
from typing import Any

from dlv3p_jax import __version__

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "tensorflow", "tensorflow-cpu")


def describe() -> dict[str, Any]:
    """'date' (UTC), 'version' of this package, 'versions' of others, and 'git_revision' of the code, None if unknown.

    A revision ends in '-dirty' where the code was changed after it.
    """
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "versions": versions,
        "git_revision": git_revision(pathlib.Path(__file__).resolve()),
    }


def git_revision(file: pathlib.Path) -> str | None:
    """That of the repository which holds `file`, with '-dirty' where anything was changed; None if none does."""

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(file.parent), *arguments]
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=10
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # an installed copy may lie below somebody else's repository
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None

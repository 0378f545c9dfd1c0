"""The SHA-256 of every file of a checkpoint: written before the checkpoint is complete, compared before it is used.

They lie in the checkpoint as digests.json. Its `meta` says that they do, and they are of `meta` too, so that neither is
lost without a word. Checkpoints of older versions have none, and are read as they are.
"""

import concurrent.futures
import hashlib
import json

from etils import epath

from dlv3p_jax.runtime.errors import UserError

NAME = "digests.json"
META = {"digests": NAME}  # what a checkpoint's `meta` holds where there are any

# Orbax writes these two once more when it completes a checkpoint; nothing that is used is read from them.
_WRITTEN_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")


class DigestError(UserError):
    """A file is not what was written; the message names it."""


def write(folder: epath.Path) -> None:
    """Writes the digests of all files in and below `folder`, which nobody writes to any more.

    Raises:
      OSError: a file cannot be read, or the digests cannot be written.
    """

    def fail(error: OSError) -> None:
        raise error

    files = [root / name for root, _, names in folder.walk(on_error=fail) for name in names]
    paths = {str(path)[len(str(folder)) :].strip("/"): path for path in files}
    digests = _digests({name: path for name, path in paths.items() if name not in (*_WRITTEN_LATER, NAME)})
    (folder / NAME).write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def check(checkpoint: epath.Path, item: str) -> None:
    """Compares the files of an item with their digests, where the checkpoint has any.

    Raises:
      DigestError: a file is not what was written, or the digests are gone.
      FileNotFoundError: a file is missing.
      OSError: a file cannot be read.
    """
    try:
        written = json.loads((checkpoint / NAME).read_text(encoding="utf-8"))
        written = {name: digest for name, digest in written.items() if name.startswith(f"{item}/")}
    except FileNotFoundError:
        if _announced(checkpoint):
            raise DigestError(f"{NAME} is missing") from None
        return
    except (ValueError, AttributeError) as error:
        raise DigestError(f"{NAME} is not what was written: {error}") from error
    if not written:
        raise DigestError(f"{NAME} has nothing of {item}")
    found = _digests({name: checkpoint / name for name in written})
    for name, digest in written.items():
        if found[name] != digest:
            raise DigestError(f"{name} is not what was written: its SHA-256 is another")


def _announced(checkpoint: epath.Path) -> bool:
    try:
        meta = json.loads((checkpoint / "meta" / "metadata").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # is told where `meta` is read
        return False
    return isinstance(meta, dict) and META.items() <= meta.items()


def _digests(files: dict[str, epath.Path]) -> dict[str, str]:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # in a bucket, most of the time is spent asking
        return dict(zip(files, pool.map(_digest, files.values()), strict=True))


def _digest(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()

"""The `.pdparams` in a tar archive, compressed with gzip or not; nothing is extracted."""

import gzip
import os
import tarfile
import zlib
from typing import BinaryIO

from dlv3p_jax.weights.pickle_errors import MAX_BYTES, WeightsFileError, listed, shown

# An ImageNet archive has about 100 MB and a few members. Random weights do not compress, so a real archive holds little
# more than its own size.
_MAX_MEMBERS = 1_000
_MAX_RATIO, _RATIO_FREE_BYTES = 20, 32 * 2**20


def read(file: BinaryIO) -> tuple[bytes, str | None]:
    """The bytes of the pickle, and the member's name if `file` is an archive."""
    size = os.fstat(file.fileno()).st_size
    if size > MAX_BYTES:
        raise WeightsFileError(f"has {size:,} bytes, more than the {MAX_BYTES:,} that weights may take here")
    head = file.read(tarfile.BLOCKSIZE)
    file.seek(0)
    if _is_tar(head):
        return _read_archive(file, MAX_BYTES)
    if not head.startswith(b"\x1f\x8b"):
        return file.read(), None
    with gzip.GzipFile(fileobj=file) as unpacked:
        return _read_archive(unpacked, min(MAX_BYTES, _RATIO_FREE_BYTES + _MAX_RATIO * size))


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")  # checks the header's checksum
    except tarfile.HeaderError:
        return False
    return True


class _Limited:
    """A stream that ends in an error after so many bytes."""

    def __init__(self, stream: BinaryIO | gzip.GzipFile, limit: int):
        self._stream = stream
        self._limit = self._left = limit

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise WeightsFileError(
                f"is an archive that unpacks to more than {self._limit:,} bytes, the most that one of its size may. "
                "Weights hardly compress, so this is something else, and may be made to fill the memory"
            )
        return data


def _read_archive(stream: BinaryIO | gzip.GzipFile, limit: int) -> tuple[bytes, str]:
    """The only `.pdparams` of a tar archive and its name. The archive is read through once; nothing is extracted."""
    found = None
    names = []
    try:
        if not _is_tar(stream.read(tarfile.BLOCKSIZE)):
            raise WeightsFileError(
                "is compressed with gzip, but holds no tar archive: unpack it first, or fetch it again"
            )
        stream.seek(0)
        limited = _Limited(stream, limit)
        # The stubs ask for a whole file; a stream needs no more than read.
        with tarfile.open(fileobj=limited, mode="r|", bufsize=2**20) as archive:  # type: ignore[call-overload]
            for member in archive:
                names.append(member.name)
                if len(names) > _MAX_MEMBERS:
                    raise WeightsFileError(
                        f"is an archive of more than {_MAX_MEMBERS:,} members; weights come in a few"
                    )
                if not _is_weights(member):
                    continue
                if found is not None:
                    raise WeightsFileError(
                        f"holds several .pdparams, {listed([found[1], member.name])}: unpack the one meant"
                    )
                found = archive.extractfile(member).read(), member.name
        while limited.read(2**20):  # to the end, where gzip has its checksum
            pass
    except (tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise WeightsFileError(f"is a damaged archive or only a part of one ({error}): fetch it again") from error
    if found is None:
        raise WeightsFileError(f"is an archive without a .pdparams; it holds {listed(names)}")
    return found


def _is_weights(member: tarfile.TarInfo) -> bool:
    parts = member.name.replace("\\", "/").split("/")
    if ".." in parts or not parts[0] or parts[0].endswith(":"):
        raise WeightsFileError(f"is an archive with a path that leads out of it, {shown(member.name)}: do not trust it")
    # macOS's tar adds a file ._NAME with attributes to every file NAME.
    if member.isdir() or not parts[-1].endswith(".pdparams") or parts[-1].startswith("._"):
        return False
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        raise WeightsFileError(
            f"is an archive whose {shown(member.name)} is no plain file but a link, a device or sparse"
        )
    return True

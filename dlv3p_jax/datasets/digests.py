"""Hashes of records: of one, and of a split. Nothing here imports TensorFlow: worker processes run it."""

import hashlib


def digest_contents(image: bytes, label: bytes) -> tuple[bytes, bytes]:
    """The SHA-256 of a record's picture and of its label, 32 bytes each."""
    return hashlib.sha256(image).digest(), hashlib.sha256(label).digest()


class Digest:
    """A SHA-256 over the ids of records and the hashes of their contents, in order."""

    def __init__(self) -> None:
        self._sum = hashlib.sha256()

    def add(self, record_id: bytes, contents: tuple[bytes, bytes]) -> None:
        """Takes the next record's id, and what `digest_contents` makes of it."""
        self._sum.update(len(record_id).to_bytes(8, "little"))  # so that no byte of it can pass for another part
        for part in (record_id, *contents):
            self._sum.update(part)

    def hexdigest(self) -> str:
        return self._sum.hexdigest()

"""Pictures that a data set holds more than once, by their bytes, whatever their files are called."""

import collections
import itertools
from collections.abc import Iterable

from dlv3p_jax.data.errors import DatasetError


class Repeats:
    """Compares each picture with all before it; some 500 bytes of memory a picture.

    A picture that was saved again, in another format, size or quality, is another one here.
    """

    def __init__(self, apart: Iterable[tuple[str, str]], as_published: bool = False):
        """Has seen no picture yet.

        Args:
            apart: pairs of splits that should have no picture in common.
            as_published: a picture with two labels is told, and no error.
        """
        self._as_published, self._different = as_published, list[str]()
        self._apart = {frozenset(pair): pair for pair in apart}
        self._names: dict[bytes, dict[str, str]] = collections.defaultdict(dict)  # by picture and split
        self._labels: dict[bytes, tuple[bytes, str, str]] = {}  # by picture: its first label, and both files
        self._within: dict[str, list[str]] = collections.defaultdict(list)
        self._between: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
        self._counts: collections.Counter[str] = collections.Counter()

    def add(
        self, split: str, name: str, contents: tuple[bytes, bytes], files: tuple[str, str], has_label: bool
    ) -> None:
        """Takes what `digests.digest_contents` makes of a record called `name`, and the files that it comes from.

        Raises:
            DatasetError: the picture was there with another label; nothing has been taken then.
        """
        key, label = contents
        if has_label:
            first, first_image, first_label = self._labels.setdefault(key, (label, *files))
            if first != label:
                same = f"{files[0]} is the same picture as {first_image}, but their labels {files[1]} and {first_label}"
                if not self._as_published:
                    raise DatasetError(f"{same} differ: keep the right one")
                self._different.append(f"{same} differ; both are kept, as published")
        self._counts[split] += 1
        names = self._names[key]
        if split in names:
            self._within[split].append(f"{name} = {names[split]}")
            return
        for other, other_name in names.items():
            if pair := self._apart.get(frozenset((split, other))):
                by_split = {split: name, other: other_name}
                self._between[pair].append(" = ".join(dict.fromkeys(by_split[each] for each in pair)))
        names[split] = name

    def remarks(self) -> list[str]:
        """What the user should hear of."""
        remarks = [
            f"{split}: {len(found)} of {self._counts[split]} pictures repeat others, byte for byte ({_first(found)}), "
            "and count as often as they are there"
            for split, found in self._within.items()
        ]
        for (one, other), found in self._between.items():
            total = self._counts[other] - len(self._within.get(other, ()))
            share = f"all {total}" if len(found) == total else f"{len(found)} of {total}"
            remarks.append(
                f"{share} pictures of {other} are in {one} too, byte for byte ({_first(found)}), so {other} does not "
                "measure what was learnt"
            )
        remarks += self._different[:3]
        if len(self._different) > 3:
            remarks.append(f"… and {len(self._different) - 3} more pictures with two labels")
        return remarks


def every_pair(splits: Iterable[str]) -> list[tuple[str, str]]:
    """Those of splits that have nothing in common."""
    return list(itertools.combinations(splits, 2))


def _first(found: list[str], most: int = 3) -> str:
    return ", ".join(found[:most]) + (", …" if len(found) > most else "")

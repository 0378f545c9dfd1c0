"""Names of files: those that are no text, and those of pictures and labels that nearly match."""

import collections
import functools
import os
import pathlib
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import TypeVar

from dlv3p_jax.data.example import Pair, Problem

Item = TypeVar("Item")

# task-12-annotation-3-by-1-tag-road-0, a file for each class
_LABEL_STUDIO = re.compile(r"(?:.*/)?task-\d+-annotation-\d+-.*tag-.+-\d+")

_LAY = "lay those of a picture over each other, as one PNG of class indices that is called like the picture"


def printable(text: str) -> str:
    r"""Text in which what a file's name has beside UTF-8 is spelt out, as in M\xfcll.jpg."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def leave_out_no_text(items: Sequence[Item]) -> tuple[list[Item], list[Problem]]:
    """The items whose names can be written as UTF-8, and a problem for each of the others.

    Records, reports and outputs carry the names on, to programs that take nothing else.
    """
    problems = []
    kept = []
    for item in items:
        if isinstance(item, Pair) and printable(item.id) != item.id:
            name, folder = printable(item.image), printable(os.path.dirname(item.image))
            mend = f"rename it; all of a folder at once: convmv -f latin1 -t utf8 -r --notest {folder}"
            problems.append(Problem(printable(item.id), f"{name}: the name is not UTF-8: {mend}"))
        else:
            kept.append(item)
    return kept, problems


def explain(images: Collection[str], labels: Collection[str]) -> str | None:
    """One sentence on how names without a partner nearly match, if they do.

    Args:
        images: names of pictures without a label, relative and without extension.
        labels: names of labels without a picture.
    """
    if any(_LABEL_STUDIO.fullmatch(label) for label in labels):
        return f"labels called task-…-annotation-…-tag-… are Label Studio's, one file a class and picture: {_LAY}"
    folded = {_fold(image): image for image in images}
    alike = [(folded[_fold(label)], label) for label in labels if _fold(label) in folded]
    affixes: dict[tuple[str, str], list[tuple[str, str]]] = collections.defaultdict(list)
    for label in labels:
        for affix, image in _longer(label, images):
            affixes["labels", affix].append((image, label))
    for image in images:
        for affix, label in _longer(image, labels):
            affixes["pictures", affix].append((image, label))
    (longer, affix), found = max(affixes.items(), key=lambda each: len(each[1]), default=(("", ""), []))
    if alike and len(alike) >= len(found):
        image, label = alike[0]
        only, mend = "upper and lower case", "rename them"
        if unicodedata.normalize("NFC", image) == unicodedata.normalize("NFC", label):
            only, mend = "how letters are coded", "rename them, as with convmv -r -f utf8 -t utf8 --nfc --notest FOLDER"
        return f"{len(alike)} labels are called like their pictures but for {only} ({label} for {image}): {mend}"
    of_one = collections.Counter(image for pairs in affixes.values() for image, _ in pairs)
    several = [image for image, count in of_one.items() if count > 1]
    if longer == "labels" and several and len(several) >= len(images) / 2:
        names = [label for (side, _), pairs in affixes.items() for image, label in pairs if image == several[0]]
        return (
            f"{len(several)} pictures have several labels ({', '.join(names[:3])} for {several[0]}): if that is one "
            f"file a class, {_LAY}"
        )
    if found:
        image, label = found[0]
        ends = longer == "labels" and label == image + affix
        mend = f"give --label_suffix={affix}" if ends else "rename them, or write lists"
        return (
            f'{len(found)} {longer} have "{affix}" in their names, and their partners have not ({label} for {image}): '
            f"{mend}"
        )
    return _two_endings(sorted(images), sorted(labels))


def _two_endings(images: list[str], labels: list[str]) -> str | None:
    """Of a_sat and a_mask, b_sat and b_mask."""
    endings = [os.path.commonprefix([name[::-1] for name in names])[::-1] for names in (images, labels)]
    if min(len(images), len(labels)) < 2 or not all(endings):
        return None
    image_stems, label_stems = (
        {name.removesuffix(ending) for name in names} for names, ending in zip((images, labels), endings, strict=True)
    )
    both = image_stems & label_stems
    if not both:
        return None
    return (
        f'{len(both)} pictures have "{endings[0]}" where their labels have "{endings[1]}": rename them, or write lists'
    )


def _longer(name: str, others: Collection[str]) -> Iterable[tuple[str, str]]:
    """What `name` has more at its end or its beginning than the longest of the others that it holds, and that one."""
    parent, _, base = name.rpartition("/")
    folder = f"{parent}/" if parent else ""
    ends = [(base[cut:], folder + base[:cut]) for cut in range(len(base) - 1, 0, -1)]
    starts = [(base[:cut], folder + base[cut:]) for cut in range(1, len(base))]
    for ways in (ends, starts):
        yield from [(affix, other) for affix, other in ways if other in others][:1]


def find_alike(path: pathlib.Path) -> str | None:
    """The name of a file in the same folder that differs in case, in how letters are coded, or in the extension."""
    names = _names_in(str(path.parent))
    found = names.get(_fold(path.name)) or names.get(_fold(path.stem))
    return None if found is None else printable(found)


@functools.lru_cache(maxsize=64)
def _names_in(folder: str) -> dict[str, str]:
    """The files of a folder by what `_fold` makes of their names, and by that without the extension."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return {_fold(os.path.splitext(name)[0]): name for name in names} | {_fold(name): name for name in names}


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()

"""Which label belongs to which picture: PaddleSeg's list files, or parallel folders."""

import collections
import os
import pathlib
import re
from collections.abc import Iterator

from dlv3p_jax.data import opening
from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.example import Pair, Problem
from dlv3p_jax.data.opening import by_suffix
from dlv3p_jax.datasets.file_names import explain, find_alike
from dlv3p_jax.datasets.folders import below

SPLITS = ("train", "val", "test")
REQUIRED = ("train", "val")
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".avif"),
)
LAYOUTS = """\
  Either list files train.txt and val.txt (and test.txt) in it, with "image label" on every line, relative to it,
  or folders images/train, images/val, labels/train, labels/val whose files have the same names up to the extension,
  or Pascal VOC's: JPEGImages, SegmentationClass, and the names of train.txt and val.txt in ImageSets/Segmentation."""


def find_pairs(
    source: str | os.PathLike, label_suffix: str = ""
) -> tuple[dict[str, list[Pair]], list[Problem], list[str]]:
    """Lists the pairs of a folder by split.

    Args:
        source: the folder.
        label_suffix: what the names of labels in folders have after those of their pictures, before the extension.

    Returns:
        Pairs by split, in the order of the lists or of their sorted names; pairs that lack a file; and remarks for the
        user.

    Raises:
        DatasetError: no known layout, no train or val split, or lines and names that are ambiguous.
    """
    source = pathlib.Path(source).expanduser()
    if not source.is_dir():
        raise DatasetError(f"--source={source}: no such folder")
    lists = {split: source / f"{split}.txt" for split in SPLITS if (source / f"{split}.txt").is_file()}
    folders = {split: source / "images" / split for split in SPLITS if (source / "images" / split).is_dir()}
    if not lists and not folders:
        raise DatasetError(f"--source={source}: no layout of pictures and labels that is known here.\n{LAYOUTS}")
    if lists and label_suffix:
        raise DatasetError(f"--label_suffix={label_suffix}: {min(lists.values())} names the labels, so leave it out")
    remarks = []
    if lists and folders:
        remarks.append(f"{source} has list files and folders: the lists count")
    have = lists or folders
    for split in REQUIRED:
        if split not in have:
            missing = f"{split}.txt" if lists else f"images/{split}"
            raise DatasetError(f"--source={source}: no {split} split, for {missing} is not there.\n{LAYOUTS}")
    pairs, problems = {}, []
    for split, path in have.items():
        if lists and split == "test" and _is_unlabelled(path):
            remarks.append(f"{path} has no labels, so it is left out: label pictures with predict")
            continue
        found = _read_list(path, source) if lists else _match_folders(source, split, label_suffix)
        pairs[split] = found[0]
        problems += found[1]
        remarks += found[2]
        if not found[0] and not found[1]:
            raise DatasetError(f"{path}: the {split} split is empty")
    return pairs, problems, remarks


def read_lines(path: pathlib.Path) -> list[str]:
    """The lines of a text file, whatever ends them, without those that are blank at its end."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise opening.unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _is_unlabelled(path: pathlib.Path) -> bool:
    """Whether every line is the path of one picture."""
    lines = [line.strip().replace("\\", "/") for line in read_lines(path)]
    return bool(lines) and all(opening.is_file(path.parent / line) for line in lines)


def _read_list(path: pathlib.Path, source: pathlib.Path) -> tuple[list[Pair], list[Problem], list[str]]:
    rows: dict[str, tuple[str, str, int]] = {}  # by what `_key` makes of the picture: both names, and the line
    problems, repeated = [], []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        image, label = _split_line(line, source, where)
        missing = [name for name in (image, label) if not opening.is_file(source / name)]
        earlier = rows.setdefault(_key(source / image), (image, label, number))
        if earlier[2] == number:
            if missing:
                alike = list(filter(None, (find_alike(source / name) for name in missing)))
                there = f" ({', '.join(alike)} is there: write names as they are)" if alike else ""
                problems.append(Problem(image, f"{where}: {' and '.join(missing)} not found in {source}{there}"))
        elif _key(source / earlier[1]) == _key(source / label):
            repeated.append(number)
        else:
            raise DatasetError(f"{where}: {image} has another label than on line {earlier[2]}")
    absent = {problem.id for problem in problems}
    ids = ids_of([image for image, _, _ in rows.values()], source)
    pairs = [
        Pair(ids[image], str(source / image), str(source / label))
        for image, label, _ in rows.values()
        if image not in absent
    ]
    remarks = []
    if repeated:
        remarks.append(f"{path}: {len(repeated)} repeated rows count once (lines {first_five(repeated)})")
    return pairs, problems, remarks


def _split_line(line: str, source: pathlib.Path, where: str) -> tuple[str, str]:
    """The two names of a line, which may hold blanks: the one way to split it of which both files exist."""
    line = line.strip().replace("\\", "/")
    candidates = list(dict.fromkeys(_ways_to_split(line)))
    existing = [pair for pair in candidates if all(opening.is_file(source / name) for name in pair)]
    if len(existing) == 1:
        return existing[0]
    if len(existing) > 1:
        raise DatasetError(f'{where}: "{line}" can be read in {len(existing)} ways; put a tab between image and label')
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise DatasetError(f'{where}: "{line}" is one name; write "image label", with a blank or a tab between them')
    raise DatasetError(
        f'{where}: "{line}" does not name two files of {source}; write "image label", with a tab between them '
        "if a name holds blanks"
    )


def _ways_to_split(line: str) -> Iterator[tuple[str, str]]:
    if "\t" in line:
        columns = [column.strip(' "') for column in line.split("\t") if column.strip()]
        if len(columns) == 2:
            yield columns[0], columns[1]
        return
    for separator in re.finditer(r"\s*[|,;]\s*|\s+", line):
        image, label = line[: separator.start()].strip('"'), line[separator.end() :].strip('"')
        if image and label:
            yield image, label


def _key(path: pathlib.Path) -> str:
    """The same for every way to write a path; a link to a file is a file of its own."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def ids_of(images: list[str], source: pathlib.Path) -> dict[str, str]:
    """Names of pictures: their path below the source, without its extension where that leaves them different."""
    paths = {}
    for image in images:
        path = pathlib.PurePosixPath(os.path.normpath(image))
        if path.is_absolute():
            path = path.relative_to(source if path.is_relative_to(source) else "/")
        paths[image] = path
    stems = collections.Counter(path.with_suffix("") for path in paths.values())
    ids = {
        image: str(path.with_suffix("") if stems[path.with_suffix("")] == 1 else path) for image, path in paths.items()
    }
    if len(set(ids.values())) == len(ids):
        return ids
    ids = {image: str(path) for image, path in paths.items()}  # of a.jpg, a.png and a.jpg.png
    return ids if len(set(ids.values())) == len(ids) else {image: image for image in images}


def _match_folders(source: pathlib.Path, split: str, suffix: str) -> tuple[list[Pair], list[Problem], list[str]]:
    images, other = pictures_below(source / "images" / split)
    named, more = pictures_below(source / "labels" / split)
    labels = {stem.removesuffix(suffix): path for stem, path in named.items() if stem.endswith(suffix)}
    other += more
    problems = [
        Problem(stem, f"{have[stem]} has no {lacks} (looked for {lacks}s/{split}/{stem}{after}.*)")
        for have, missing, lacks, after in ((images, labels, "label", suffix), (labels, images, "image", ""))
        for stem in have
        if stem not in missing
    ]
    pairs = [Pair(stem, str(images[stem]), str(labels[stem])) for stem in images if stem in labels]
    remarks = []
    if hint := explain(
        [stem for stem in images if stem not in labels], [stem for stem in labels if stem not in images]
    ):
        remarks.append(f"{split}: {hint}")
    if unlike := [path for stem, path in named.items() if not stem.endswith(suffix)]:
        remarks.append(
            f"{split}: {len(unlike)} labels without {suffix} in their names are left out ({first_five(unlike)})"
        )
    if other:
        remarks.append(f"{split}: left out as no pictures: {by_suffix(other)} ({first_five(other)})")
    return pairs, problems, remarks


def pictures_below(folder: pathlib.Path) -> tuple[dict[str, pathlib.Path], list[pathlib.Path]]:
    """Picture files of a folder and its sub-folders by relative stem, sorted, and the other files; no hidden ones."""
    pictures: dict[str, pathlib.Path] = {}
    other = []
    for path in sorted(path for path, is_folder in below(folder) if not is_folder):
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts):
            continue
        if path.suffix.lower() not in EXTENSIONS:
            other.append(path)
            continue
        stem = relative.with_suffix("").as_posix()
        if stem in pictures:
            raise DatasetError(f"{pictures[stem]} and {path} have the same name but for the extension; keep one")
        pictures[stem] = path
    return pictures, other


def first_five(things: list) -> str:
    return ", ".join(map(str, things[:5])) + (", …" if len(things) > 5 else "")

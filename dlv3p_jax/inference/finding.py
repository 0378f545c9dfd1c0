"""Finding picture files: paths, folders and globs in, files and the names of their outputs out; without JAX."""

import collections
import dataclasses
import fnmatch
import functools
import glob
import json
import os
import pathlib
from collections.abc import Collection, Iterable, Sequence

from absl import logging

from dlv3p_jax.data.example import Problem
from dlv3p_jax.data.opening import by_suffix
from dlv3p_jax.datasets.folders import below
from dlv3p_jax.datasets.pairs import EXTENSIONS, first_five

DOWNLOADS = "downloads"
OUTPUTS = (
    "labels",
    "overlays",
    "probabilities",
    "results",
    "videos",
    "geotiffs",
    DOWNLOADS,
)  # what predict makes in its folder of outputs
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
RECORD = "predict.jsonl"  # and what it keeps there of them, see `folder_record`


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture file; `name` is what its outputs are called: a relative path, in general without its extension."""

    path: pathlib.Path
    name: str


def find_pictures(
    paths: Sequence[str | os.PathLike], output: str | os.PathLike | None = None
) -> tuple[list[Picture], list[Problem]]:
    """Picture files, those below folders, and those that globs match, sorted within each folder or glob.

    Names are relative to the deepest folder that holds all of `paths`, so that pictures of one name in two folders stay
    apart. They leave out the extension, unless two pictures differ in nothing else.

    Args:
        paths: files, folders and globs, in which `**` matches folders of any depth. Hidden files in folders, and files
            in folders and globs that are no pictures by their extension, are not looked at.
        output: where outputs go; what lies in its `OUTPUTS` is left out, by whichever links it is reached. Where that
            is more than the outputs of an earlier run, by its RECORD, a warning says so.

    Returns:
        The pictures, each once, in the order of `paths`, and what is wrong with paths that are not there or hold no
        picture, and with folders that cannot be read. What is left out in folders and globs is logged.
    """
    folder = None if output is None else pathlib.Path(os.path.realpath(output))
    own = () if folder is None else tuple(folder / name for name in OUTPUTS)
    outputs: set[pathlib.Path] = set()
    real_folder = functools.cache(os.path.realpath)

    def is_own(path: pathlib.Path) -> bool:
        real = pathlib.Path(real_folder(path.parent), path.name)
        is_in = any(parent in real.parents for parent in own)
        if is_in and _is_picture(real):
            outputs.add(real)
        return is_in or (folder is not None and real == folder / RECORD)

    files: dict[pathlib.Path, None] = {}
    roots: list[pathlib.Path] = []
    problems: list[Problem] = []
    left_out: dict[pathlib.Path, None] = {}
    for given in [os.fspath(path) for path in paths]:
        if reason := _why_no_picture(given):
            problems.append(Problem(given, f"{given}: {reason}"))
            continue
        path = os.path.abspath(os.path.expanduser(given))
        is_there = os.path.exists(path)
        found, is_output, others, unread = [], False, [], len(problems)
        for match in map(pathlib.Path, [path] if is_there else _matches(path)):
            if match.is_dir():
                is_output = pathlib.Path(real_folder(match)) == folder or is_own(match / "file")
                below_it = [file for file in _files_below(match, problems) if not is_own(file)]
                pictures = [file for file in below_it if _is_picture(file)]
                others += [file for file in below_it if not _is_picture(file)]
                if pictures or not is_output:
                    roots.append(match)
                found += pictures
            elif is_there or (_is_picture(match) and not is_own(match)):
                roots.append(match.parent)
                found.append(match)
            elif not is_own(match):
                others.append(match)
        if not found and len(problems) > unread:  # which says why
            continue
        if not found and not is_output:  # the shell puts the folder of outputs in place of a *, once it is there
            reason = "no pictures in this folder" if is_there else "no such file or folder"
            if others:
                where = "in this folder" if is_there else "among the files that it matches"
                reason = f"no pictures of a kind that can be read {where}, which are {by_suffix(others)}"
                reason += _how_videos_are_given(others)
            problems.append(Problem(path, f"{path}: {reason}"))
        elif others:
            left_out |= dict.fromkeys(others)
        files |= dict.fromkeys(found)
    if folder is not None:
        _warn_of_others(folder, outputs)
    if left_out:
        logging.warning(
            "Left out as no pictures that can be read: %s (%s)%s",
            *(by_suffix(left_out), first_five(list(left_out)), _how_videos_are_given(left_out)),
        )
    if not files:
        return [], problems or [Problem(str(output), f"{output}: no pictures beside those of this folder of outputs")]
    root = os.path.commonpath(roots)
    names = _names([path.relative_to(root) for path in files])
    return [Picture(path, name) for path, name in zip(files, names, strict=True)], problems


def is_video(path: str) -> bool:
    """Whether it is a video's file by its name."""
    return pathlib.PurePath(path).suffix.lower() in VIDEOS and os.path.isfile(os.path.expanduser(path))


def _how_videos_are_given(paths: Iterable[pathlib.Path]) -> str:
    are_there = any(path.suffix.lower() in VIDEOS for path in paths)
    return "; give each video by its own path" if are_there else ""


def _why_no_picture(path: str) -> str | None:
    """What to say of what people give that is no path of pictures; None where it may be one."""
    if "://" in path:
        return "http and https addresses of single pictures are fetched, and no others: download it, and give its file"
    if path.isdecimal() and not os.path.exists(path):
        return "no such file or folder; a camera's number is not taken: save its pictures, and give their folder"
    return None


def _warn_of_others(output: pathlib.Path, left_out: Collection[pathlib.Path]) -> None:
    """Says which of the pictures among the outputs are none that the folder's record knows."""
    try:
        lines = (output / RECORD).read_text(encoding="utf-8").splitlines()[1:] if left_out else []
        names = {json.loads(line)["name"] for line in lines}
    except (OSError, ValueError, LookupError, TypeError):
        names = set()
    names |= {pathlib.PurePath(name).stem for name in names}  # as VOC's server wants them
    others = [path for path in sorted(left_out) if _output_name(path.relative_to(output)) not in names]
    if others:
        folders = ", ".join(sorted({str(output / path.relative_to(output).parts[0]) for path in others}))
        logging.warning(
            "%d pictures in %s, where outputs go, are left out, such as %s: give another --output to predict them",
            *(len(others), folders, others[0]),
        )


def _output_name(path: pathlib.Path) -> str:
    """The name of the picture that an output would be of, by its path below the folder of outputs."""
    name = path.with_suffix("").relative_to(path.parts[0])
    return name.name if path.parts[0] == "results" else name.as_posix()


def _files_below(folder: pathlib.Path, problems: list[Problem]) -> list[pathlib.Path]:
    """The files below a folder, but hidden ones; adds to `problems` the folders that cannot be read."""

    def note(error: OSError) -> None:
        problems.append(Problem(error.filename, f"{error.filename}: cannot be read ({error.strerror})"))

    return sorted(
        path
        for path, is_folder in below(folder, note)
        if not (is_folder or any(part.startswith(".") for part in path.relative_to(folder).parts))
    )


def _matches(pattern: str) -> list[str]:
    """The paths that an absolute glob matches, sorted.

    glob.glob would follow links to folders above, from ** on, without end, and leave out what cannot be read.

    Raises:
        OSError: a folder cannot be read.
    """
    parts = pathlib.PurePath(pattern).parts
    if "**" not in parts:
        return sorted(_expand(parts))
    start = parts.index("**")
    found = []
    for base in filter(os.path.isdir, _expand(parts[:start])):
        entries = [pathlib.Path(base), *(path for path, _ in below(base))]
        found += [str(path) for path in entries if _fit(path.relative_to(base).parts, parts[start:])]
    return sorted(found)


def _expand(parts: Sequence[str]) -> list[str]:
    """The paths that the parts of a glob without ** match."""
    found = [parts[0]]
    for part in parts[1:]:
        folders = filter(os.path.isdir, found)
        if glob.has_magic(part):
            found = [
                os.path.join(folder, name) for folder in folders for name in os.listdir(folder) if _fit([name], [part])
            ]
        else:
            found = [path for folder in folders if os.path.lexists(path := os.path.join(folder, part))]
    return found


def _fit(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a glob; neither ** nor a wildcard matches what is hidden."""
    if not patterns:
        return not parts
    if patterns[0] == "**" and _fit(parts, patterns[1:]):
        return True
    if not parts or (parts[0].startswith(".") and not patterns[0].startswith(".")):
        return False
    if patterns[0] == "**":
        return _fit(parts[1:], patterns)
    return fnmatch.fnmatchcase(parts[0], patterns[0]) and _fit(parts[1:], patterns[1:])


def _is_picture(path: pathlib.Path) -> bool:
    return path.suffix.lower() in EXTENSIONS


def _names(paths: Sequence[pathlib.Path]) -> Iterable[str]:
    """A name for each path, all different."""
    count = collections.Counter(path.with_suffix("") for path in paths)
    names = [(path if count[path.with_suffix("")] > 1 else path.with_suffix("")).as_posix() for path in paths]
    if len(set(names)) < len(names):  # 1.jpg, 1.png and 1.jpg.png
        return [path.as_posix() for path in paths]
    return names

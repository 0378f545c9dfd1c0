"""The names of classes, as people and labelling tools write them: plain lists, and tables of values, colours and names.

What can be read in two ways is refused: a table's head that is taken for a class would shift all others by one.
"""

import csv
import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable

from dlv3p_jax.data.errors import DatasetError
from dlv3p_jax.data.label_map import LabelMap
from dlv3p_jax.datasets.pairs import read_lines

Color = tuple[int, int, int]

# In this order; the last four are CVAT's, Roboflow's, CamVid's and Kaggle's.
FILES = ("classes.txt", "class_names.txt", "labelmap.txt", "_classes.csv", "label_colors.txt", "class_dict.csv")

_VOID = ("void", "ignore", "ignored", "__ignore__")  # names, in tables, of what counts nowhere
_COLUMNS = {
    "value": ("value", "pixel value", "id", "idx", "index", "class id", "class index", "label id", "label value"),
    "name": ("name", "class", "class name", "classname", "label", "label name", "category"),
    "red": ("r", "red"),
    "green": ("g", "green"),
    "blue": ("b", "blue"),
}
_ROLES = {word: role for role, words in _COLUMNS.items() for word in words}
_HEADS = {*_ROLES, "classes", "names", "labels", "categories", "color", "colour", "rgb", "train id", "trainid", "stuff"}
_LABELMAP = re.compile(r"(?P<name>[^:]*):(?:(?P<rgb>\d+,\d+,\d+))?:[^:]*:[^:]*")
_ROWS = (  # of tables without a head
    re.compile(r"(?P<rgb>\d+[\s,]+\d+[\s,]+\d+)[\s,;:]+(?P<name>\D.*)"),
    re.compile(r"(?P<name>.*\D)[\s,;:]+(?P<rgb>\d+[\s,]+\d+[\s,]+\d+)"),
    re.compile(r"(?P<value>\d+)\s*[,;:\t]\s*(?P<name>\D.*)"),
)
_COLORED = re.compile(r"(?P<name>.*[^\s,;])[\s,;]+#(?P<color>[0-9a-fA-F]{6})")  # a name and its colour
_NUMBERED = re.compile(r"(?P<value>\d+) +(?P<name>\D.*)")


@dataclasses.dataclass(frozen=True)
class _Row:
    line: int
    name: str
    value: int | None = None
    color: Color | None = None


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a data set.

    Attributes:
        names: the first for index 0.
        colors: by index, as far as the file has them.
        by_value: what turns the values of labels into indices; None: they are indices.
        by_color: what turns the colours of labels into indices; None: the file does not have all.
        remarks: how the file was read, where it is no plain list.
        is_plain: whether the file is a list whose line i is class i, so that palette labels count by their values.
    """

    names: list[str]
    colors: dict[int, Color] = dataclasses.field(default_factory=dict)
    by_value: LabelMap | None = None
    by_color: LabelMap | None = None
    remarks: tuple[str, ...] = ()
    is_plain: bool = False


def read(path: str | os.PathLike | None, source: str | os.PathLike, ignore_label: int = 255) -> Classes:
    """Reads a file of class names: one a line, the first for index 0, or a table that says more.

    A name may be followed by its colour: `traffic light #faaa1e`.

    Tables are CVAT's labelmap.txt, a CSV file whose head names its columns (value, name, red, green, blue), or lines of
    a value or a colour and a name. Rows of the name void or ignore are no classes there.

    Args:
        path: the file; None: the first of `FILES` that is in `source`.
        source: the folder of the data set.
        ignore_label: the index of pixels that count nowhere.

    Raises:
        DatasetError: no such file, fewer than two names or more than 255, a name that is empty or comes twice, or a
            table that is not known here.
    """
    remarks = []
    if path is None:
        candidates = [pathlib.Path(source).expanduser() / name for name in FILES]
        found = [candidate for candidate in candidates if candidate.is_file()]
        if not found:
            raise DatasetError(
                f"{candidates[0]} is missing: write the class names into it, one a line, the first for label value 0 "
                "(background counts, ignored values do not), or give --class_names=FILE"
            )
        path = found[0]
        if len(found) > 1:
            remarks.append(f"{path} counts; {', '.join(other.name for other in found[1:])} is left out")
    path = pathlib.Path(path).expanduser()
    lines = [(number, line.strip()) for number, line in enumerate(read_lines(path), 1)]
    rows = _read_table(path, [(number, line) for number, line in lines if line])
    classes = _plain(path, lines) if rows is None else _table(path, rows, ignore_label)
    return dataclasses.replace(classes, remarks=(*remarks, *classes.remarks))


def _plain(path: pathlib.Path, lines: list[tuple[int, str]]) -> Classes:
    _refuse_unknown_tables(path, [_COLORED.sub(r"\g<name>", line) for _, line in lines])
    if lines and lines[0][1] == "__ignore__":  # LabelMe's labels.txt, whose classes begin at the second line
        classes = _listed(path, lines[1:])
        remark = f'{path}: "__ignore__" is no class; index 0 is "{classes.names[0]}"'
        return dataclasses.replace(classes, remarks=(remark,))
    return _listed(path, lines)


def _listed(path: pathlib.Path, lines: list[tuple[int, str]]) -> Classes:
    """Names, one a line, each with its colour or without."""
    rows = [_row(path, number, {"name": line}) for number, line in lines]
    if any(row.color for row in rows):
        for row in rows:
            if row.color is None and (last := row.name.split()[-1:]) and last[0].startswith("#"):
                raise DatasetError(f"{path}, line {row.line}: {last[0]} is no colour: # and six digits, as in #00008e")
    names = _names(path, rows)
    colors = _by("colour", path, [(row, row.color, index) for index, row in enumerate(rows) if row.color])
    by_color = LabelMap(colors=tuple(colors.items())) if len(colors) == len(names) else None
    return Classes(names, {index: color for color, index in colors.items()}, by_color=by_color, is_plain=True)


def _read_table(path: pathlib.Path, lines: list[tuple[int, str]]) -> list[_Row] | None:
    """The rows of a table that is known here; None: it is none."""
    content = [(number, line) for number, line in lines if not line.startswith("#")]
    matches = [(number, _LABELMAP.fullmatch(line)) for number, line in content]
    if matches and all(match for _, match in matches):
        return [_row(path, number, match.groupdict()) for number, match in matches if match]
    if len(lines) < 2:
        return None
    for separator in ",;\t|":
        head, *cells = csv.reader((line for _, line in lines), delimiter=separator, skipinitialspace=True)
        roles = [_ROLES.get(_word(cell)) for cell in head]
        is_known = len(roles) > 1 and None not in roles and len(set(roles)) == len(roles) and "name" in roles
        if is_known and len({"red", "green", "blue"} & {*roles}) in (0, 3):
            numbers = [number for number, _ in lines[1:]]
            if wrong := [number for number, row in zip(numbers, cells, strict=True) if len(row) != len(roles)]:
                raise DatasetError(f"{path}, line {wrong[0]}: give {len(roles)} columns, as the first line has")
            return [
                _row(path, number, dict(zip(map(str, roles), row, strict=True)))
                for number, row in zip(numbers, cells, strict=True)
            ]
    for pattern in (*_ROWS, _NUMBERED):
        matches = [(number, pattern.fullmatch(line)) for number, line in lines]
        if not all(match for _, match in matches):
            continue
        rows = [_row(path, number, match.groupdict()) for number, match in matches if match]
        values = [row.value for row in rows]
        if pattern is _NUMBERED and values != list(range(values[0] or 0, (values[0] or 0) + len(values))):
            continue  # names that begin with numbers
        return rows
    return None


def _row(path: pathlib.Path, number: int, cells: dict[str, str | None]) -> _Row:
    rgb = cells.get("rgb") or " ".join(cells.get(channel) or "" for channel in ("red", "green", "blue"))
    try:
        color = tuple(map(int, re.split(r"[\s,]+", rgb.strip()))) if rgb.strip() else None
        value = int(cells["value"] or "") if "value" in cells else None
    except ValueError as error:
        raise DatasetError(f"{path}, line {number}: values and colours are whole numbers ({error})") from error
    if (color is not None and max(color) > 255) or not 0 <= (value or 0) <= 65535:
        raise DatasetError(f"{path}, line {number}: colours have channels of 0..255, and values are 0..65535")
    name = (cells["name"] or "").strip()
    if color is None and (match := _COLORED.fullmatch(name)):
        name, color = match["name"], tuple(bytes.fromhex(match["color"]))
    return _Row(number, name, value, None if color is None else (color[0], color[1], color[2]))


def _table(path: pathlib.Path, rows: list[_Row], ignore_label: int) -> Classes:
    # A file without values counts its lines.
    valued = [dataclasses.replace(row, value=i) if row.value is None else row for i, row in enumerate(rows)]
    valued.sort(key=lambda row: row.value or 0)
    kept = [row for row in valued if row.name.lower() not in _VOID]
    names = _names(path, kept)
    indices = {row.line: index for index, row in enumerate(kept)}
    values = _by("value", path, [(row, row.value or 0, indices.get(row.line, ignore_label)) for row in valued])
    values.setdefault(ignore_label, ignore_label)
    colors = _by("colour", path, [(row, row.color, indices.get(row.line, ignore_label)) for row in valued if row.color])
    has_all = len(colors) == len(rows)
    void = [row.name for row in valued if row.line not in indices]
    remark = f"{path}: read as {'colours' if has_all else 'values'} and names; index 0 is " + f'"{names[0]}"'
    return Classes(
        names,
        {indices[row.line]: row.color for row in kept if row.color},
        LabelMap(values=tuple(values.items())) if any(value != index for value, index in values.items()) else None,
        LabelMap(colors=tuple(colors.items())) if has_all else None,
        (remark + (f', and "{void[0]}" counts nowhere' if void else ""),),
    )


def _by(what: str, path: pathlib.Path, entries: Iterable[tuple[_Row, object, int]]) -> dict:
    found: dict[object, int] = {}
    for row, key, index in entries:
        if found.setdefault(key, index) != index:
            raise DatasetError(f"{path}, line {row.line}: the {what} of {row.name} is there already")
    return found


def _names(path: pathlib.Path, rows: list[_Row]) -> list[str]:
    if not 2 <= len(rows) <= 255:
        raise DatasetError(
            f"{path}: {len(rows)} class names; from 2 to 255 are possible, one a line, and background counts"
        )
    names: list[str] = []
    for row in rows:
        if not row.name:
            raise DatasetError(f"{path}, line {row.line}: an empty class name")
        if row.name in names:
            raise DatasetError(f'{path}, line {row.line}: the class "{row.name}" is there already')
        names.append(row.name)
    return names


def _refuse_unknown_tables(path: pathlib.Path, lines: list[str]) -> None:
    """Raises DatasetError where lines look like a table or another format, of which each would become a class."""
    first = lines[0] if lines else ""
    cells = [_word(cell) for cell in re.split(r"[,;\t|:]", first)]
    what = None
    if first.startswith(("{", "[")):
        what = "looks like JSON"
    elif len(lines) > 1 and all(line.startswith("- ") for line in lines[1:]):
        what = "looks like YAML"
    elif any(cell in _HEADS for cell in cells) or "\t" in first:
        what = f'begins with "{first}", which looks like the head of a table'
    elif first.startswith("#"):
        what = f'begins with "{first}", which looks like a comment'
    elif (
        len(lines) > 1
        and len(_cells(first)) > 1
        and any(
            all(len(row) > column and re.fullmatch(r"[\d.]+", row[column].strip()) for row in map(_cells, lines))
            for column in range(len(_cells(first)))
        )
    ):
        what = "looks like a table"
    if what is not None:
        raise DatasetError(f"{path} {what}; write the names of the classes alone, one a line, the first for index 0")


def _cells(line: str) -> list[str]:
    return re.split(r"[,;\t|:]", line)


def _word(cell: str) -> str:
    return re.sub(r"[\s_]+", " ", cell.strip(" \"'#").lower())

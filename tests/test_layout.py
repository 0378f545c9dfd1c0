"""The house: where files lie, and that imports run one way along the line at the head of docs/developing.md."""

import ast
import itertools
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dlv3p_jax"
PAGE = (ROOT / "docs" / "developing.md").read_text()
LINE = re.search(r"^(configs <- .*)$", PAGE, re.MULTILINE)[1]
FLOORS = {name: floor for floor, names in enumerate(LINE.split(" <- ")) for name in names.split(", ")}
FILES = sorted(PACKAGE.rglob("*.py"))


def package_of(path: pathlib.Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else "commands"


def imported(path: pathlib.Path):
    """(line, package) of each import of our own, wherever in the file it stands; a package is told from a command."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: say the whole name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            first, *rest = name.split(".")
            if first == "dlv3p_jax" and rest != ["__version__"]:
                yield node.lineno, rest[0] if rest and (PACKAGE / rest[0]).is_dir() else "commands"


def test_imports_run_one_way():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {other}"
        for path in FILES
        for line, other in imported(path)
        if other != package_of(path)
        and FLOORS[other] >= FLOORS[package_of(path)]
        and path != PACKAGE / "__init__.py"  # gives users the Segmenter, when they ask for it
    ]
    assert wrong == []


def test_no_import_is_made_of_a_string():
    assert [path for path in FILES if re.search(r"import_module\(|__import__\(", path.read_text())] == []


def test_a_command_imports_no_other_command():
    for path in FILES:
        if package_of(path) == "commands" and path.name not in ("__init__.py", "__main__.py"):
            assert "commands" not in [other for _, other in imported(path)], path


def test_the_tree_of_the_page_is_that_of_the_package():
    tree = re.search(r"^```text\ndlv3p_jax/\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[1]
    listed, folders = set(), []
    for line in tree.splitlines():
        if not (match := re.match(r"( *)([\w./]+)  +\S", line)):
            assert not line.strip() or line.startswith(" " * 20), line  # a line that goes on
            continue
        depth, name = len(match[1]) // 2 - 1, match[2]
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
        else:
            listed.add("".join(["dlv3p_jax/", *folders, name]))
    there = {str(path.relative_to(ROOT)) for path in FILES if path.name != "__init__.py" or path.parent == PACKAGE}
    assert listed == there


def test_every_folder_says_in_a_sentence_what_it_is():
    for folder in {path.parent for path in FILES}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


def test_a_floor_stands_on_those_below():
    assert list(itertools.chain(FLOORS))[0] == "configs" and list(FLOORS)[-1] == "commands"
    assert set(FLOORS) - {"commands"} == {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()}

"""Measures again what docs/equivalence.md has in its table: python -m tests.equivalence docs/equivalence.md

With the names of pieces behind it, such as `losses`, only these are measured; the page's other rows stay.
"""

import datetime
import itertools
import pathlib
import platform
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator

import jax

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # where pytest finds what tests share

import recordings  # noqa: E402
import trained_by_paddleseg  # noqa: E402


def _trained_anew(shared: pathlib.Path) -> Iterator[recordings.Row]:
    with tempfile.TemporaryDirectory() as folder:
        trained_by_paddleseg.prepare(shared, pathlib.Path(folder))
        yield from trained_by_paddleseg.measure(shared, pathlib.Path(folder))


def pieces(shared: pathlib.Path) -> dict[str, list[Iterator[recordings.Row]]]:
    """What measures the rows of each piece, which nothing does until they are asked for."""
    return {
        "weights": [recordings.weights(shared, *state) for state in recordings.STATES],
        "forward": [
            recordings.forward(shared, name, *how)
            for how in (("float32",), ("float32", True), ("bfloat16",))
            for name in recordings.FORWARD
        ],
        "losses": [
            *(recordings.cross_entropy(shared, name) for name in recordings.CROSS_ENTROPY),
            *(recordings.rmi(shared, name) for name in ("rmi_c19", "rmi_c5", "mixed")),
            *(recordings.dice_lovasz(shared, name) for name in recordings.DICE_LOVASZ),
        ],
        "training": [recordings.training(shared, step, dtype) for step in (1, 5) for dtype in ("float32", "float64")],
        "views": [
            recordings.views(shared, file, case, beside) for file, case in recordings.VIEWS for beside in (False, True)
        ],
        "transforms": [recordings.transforms(shared), recordings.geometry(shared)],
        "metrics": [recordings.scores(shared)],
        "a trained model": [_trained_anew(shared)],
    }


def made() -> str:
    return f"{datetime.date.today()}, on a {jax.devices()[0].platform} ({platform.machine()}), jax {jax.__version__}"


def replace_rows(page: str, piece: str, rows: Iterable[recordings.Row]) -> str:
    """A page with a piece measured again, which is said."""
    cells = (f"| {row.piece} | {row.case} | {row.compared} | {row.error:.2g} | {row.limit:.2g} |\n" for row in rows)
    page = re.sub(rf"(^\| {piece} \|.*\n)+", lambda _: "".join(cells), page, count=1, flags=re.MULTILINE)
    dates = re.search(r"^Made (.*)\.$", page, re.MULTILINE)[1].split("; ")
    dates = [date for date in dates if not date.startswith(f"{piece} ")] + [f"{piece} {made()}"]
    return replace_dates(page, "; ".join(dates))


def replace_dates(page: str, dates: str) -> str:
    return re.sub(r"^Made .*", f"Made {dates}.", page, count=1, flags=re.MULTILINE)


def main() -> None:
    path, wanted = pathlib.Path(sys.argv[1]), sys.argv[2:]
    every, measured = pieces(pathlib.Path(__file__).resolve().parents[2] / "shared"), []
    page = path.read_text()
    for piece in wanted or every:
        rows = []
        for row in itertools.chain.from_iterable(every[piece]):
            print("" if row.error <= row.limit else "TOO FAR ", *row, sep=" | ", flush=True)
            rows.append(row)
        page = replace_rows(page, piece, rows)
        measured += rows
    path.write_text(page if wanted else replace_dates(page, made()))
    recordings.hold(measured)


if __name__ == "__main__":
    main()

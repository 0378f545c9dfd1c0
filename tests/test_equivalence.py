"""docs/equivalence.md: that it is whole, and says what the tests say."""

import pathlib
import re
import subprocess
import sys

import equivalence
import recordings
import trained_by_paddleseg

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "docs" / "equivalence.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*", DOCUMENT, re.MULTILINE)]


def test_every_recorded_piece_is_in_the_table_and_within_its_limit():
    for _, case, compared, measured, limit in ROWS[2:]:
        assert float(measured) <= float(limit), (case, compared)
    cases = {case for _, case, *_ in ROWS[2:]}
    assert cases >= {
        f"{backbone}, {n} classes: {count} arrays"
        for (backbone, n), count in zip(recordings.STATES, (200, 360, 360, 615, 615), strict=True)
    }
    assert cases >= {f"forward_{name}, {dtype}" for name in recordings.FORWARD for dtype in ("float32", "bfloat16")}
    assert cases >= {f"cross-entropy, {name}" for name in recordings.CROSS_ENTROPY}
    assert cases >= {"dice", "dice, a picture all ignored", "lovasz", "cross-entropy, weighted and top30"}
    assert cases >= {"loss_rmi_c19", "loss_rmi_c5", "loss_mixed", "normalize", "padcrop", "pad_eval", "mIoU", "kappa"}
    assert cases >= {f"train_r18, step {step}, {dtype}" for step in (1, 5) for dtype in ("float32", "float64")}
    assert cases >= {f"{file}, {case}" for file, case in recordings.VIEWS}
    assert cases >= {f"camvid_r18, {name}" for name in trained_by_paddleseg.VIEWS}


def test_a_piece_that_is_measured_again_takes_the_place_of_its_rows_alone():
    row = recordings.Row("losses", "new", "value", 0.0, 1.0)
    once = equivalence.replace_rows(DOCUMENT, "losses", [row])
    twice = equivalence.replace_rows(once, "losses", [row, row])
    for page, count in ((once, 1), (twice, 2)):
        lines = page.splitlines()
        assert page.count(f"; losses {equivalence.made()}") == 1
        assert [line for line in lines if line.startswith("| losses |")] == ["| losses | new | value | 0 | 1 |"] * count
        others = [line for line in lines if not line.startswith(("| losses |", "Made "))]
        assert others == [line for line in DOCUMENT.splitlines() if not line.startswith(("| losses |", "Made "))]


def test_the_command_measures_a_piece_again(shared, tmp_path):
    (tmp_path / "page.md").write_text(DOCUMENT)
    command = [sys.executable, "-m", "tests.equivalence", tmp_path / "page.md", "metrics"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    page = (tmp_path / "page.md").read_text()
    assert [line for line in page.splitlines() if not line.startswith(("| metrics |", "Made "))] == [
        line for line in DOCUMENT.splitlines() if not line.startswith(("| metrics |", "Made "))
    ]
    assert f"metrics {equivalence.made()}" in page and page.count("| metrics |") == DOCUMENT.count("| metrics |")

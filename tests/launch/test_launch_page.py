"""docs/launch.md, whose commands all run dry; and that the scripts of launch/ are sound."""

import os
import re
import shlex

import pytest
from recorded import LAUNCH, ROOT, TOOLS, lines, run, script, split


def test_shellcheck():
    scripts = sorted(LAUNCH.glob("**/*.sh"))
    assert {each.name for each in scripts} >= {"slurm.sh", "tpu_vm.sh", "tpu_worker.sh"}
    found = run(TOOLS / "shellcheck", *scripts)
    assert found.returncode == 0, found.stdout
    for each in scripts:
        assert os.access(each, os.X_OK), each


gke = script("gke/gke.py")
DOCUMENT = (ROOT / "docs/launch.md").read_text()


def documented() -> list[list[str]]:
    """The commands of the indented blocks, without comments, that launch/ takes."""
    blocks = DOCUMENT.replace("\\\n", " ")
    found = [
        line.partition("  #")[0].replace("$IMAGE", "IMAGE")
        for line in re.findall(r"^    (\S.*)$", blocks, re.MULTILINE)
    ]
    return [shlex.split(line) for line in found if re.match(r"(launch/tpu_vm\.sh|python launch/gke/gke\.py) ", line)]


@pytest.mark.parametrize("words", documented(), ids=lambda words: " ".join(words)[:60])
def test_the_documented_commands_are_taken(words, capsys):
    """Each runs, dry, with the variables that the document exports."""
    place = words.index("--") if "--" in words else len(words)
    dry = [*words[:place], "--dry_run", *words[place:]]
    if "tpu_vm" in dry[0]:
        assert lines(LAUNCH / "tpu_vm.sh", *dry[1:], env=dict(re.findall(r"(TPU_\w+)=(\S+)", DOCUMENT)))
    else:
        assert gke.main(dry[2:]) == 0 and split(capsys.readouterr().out)


def test_the_document_goes_through_all_steps_and_names_files_that_exist():
    told = {(words[1] if "tpu_vm" in words[0] else words[2], "tpu_vm" in words[0]) for words in documented()}
    tpu = {"plan", "create", "setup", "data", "run", "logs", "status", "fetch", "delete", "watch"}
    assert told == {(command, True) for command in tpu} | {
        (command, False) for command in ("plan", "image", "run", "logs", "status", "fetch", "delete")
    }
    for name in set(re.findall(r"(?<![\w/])(?:launch|docs|configs)/[\w./]+\w", DOCUMENT)):
        assert (ROOT / name).exists(), name
    assert "docs/launch.md" in (ROOT / "README.md").read_text()

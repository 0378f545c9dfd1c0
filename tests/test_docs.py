"""The pages against the program: commands, flags, configuration keys, links. `tests/run_docs.py` runs the commands."""

import pathlib
import re

import api_page
import pytest
import run_docs

from dlv3p_jax.configs import common

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [str(page.relative_to(ROOT)) for page in run_docs.PAGES]
COMMANDS = [command for page in run_docs.PAGES for command in run_docs.commands(page)]


def test_every_command_is_run_tested_or_left_for_a_reason():
    entries = {command: command.entry() for command in COMMANDS}
    assert [command for command, (kind, _) in entries.items() if kind == "missing"] == []
    kinds = [kind for kind, _ in entries.values()]
    assert kinds.count("run") > 20 and kinds.count("tested") > 20 and kinds.count("not run") > 20


@pytest.mark.parametrize("pattern", run_docs.TESTED)
def test_the_tests_that_are_named_run_the_command(pattern):
    text = (ROOT / run_docs.TESTED[pattern]).read_text()
    module = re.search(r"(\w+)(\\.(py|sh))?$", pattern.replace(" .*--weights", "").partition("|")[0])[1]
    assert module in text


def test_every_table_has_only_what_some_page_needs():
    texts = [command.text for command in COMMANDS]
    for pattern in (*run_docs.RUN, *run_docs.TESTED, *run_docs.NOT_RUN):
        assert any(re.match(pattern, text) for text in texts), pattern
    for word in run_docs.WORDS:
        assert any(word in text for text in texts), word


def test_commands_have_flags_and_keys_that_there_are():
    for command in COMMANDS:
        for key in re.findall(r"--config\.([\w.]+)=", command.text):
            node = common.get_config()
            for part in key.split("."):
                assert part in node, f"{command.page}: --config.{key}"
                node = node.get(part)
        if module := re.match(r"python -m dlv3p_jax\.(\w+)", command.text):
            source = (ROOT / "dlv3p_jax" / f"{module[1]}.py").read_text()
            for flag in re.findall(r"--(?:no)?(\w+)(?![\w.])", command.text):
                assert f'"{flag}"' in source or f'"no{flag}"' in source, f"{command.page}: {command.text}"


def test_the_page_of_functions_has_their_docstrings():
    assert (ROOT / "docs" / "api.md").read_text() == api_page.text(), "run python -m tests.api_page docs/api.md"


def test_keys_that_pages_name_are_keys():
    """Words such as `augment.min_scale`, `eval.flip` or `loss.rmi` in running text and tables."""
    config = common.get_config()
    for page in run_docs.PAGES:
        for group, key in re.findall(r"`(augment|loss|model|eval|mesh)\.([a-z_]+)[`=]", page.read_text()):
            assert key in config[group] or key in ("json", "md", "py", "apply", "safetensors"), (
                f"{page.name}: {group}.{key}"
            )


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\((?!https?://)([^)]+)\)", (ROOT / page).read_text()):
        name, _, anchor = link.partition("#")
        target = folder / name if name else ROOT / page
        assert target.exists(), link
        if anchor:
            heads = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]
            assert anchor in anchors, link

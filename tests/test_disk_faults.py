"""A few of the faults of `tests.disk_faults`, and two dozen of the damages of `tests.damage_files`."""

import random
import shutil

import damage_files
import disk_faults
import fork_server
import pytest


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A data set, a run, its predictions: what commands read; they lived at `base.parent / "chain"`."""
    folder = tmp_path_factory.mktemp("disks")
    with damage_files.small_network():
        damage_files.make(folder / "chain")
    shutil.copytree(folder / "chain", folder / "base")
    return folder / "base"


def test_damaged_files_give_no_other_numbers_without_a_word(base):
    with damage_files.small_network():
        assert damage_files.run(base, base.parent / "chain", 24, seed=5) == []


def test_after_a_fault_the_same_command_gives_what_it_would_have_given(base):
    folder, root = base.parent, base.parent / "chain"
    library = fork_server.compile_faults(folder)
    if library is None:
        pytest.skip("there is no compiler for tests/faults.c")
    shutil.rmtree(root)
    shutil.copytree(base, root)
    wrong, fired = [], 0
    with fork_server.Server(library, root, folder / "cache") as server:
        chain = disk_faults.Chain(folder, server, root)
        shutil.rmtree(root / "out")
        chain.take("prepare again", "eval", "predict", "report")
        for number, name in enumerate(["prepare again", "eval", "predict", "report"]):
            fault = disk_faults.draw_fault(random.Random(number), chain.counts[name])
            answer, result, lines = chain.disturb(name, fault)
            fired += result["fired"] > 0
            wrong += [f"{disk_faults.describe(name, fault)} [{result['what']}] -> {answer}: {line}" for line in lines]
    assert wrong == [] and fired >= 3

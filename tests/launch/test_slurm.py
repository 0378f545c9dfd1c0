"""slurm.sh: srun and scontrol record how they were called; bash, the script and its signals are real."""

import os
import re
import shlex
import sys

import pytest
from recorded import LAUNCH, MAIN, ROOT, calls, program, run

JOB = {
    "SLURM_JOB_ID": "4242",
    "SLURM_JOB_NODELIST": "node[001-002]",
    "SLURM_NTASKS_PER_NODE": "8",
    "SLURM_GPUS_ON_NODE": "8",
    "SLURM_CPUS_PER_TASK": "6",
}


@pytest.fixture
def slurm(tmp_path):
    """Runs a copy of slurm.sh, as SLURM does, with an srun that does `body`, while the job is in `state`."""

    def act(body: str, *arguments, state="echo RUNNING", **environment):
        copy = tmp_path / "slurm_script"
        copy.write_text((LAUNCH / "slurm.sh").read_text())
        for name, does in (("srun", body), ("scontrol", ""), ("squeue", state), ("scancel", 'touch "${0%/*}/told"')):
            program(tmp_path / "bin", name, does)
        environment = JOB | {"SLURM_SUBMIT_DIR": str(ROOT), "PYTHON": sys.executable} | environment
        environment = {key: value for key, value in environment.items() if value is not None}
        path = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        return run("bash", copy, *arguments, env=environment | path, cwd=tmp_path), calls(tmp_path / "bin")

    return act


SRUN = ["srun", "--gpu-bind=none", "--kill-on-bad-exit=0", "--wait=300", "--label", "--cpus-per-task=6"]


def test_slurm_starts_a_process_a_gpu(slurm):
    found, called = slurm("pwd", *MAIN)
    assert found.returncode == 0, found.stderr
    assert called == [[*SRUN, sys.executable, "-m", "dlv3p_jax.main", *MAIN]]
    assert found.stdout.splitlines() == ["launch/slurm.sh: job 4242, start 1, on node[001-002]", str(ROOT)]
    header = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", (LAUNCH / "slurm.sh").read_text(), re.MULTILINE)
    options = dict(header)
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert "requeue" in options
    assert options["signal"].startswith("B:USR1@")  # not SIGTERM, which scancel sends


def test_slurm_dry_run_starts_nothing(slurm):
    found, called = slurm("exit 9", "--dry_run", *MAIN, SLURM_CPUS_PER_TASK=None)
    assert found.returncode == 0, found.stderr
    assert called == []
    assert shlex.split(found.stdout) == [*SRUN[:-1], sys.executable, "-m", "dlv3p_jax.main", *MAIN]


@pytest.mark.parametrize("code", [75, 134, 137])
def test_slurm_requeues_a_run_that_was_preempted_or_lost_a_process(slurm, code):
    found, called = slurm(f"exit {code}", *MAIN, SLURM_RESTART_COUNT="2")
    assert found.returncode == code
    assert called[-1] == ["scontrol", "requeue", "4242"]
    assert "start 3" in found.stdout


@pytest.mark.parametrize(("code", "more", "requeued"), [(137, [], False), (75, ["--mode=eval"], False), (75, [], True)])
def test_slurm_does_not_requeue_for_ever_what_brings_nothing(slurm, code, more, requeued):
    for count, expected in (("3", True), ("4", requeued)):
        found, called = slurm(f"exit {code}", *MAIN, *more, SLURM_RESTART_COUNT=count)
        assert (called[-1][0] == "scontrol") == expected == ("another will not help" not in found.stdout)


@pytest.mark.parametrize("code", [0, 1, 70, 130, 143])
def test_slurm_requeues_nothing_else(slurm, code):
    found, called = slurm(f"exit {code}", *MAIN)
    assert found.returncode == code
    assert len(called) == 1


TOLD = 'until [ -e "${0%/*}/told" ]; do sleep 0.05; done; exit 75'  # saves when scancel has sent a signal


def test_slurm_has_the_processes_save_before_the_time_is_over_and_requeues(slurm):
    found, called = slurm(f"kill -USR1 $PPID; {TOLD}", *MAIN)
    assert found.returncode == 75
    names = ["srun", "scancel", "squeue", "scontrol"]
    assert [call[0] for call in called] == names and called[1] == ["scancel", "--signal=TERM", "4242"]
    assert called[-1] == ["scontrol", "requeue", "4242"]


@pytest.mark.parametrize(
    ("body", "state"),
    [
        ("kill -TERM $PPID; sleep 0.3; exit 75", "echo RUNNING"),  # scancel, which tells this script too
        ("exit 75", "echo COMPLETING"),  # scancel, as SLURM knows it
        (f"kill -USR1 $PPID; {TOLD}", "echo COMPLETING"),  # a job that is cancelled in its last minutes
    ],
)
def test_slurm_leaves_a_cancelled_job_alone_when_it_has_saved(slurm, body, state):
    found, called = slurm(body, *MAIN, state=state)
    assert found.returncode == 75 and "cancelled" in found.stdout
    assert "scontrol" not in [call[0] for call in called]


def test_slurm_requeues_where_it_cannot_be_asked(slurm):
    _, called = slurm("exit 75", *MAIN, state="exit 1")
    assert called[-1] == ["scontrol", "requeue", "4242"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SLURM_JOB_ID": None}, "is to be started by SLURM: sbatch launch/slurm.sh"),
        ({"SLURM_SUBMIT_DIR": "/"}, "/ is not the repository: run sbatch there"),
        ({"PYTHON": "/nowhere/python"}, "there is no /nowhere/python"),
        ({"SLURM_GPUS_ON_NODE": "4"}, "--ntasks-per-node is 8, but this node gives 4 GPUs"),
        ({"SLURM_GPUS_ON_NODE": None}, "--ntasks-per-node is 8, but this node gives none GPUs"),
        ({"SLURM_NTASKS_PER_NODE": None}, "--ntasks-per-node is unset, but this node gives 8 GPUs"),
    ],
)
def test_slurm_refuses_a_job_that_cannot_work(slurm, changes, message):
    found, called = slurm("exit 0", *MAIN, **changes)
    assert found.returncode == 1
    assert message in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert called == []


@pytest.mark.parametrize(("nodes", "first"), [("node[001-002]", "node001"), ("gpu7", "gpu7")])
def test_jax_finds_the_run_in_what_slurm_sets(monkeypatch, nodes, first):
    """What JAX's own detection, which `processes` asks, makes of the variables of a process of two nodes."""
    from jax._src.clusters import SlurmCluster

    task = {"SLURM_STEP_NODELIST": nodes, "SLURM_NTASKS": "16", "SLURM_PROCID": "11", "SLURM_LOCALID": "3"}
    for key, value in (JOB | task).items():
        monkeypatch.setenv(key, value)
    assert SlurmCluster.is_env_present()
    assert SlurmCluster.get_coordinator_address(None, "9999") == f"{first}:9999"
    assert (SlurmCluster.get_process_count(), SlurmCluster.get_process_id()) == (16, 11)
    assert SlurmCluster.get_local_process_id() == 3  # and takes this GPU of all eight, so srun must not bind them

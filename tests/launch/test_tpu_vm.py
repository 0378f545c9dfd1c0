"""tpu_vm.sh and tpu_worker.sh: gcloud records how it was called; bash, the scripts and their signals are real."""

import os
import signal
import time

import pytest
from recorded import LAUNCH, MAIN, ROOT, calls, lines, program, run

POD = ["--name=seg", "--zone=us-central2-b", "--project=lab"]
WHERE = ["--zone=us-central2-b", "--project=lab"]
SSH = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "seg", *WHERE]
QUEUE = ["gcloud", "compute", "tpus", "queued-resources"]
DESCRIBE = [*QUEUE, "describe", "seg", *WHERE, "--format=value(state.state)"]
START = (
    "cd dlv3p_jax && launch/tpu_worker.sh start --config=configs/voc_r50.py '--config.crop_size=(256, 512)' "
    "--workdir=gs://lab/run"
)


def test_tpu_vm_prints_what_it_would_run(tmp_path):
    def printed(command, *flags):
        return lines(LAUNCH / "tpu_vm.sh", command, *POD, *flags, "--dry_run", env={"TMPDIR": str(tmp_path)})

    on_all = [*SSH, "--worker=all"]
    archive = f"{tmp_path}/dlv3p_jax-seg.tar.gz"
    request = ["--node-id=seg", "--accelerator-type=v4-32", "--runtime-version=tpu-ubuntu2204-base"]
    delete = [*QUEUE, "delete", "seg", *WHERE, "--force", "--quiet"]
    create = [[*QUEUE, "create", "seg", *WHERE, *request, "--spot"], DESCRIBE]
    setup = [
        ["git", "-C", str(ROOT), "archive", "--format=tar.gz", f"--output={archive}", "HEAD"],
        ["gcloud", "compute", "tpus", "tpu-vm", "scp", archive, "seg:dlv3p_jax.tar.gz", *WHERE, "--worker=all"],
        [*on_all, "--command=mkdir -p dlv3p_jax && tar -xzf dlv3p_jax.tar.gz -C dlv3p_jax"],
        [*on_all, "--command=cd dlv3p_jax && launch/tpu_worker.sh install"],
        ["rm", archive],
    ]
    copy = "gcloud storage rsync gs://lab/data data --recursive"
    data = [[*on_all, f"--command=cd dlv3p_jax && mkdir -p data && {copy}"]]
    start = [[*on_all, f"--command={START}"]]
    status = [DESCRIBE, [*on_all, "--command=cd dlv3p_jax && launch/tpu_worker.sh status"]]

    # What is planned before anything is there: without the flags that are for the run alone.
    assert lines(LAUNCH / "tpu_vm.sh", "plan", "--type=v4-32", "--dry_run", "--", *MAIN) == [
        [".venv/bin/python", "-m", "dlv3p_jax.plan", "--topology=v4-32", *MAIN[:-1]]
    ]
    assert printed("create", "--type=v4-32", "--spot") == create
    assert printed("create", "--type=v4-32")[0] == create[0][:-1]
    assert printed("create", "--type=v6e-16", "--version=mine")[0][-2:] == [
        "--accelerator-type=v6e-16",
        "--runtime-version=mine",
    ]
    assert printed("create", "--type=v6e-16")[0][-1] == "--runtime-version=v2-alpha-tpuv6e"
    assert printed("create", "--type=v5litepod-16")[0][-1] == "--runtime-version=v2-alpha-tpuv5-lite"
    assert printed("setup") == setup
    assert printed("data", "--from=gs://lab/data") == data
    assert lines(LAUNCH / "tpu_vm.sh", "run", *POD, "--dry_run", "--", *MAIN) == start
    assert printed("status") == status
    assert printed("logs", "--worker=3") == [
        [*SSH, "--worker=3", "--command=cd dlv3p_jax && launch/tpu_worker.sh logs"]
    ]
    assert printed("stop") == [[*on_all, "--command=cd dlv3p_jax && launch/tpu_worker.sh stop"]]
    assert printed("fetch", "--workdir=gs://lab/run", "--output=out") == [
        ["mkdir", "-p", "out"],
        ["gcloud", "storage", "rsync", "gs://lab/run", "out", "--exclude=^checkpoints/latest/.*", "--recursive"],
    ]
    scp = ["gcloud", "compute", "tpus", "tpu-vm", "scp"]
    assert printed("fetch", "--workdir=workdir/run", "--output=out") == [
        [*scp, "seg:dlv3p_jax/workdir/run", "out", *WHERE, "--worker=0", "--recurse"]
    ]
    assert printed("delete") == [delete]
    watch = ["watch", *POD, "--type=v4-32", "--spot", "--from=gs://lab/data", "--dry_run", "--", *MAIN]
    assert lines(LAUNCH / "tpu_vm.sh", *watch, env={"TMPDIR": str(tmp_path)}) == [
        *status,
        *[delete, *create, *setup, *data, *start],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "unknown command ''; it is one of plan, create, setup"),
        (["create", "--zone=z"], "create needs --name=…"),
        (["create", "--name=a"], "create needs --zone=…"),
        (["create", *POD], "create needs --type=…"),
        (["create", *POD, "--type=a100"], "which software a a100 takes is not known here: give --version=IMAGE"),
        (["create", *POD, "--tpye=v4-32"], "unknown argument '--tpye=v4-32'"),
        (["data", *POD, "--from=here"], "--from=here: give a folder of a bucket"),
        (["plan", "--", *MAIN], "plan needs --type=…"),
        (["plan", "--type=v4-32"], 'plan takes the --config… arguments of dlv3p_jax.main after "--"'),
        (["run", *POD], 'run takes the arguments of dlv3p_jax.main after "--"'),
        (["watch", *POD, "--type=v4-32"], 'watch takes the arguments of dlv3p_jax.main after "--"'),
        (["fetch", *POD, "--workdir=gs://lab/run"], "fetch needs --output=…"),
    ],
)
def test_tpu_vm_refuses_what_it_cannot_do_before_it_does_anything(tmp_path, arguments, message):
    program(tmp_path / "bin", "gcloud", "echo SUSPENDED")
    found = run(LAUNCH / "tpu_vm.sh", *arguments, env={"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"})
    assert found.returncode == 1
    assert message in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert calls(tmp_path / "bin") == []


def tpu(tmp_path, states: list[str], statuses: list[str], *arguments):
    """Runs tpu_vm.sh with a gcloud whose TPU is in these states, and whose workers say this, one after the other."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, answers in (("states", states), ("statuses", statuses)):
        (folder / name).write_text("".join(f"{answer}\n" for answer in answers))
    program(
        folder,
        "gcloud",
        f"""cd {folder}
        answer() {{ head -n 1 $1; sed -i 1d $1; }}
        case "$*" in
        *" describe "*) answer states ;;
        *"tpu_worker.sh status") printf "$(answer statuses)\\n" ;;
        esac""",
    )
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "TPU_POLL_SECONDS": "0", "TMPDIR": str(tmp_path)}
    found = run(LAUNCH / "tpu_vm.sh", *arguments, env=environment)
    return found, [" ".join(call[3:]) for call in calls(folder)]


def test_create_waits_until_the_tpu_is_there(tmp_path):
    states = ["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "beyond"]
    found, _ = tpu(tmp_path, states, [], "create", *POD, "--type=v4-32")
    assert found.returncode == 0, found.stderr
    assert [line.split()[-1] for line in found.stderr.splitlines()] == states[:4]


def test_create_ends_where_the_tpu_will_not_come(tmp_path):
    found, _ = tpu(tmp_path, ["ACCEPTED", "FAILED"], [], "create", *POD, "--type=v4-32")
    assert found.returncode == 1
    assert "seg is FAILED: delete it, and create it again" in found.stderr


def test_watch_gets_another_tpu_after_a_preemption_and_ends_as_the_run_does(tmp_path):
    states = ["ACTIVE", "SUSPENDING", "SUSPENDED", "ACCEPTED", "ACTIVE", "ACTIVE", "ACTIVE"]
    statuses = [r"w-0: running\nw-1: running", r"w-0: ended 0\nw-1: running", r"w-0: ended 0\nw-1: ended 0"]
    arguments = ["watch", *POD, "--type=v4-32", "--spot", "--from=gs://lab/data", "--", *MAIN]
    found, called = tpu(tmp_path, states, statuses, *arguments)
    assert found.returncode == 0, found.stderr
    acts = [call for call in called if " describe " not in f" {call}" and not call.endswith("tpu_worker.sh status")]
    kinds = ["delete", "create", "scp", "tar -xzf", "install", "rsync", "start"]
    assert len(acts) == len(kinds)
    for act, kind in zip(acts, kinds, strict=True):
        assert kind in act
    assert "--spot" in acts[1]
    assert acts[-1].endswith(START)


def test_watch_starts_a_worker_again_that_was_restarted_and_ends_with_the_worst_code(tmp_path):
    statuses = [r"w-0: running\nw-1: interrupted", r"w-0: running\nw-1: running", r"w-0: ended 134\nw-1: ended 1"]
    arguments = ["watch", *POD, "--type=v4-32", "--", *MAIN]
    found, called = tpu(tmp_path, ["ACTIVE"] * 3, statuses, *arguments)
    assert found.returncode == 134, found.stderr
    acts = [call for call in called if " describe " not in f" {call}" and not call.endswith("tpu_worker.sh status")]
    assert len(acts) == 1
    assert acts[0].endswith(START)


@pytest.fixture
def worker(tmp_path):
    """A worker's checkout whose Python is a program that ends as told, and tpu_worker.sh in it."""
    (tmp_path / "launch").mkdir()
    script = tmp_path / "launch/tpu_worker.sh"
    script.write_text((LAUNCH / "tpu_worker.sh").read_text())
    script.chmod(0o755)
    (tmp_path / ".venv").mkdir()

    def act(*arguments):
        return run(script, *arguments)

    act.folder, act.bin = tmp_path, tmp_path / ".venv/bin"
    yield act
    act("stop")


def status(worker) -> str:
    return worker("status").stdout.strip().partition(": ")[2]


def wait_for(worker, wanted: str) -> None:
    deadline = time.monotonic() + 30
    while status(worker) != wanted:
        assert time.monotonic() < deadline, (status(worker), (worker.folder / ".run/log").read_text())
        time.sleep(0.05)


@pytest.mark.parametrize("code", [1, 70, 130])
def test_a_worker_starts_again_what_says_so_or_was_killed_and_nothing_else(worker, code):
    assert status(worker) == "none"
    ends = f"1 | 2) exit 75 ;; 3) kill -KILL $$ ;; *) exit {code} ;;"
    program(worker.bin, "python", f"case $(wc -l < {worker.bin}/calls) in {ends} esac")
    assert worker("start", *MAIN).returncode == 0
    wait_for(worker, f"ended {code}")
    assert calls(worker.bin) == [["python", "-m", "dlv3p_jax.main", *MAIN]] * 4
    log = (worker.folder / ".run/log").read_text()
    assert log.count("exit code 75: starting again") == 2 and log.count("exit code 137: starting again") == 1


@pytest.mark.parametrize(("ends", "more"), [("kill -KILL $$", []), ("exit 75", ["--mode=eval"])])
def test_a_worker_does_not_start_for_ever_what_brings_nothing(worker, ends, more):
    """What is killed before the run can count its starts, and an evaluation, which saves nothing."""
    program(worker.bin, "python", ends)
    worker("start", *MAIN, *more)
    wait_for(worker, "ended 75" if more else "ended 137")
    assert len(calls(worker.bin)) == 5 and "another will not help" in (worker.folder / ".run/log").read_text()


def test_a_worker_lets_the_run_save_when_it_is_stopped(worker):
    save = "trap 'echo saved; exit 75' TERM; echo ready; while true; do sleep 0.05; done"
    program(worker.bin, "python", save)
    worker("start", *MAIN)
    wait_for(worker, "running")
    same, other = worker("start", *MAIN), worker("start", "--config=another")
    assert (same.returncode, "runs already" in same.stdout) == (0, True)
    assert (other.returncode, "another run lives here: --config=configs/voc_r50.py" in other.stderr) == (1, True)
    deadline = time.monotonic() + 30
    while "ready" not in (log := (worker.folder / ".run/log").read_text()):
        assert time.monotonic() < deadline, log
        time.sleep(0.05)
    assert worker("stop").stdout.strip().endswith("ended 75")  # saved, and not started again
    assert (worker.folder / ".run/log").read_text().count("saved") == 1
    assert len(calls(worker.bin)) == 1


def test_a_worker_whose_machine_was_restarted_is_interrupted(worker):
    program(worker.bin, "python", "exec sleep 60")
    worker("start", *MAIN)
    wait_for(worker, "running")
    os.killpg(int((worker.folder / ".run/pid").read_text()), signal.SIGKILL)
    wait_for(worker, "interrupted")

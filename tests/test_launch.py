"""launch/: what can be checked without a cloud or a cluster; tests/runtime/test_processes.py runs launch/local.py.

gcloud, srun and scontrol are programs that record how they were called; bash, the scripts and their signals are real.
"""

import importlib
import importlib.util
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
TOOLS = pathlib.Path(sys.executable).parent
POD = ["--name=seg", "--zone=us-central2-b", "--project=lab"]
WHERE = ["--zone=us-central2-b", "--project=lab"]
SSH = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "seg", *WHERE]
QUEUE = ["gcloud", "compute", "tpus", "queued-resources"]
DESCRIBE = [*QUEUE, "describe", "seg", *WHERE, "--format=value(state.state)"]
MAIN = ["--config=configs/voc_r50.py", "--config.crop_size=(256, 512)", "--workdir=gs://lab/run"]
START = (
    "cd dlv3p_jax && launch/tpu_worker.sh start --config=configs/voc_r50.py '--config.crop_size=(256, 512)' "
    "--workdir=gs://lab/run"
)

# The parts that jobset.yaml uses of hack/python-sdk/swagger.json of kubernetes-sigs/jobset at 0336a8f, with the enums
# of config/components/crd. Other fields are errors here; the API server would drop or refuse them.
NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}


def record(*required: str, **properties) -> dict:
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": properties}


def listed(items: dict) -> dict:
    return {"type": "array", "items": items}


RULE = record(
    "name",
    "action",
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
    onJobFailureReasons=listed(
        {"enum": ["BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "PodFailurePolicy"]}
    ),
    targetReplicatedJobs=listed({"type": "string"}),
)
POLICY = record(
    maxRestarts={"type": "integer"}, restartStrategy={"enum": ["Recreate", "BlockingRecreate"]}, rules=listed(RULE)
)
REPLICATED = record(
    "name",
    "template",
    name=NAME,
    replicas={"type": "integer"},
    template=record(metadata={"type": "object"}, spec={"type": "object"}),
)
JOBSET = record(
    "apiVersion",
    "kind",
    "metadata",
    "spec",
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata={"type": "object", "required": ["name"], "properties": {"name": NAME}},
    spec=record(failurePolicy=POLICY, replicatedJobs=listed(REPLICATED)),
)


def run(*command, **changes) -> subprocess.CompletedProcess:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "TPU_"))}
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=60,
        env=clean | changes.pop("env", {}),
        **changes,
    )


def lines(*command, **changes) -> list[list[str]]:
    """The commands that a dry run prints, as the shell would take them apart."""
    found = run(*command, **changes)
    assert found.returncode == 0, found.stderr
    return split(found.stdout)


def split(printed: str) -> list[list[str]]:
    return [shlex.split(line) for line in printed.splitlines() if not line.startswith("#")]


def program(folder: pathlib.Path, name: str, body: str) -> None:
    """A program that appends its arguments to folder/calls, one JSON list a line, and then does `body`."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    record = f"import json, sys; open({str(folder / 'calls')!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')"
    file.write_text(f'#!/usr/bin/env bash\n{sys.executable} -S -c {shlex.quote(record)} {name} "$@"\n{body}\n')
    file.chmod(0o755)


def calls(folder: pathlib.Path) -> list[list[str]]:
    file = folder / "calls"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_shellcheck():
    scripts = sorted(LAUNCH.glob("**/*.sh"))
    assert {script.name for script in scripts} >= {"slurm.sh", "tpu_vm.sh", "tpu_worker.sh"}
    found = run(TOOLS / "shellcheck", *scripts)
    assert found.returncode == 0, found.stdout
    for script in scripts:
        assert os.access(script, os.X_OK), script


# Cloud TPU VM


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


# GKE


@pytest.fixture(scope="module")
def gke():
    spec = importlib.util.spec_from_file_location("gke", LAUNCH / "gke/gke.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RENDER = ["--image=reg/dlv3p_jax:1", "--data=gs://lab/data", "--topology=4x8", "--accelerator=tpu-v6e-slice", "--spot"]


def rendered(gke, capsys) -> dict:
    assert gke.main(["render", "--name=seg", *RENDER, "--", *MAIN]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def check_jobset(manifest: dict) -> None:
    """Against JobSet's schema (above), and its Job against that of Kubernetes, where unknown fields are errors too."""
    jsonschema.validate(manifest, JOBSET)
    for replicated in manifest["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, **replicated["template"]}
        kubernetes_validate.validate(job, "1.35", strict=True)


def test_the_manifests_are_what_their_schemas_say(gke, capsys):
    check_jobset(yaml.safe_load((LAUNCH / "gke/jobset.yaml").read_text()))
    check_jobset(rendered(gke, capsys))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["spec", "failurePolicy", "maxrestarts"], 1),
        (["spec", "failurePolicy", "maxRestarts"], "5"),
        (["spec", "failurePolicy", "rules", 0, "action"], "Restart"),
        (["spec", "replicatedJobs", 0, "template", "spec", "parallelism"], "4"),
        (["spec", "replicatedJobs", 0, "template", "spec", "backofLimit"], 0),
        (["spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "nodeselector"], {}),
        (["spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0, "arg"], []),
    ],
)
def test_the_schemas_refuse_slips(path, value):
    manifest = yaml.safe_load((LAUNCH / "gke/jobset.yaml").read_text())
    place = manifest
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check_jobset(manifest)


def test_the_manifest_says_what_the_flags_say(gke, capsys):
    manifest = rendered(gke, capsys)
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert manifest["metadata"]["name"] == "seg"
    assert job["parallelism"] == job["completions"] == 8  # 32 chips, four a host
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x8",
        "cloud.google.com/gke-spot": "true",
    }
    assert pod["containers"][0]["image"] == "reg/dlv3p_jax:1"
    assert pod["containers"][0]["args"] == ["--config.data_dir=/data", *MAIN]
    assert pod["containers"][0]["resources"] == {"limits": {"google.com/tpu": 4}}
    assert pod["initContainers"][0]["args"] == ["gs://lab/data", "/data", "--recursive"]


def test_the_manifest_restarts_on_preemption_without_end(gke, capsys):
    """What the API server demands beyond the schema, and what makes exit code 75 restart all pods."""
    spec = rendered(gke, capsys)["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # a Job with a podFailurePolicy has to
    rules = job["podFailurePolicy"]["rules"]
    names = [container["name"] for container in pod["containers"]]
    codes = [rule["onExitCodes"] for rule in rules if "onExitCodes" in rule]
    assert codes == [{"containerName": "main", "operator": "In", "values": [75]}]
    assert "main" in names
    assert {rule["action"] for rule in rules} == {"FailJob"}  # which gives the Job the reason PodFailurePolicy
    assert spec["failurePolicy"]["rules"][0] == {
        "name": "preempted",
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod["initContainers"] + pod["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_gke_prints_what_it_would_run(gke, capsys):
    def printed(*arguments):
        assert gke.main(list(arguments)) == 0
        return split(capsys.readouterr().out)

    kubectl = ["kubectl", "--namespace=default"]
    label = "--selector=jobset.sigs.k8s.io/jobset-name=seg"
    flags = ["--name=seg", "--dry_run"]
    file = f"--file={LAUNCH}/gke/Dockerfile"
    assert printed("image", *flags, "--image=reg/dlv3p_jax:1") == [
        ["docker", "build", "--platform=linux/amd64", file, "--tag=reg/dlv3p_jax:1", str(ROOT)],
        ["docker", "push", "reg/dlv3p_jax:1"],
    ]
    assert printed("plan", "--topology=2x2x2", "--dry_run", "--", *MAIN) == [
        [sys.executable, "-m", "dlv3p_jax.plan", "--topology=v4:2x2x2", *MAIN[:-1]]
    ]
    assert printed("run", *flags, *RENDER, "--", *MAIN) == [[*kubectl, "apply", "--filename=-"]]
    assert printed("status", *flags) == [
        [*kubectl, "get", "jobset/seg"],
        [*kubectl, "get", "pods", "--output=wide", label],
    ]
    index = "batch.kubernetes.io/job-completion-index"
    assert printed("logs", *flags, "--host=2") == [
        [*kubectl, "logs", "--follow", "--container=main", "--tail=100", f"{label},{index}=2"]
    ]
    assert printed("fetch", *flags, "--workdir=gs://lab/run", "--output=out") == [
        ["mkdir", "-p", "out"],
        ["gcloud", "storage", "rsync", "gs://lab/run", "out", "--exclude=^checkpoints/latest/.*", "--recursive"],
    ]
    assert printed("delete", *flags) == [[*kubectl, "delete", "jobset/seg"]]


def test_gke_hands_the_manifest_to_kubectl(tmp_path, gke, capsys, monkeypatch):
    program(tmp_path / "bin", "kubectl", f"cat > {tmp_path}/manifest; exit 7")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert gke.main(["run", "--name=seg", *RENDER, "--", *MAIN]) == 7
    assert yaml.safe_load((tmp_path / "manifest").read_text()) == rendered(gke, capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan"], 'plan takes the --config… arguments of dlv3p_jax.main after "--"'),
        (["plan", "--accelerator=tpu9", "--", "--config=x"], "--accelerator=tpu9: plan knows tpu-v4-podslice"),
        (["run", "--", "--config=x"], "run needs --image and --data"),
        (["run", *RENDER], 'run takes the arguments of dlv3p_jax.main after "--"'),
        (["render", *RENDER, "--data=here", "--", "--config=x"], "--data=here: give a folder of a bucket"),
        (
            ["render", *RENDER, "--topology=2x3", "--", "--config=x"],
            "2x3 has 6 chips, which are no whole hosts of 4",
        ),
        (["render", *RENDER, "--topology=big", "--", "--config=x"], "--topology=big: give it as 2x2x4 or 4x4"),
        (["fetch"], "fetch needs --workdir and --output"),
    ],
)
def test_gke_refuses_what_it_cannot_do(gke, capsys, arguments, message):
    assert gke.main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def instructions() -> list[tuple[str, str]]:
    text = (LAUNCH / "gke/Dockerfile").read_text().replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line and not line.startswith("#")]


def test_the_dockerfile_is_one():
    # DL3008: Debian's tini may be of any version.
    found = run(TOOLS / "hadolint", "--ignore=DL3008", LAUNCH / "gke/Dockerfile")
    assert found.returncode == 0, found.stdout


def test_the_image_holds_the_tested_versions_and_what_the_package_needs():
    steps = instructions()
    tested = re.search(r"tested, on Python ([\d.]+)", (ROOT / "requirements.txt").read_text()).group(1)
    assert re.fullmatch(rf"python:{re.escape(tested)}-slim-\w+", dict(steps[:1])["FROM"])
    copied = [word for kind, rest in steps if kind == "COPY" for word in rest.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    places = [rest for _, rest in steps]
    requirements = next(i for i, rest in enumerate(places) if "--requirement requirements.txt" in rest)
    package = next(i for i, rest in enumerate(places) if "--editable" in rest)
    assert places.index("requirements.txt ./") < requirements < package  # tested versions first; the package keeps them
    extras = (ROOT / "setup.cfg").read_text().partition("[options.extras_require]")[2]
    assert "\ntpu =" in extras
    assert dict(steps)["ARG"] == "EXTRA=tpu"
    folders = {path.parent for path in ROOT.glob("*/__init__.py") if not path.parent.is_symlink()}
    packages = {folder.name for folder in folders} - {"tests", "benchmarks"}
    metadata = re.findall(
        r"^(?:license_files = |long_description = file: )(.+)$", (ROOT / "setup.cfg").read_text(), re.M
    )
    assert {*packages, *metadata, "setup.cfg", "pyproject.toml", "requirements.txt"} <= set(copied)
    assert json.loads(dict(steps)["ENTRYPOINT"]) == ["tini", "--", "python", "-m", "dlv3p_jax.main"]


def test_the_build_sends_only_what_the_dockerfile_copies():
    ignored = (LAUNCH / "gke/Dockerfile.dockerignore").read_text().splitlines()
    sent = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    assert sent == {word for kind, rest in instructions() if kind == "COPY" for word in rest.split()[:-1]}


# SLURM

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


# The documentation


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
def test_the_documented_commands_are_taken(words, gke, capsys):
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


@pytest.fixture
def local(monkeypatch):
    monkeypatch.syspath_prepend(str(LAUNCH))
    return importlib.import_module("local")


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0], (0, False)),
        ([75, 75], (75, True)),
        ([-9, 75], (75, True)),  # one was killed, and the other says so
        ([-9, -9], (137, True)),
        ([75, 0], (75, True)),
        ([-15, -15], (75, True)),  # told to leave before they could hear it
        ([70, 70], (70, False)),
        ([-9, 70], (70, False)),
        ([1, 75], (1, False)),
        ([75, 1], (1, False)),
        ([130, -9], (130, False)),
    ],
)
def test_local_starts_again_what_was_killed_or_says_so(local, codes, expected):
    assert local.exit_code(codes) == expected


@pytest.mark.parametrize(("code", "more", "starts"), [(137, [], 5), (75, ["--mode=eval"], 5), (75, [], 7)])
def test_local_does_not_start_for_ever_what_brings_nothing(local, monkeypatch, code, more, starts):
    ends = [(code, True)] * 6 + [(1, False)]
    monkeypatch.setattr(local, "_run", lambda *_: ends.pop(0))
    monkeypatch.setattr(local, "_pass_signals_on", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        local.main(["launch/local.py", *MAIN, *more])
    assert 7 - len(ends) == starts and ended.value.code == (1 if starts == 7 else code)

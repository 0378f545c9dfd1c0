"""gke.py, its manifest and its image; kubectl records how it was called."""

import json
import os
import re
import sys

import jsonschema
import kubernetes_validate
import pytest
import yaml
from recorded import LAUNCH, MAIN, ROOT, TOOLS, program, run, script, split

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


gke = script("gke/gke.py")
RENDER = ["--image=reg/dlv3p_jax:1", "--data=gs://lab/data", "--topology=4x8", "--accelerator=tpu-v6e-slice", "--spot"]


def rendered(capsys) -> dict:
    assert gke.main(["render", "--name=seg", *RENDER, "--", *MAIN]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def check_jobset(manifest: dict) -> None:
    """Against JobSet's schema (above), and its Job against that of Kubernetes, where unknown fields are errors too."""
    jsonschema.validate(manifest, JOBSET)
    for replicated in manifest["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, **replicated["template"]}
        kubernetes_validate.validate(job, "1.35", strict=True)


def test_the_manifests_are_what_their_schemas_say(capsys):
    check_jobset(yaml.safe_load((LAUNCH / "gke/jobset.yaml").read_text()))
    check_jobset(rendered(capsys))


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


def test_the_manifest_says_what_the_flags_say(capsys):
    manifest = rendered(capsys)
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


def test_the_manifest_restarts_on_preemption_without_end(capsys):
    """What the API server demands beyond the schema, and what makes exit code 75 restart all pods."""
    spec = rendered(capsys)["spec"]
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


def test_gke_prints_what_it_would_run(capsys):
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


def test_gke_hands_the_manifest_to_kubectl(tmp_path, capsys, monkeypatch):
    program(tmp_path / "bin", "kubectl", f"cat > {tmp_path}/manifest; exit 7")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert gke.main(["run", "--name=seg", *RENDER, "--", *MAIN]) == 7
    assert yaml.safe_load((tmp_path / "manifest").read_text()) == rendered(capsys)


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
def test_gke_refuses_what_it_cannot_do(capsys, arguments, message):
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

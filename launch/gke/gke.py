"""One run on a TPU slice of GKE: python launch/gke/gke.py COMMAND --name=NAME … [--dry_run]

    plan    [--accelerator=…] [--topology=…] -- --config=…   whether the run fits: dlv3p_jax.plan, here, without a TPU
    image   --image=IMAGE                                  build the image from this checkout, and push it
    run     --image=… --data=gs://… [--spot] … -- --config=… --workdir=…   start, as launch/gke/jobset.yaml says
    render  the same                                       print that manifest
    status                                                 the JobSet and its pods
    logs    [--host=0]                                     follow the output
    fetch   --workdir=gs://… --output=FOLDER               copy config, reports, events and best checkpoint here
    delete                                                 end it

--dry_run prints the commands, one a line, and runs none of them. From nothing to a finished run: docs/launch.md.
"""

import argparse
import math
import pathlib
import shlex
import subprocess
import sys

import yaml

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
NEEDED = {
    "plan": [],
    "image": ["image"],
    "run": ["image", "data"],
    "render": ["image", "data"],
    "status": [],
    "logs": [],
    "fetch": ["workdir", "output"],
    "delete": [],
}
GENERATIONS = {  # the compiler's names of GKE's accelerators
    "tpu-v4-podslice": "v4",
    "tpu-v5-lite-podslice": "v5e",
    "tpu-v5p-slice": "v5p",
    "tpu-v6e-slice": "v6e",
}


def main(argv: list[str]) -> int:
    argv, arguments = _split(argv)
    values = _parser().parse_args(argv)
    missing = [f"--{name}" for name in NEEDED[values.command] if getattr(values, name) is None]
    if missing:
        return _fail(f"{values.command} needs {' and '.join(missing)}")
    text = None
    if values.command in ("plan", "run", "render") and not arguments:
        which = "--config… arguments" if values.command == "plan" else "arguments"
        return _fail(f'{values.command} takes the {which} of dlv3p_jax.main after "--"')
    if values.command == "plan":
        if values.accelerator not in GENERATIONS:
            return _fail(f"--accelerator={values.accelerator}: plan knows {', '.join(GENERATIONS)}")
        return _call([_plan(values, arguments)], values.dry_run, text)
    if values.command in ("run", "render"):
        try:
            text = yaml.safe_dump(manifest(values, arguments), sort_keys=False, width=1000)
        except ValueError as error:
            return _fail(str(error))
    if values.command == "render":
        print(text, end="")
        return 0
    return _call(commands(values), values.dry_run, text)


def manifest(values: argparse.Namespace, arguments: list[str]) -> dict:
    """jobset.yaml with the values of the flags, and `arguments` for dlv3p_jax.main.

    Raises:
      ValueError: a topology that is not made of whole hosts, or data that are not in a bucket.
    """
    found = yaml.safe_load((HERE / "jobset.yaml").read_text(encoding="utf-8"))
    found["metadata"]["name"] = values.name
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["parallelism"] = job["completions"] = hosts(values.topology, values.chips_per_host)
    pod = job["template"]["spec"]
    pod["serviceAccountName"] = values.service_account
    pod["nodeSelector"] = {
        "cloud.google.com/gke-tpu-accelerator": values.accelerator,
        "cloud.google.com/gke-tpu-topology": values.topology,
    }
    if values.spot:
        pod["nodeSelector"]["cloud.google.com/gke-spot"] = "true"
    if not values.data.startswith("gs://"):
        raise ValueError(f"--data={values.data}: give a folder of a bucket, gs://BUCKET/FOLDER")
    pod["initContainers"][0]["args"][0] = values.data
    container = pod["containers"][0]
    container["image"] = values.image
    container["args"] = ["--config.data_dir=/data", *arguments]
    container["resources"]["limits"]["google.com/tpu"] = values.chips_per_host
    return found


def hosts(topology: str, chips_per_host: int) -> int:
    """How many hosts a slice such as 2x2x4 has; ValueError where that is no whole number."""
    sizes = topology.split("x")
    if not all(size.isdigit() and int(size) for size in sizes):
        raise ValueError(f"--topology={topology}: give it as 2x2x4 or 4x4")
    chips = math.prod(map(int, sizes))
    if chips_per_host < 1 or chips % chips_per_host:
        raise ValueError(f"--topology={topology} has {chips} chips, which are no whole hosts of {chips_per_host}")
    return chips // chips_per_host


def commands(values: argparse.Namespace) -> list[list[str]]:
    """What a command (other than render) runs."""
    kubectl = ["kubectl", f"--namespace={values.namespace}"]
    pods = f"--selector=jobset.sigs.k8s.io/jobset-name={values.name}"
    host = f"{pods},batch.kubernetes.io/job-completion-index={values.host}"
    build = ["docker", "build", "--platform=linux/amd64", f"--file={HERE / 'Dockerfile'}"]
    copied = ["--exclude=^checkpoints/latest/.*", "--recursive"]
    return {
        "image": [[*build, f"--tag={values.image}", str(REPOSITORY)], ["docker", "push", values.image]],
        "run": [[*kubectl, "apply", "--filename=-"]],
        "status": [[*kubectl, "get", f"jobset/{values.name}"], [*kubectl, "get", "pods", "--output=wide", pods]],
        "logs": [[*kubectl, "logs", "--follow", "--container=main", "--tail=100", host]],
        "fetch": [
            ["mkdir", "-p", values.output],
            ["gcloud", "storage", "rsync", values.workdir, values.output, *copied],
        ],
        "delete": [[*kubectl, "delete", f"jobset/{values.name}"]],
    }[values.command]


def _plan(values: argparse.Namespace, arguments: list[str]) -> list[str]:
    config = [word for word in arguments if word.startswith("--config")]  # of main's flags, those that plan has too
    slice_name = f"{GENERATIONS[values.accelerator]}:{values.topology}"
    return [sys.executable, "-m", "dlv3p_jax.plan", f"--topology={slice_name}", *config]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch/gke/gke.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=NEEDED)
    parser.add_argument("--name", default="dlv3p-jax", help="of the JobSet")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--image", help="with its tag, as the registry knows it")
    parser.add_argument("--data", help="gs://BUCKET/FOLDER of prepared data sets, copied to every host")
    parser.add_argument("--accelerator", default="tpu-v4-podslice", help="node label gke-tpu-accelerator")
    parser.add_argument("--topology", default="2x2x4", help="of the slice's chips: node label gke-tpu-topology")
    parser.add_argument("--chips_per_host", type=int, default=4)
    parser.add_argument("--service_account", default="dlv3p-jax", help="Kubernetes account that may use the bucket")
    parser.add_argument("--spot", action="store_true", help="take spot nodes")
    parser.add_argument("--host", type=int, default=0, help="logs: of which host")
    parser.add_argument("--workdir", help="fetch: gs://BUCKET/FOLDER of the run")
    parser.add_argument("--output", help="fetch: folder to copy it to")
    parser.add_argument("--dry_run", action="store_true", help="print the commands instead of running them")
    return parser


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in argv:
        return argv, []
    place = argv.index("--")
    return argv[:place], argv[place + 1 :]


def _call(lines: list[list[str]], dry_run: bool, text: str | None) -> int:
    for line in lines:
        if dry_run:
            print(shlex.join(line))
            continue
        try:
            code = subprocess.run(line, input=text, text=True, check=False, encoding="utf-8").returncode
        except FileNotFoundError:
            return _fail(f"there is no {line[0]} here: install it, or take --dry_run")
        if code:
            return code
    return 0


def _fail(message: str) -> int:
    print(f"launch/gke/gke.py: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

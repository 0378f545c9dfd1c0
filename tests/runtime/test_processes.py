"""Runs of several real processes, as launch/local.py starts them, against one process with as many devices."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import quick
from absl import flags
from flax.traverse_util import flatten_dict

from dlv3p_jax.configs import common
from dlv3p_jax.data import pipeline, records
from dlv3p_jax.evaluation import picture_scores
from dlv3p_jax.runtime import process_flags
from dlv3p_jax.weights import checkpoint_reading

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BATCH, STEPS, PICTURES = 4, 4, 11
SETTINGS = {
    "dataset": "image_folder",
    "crop_size": "(32,32)",
    "batch_size": BATCH,
    "num_train_steps": STEPS,
    "learning_rate": 3e-5,  # at 0.05, the order of sums changes a fresh network by 0.2 in 6 steps
    "log_every_steps": 1,
    "eval_every_steps": STEPS,
    "checkpoint_every_steps": 2,
    "model.backbone": "resnet18_vd",
    "model.output_stride": 16,
    "model.multi_grid": "(1,1)",
    "model.aspp_rates": "(1,2)",
    "model.aspp_channels": 32,
    "eval.batch_size": 4,
    "eval_size": "(40,56)",
}


def arguments(data_dir, workdir, *more):
    settings = [f"--config.{key}={value}" for key, value in (SETTINGS | {"data_dir": data_dir}).items()]
    return ["--config=configs/common.py", f"--workdir={workdir}", *settings, *more]


def start(command, devices=4, log=subprocess.PIPE):
    xla_flags = f"--xla_force_host_platform_device_count={devices} {quick.XLA_FLAGS_OF_LONG_RUNS}"
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env=os.environ | {"XLA_FLAGS": xla_flags},
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(data_dir, workdir, *more, log=subprocess.PIPE):
    launcher = ["launch/local.py", "--processes=2", "--devices=2", "--grace=3", "--"]
    return start([*launcher, *arguments(data_dir, workdir, *more)], log=log)


@pytest.fixture(scope="module")
def one(data_dir, tmp_path_factory):
    """The workdir of one process with four devices."""
    workdir = tmp_path_factory.mktemp("one")
    process = start(["-m", "dlv3p_jax.main", *arguments(data_dir, workdir)])
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return workdir


def wait_for(condition, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_process_ends_the_others_and_the_run_goes_on_to_what_one_process_makes(data_dir, one, tmp_path):
    log = tmp_path / "log"
    process = start_two(data_dir, tmp_path, "--verbosity=1", log=log.open("w"))

    def started():
        return [[int(pid) for pid in pids] for pids in re.findall(r"2 processes, (\d+), (\d+),", log.read_text())]

    wait_for((tmp_path / "checkpoints" / "latest" / "2").exists, process)
    os.kill(started()[0][1], signal.SIGKILL)
    wait_for(lambda: len(started()) == 2, process, seconds=60)
    assert f"process 1 of 2 (pid {started()[0][1]}) was killed by SIGKILL" in log.read_text()
    for pid in started()[0]:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    # As it goes on, one process is preempted while both compile: both leave at once, and are started again.
    wait_for(lambda: log.read_text().count("Resumed from") == 2, process)  # one for each process
    os.kill(started()[1][1], signal.SIGTERM)
    process.wait(timeout=400)
    output = log.read_text()
    assert process.returncode == 0, output
    assert "[1] main: SIGTERM: nothing was done yet that could be lost" in output
    assert "[0] main: process 0 of 2 ends with process 1 of 2: SIGTERM: nothing" in output
    assert len(re.findall(r"launch/local: exit code (?:75|137): starting again", output)) == 2 and len(started()) == 3
    resumed_from = [int(step) for step in re.findall(r"Resumed from .*latest/(\d)", output)]
    assert resumed_from == [resumed_from[0]] * 4 and 2 <= resumed_from[0] < STEPS
    resumed = resumed_from[0]

    # Together they read what the positions of the run say, and so every picture of the epoch, each in one process.
    read = {}
    for index, step, ids in re.findall(r"^\[(\d)\].* Step (\d+), read here: (.*)$", output, re.MULTILINE):
        assert read.setdefault((int(step), int(index)), ids.split()) == ids.split()  # again after the resume: the same
    read = [picture for step in range(1, STEPS + 1) for index in range(2) for picture in read[step, index]]
    dataset = records.open_dataset("image_folder", data_dir)
    names = [id_of(record) for record in dataset.source("train")]
    seed = common.get_config().seed
    assert read == [names[pipeline.picture_of(position, PICTURES, seed)] for position in range(STEPS * BATCH)]
    assert sorted(read[:PICTURES]) == sorted(names)

    # What is global is written once, and is what one process writes.
    assert len(re.findall(r"^\[0\] aAcc .* mIoU ", output, re.MULTILINE)) == 1 and "[1] aAcc" not in output
    assert (
        output.count("  loss ")
        == len(re.findall(r"^\[0\] .* step +\d+/.*  loss ", output, re.MULTILINE))
        >= STEPS - resumed
    )
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 3  # process 0, at each start
    reports = [json.loads((workdir / "eval" / f"{STEPS}.json").read_text()) for workdir in (one, tmp_path)]
    for report in reports:
        del report["seconds"], report["checkpoint"], report["date"], report["git_revision"], report["seal"]
        del report["pictures_sha256"]  # of a file with sums of floats, too; its counts are compared below
    losses = [report.pop("loss") for report in reports]  # a sum of floats, in another order
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    assert reports[0] == reports[1]
    pictures = [
        picture_scores.read(workdir / "eval" / f"{STEPS}.plain-padded-40x56.npz") for workdir in (one, tmp_path)
    ]
    assert pictures[0].ids == pictures[1].ids and pictures[0].shown == pictures[1].shown
    np.testing.assert_array_equal(pictures[0].counts, pictures[1].counts)
    expected, values = (
        flatten_dict(
            checkpoint_reading.read_variables(checkpoint_reading.find(workdir / "checkpoints" / "latest")), sep="/"
        )
        for workdir in (one, tmp_path)
    )
    assert expected.keys() == values.keys()
    for name, value in expected.items():
        tolerance = 1e-6 if name.startswith("params") else 1e-5  # statistics are sums of activations
        np.testing.assert_allclose(values[name], value, rtol=tolerance, atol=tolerance, err_msg=name)


def id_of(record):
    return record["id"].decode() if isinstance(record["id"], bytes) else record["id"]


def test_a_process_that_is_alone_says_whom_it_waits_for_and_ends(data_dir, tmp_path):
    process = start(
        [
            *("-m", "dlv3p_jax.main", *arguments(data_dir, tmp_path)),
            *("--coordinator_address=localhost:1", "--num_processes=4", "--process_id=1", "--coordinator_timeout=2"),
        ]
    )
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "process 1 of 4 waited 2 s for the coordinator localhost:1 and the other processes: start all 4" in output
    assert "Traceback" not in output and "Check failure" not in output


@pytest.fixture
def parsed_flags():
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"JAX_NUM_PROCESSES": "1", "SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "node[1-8]"}, None),
        (
            {"JAX_COORDINATOR_ADDRESS": "host:99", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"},
            ("host:99", 4, 3, "deactivate"),
        ),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "node[1-8]"}, (None, None, None, "slurm")),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "node1"}, None),
    ],
)
def test_how_a_process_was_started_is_read_from_its_environment(parsed_flags, environment, expected):
    found = process_flags.arguments(environment | {"JAX_PLATFORMS": "cpu"})
    if expected is not None:
        names = ("coordinator_address", "num_processes", "process_id", "cluster_detection_method")
        expected = dict(zip(names, expected, strict=True))
    assert found == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JAX_PROCESS_ID": "1"}, "--coordinator_address and --num_processes"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two"),
        ({"JAX_COORDINATOR_ADDRESS": "host", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "HOST:PORT"),
        ({"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "--process_id=2"),
    ],
)
def test_an_incomplete_description_is_refused(parsed_flags, environment, message):
    with pytest.raises(process_flags.DistributedError, match=re.escape(message)):
        process_flags.arguments(environment | {"JAX_PLATFORMS": "cpu"})

"""Processes of one run that do not have the same end before anything is compiled, and say who has what."""

import json
import shutil

import numpy as np
import pytest
import several
import tiny

from dlv3p_jax.data import records
from dlv3p_jax.runtime import agreement
from dlv3p_jax.weights import checkpoint_reading

COMPARE = """
import json, sys, time
from absl import flags, logging
flags.FLAGS(["test"])
from dlv3p_jax.runtime import agreement, board, processes, warned
processes.initialize()
logging.use_absl_handler()  # as app.run does
warned.once(wait=1)
for name in ("all", "all", board.name()):
    logging.warning("a warning of %s", name)
for number, mine in enumerate(json.loads(sys.argv[1])):
    try:
        agreement.require(f"things {number}", mine)
    except agreement.DifferenceError as error:
        print(error, flush=True)
        board.barrier(f"compared things {number}")  # as an end of this process would free the other
time.sleep(2)
print("through")
"""


def test_each_value_that_differs_is_named_with_both_values_and_each_warning_said_once():
    first = [{"a": {"b": 1, "c": None}}, {"a": {"b": 1, "c": [1, 2]}, "d": "x"}, {"a": 0.5}, {"a": True}]
    second = [{"a": {"b": 1, "c": None}}, {"a": {"b": 2, "c": [1, 3]}, "d": "x"}, {"a": None}, {"a": True}]
    found = several.end(several.start(COMPARE, [[json.dumps(values)] for values in (first, second)]))
    assert [code for code, _ in found] == [0, 0]
    told = [[line.partition("a warning of ")[2] for line in output.splitlines() if "a warning" in line]
            for _, output in found]  # fmt: skip
    assert told == [["all", "all", "process 0 of 2"], ["process 1 of 2"]]
    lines = [line for line in found[1][1].splitlines() if "a warning" not in line]
    assert lines[-1] == "through" and len(lines) == 3
    assert lines[0].startswith(
        "process 1 of 2 has not the things 1 of process 0: a.b is 2 here and 1 on process 0; a.c is [1, 3] here and "
        "[1, 2] on process 0."
    )
    assert "things 2 of process 0: a is None here and 0.5 on process 0" in lines[1]


def test_a_digest_is_of_names_types_shapes_and_values():
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": {"c": np.ones(2, np.float32)}}
    others = [
        {"a": tree["a"].T.copy().reshape(2, 3), "b": tree["b"]},
        {"a": tree["a"].reshape(3, 2), "b": tree["b"]},
        {"a": tree["a"].view(np.int32), "b": tree["b"]},
        {"a": tree["a"], "d": tree["b"]},
        {"a": np.nextafter(tree["a"], 9, dtype=np.float32), "b": tree["b"]},
    ]
    digests = {agreement.digest(other) for other in [tree, *others]}
    assert len(digests) == 6
    assert agreement.digest({"b": tree["b"], "a": np.asfortranarray(tree["a"])}) == agreement.digest(tree)


def other_labels(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "data")
    file = tmp_path / "data" / "image_folder" / "1.0.0" / "metadata.json"
    metadata = json.loads(file.read_text())
    metadata["class_pixels"]["val"][0] += 1
    file.write_text(json.dumps(metadata))
    records.write_digests(file.parent)
    return [f"--config.data_dir={data_dir}"], [f"--config.data_dir={tmp_path / 'data'}"]


def other_weights(data_dir, tmp_path):
    for value in (0, 1):
        variables = {"params": {"backbone": {"kernel": np.full(3, value, np.float32)}}, "batch_stats": {}}
        checkpoint_reading.write_variables(tmp_path / f"weights{value}", variables, tiny.make_config(data_dir), {})
    return tuple([f"--config.pretrained={tmp_path}/weights{value}", "--config.eval_every_steps=1"] for value in (0, 1))


@pytest.mark.parametrize(
    ("differ", "named"),
    [
        (lambda *_: ([], ["--config.eval_every_steps=3"]), "config.eval_every_steps is 3 here and 2 on process 0"),
        (other_labels, "val.class_pixels is '"),
        (other_weights, "sha256 of config.pretrained is '"),
    ],
    ids=["flags", "data", "weights"],
)
def test_a_run_whose_processes_differ_ends_at_once(data_dir, tmp_path, differ, named):
    settings = tiny.SETTINGS | {"data_dir": data_dir, "mesh.data": -1}
    same = ["--config=configs/common.py", f"--workdir={tmp_path / 'run'}"]
    same += [f"--config.{key}={value}" for key, value in settings.items()]
    first, second = (values[-2:] for values in differ(data_dir, tmp_path))

    def arguments(more):
        keys = {argument.partition("=")[0] for argument in more}
        return [argument for argument in same if argument.partition("=")[0] not in keys] + list(more)

    found = several.end(several.start(tiny.MAIN, [arguments(first), arguments(second)]), seconds=60)
    for code, output in found:
        assert code == 1 and "Traceback" not in output and "Compil" not in output, output
        (line,) = [line for line in output.splitlines() if named in line]
        assert "process 1 of 2" in line and "on process 0" in line
    assert not (tmp_path / "run" / "checkpoints" / "latest" / "2").exists()

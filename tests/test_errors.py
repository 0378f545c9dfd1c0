"""Wrong commands, as a new user types them: each ends in a line or two that say what to do.

They are run in forks of a process that has the libraries imported already, in which a row takes a tenth of a second.
"""

import importlib.util
import multiprocessing
import os
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import drawn
import numpy as np
import pytest
from PIL import Image

from dlv3p_jax.runtime import workdir_lock
from dlv3p_jax.weights import checkpoint_reading

ROOT = pathlib.Path(__file__).resolve().parents[1]
COMMANDS = sorted(path.stem for path in (ROOT / "dlv3p_jax").glob("*.py") if not path.stem.startswith("__"))
# What every row of `main` has beside its own flags.
TRAINING = {"--config": "configs/common.py", "--workdir": "{tmp}/run", "--config.data_dir": "{data}"}
TRAINING |= {f"--config.{key}": str(value) for key, value in drawn.SETTINGS.items()}
TRAINING |= {"--config.dataset": "image_folder", "--config.mesh.data": "1"}

# What it is about, the command, and what its answer has to say. No two rows come to the same check.
ROWS = [
    ("flags", "main", "such as --config=configs/quickstart.py, or the --workdir of a run"),
    ("flags", "main --config=configs/cityscape_r50.py", "no such file; --config=configs/cityscapes_r50.py is one"),
    ("flags", "main --config={tmp}/slip.py", "slip.py cannot be loaded: line 2: NameError: name 'common' is not"),
    ("flags", "main --mode=trian", "--mode=trian: value should be one of <train|eval>"),
    ("flags", "main --workdirr=x", "Unknown command line flag 'workdirr'. Did you mean: workdir"),
    ("flags", "main --checkpoint={workdir}", "--checkpoint goes with --mode=eval"),
    ("flags", "main --config=configs/quickstart.py --mode=eval --tracker=wandb", "--tracker goes with --mode=train"),
    ("flags", "main --flagfile={tmp}/none", "--flagfile={tmp}/none: cannot be read (No such file or directory)"),
    ("checkpoint", "main --config={data}/x --mode=eval", "x: there is no such file"),
    ("flags", "main word", "unexpected argument 'word': flags are written --name=value"),
    ("flags", "plan --config=configs/voc_r50.py", "plan: give --topology=…, such as --topology=v5e-8"),
    ("flags", "prepare --dataset=voc", "--dataset=voc: choose one of toy_streets, image_folder, cityscapes, voc2012"),
    ("flags", "prepare --dataset=toy_streets --ignore_label=3", "--ignore_label has no meaning for --dataset=toy_str"),
    ("flags", "benchmark --config=configs/quickstart.py --size=32,32", "--size=32,32: --kind=train takes crops of"),
    ("flags", "convert_paddle --output={tmp}/new", "give --pdparams=FILE or --weights=NAME"),
    ("flags", "convert_paddle --output={tmp}/new --pdparams={junk}", "give --config=FILE with --pdparams"),
    ("flags", "convert_paddle --output={tmp}/new --reverse", "--reverse takes --checkpoint and --output"),
    ("flags", "convert_paddle --pdparams={junk}", "give --output"),
    ("flags", "convert_mmseg --output={tmp}/new", "give --pth=FILE or --weights=NAME"),
    ("flags", "convert_mmseg --weights=mmseg/x --mmseg_config=x --output={tmp}/new", "--mmseg_config goes with --pth"),
    ("flags", "convert_timm --output={tmp}/new", "give --weights"),
    (
        "flags",
        "convert_timm --weights={junk} --backbone=resnet18_vd --output={tmp}/new",
        "choose from resnet50_vd, resnet101_vd",
    ),
    ("flags", "reproduce voc_r50 --scales=a", "--scales=a: give positive numbers"),
    ("flags", "reproduce cityscapes_r5", "give one of cityscapes_r50, "),
    ("config", "main --config.learning_rat=1", "config.learning_rat: no such key: did you mean --config.learn"),
    ("config", "main --config={tmp}/key.py", "config.learning_rat is no key that is known here: did you mean --config"),
    ("flags", "main --batch_size=4", "--batch_size: no such flag: did you mean --config.batch_size or --config.eval.b"),
    ("flags", "main --epochs=4", "--epochs: no such flag: did you mean --config.num_train_steps, in steps; the log"),
    ("config", "main --config.lr=0.1", "--config.lr: no such key: did you mean --config.learning_rate?"),
    ("config", "main --config.optimizer=adam", "config.optimizer='adam': choose from sgd, adamw"),
    ("config", "main --config.loss.focal=1", "no such key: config.loss has auxiliary, average_over, class_weights, cr"),
    ("config", "main --config.batch_size=eight", "flag --config.batch_size=eight: give a whole number"),
    ("config", "main --config.crop_size=512", "config.crop_size=(512,): give (height, width) in pixels"),
    ("config", "main --config.batch_size=1", "config.batch_size=1: BatchNorm needs a global batch of at least 2"),
    ("config", "main --config.accumulate_steps=3", "config.batch_size=2 must divide into so many micro-batches"),
    ("config", "main --config.model.backbone=resnet42", "model.backbone='resnet42' is unknown: choose from resnet18_v"),
    ("config", "main --config.model.output_stride=7", "model.output_stride=7: it can be 8 or 16"),
    ("config", "main --config.loss.class_weights=(1.0,2.0)", "class_weights=(1.0, 2.0): give one for each of the 3"),
    ("config", "main --config.loss.class_weights=balance", "='balance': give a number for each class, such as (1.0, 2"),
    ("config", "main --config.loss.top_k=0", "config.loss: top_k = 0.0: the share of pixels to keep is above 0"),
    (
        "config",
        "main --config.loss.class_weights=(1.0,1.0,-1.0)",
        "config.loss: class_weights = (1.0, 1.0, -1.0): ",
    ),
    ("config", "main --config.augment.min_scale=3.0", "augment.min_scale=3.0 and augment.max_scale=2.0 must be"),
    ("config", "main --config.augment.rotation=200.0", "augment.rotation=200.0: give a number from 0 to 180"),
    ("config", "main --config.eval.window=100", "eval.window=(100,): give (height, width) in pixels"),
    ("config", "main --config.data_dir=/nowhere --config.model.backbone=resnet42", "choose from resnet18_vd"),
    ("config", "main --config.data_dir=/nowhere --config.loss.cross_entropy=0", "every weight under config.loss is 0"),
    ("config", "main --config.data_dir=/nowhere --config.eval.average=mean", "eval.average='mean' is not one of"),
    ("data", "main --config.data_dir=/nowhere", "is not prepared in /nowhere (nothing is); run"),
    ("data", "reproduce voc_r50 --data_dir=/no/such", 'data set "voc2012" is not prepared in /no/such'),
    ("data", "main --config.train_split=trainaug", 'data set image_folder has no split "trainaug"; it has train, val'),
    ("data", "main --config.num_classes=4", "image_folder in {data} has 3: give --config.num_classes=3"),
    ("data", "prepare --source={tmp}/nowhere", "--source={tmp}/nowhere: no such folder"),
    ("data", f"prepare --source={'x' * 300}", "the name is too long for this file system; give another --source"),
    ("data", f"prepare --data_dir={'x' * 300} --source={{sources}}/good", "give another --data_dir"),
    ("data", f"main --config.data_dir={'x' * 300}", "x: the name is too long for this file system; give another --c"),
    ("data", f"reproduce voc_r50 --data_dir={'x' * 300}", "the name is too long for this file system; give another --"),
    ("data", "prepare --source={tmp}", "--source={tmp}: no layout of pictures and labels that is known here"),
    ("data", "prepare --source={sources}/cityscapes_ids", "value 26 (140 pixels) outside the 2 classes (0..1)"),
    ("data", "prepare --source={sources}/no_label", "images/train/1.png has no label (looked for labels/train/1.*)"),
    ("data", "prepare --source={sources}/good --label_suffix=_mask", "0.png has no label (looked for labels/train/0_m"),
    ("flags", "prepare --source={sources}/good --name=my-set", "--name=my-set: letters, digits and _, a letter first"),
    ("data", "prepare --dataset=coco --source={sources}/good", "no train split (looked for annotations/instances_trai"),
    ("data", "prepare --dataset=ultralytics --source={sources}/good", "give the YAML file of the data set; in this fo"),
    ("data", "prepare --dataset=hf:{tmp}/none --label_key=mask", "--dataset=hf:{tmp}/none: "),
    ("data", "prepare --source={sources}/truncated", "images/train/0.png: damaged or truncated"),
    ("data", "prepare --source={sources}/colours", 'for the colours of all labels: --label_map "'),
    ("data", "prepare --source={sources}/sizes", "images/train/0.png is 14x10 (width x height) but its label"),
    ("data", "prepare --source={sources}/no_names", "classes.txt is missing: write the class names into it"),
    ("data", "prepare --source={sources}/masks", '--label_map "0:0,255:1"'),
    ("checkpoint", "main --mode=eval", "no checkpoint in {tmp}/run: give a workdir"),
    ("data", "predict --checkpoint={workdir} --output={tmp}/new gs://a.b/c.jpg", "gs://a.b/c.jpg: http and https addr"),
    ("data", "predict --checkpoint={workdir} --output={tmp}/new 0", "a camera's number is not taken: save its picture"),
    (
        "checkpoint",
        "predict --geotiff --submission=voc --checkpoint={workdir} --output={tmp}/new {picture}",
        "--submission is not for what --geotiff writes: leave it out",
    ),
    ("checkpoint", "predict --checkpoint=voc --output={tmp}/new {picture}", "no such file or folder, and no publ"),
    (
        "checkpoint",
        "predict --checkpoint={sources}/best_model --output={tmp}/new {picture}",
        "best_model is a folder of PaddleSeg's: give the file, {sources}/best_model/model.pdparams",
    ),
    ("checkpoint", "convert_paddle --reverse --checkpoint=voc_r5 --output={tmp}/new", "did you mean voc_r50?"),
    (
        "checkpoint",
        "main --mode=eval --checkpoint={workdir} --config.model.aspp_channels=64",
        'give --config.model.aspp_channels="32"',
    ),
    ("checkpoint", "convert_paddle --config=configs/voc_r50.py --pdparams={junk} --output={tmp}/new", "no .pdparams"),
    ("checkpoint", "convert_paddle --weights=voc_r5 --output={tmp}/new", "'voc_r5' is no published model or backbone"),
    ("checkpoint", "convert_mmseg --pth={junk} --output={tmp}/new", "junk"),
    (
        "checkpoint",
        "convert_mmseg --pth={junk} --mmseg_config={tmp}/none --output={tmp}/new",
        "{tmp}/none: No such file or directory",
    ),
    (
        "checkpoint",
        "main --config.pretrained={workdir} --config.model.avg_down=False",
        "computes something else: give --config.model.avg_down=True",
    ),
    ("checkpoint", "convert_timm --weights={tmp}/none --output={tmp}/new", "/none is not there"),
    ("checkpoint", f"convert_timm --weights={'x' * 300} --output={{tmp}}/new", "is too long for this file system; giv"),
    ("checkpoint", f"main --config.pretrained={'x' * 300}", "is too long for this file system; give another --config."),
    ("checkpoint", "convert_timm --weights={junk} --output={tmp}/new", "is no safetensors file, or is damaged"),
    (
        "checkpoint",
        "predict --label_ids --checkpoint={workdir} --output={tmp}/new {picture}",
        "--label_ids is for the train ids of Cityscapes, of which there are 19; this checkpoint has 3 classes",
    ),
    ("device", "main --config.mesh.data=9", "mesh.data=9 x mesh.space=1 asks for 9 devices, but 8 are here"),
    ("device", "main --config.mesh.data=8", "config.batch_size=2 does not divide over mesh.data=8 devices"),
    ("device", "main --config.mesh.space=2 --config.crop_size=(33,32)", "a picture height of 33 does not divide over"),
    ("device", "main --config.crop_size=(90000,90000)", "the logits and their gradient alone would take 388.8 GB on"),
    ("device", "main --num_processes=2", "needs --coordinator_address and --process_id too"),
    ("device", "plan --config=configs/voc_r50.py --topology=v5e-17", "--topology=v5e-17: v5e slices are v5e-1, v5e-4"),
    ("file system", "main --workdir=README.md/x", "README.md is a file, not a folder; give another --workdir"),
    ("file system", "main --workdir=/proc/x", "/proc cannot be written (No such file or directory); give another"),
    ("file system", f"main --workdir={{tmp}}/{'x' * 300}", "the name is too long for this file system"),
    ("file system", "main --workdir={locked}", "{locked} is in use by another run"),
    ("file system", "main --workdir=s3://bucket/x", "--workdir=s3://bucket/x cannot be written: File system scheme"),
    ("file system", "prepare --source={sources}/good --data_dir=/proc/x", "--data_dir: cannot make /proc/x/image_fold"),
    (
        "file system",
        "benchmark --config=configs/quickstart.py --json={junk}/x.json",
        "junk is a file, not a folder; give another --json",
    ),
    (
        "file system",
        "convert_paddle --reverse --checkpoint={workdir} --output={junk}",
        "junk exists: give another --output",
    ),
]
CONFIG_WITH_A_SLIP = """
from dlv3p_jax.configs import common

def get_config():
    config = common.get_config()
    config.learning_rat = 1
    return config
"""


def run_command(argv: list[str], output: pathlib.Path, unread: bool) -> None:
    """In a process of its own: what `python -m dlv3p_jax.NAME` does, with stdout and stderr in a file."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1), os.dup2(file, 2)
    if unread:
        reader, writer = os.pipe()
        os.close(reader), os.dup2(writer, 1)
    os.chdir(ROOT)
    sys.argv = argv
    runpy.run_module(argv[0], run_name="__main__", alter_sys=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a command in a fork; gives its exit code and what it wrote. `unread`: stdout is a pipe without a reader."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dlv3p_jax.training.loop", "dlv3p_jax.evaluation.evaluator", "test_errors"])
    output = tmp_path_factory.mktemp("output") / "output.txt"

    def run(command, *arguments, unread=False):
        argv = [f"dlv3p_jax.{command}", *arguments]
        process = context.Process(target=run_command, args=(argv, output, unread))
        process.start()
        process.join(120)
        return process.exitcode, output.read_text()

    return run


def make_source(folder, names="floor\nwall\n") -> pathlib.Path:
    """A folder as `prepare` takes it: pictures of 10x14 of two classes, two to train on and one to validate on."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 1)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(drawn.draw_picture(rng, 10, 14)).save(folder / "images" / split / f"{index}.png")
            write_label(folder, rng.integers(0, 2, (10, 14)), f"{split}/{index}")
    (folder / "classes.txt").write_text(names)
    return folder


def write_label(folder, values, name="train/0") -> None:
    Image.fromarray(np.uint8(values)).save(folder / "labels" / f"{name}.png")


@pytest.fixture(scope="module")
def places(data_dir, tmp_path_factory):
    """What the rows name: a checkpoint, files that are none, a workdir in use, folders with one thing wrong."""
    folder = tmp_path_factory.mktemp("places")
    config = drawn.make_config({"dataset": "image_folder", "data_dir": str(data_dir)}, num_classes=3)
    drawn.save_checkpoint(
        folder / "workdir", config, checkpoint_reading.describe_classes(["a", "b", "c"], [[0] * 3] * 3, 255)
    )
    (folder / "junk").write_bytes(b"junk")
    (folder / "locked").mkdir()
    (folder / "sources" / "best_model").mkdir(parents=True)
    (folder / "sources" / "best_model" / "model.pdparams").write_bytes(b"junk")
    good = make_source(folder / "sources" / "good")
    sources = {
        name: pathlib.Path(shutil.copytree(good, good.parent / name))
        for name in ("cityscapes_ids", "no_label", "truncated", "colours", "sizes", "no_names", "masks")
    }
    write_label(sources["cityscapes_ids"], np.full((10, 14), 26))
    (sources["no_label"] / "labels/train/1.png").unlink()
    os.truncate(sources["truncated"] / "images/train/0.png", 60)
    write_label(sources["colours"], np.random.default_rng(0).integers(0, 255, (10, 14, 3)))
    write_label(sources["sizes"], np.zeros((10, 15)))
    (sources["no_names"] / "classes.txt").unlink()
    for name in ("train/0", "train/1", "val/0"):
        write_label(sources["masks"], np.full((10, 14), 255), name)
    with workdir_lock.hold(folder / "locked"):
        yield {name: folder / name for name in ("workdir", "junk", "locked", "sources")} | {
            "data": data_dir,
            "picture": good / "images/train/0.png",
        }


def complete(command: str, places) -> list[str]:
    """A row's words, with what else the command needs."""
    name, *words = (word.format(**places) for word in shlex.split(command))
    given = {word.partition("=")[0] for word in words}
    defaults = {}
    if name == "main" and words:
        defaults = TRAINING
    elif name == "prepare":
        defaults = {"--dataset": "image_folder", "--data_dir": "{tmp}/data", "--workers": "1"}
    config = [word for word in words if word.startswith("--config=")]  # comes before its keys
    rest = [word for word in words if word not in config]
    added = [f"{flag}={value.format(**places)}" for flag, value in defaults.items() if flag not in given]
    return [name, *config, *added, *rest]


@pytest.mark.parametrize(("command", "message"), [pytest.param(*row, id=f"{kind}-{row[0]}") for kind, *row in ROWS])
def test_a_wrong_command_ends_in_a_line_or_two_that_say_what_to_do(run, places, tmp_path, command, message):
    (tmp_path / "slip.py").write_text("def get_config():\n    return common.get_config()\n")
    (tmp_path / "key.py").write_text(CONFIG_WITH_A_SLIP)
    places = places | {"tmp": tmp_path}
    name, *words = complete(command, places)
    code, output = run(name, *words)
    assert code == 1, output
    answer = output[output.rindex(f"{name}: ") :]
    assert message.format(**places) in answer
    said = [line for line in answer.splitlines() if not line.startswith("  ")]  # others: wrong files, a command to copy
    assert len(said) <= 2 and len(answer.splitlines()) <= 12, answer
    assert "Traceback" not in output
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "run") == ["key.py", "slip.py"]


def test_a_workdir_without_a_run_is_named(run, tmp_path):
    """Whose name may be mistyped: with --config beside it, a new run would begin there."""
    code, output = run("main", f"--workdir={tmp_path}/run_1", "--mode=eval")
    assert code == 1 and f"main: --workdir={tmp_path}/run_1 holds no config.json, and so no run" in output
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run_1" / "checkpoints").mkdir(parents=True)
    code, output = run("main", f"--workdir={tmp_path}/run_1")
    assert code == 1 and "run_1 holds no config.json, which its run had: give the --config" in output


def test_there_are_at_least_three_of_each_kind():
    kinds = [kind for kind, *_ in ROWS]
    assert len(ROWS) >= 30 and set(kinds) == {"flags", "config", "data", "checkpoint", "device", "file system"}
    assert all(kinds.count(kind) >= 3 for kind in kinds)


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_flags_are_answered_before_tensorflow_is_imported(command, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')\n")
    process = subprocess.run(
        [sys.executable, "-m", f"dlv3p_jax.{command}", "--no_such_flag=1"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1 and process.stdout == ""
    assert process.stderr == f"{command}: Unknown command line flag 'no_such_flag' (--help lists the flags)\n"


@pytest.mark.parametrize(
    "command",
    ["benchmark --config=configs/quickstart.py", "predict --checkpoint={workdir} --output={tmp}/out {picture}"],
)
def test_a_gpu_that_is_wanted_and_absent_is_told(places, tmp_path, command):
    if importlib.util.find_spec("jax_cuda12_plugin") or importlib.util.find_spec("jax_cuda13_plugin"):
        pytest.skip("JAX is installed with its plugin for GPUs")
    name, *words = (word.format(**places, tmp=tmp_path) for word in shlex.split(command))
    process = subprocess.run(
        [sys.executable, "-m", f"dlv3p_jax.{name}", *words],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1 and len(process.stderr.splitlines()) == 1
    assert process.stderr.startswith(f"{name}: JAX finds no device of JAX_PLATFORMS=cuda: unset it")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_that_nobody_reads_to_its_end_is_no_error(run, command):
    assert run(command, "--help", unread=True) == (0, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_the_flags_of_a_command_and_the_keys_of_its_configuration(run, command):
    code, text = run(command, "--help")
    assert code == 0
    source = (ROOT / "dlv3p_jax" / f"{command}.py").read_text()
    defined = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source)
    own, _, rest = text.partition("\n\nKeys of --config")
    described = re.findall(r"^  --(?:\[no\])?(\w+): \S", own, re.MULTILINE)
    assert defined and set(defined) <= set(described)
    trains, reads = command in ("main", "plan", "benchmark"), "config" in defined
    assert ("\n  model.backbone='resnet50_vd': resnet18_vd, " in rest) == trains
    assert ("\n  model.backbone: resnet18_vd, " in rest) == (reads and not trains)
    assert ("learning_rate" in rest) == trains
    assert f"python -m dlv3p_jax.{command} " in text[: text.index("\nFlags:\n")]
    assert "--verbosity" not in text and text.rstrip().endswith("--helpfull lists the flags of the libraries too.")

"""Flags mean the same however they come; wrong ones end in a line."""

import os
import pathlib
import pwd

import pytest
from absl import flags
from etils import epath

from dlv3p_jax.configs import common, quickstart
from dlv3p_jax.runtime import arguments, cli, configuration

COMMON = pathlib.Path(common.__file__)


@pytest.fixture
def parse(monkeypatch, tmp_path):
    """Parses a command's arguments, in a folder of its own; gives the flags."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ann")
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    arguments.DEFINE_config("config", "", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_bool("overwrite", None, "", flag_values=values)

    def parse(*words):
        left = cli.make_flags_parser("command")(["command", f"--config={COMMON}", *words])
        assert left[0] == "command"
        return values, left[1:]

    return parse


# A flag and its value as arguments; `file` makes a flagfile of lines and gives --flagfile=ITS_NAME.
WAYS = {
    "=": lambda name, value, file: [f"--{name}={value}"],
    "one dash": lambda name, value, file: [f"-{name}={value}"],
    "next word": lambda name, value, file: [f"--{name}", value],
    "quotes": lambda name, value, file: [f'--{name}="{value}"'],
    "file": lambda name, value, file: [file("# a comment", "", f"--{name}={value}  ")],
    "file in the next word": lambda name, value, file: file(f"--{name}={value}").split("="),
    "file, quotes": lambda name, value, file: [file(f'--{name}="{value}"')],
    "file, all in quotes": lambda name, value, file: [file(f'"--{name}={value}"')],
    "file in a file": lambda name, value, file: [file(file(f"--{name}={value}"))],
}
VALUES = [
    ("config.pretrained", "None", None),
    ("config.num_classes", "None", None),
    ("config.clip_grad_norm", "None", None),
    ("config.eval.window", "None", None),
    ("config.eval.scales", "(0.5, 1.0)", (0.5, 1.0)),
    ("config.crop_size", "(64, 96)", (64, 96)),
    ("config.augment.min_scale", "0.25", 0.25),
    ("config.data_dir", "~/my data", "/home/ann/my data"),
    ("config.pretrained", "~/it's.pdparams", "/home/ann/it's.pdparams"),
    ("workdir", "~/run", "/home/ann/run"),
    ("workdir", "None", None),
]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(("name", "value", "expected"), VALUES)
def test_flags_mean_the_same_however_they_come(parse, tmp_path, way, name, value, expected):
    def file(*lines):
        path = tmp_path / f"flags{len(os.listdir(tmp_path))}"
        path.write_text("\n".join(lines), encoding="utf-8")
        return f"--flagfile={path}"

    values, left = parse(*way(name, value, file))
    found = values["config"].value if name.startswith("config.") else values
    for key in name.removeprefix("config.").split("."):
        found = getattr(found, key)
    assert found == expected and left == []


def test_order_and_words_beside_flags_are_kept(parse):
    # A key may stand before its file.
    words = ["--config.seed=3", f"--config={COMMON}", "--overwrite", "a.png", "--nooverwrite", "~", "--", "--workdir=x"]
    assert cli.make_flags_parser("command")(["command", *words]) == ["command", "a.png", "~", "--workdir=x"]
    assert flags.FLAGS.config.seed == 3 and flags.FLAGS.overwrite is False and flags.FLAGS.workdir is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.batch_size=None"], "flag --config.batch_size=None"),
        (["--config.batchsize=4"], "--config.batchsize: no such key: did you mean --config.batch_size?"),
        (["--config.model.bakbone=x"], "did you mean --config.model.backbone?"),
        (
            ["--config.seed=1", "--config.backbone=x"],
            "--config.backbone: no such key: did you mean --config.model.",
        ),
        (["--flip=x"], "--flip: no such flag: did you mean --config.augment.flip or --config.eval.flip?"),
        (["--config.nothing=x"], "--config.nothing: no such key: docs/configuration.md has a table of all keys"),
        (["--workdirr=x"], "Unknown command line flag 'workdirr'. Did you mean: workdir"),
        (["--config.eval.scales=(1.0,)", "--config.eval.scales=(0.5,)"], "--config.eval.scales is given twice"),
        (["--config.eval.scales", "(1.0,)", "--config.eval.scales=(0.5,)"], "--config.eval.scales is given twice"),
        (["--flagfile=flags", "--config.eval.scales=(0.5,)"], "--config.eval.scales is given twice"),
        (["--config.eval.flip=True", "--noconfig.eval.flip"], "--config.eval.flip is given twice"),
        ([f"--config={COMMON}"], "--config is given twice"),
        (["--flagfile=none"], "--flagfile=none: cannot be read (No such file or directory)"),
        (["--flagfile=."], "--flagfile=.: cannot be read (Is a directory)"),
        (["--flagfile"], "--flagfile=: "),
        (["--flagfile=loop"], "--flagfile=loop: names itself"),
        (["--workdir"], "--workdir lacks its value"),
        (["--workdir=caf\udce9"], "--workdir=caf\udce9: its name is no UTF-8; rename it"),
    ],
)
def test_wrong_flags_end_in_a_line(parse, tmp_path, words, message):
    (tmp_path / "flags").write_text("--config.eval.scales=(1.0,)\n")
    (tmp_path / "loop").write_text("--flagfile=loop\n")
    with pytest.raises(SystemExit) as stopped:
        parse(*words)
    assert str(stopped.value).startswith("command: ") and message in str(stopped.value)
    assert str(stopped.value).count("\n") == 0


def test_a_home_folder_that_nobody_knows_is_asked_for(parse, monkeypatch):
    def getpwuid(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    for word in ("--workdir=~/run", "--config.data_dir=~", "--flagfile=~/flags"):
        with pytest.raises(SystemExit, match=f"{word.partition('=')[0]}=~.*HOME is not set"):
            parse(word)


def test_configs_are_found_outside_the_checkout(monkeypatch, parse, tmp_path):
    parser = cli.make_flags_parser("command")
    parser(["command", "--config=configs/voc_r50.py"])
    assert flags.FLAGS.config.dataset == "voc2012"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "voc_r50.py").write_text(
        COMMON.read_text().replace('data_dir = "data"', 'data_dir = "own"')
    )
    parser(["command", "--config=configs/voc_r50.py"])  # what is here comes first
    assert flags.FLAGS.config.data_dir == "own"


@pytest.mark.parametrize("value", ["voc_r50", "voc_r50.py"])
def test_a_config_is_found_by_its_name_alone(parse, tmp_path, value):
    (tmp_path / "voc_r50").mkdir()  # as a workdir may be called
    cli.make_flags_parser("command")(["command", f"--config={value}"])
    assert flags.FLAGS.config.dataset == "voc2012"


@pytest.fixture
def run_folder(tmp_path):
    """A workdir whose config.json is that of the quickstart, with a number of classes."""
    config = quickstart.get_config()
    config.num_classes = 7
    (tmp_path / "run").mkdir()
    configuration.write(config, epath.Path(tmp_path / "run" / "config.json"))
    return tmp_path / "run"


@pytest.mark.parametrize("workdir", [["--workdir=run"], ["--workdir", "run"], ["--workdir='run'"]])
def test_the_config_is_by_default_that_of_the_workdir(parse, run_folder, workdir):
    parser = cli.make_flags_parser("command")
    parser(["command", *workdir, "--config.eval.scales=(0.5, 1.0)", "--config.clip_grad_norm=None"])
    expected = quickstart.get_config()
    expected.update_from_flattened_dict({"num_classes": 7, "eval.scales": (0.5, 1.0), "clip_grad_norm": None})
    assert flags.FLAGS.config.to_dict() == expected.to_dict()
    parser(["command", *workdir, "--config.pretrained=voc_r50", "--config.eval.window=(64, 96)"])  # None before
    assert flags.FLAGS.config.pretrained == "voc_r50" and flags.FLAGS.config.eval.window == (64, 96)
    parser(["command", *workdir, "--config=voc_r50"])  # what is given comes first
    assert flags.FLAGS.config.dataset == "voc2012" and flags.FLAGS.config.num_classes is None
    parser(["command", "--workdir=other", "--config.seed=3", "--config=run/config.json"])  # of another run
    assert (flags.FLAGS.config.num_classes, flags.FLAGS.config.seed) == (7, 3)


def test_a_workdir_without_a_config_or_with_a_damaged_one(parse, run_folder):
    parser = cli.make_flags_parser("command")
    parser(["command", "--workdir=other"])
    assert flags.FLAGS.config is None
    with pytest.raises(SystemExit, match="--config.seed=3 changes a key of --config=FILE: give that too"):
        parser(["command", "--workdir=other", "--config.seed=3"])
    path = run_folder / "config.json"
    path.write_text(path.read_text().replace('"num_classes": 7', '"num_classes": 8'))
    with pytest.raises(SystemExit) as stopped:
        parser(["command", "--workdir=run"])
    assert str(stopped.value).startswith("command: run/config.json is no configuration that this program wrote (it is")
    assert "\n" not in str(stopped.value)


def test_a_current_folder_that_is_no_utf_8_is_told(parse, monkeypatch, tmp_path):
    (tmp_path / "caf\udce9").mkdir()
    monkeypatch.chdir(tmp_path / "caf\udce9")
    with pytest.raises(SystemExit, match="the current folder: its name is no UTF-8; rename it"):
        parse("--workdir=run")

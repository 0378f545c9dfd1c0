"""Every command for a user without a name or a home, with names that shells, locales and libraries stumble over."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import test_errors
import tiny
from PIL import Image

TESTS = pathlib.Path(__file__).resolve().parent
ROOT = TESTS.parent
USER, GROUP = 54321, 54322
# Nobody's user, who may read whatever this test's Python is made of, and write only what is theirs.
AS_USER = ["setpriv", f"--reuid={USER}", f"--regid={GROUP}", "--clear-groups", "--inh-caps=+dac_read_search"]
AS_USER += ["--ambient-caps=+dac_read_search", "sh", "-c", 'umask 077; exec "$@"', "sh", sys.executable]
COMMAND = """
import importlib, sys
from dlv3p_jax.runtime import cli
name = sys.argv.pop(1)
module = importlib.import_module(f"dlv3p_jax.{name}")
if hasattr(module, "define_flags"):
    module.define_flags()

def main(argv):
    if name in ("main", "predict", "export"):
        import tiny
        from dlv3p_jax import models
        models.build_model = tiny.build_model
    module.main(argv)

cli.run(main, name)
"""
# As containers have it, and with Python's modes for UTF-8 off: then names of files are ASCII, too.
LOCALES = {
    "utf-8": {"LANG": "C", "PYTHONIOENCODING": "latin-1"},
    "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
OURS = ("HOME", "USER", "LOGNAME", "JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")
REMOVED = {*OURS, "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "PYTHONUTF8", "PYTHONIOENCODING"}


@pytest.fixture
def folder(tmp_path):
    """A set-gid folder of that user's, with blanks, quotes, a dollar and brackets in its name."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root becomes another user, and by util-linux's setpriv")
    if subprocess.run([*AS_USER, "-c", ""], capture_output=True).returncode:
        pytest.skip("another user cannot run Python here")
    (tmp_path / "unwritable").mkdir(mode=0o555)
    folder = tmp_path / """Ann's "data" [1] $x"""
    folder.mkdir()
    os.chown(folder, USER, GROUP)
    folder.chmod(0o2700)
    return folder


@pytest.fixture
def run(folder):
    def run(locale, home, command, *arguments, code=0):
        environment = {key: value for key, value in os.environ.items() if key not in REMOVED} | LOCALES[locale]
        environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}"}
        environment |= {"TMPDIR": str(folder.parent / "unwritable")}
        environment |= {} if home is None else {"HOME": str(home)}
        done = subprocess.run(
            [*AS_USER, "-c", COMMAND, command, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            timeout=300,
        )
        said = done.stdout + done.stderr
        assert done.returncode == code and b"Traceback" not in said, said.decode("latin-1")
        return said

    return run


def test_the_whole_chain(folder, run):
    source = test_errors.make_source(folder / "my pictures", "Straße\n道路\n")
    said = run("ascii", None, "prepare", "--dataset=image_folder", "--source=my pictures", "--data_dir=my data [2]")
    assert rb"Stra\xdfe" in said and rb"\u9053\u8def" in said
    printed = re.search(r"python -m dlv3p_jax.main (.*)", said.decode())[1]  # it can be pasted

    settings = tiny.SETTINGS | {"num_train_steps": 2}
    keys = [f"--config.{key}={value}" for key, value in settings.items() if key != "dataset"]
    (folder / "flags [3]").write_text("\n".join(f"'{key}'" for key in keys), encoding="utf-8")
    words = [*shlex.split(printed), "--flagfile=flags [3]", "--workdir=~/my run"]
    said = run("ascii", folder, "main", *words, "--config.pretrained=None")
    assert rb"Stra\xdfe" in said
    assert json.loads((folder / "my run" / "config.json").read_bytes())["data_dir"] == "my data [2]"

    pictures = folder / "写真"
    pictures.mkdir()
    names = ["道路 ü's [4].png", "b\udcff.png", "plain.png"]
    for name in names:
        shutil.copy(source / "images" / "val" / "0.png", pictures / name)
    said = run("utf-8", "/nonexistent", "predict", "--checkpoint=my run", "--output=出力 'a'", "写真")
    assert b"Stra\xdfe" in said and rb"\u51fa\u529b 'a'/labels" in said
    labels = [np.asarray(Image.open(folder / "出力 'a'" / "labels" / name)) for name in names]
    assert all(label.shape == (10, 14) and np.array_equal(label, labels[0]) for label in labels)

    unwritable = folder.parent / "unwritable"
    run("utf-8", unwritable, "export", "--checkpoint=my run", "--output=模型", "--format=stablehlo")
    described = json.loads((folder / "模型" / "stablehlo" / "model.json").read_bytes())
    assert described["classes"] == ["Straße", "道路"]
    run("utf-8", None, "report", "--workdir=my run", "--output=頁.html")
    assert "道路" in (folder / "頁.html").read_text(encoding="utf-8")

    # Where names are ASCII, libraries would miss what is below a folder of another, and call it damaged.
    said = run("ascii", None, "report", "--workdir=出力 'a'", code=1)
    assert b"its name is no UTF-8; here names are taken for ascii: set LC_ALL=C.UTF-8" in said
    assert {path.name for path in folder.iterdir() if path.name not in (".config", ".keras")} == {
        *("my pictures", "my data [2]", "flags [3]", "my run", "写真", "出力 'a'", "模型", "頁.html")
    }
    made = [path for name in ("my data [2]", "my run", "模型") for path in (folder / name).rglob("*")]
    assert len(made) > 30 and all((path.stat().st_uid, path.stat().st_mode & 0o077) == (USER, 0) for path in made)

"""Builds wheel and sdist, installs the wheel outside the checkout, and uses it there. For `.ci/run`, or by hand:

    python -m tests.installed

One environment has the wheel with its extra `train`, and trains, in a folder that is empty but for a package `configs`
of somebody else. The other has the wheel alone, without TensorFlow, and does all that needs no data set.
"""

import os
import pathlib
import shlex
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile

from tests import quick, run_docs

SMALL = (
    *("--config.num_train_steps=2", "--config.eval_every_steps=2", "--config.checkpoint_every_steps=2"),
    *("--config.crop_size=(32, 32)", "--config.batch_size=2", "--config.model.aspp_channels=16"),
    *("--config.eval_size=(32, 32)", "--config.eval.batch_size=8"),
)
SEGMENT = """
import sys
from dlv3p_jax import Segmenter
print(Segmenter.from_checkpoint("run")("street.png").shape)
assert "tensorflow" not in sys.modules
"""


def run(*words: str | pathlib.Path, folder: pathlib.Path, code: int = 0) -> str:
    """Runs a command in `folder`; returns what it printed. Raises RuntimeError where it does not end with `code`."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    print(f"installed: {shlex.join(map(str, words))}", flush=True)
    done = subprocess.run(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != code:
        raise RuntimeError(f"ended with {done.returncode}, not {code}:\n{done.stdout[-4000:]}")
    return done.stdout


def build(folder: pathlib.Path) -> pathlib.Path:
    """The wheel, made from the sdist, which has to have all that the repository has."""
    source = folder / "source"
    names = run_docs.copy_repository(source)
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", source, folder=folder)
    (sdist,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    left_out = {".gitignore", "configs"}  # a link, for who has the checkout
    if missing := set(names) - packed - left_out:
        raise RuntimeError(f"the sdist lacks {sorted(missing)}")
    with zipfile.ZipFile(wheel) as archive:
        top = {name.partition("/")[0] for name in archive.namelist()}
    if {name for name in top if not name.endswith(".dist-info")} != {"dlv3p_jax"}:
        raise RuntimeError(f"the wheel has {sorted(top)} at its top")
    return wheel


def install(folder: pathlib.Path, what: str) -> pathlib.Path:
    """A new environment with `what`, in the versions of requirements.txt; returns its folder of programs."""
    venv.create(folder, with_pip=True)
    constraints = run_docs.ROOT / "requirements.txt"
    run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--constraint", constraints, what, folder=folder)
    return folder / "bin"


def main() -> None:
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "2", "JAX_PLATFORMS": "cpu"}
    os.environ["XLA_FLAGS"] = quick.XLA_FLAGS
    with tempfile.TemporaryDirectory(prefix="dlv3p_jax_installed_") as name:
        folder = pathlib.Path(name)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "cache")
        wheel, home = build(folder), folder / "home"
        (home / "configs").mkdir(parents=True)
        (home / "configs" / "__init__.py").write_text("raise ImportError('the package of somebody else')\n")

        trains = install(folder / "trains", f"{wheel}[train]")
        run(trains / "dlv3p", "prepare", "--dataset=toy_streets", folder=home)
        run(trains / "dlv3p", "prepare", "--dataset=toy_streets", "--preview=sheet.png", folder=home)
        run(trains / "dlv3p", "train", "--config=quickstart", "--workdir=run", *SMALL, folder=home)
        same = ("--config=configs/quickstart.py", "--workdir=run", *SMALL)
        run(trains / "python", "-m", "dlv3p_jax.main", "--mode=eval", *same, folder=home)

        alone = install(folder / "alone", str(wheel))
        run(alone / "python", "-c", "from PIL import Image; Image.new('RGB', (48, 40)).save('street.png')", folder=home)
        run(alone / "python", "-c", SEGMENT, folder=home)
        run(alone / "dlv3p", "predict", "--checkpoint=run", "--output=labels", "street.png", folder=home)
        run(alone / "dlv3p", "report", "--workdir=run", folder=home)
        options = ("--output=exported", "--format=stablehlo", "--height=32", "--width=32")
        run(alone / "dlv3p", "export", "--checkpoint=run", *options, folder=home)
        run(alone / "dlv3p", "convert_paddle", "--reverse", "--checkpoint=run", "--output=run.pdparams", folder=home)
        said = run(alone / "dlv3p", "train", "--config=quickstart", "--workdir=run2", folder=home, code=1)
        if "pip install 'dlv3p_jax[train]'" not in said or len(said.splitlines()) != 1:
            raise RuntimeError(f"without TensorFlow, training says:\n{said}")
    print("installed: wheel and sdist are whole")


if __name__ == "__main__":
    main()

"""Runs the commands of README.md and docs/ at small size, in a scratch copy: python -m tests.run_docs

Every command that stands there in a code block, or inline with its flags, is matched by one of three tables, or this
fails: those that are run here, those that a test runs, and those that neither can run, with the reason. A line for each
is printed. The photographs are those of ../shared/camvid.
"""

import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from markdown_it import MarkdownIt

from tests import quick

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md")
CAMVID = ROOT.parent / "shared" / "camvid"
CAMVID_CLASSES = "sky building pole road pavement tree sign fence car pedestrian bicyclist"

# What every configuration of the scratch copy has; the same keys in a command are left out.
SIZE = {
    "model.backbone": "resnet18_vd",
    "model.output_stride": 16,
    "model.multi_grid": (1, 1),
    "model.aspp_rates": (1, 2),
    "model.aspp_channels": 16,
    "model.dtype": "float32",
    "crop_size": (32, 32),
    "eval_size": None,
    "batch_size": 2,
    "num_train_steps": 2,
    "learning_rate": 0.01,  # each other value would be another program to compile
    "warmup_steps": 0,
    "log_every_steps": 1,
    "eval_every_steps": 2,
    "checkpoint_every_steps": 2,
    "loss.class_weights": None,
    "eval.batch_size": 2,
    "eval.scales": (1.0,),
    "eval.window": None,
}
# What a command has beside what is written, by the name of its module.
ADDED = {
    "prepare": ["--workers=2", "--overwrite"],
    "benchmark": ["--repeats=1", "--nocompile_twice"],
    "demo": ["--port=0"],
    "predict": ["--overwrite"],
}
# Words of the docs that stand for what a user has. FOLDER is also that of the data set that the command names.
WORDS = {
    "FOLDER": "folders/image_folder",
    "streets": "folders/image_folder",
    "camvid": "folders/image_folder",
    "PICTURE_OR_FOLDER…": "folders/image_folder/images/val",
    "model.pdparams": "folders/model.pdparams",
    "--height=512": "--height=32",
    "--width=1024": "--width=48",
    "--size=256,512": "--size=32,32",
    "--kind=input": "--kind=input --size=64,128",
    "--config.pretrained=cityscapes_r50": "--config.pretrained=folders/published",
    "--config.pretrained=resnet50_vd": "--config.pretrained=folders/published",
}

# MMSegmentation's work_dir: a small network of its family with drawn weights.
WORK_DIR = '''
import pathlib, sys
sys.path.append("tests")
import drawn
from dlv3p_jax.configs import mmseg as recipes
from dlv3p_jax.models import build_model
from dlv3p_jax.weights import mmseg, pth
classes = sys.argv[1].split()
config = drawn.make_config(num_classes=len(classes))
config.model.update(recipes.network("r18") | {"aspp_channels": 16, "decoder_channels": 16, "auxiliary_head": False})
model = build_model(config)
state = mmseg.revert(drawn.draw_variables_of(model), model)
folder = pathlib.Path("work_dir")
folder.mkdir()
palette = [[9 * index] * 3 for index in range(len(classes))]
pth.save_pth(state, folder / "iter_80000.pth", {"CLASSES": classes, "PALETTE": palette})
(folder / "config.py").write_text("""
model = dict(
    backbone=dict(type="ResNetV1c", depth=18, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), contract_dilation=True),
    decode_head=dict(type="DepthwiseSeparableASPPHead", dilations=(1, 2), align_corners=False),
)
test_pipeline = [dict(type="Resize", scale=(96, 64), keep_ratio=True)]
""")
'''

RUN = (
    r"python -m dlv3p_jax\.(prepare|main|predict|report|export|demo|benchmark) ",
    r"python -m dlv3p_jax\.convert_(paddle|mmseg) .*(--pdparams|--pth|--reverse)",
    r"(from|import) ",  # Python
    r"make quickstart$",
)
TESTED = {
    r"python -m dlv3p_jax\.predict .*--geotiff": "tests/inference/test_rasters.py",
    r"python -m dlv3p_jax\.predict .*\.mp4": "tests/inference/test_videos.py",
    r"python -m dlv3p_jax\.main .*--tracker": "tests/training/test_trackers.py",
    r"python -m dlv3p_jax\.prepare --dataset=ade20k": "tests/datasets/test_scene_folders.py",
    r"python -m dlv3p_jax\.prepare --dataset=hf": "tests/datasets/test_hugging_face.py",  # downloads
    r"python -m dlv3p_jax\.prepare --dataset=coco": "tests/datasets/test_coco.py",
    r"python -m dlv3p_jax\.prepare --dataset=ultralytics": "tests/datasets/test_ultralytics.py",
    r"python -m dlv3p_jax\.convert_paddle .*--weights": "tests/test_convert_paddle.py",  # of a server of its own
    r"python -m dlv3p_jax\.(prepare|main) .*tfds[:_]": "tests/datasets/test_tfds_catalogue.py",  # downloads
    r"python -m dlv3p_jax\.convert_timm": "tests/test_convert_timm.py",
    r"python -m dlv3p_jax\.reproduce": "tests/test_reproduce.py",
    r"python launch/local\.py": "tests/runtime/test_processes.py",
    r"(JAX_PLATFORMS=cpu .*)?python -m benchmarks\.compare|… --work=train": "tests/benchmarks/test_compare.py",
    r"python -m benchmarks\.compile_study": "tests/benchmarks/test_compile_study.py",
    r"python -m benchmarks\.growth": "tests/benchmarks/test_growth.py",
    r"python -m benchmarks\.many_sizes": "tests/benchmarks/test_many_sizes.py",
    r"python -m benchmarks\.input": "tests/benchmarks/test_input.py",
    r"python -m benchmarks\.scaling_table": "tests/benchmarks/test_scaling_table.py",
    r"python -m tests\.equivalence": "tests/test_equivalence.py",
    r"curl .*/predict": "tests/inference/test_demo_requests.py",
    r"python -m tests\.api_page": "tests/test_docs.py",
    r"launch/tpu_vm\.sh": "tests/launch/test_tpu_vm.py",  # no cloud
    r"python launch/gke/gke\.py": "tests/launch/test_gke.py",
    r"sbatch .*launch/slurm\.sh": "tests/launch/test_slurm.py",
}
NOT_RUN = {
    r".*gs://BUCKET": "Google Cloud; tests/test_runs_in_buckets.py has a server in its place",
    r"(gcloud|kubectl|for role in|--member=|done|export (TPU_NAME|IMAGE)=)": "Google Cloud",
    r"(sbatch|squeue|scancel|tail -F slurm|git clone|python3\.11 -m venv|\.venv/bin/pip)": "a SLURM cluster",
    r"pip install '\.\[(train,gpu|train,tpu|plan)\]'": "a GPU, a TPU or its compiler: downloads of GB",
    r"dlv3p ": "an installed package; python -m tests.installed does",
    r"pip install ": "packages, which the environment of the tests has",
    r"python -m dlv3p_jax\.plan|--topology": "Google's compiler for TPUs; tests/test_plan.py runs all but that",
    r"bash benchmarks/gpu\.sh|trtexec ": "a GPU",
    r"tensorflow_model_server ": "a server that no registry of Python has",
    r"python -m (pytest|tests\.run_docs)|make (test|lint)|bash \.ci/run": "CI, of which this is a part",
    r"--config\.crop_size|python -m dlv3p_jax\.benchmark --kind=train$|.* … |.*=…": "a part of a command",
}


@dataclasses.dataclass(frozen=True)
class Command:
    """What stands in a page: a line of a shell, its continuations joined, or a piece of Python."""

    page: str
    text: str

    @property
    def is_python(self) -> bool:
        return "\n" in self.text

    def entry(self) -> tuple[str, str]:
        """('run', ''), ('tested', FILE) or ('not run', REASON); ('missing', '') where no table has it."""
        for kind, table in (("tested", TESTED), ("not run", NOT_RUN)):
            for pattern, what in table.items():
                if re.match(pattern, self.text):
                    return kind, what
        if any(re.match(pattern, self.text) for pattern in RUN):
            return "run", ""
        return "missing", ""


def commands(page: pathlib.Path) -> Iterator[Command]:
    """The commands of a page in their order. Fenced blocks of kind `text` hold none."""
    name = str(page.relative_to(ROOT))
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
        if token.type == "code_block" or (token.type == "fence" and token.info != "text"):
            if token.info == "python" or re.match(r"(from|import) \w", token.content):
                yield Command(name, token.content)
                continue
            for line in token.content.replace("\\\n", " ").splitlines():
                if text := " ".join(re.sub(r"(^| )# .*", "", line).split()):
                    yield Command(name, text)
        for child in token.children or ():
            if child.type == "code_inline" and re.match(r"(python -m|bash|make) [\w./]+ \S", child.content):
                yield Command(name, " ".join(child.content.split()))


def words_of(command: Command) -> list[str]:
    """The words of a command as it is run here."""
    words, name = [], re.match(r"python -m dlv3p_jax\.(\w+)", command.text)
    dataset = re.search(r"--dataset=(\w+)", command.text)
    for word in shlex.split(re.sub(r"\[.*?\]", "", command.text)):  # without what may be left out
        if any(word.startswith(f"--config.{key}=") for key in SIZE):
            continue
        flag, equals, value = word.partition("=")
        if value == "FOLDER" and dataset:
            value = f"folders/{dataset[1]}"
        words += WORDS.get(word, flag + equals + WORDS.get(value, value)).split()
    if words[0] == "make":  # in this environment, into which nothing is installed
        return ["make", f"--assume-old={sys.prefix}/installed", f"VENV={sys.prefix}", "PYTHON=false", *words[1:]]
    if any(word.endswith("/config.json") for word in words):  # which is of no file that the scratch copy changes
        words += [f"--config.{key}={value!r}" for key, value in SIZE.items() if not key.startswith("model.")]
    if words[0] == "python":
        words[0] = sys.executable
    if "--check" in words or any(word.startswith("--preview") for word in words):
        return words
    return [*words, *(ADDED.get(name[1], []) if name else [])]


def copy_repository(folder: pathlib.Path) -> list[str]:
    """The files of the checkout that git has or would take, copied; returns their names."""
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    names = [name for name in files.stdout.splitlines() if os.path.lexists(ROOT / name)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return names


def make_scratch(folder: pathlib.Path) -> None:
    """A copy of the repository with small configurations, folders of photographs, and a run of two steps."""
    copy_repository(folder)
    for config in (folder / "dlv3p_jax" / "configs").glob("*.py"):
        if config.stem not in ("__init__", "common"):
            with config.open("a") as file:
                file.write("\n\n_full = get_config\n\n\ndef get_config():\n    config = _full()\n")
                file.write(f"    config.update_from_flattened_dict({SIZE!r})\n    return config\n")
    for layout, name in (("lists", "image_folder"), ("cityscapes", "cityscapes"), ("voc", "voc2012")):
        target = folder / "folders" / name
        run([sys.executable, str(CAMVID / "layouts.py"), layout, str(target), "--limit=4"], folder)
    pictures = folder / "folders" / "image_folder"
    (pictures / "classes.txt").write_text(CAMVID_CLASSES.replace(" ", "\n"))
    shutil.copy(min((pictures / "images/val").iterdir()), folder / "street.jpg")
    module = [sys.executable, "-m"]
    run([*module, "dlv3p_jax.prepare", "--dataset=image_folder", "--source=folders/image_folder"], folder)
    run([*module, "dlv3p_jax.main", "--config=configs/image_folder.py", "--workdir=workdir/mine"], folder)
    shutil.copytree(folder / "workdir" / "mine", folder / "folders" / "published")
    output = ["--checkpoint=workdir/mine", "--output=folders/model.pdparams"]
    run([*module, "dlv3p_jax.convert_paddle", "--reverse", *output], folder)
    run([sys.executable, "-c", WORK_DIR, CAMVID_CLASSES], folder)


def run(words: list[str], folder: pathlib.Path) -> None:
    """Runs a command to its end; raises RuntimeError with its output if that is not a good one.

    Workdirs that it reads and no command before it made are copies of workdir/mine, while it runs.
    """
    trains = "dlv3p_jax.main" in words or "train_and_evaluate(" in words[-1]
    reads = [] if trains else re.findall(r"workdir/\w+", " ".join(words))
    lent = {folder / name for name in reads if not (folder / name).exists()}
    for workdir in lent:
        shutil.copytree(folder / "workdir" / "mine", workdir)
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines, told = [], False
    for line in process.stdout:
        lines.append(line)
        if "dlv3p_jax.demo" in words and "http://" in line and not told:  # it serves until it is told to end
            process.send_signal(signal.SIGINT)
            told = True
    code = process.wait()
    for workdir in lent:
        shutil.rmtree(workdir)
    if code:
        raise RuntimeError(f"{shlex.join(words)}\nended with {code}:\n{''.join(lines[-40:])}")


def main() -> None:
    found = [command for page in PAGES for command in commands(page)]
    if missing := [command for command in found if command.entry()[0] == "missing"]:
        sys.exit("\n".join(f"{command.page}: in no table of tests/run_docs.py: {command.text}" for command in missing))
    if not CAMVID.is_dir():
        print(f"run_docs: nothing is run, for {CAMVID} with photographs is not here", flush=True)
        return
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "2", "JAX_PLATFORMS": "cpu"}
    os.environ["XLA_FLAGS"] = quick.XLA_FLAGS
    failed, done = 0, set()
    with tempfile.TemporaryDirectory(prefix="dlv3p_jax_docs_") as name:
        folder = pathlib.Path(name)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "cache"))
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
        make_scratch(folder)
        for command in found:
            kind, what = command.entry()
            if kind == "run":
                words = tuple([sys.executable, "-c", command.text] if command.is_python else words_of(command))
                start = time.monotonic()
                try:
                    if words not in done:
                        run(list(words), folder)
                    what = f"{time.monotonic() - start:.0f} s"
                except RuntimeError as error:
                    failed, kind = failed + 1, "FAILED"
                    print(error, flush=True)
                done.add(words)
            shown = command.text.strip().splitlines()[0]
            print(f"{kind:8}{command.page:24}{shown[:110]}{f'  ({what})' if what else ''}", flush=True)
    print(f"{len(done)} commands run, {failed} failed", flush=True)
    sys.exit(min(failed, 1))


if __name__ == "__main__":
    main()

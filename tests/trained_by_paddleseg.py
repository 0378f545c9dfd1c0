"""A model that PaddleSeg trained, from its file to the scores, by the commands that a user gives."""

import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image
from recordings import Row

VIEWS = {
    "plain": [],
    "flip": ["--config.eval.flip=True"],
    "ms_flip": ["--config.eval.flip=True", "--config.eval.scales=(0.75, 1.0, 1.25)"],
    "legacy_ms_flip": [
        *("--config.eval.flip=True", "--config.eval.scales=(0.75, 1.0, 1.25)"),
        "--config.eval.average=legacy",
    ],
}
CONFIG = [
    *("--config=configs/image_folder.py", "--config.model.backbone=resnet18_vd", "--config.model.multi_grid=(1, 1)"),
    *("--config.num_classes=11", "--config.eval.batch_size=2", "--config.mesh.data=1"),
]
CAMVID_CLASSES = "sky building pole road pavement tree sign fence car pedestrian bicyclist"


def prepare(shared: pathlib.Path, folder: pathlib.Path) -> None:
    """The 8 pictures, prepared in FOLDER/data, and PaddleSeg's file as FOLDER/model.pdparams."""
    source = folder / "source"
    names = json.loads((shared / "parity" / "camvid_r18" / "expected.json").read_text())["pictures"]
    for split, pictures in {"train": names[:1], "val": names}.items():
        for kind in ("images", "labels"):
            (source / kind / split).mkdir(parents=True)
        for name in pictures:
            shutil.copy(shared / "camvid" / "images" / "val" / name, source / "images" / split / name)
            stem = pathlib.Path(name).stem
            label = np.array(Image.open(shared / "camvid" / "labels" / "val" / f"{stem}.png"))
            label[label == 11] = 255
            Image.fromarray(label).save(source / "labels" / split / f"{stem}.png")
    (source / "classes.txt").write_text("\n".join(CAMVID_CLASSES.split()) + "\n")
    command("prepare", "--dataset=image_folder", f"--source={source}", f"--data_dir={folder / 'data'}")
    make = shared / "parity" / "camvid_r18" / "make.py"
    subprocess.run([sys.executable, make, folder / "model.pdparams"], check=True)


def measure(shared: pathlib.Path, folder: pathlib.Path, views: Iterable[str] = tuple(VIEWS)) -> Iterator[Row]:
    """Converts and evaluates what `prepare` put into FOLDER."""
    every = json.loads((shared / "parity" / "camvid_r18" / "expected.json").read_text())
    model = folder / "model"
    command("convert_paddle", *CONFIG, f"--pdparams={folder / 'model.pdparams'}", f"--output={model}")
    for name in views:
        flags, workdir, expected = VIEWS[name], folder / name, every[name]
        data = f"--config.data_dir={folder / 'data'}"
        command("main", "--mode=eval", *CONFIG, data, f"--checkpoint={model}", f"--workdir={workdir}", *flags)
        report = json.loads((workdir / "eval" / "0.json").read_text())
        case = f"camvid_r18, {name}"
        matrix = np.array(report["confusion_matrix"])
        areas = {"intersect": np.diagonal(matrix), "pred_area": matrix.sum(0), "label_area": matrix.sum(1)}
        for score in ("mIoU", "accuracy", "kappa"):
            yield Row("a trained model", case, f"{score}: difference", abs(report[score] - expected[score]), 1e-5)
        error = np.abs(np.array(report["IoU"]) - expected["IoU"]).max()
        yield Row("a trained model", case, "IoU of a class: largest difference", float(error), 1e-4)
        pixels = max(np.abs(area - expected[area_name]).max() for area_name, area in areas.items())
        what = f"largest difference of a pixel count, of {matrix.sum():,}"
        yield Row("a trained model", case, what, int(pixels), 1e-5 * matrix.sum())


def command(name: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs one of our commands; what it printed is shown where it fails."""
    root = pathlib.Path(__file__).resolve().parents[1]
    result = subprocess.run(
        [sys.executable, "-m", f"dlv3p_jax.{name}", *arguments], cwd=root, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result

"""Workdirs as evaluations and training leave them, of made pictures and scalars: what pages and files are read from."""

import io
import json
import struct

import numpy as np
from clu import metric_writers
from etils import epath
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.util import tensor_util

from dlv3p_jax.configs import common
from dlv3p_jax.data import viz
from dlv3p_jax.evaluation import calibration, files, metrics, picture_scores
from dlv3p_jax.runtime import configuration, provenance

NAMES = ("road", "<b>wall</b> & $x$", "lamp", "absent")
SIZE = (30, 64)  # of pictures
VIEWS = {"plain": {}, "flip": {"flip": True}, "scales-0.5-1-flip": {"flip": True, "scales": [0.5, 1.0]}}


def make_pictures(quality, number=12, seed=0):
    """Labels and predictions of `number` pictures that show three classes; the quality varies from 0 to twice it."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.integers(0, 3, (number, *SIZE[:1], SIZE[1] // 16)), 16, axis=2).astype(np.uint8)
    right = rng.random(labels.shape) < np.linspace(0, 2 * quality, number)[:, None, None]
    predictions = np.where(right, labels, (labels + 1) % 3).astype(np.uint8)
    labels[:, -2:] = 255
    return labels, predictions


def sure(labels, predictions, confidence=0.75):
    """What `calibration.sum_probabilities` sums, of a model always as sure; what it does not predict has 0.1."""
    known, right = labels < len(NAMES), labels == predictions
    probability = np.where(right, confidence, 0.1)
    place = int(confidence * calibration.BINS)
    confident = np.zeros((len(labels), 2, calibration.BINS), np.int32)
    confident[:, :, place] = np.stack([known, known & right], 1).sum((2, 3))
    of_label = [(probability * (labels == index)).sum((1, 2)) for index in range(len(NAMES))]
    return {
        "label_probability": np.stack(of_label, 1).astype(np.float32),
        "confident": confident,
        "confidence": (confident[:, 0] * confidence).astype(np.float32),
    }


def write_evaluation(workdir, name, step, quality, labels=None, ids=None, number=12, sealed=False, **changes):
    """What the evaluator writes, of made pictures; as version 1 did, without a seal, unless `sealed`."""
    ours, predictions = make_pictures(quality, number)
    labels = ours if labels is None else labels
    matrices = np.array(metrics.confusion_matrices(labels, predictions, len(NAMES)))
    collector = picture_scores.Collector([SIZE] * len(labels), len(NAMES))
    collector.add(range(len(labels)), {"matrices": matrices} | sure(labels, predictions), lambda: predictions)
    report = metrics.to_json(metrics.summarize(matrices.sum(0)))
    report |= provenance.describe() | dict(checkpoint=f"{workdir}/checkpoints/best/{step}", step=step, synthetic=True)
    report |= dict(dataset="made", split="val", num_pictures=len(labels), class_names=list(NAMES), seconds=2.0)
    report |= dict(model={"backbone": "resnet18_vd"}, devices="1 x cpu", palette=viz.palette(len(NAMES)).tolist())
    report |= dict(scales=[1.0], flip=False, window=None, stride=None, average="logits", eval_size=None)
    report |= dict(absent_class="nan", confusion_matrix=matrices.sum(0).tolist()) | changes
    shown = []
    for kind, index in collector.choose():
        image, label = io.BytesIO(), io.BytesIO()
        Image.fromarray(np.full((*SIZE, 3), 128, np.uint8)).save(image, "JPEG")
        Image.fromarray(labels[index]).save(label, "PNG")
        record = dict(image=image.getvalue(), label=label.getvalue())
        prediction = collector.predictions[index]
        shown.append(picture_scores.make_shown(kind, index, record, prediction, viz.palette(len(NAMES))))
    ids = ids or [f"town/{index}<i>" for index in range(len(labels))]
    folder = epath.Path(workdir) / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = collector.finish(ids, shown, viz.palette(len(NAMES)))
    if sealed:
        files.write(folder, str(step), name, report, Image.new("RGB", (1, 1)), pictures)
        return
    picture_scores.write(folder / f"{step}.{name}.npz", pictures)
    for stem in (str(step), f"{step}.{name}"):
        (folder / f"{stem}.json").write_text(json.dumps(report))


def make_run(folder, quality=0.4):
    for index, (name, changes) in enumerate(VIEWS.items()):
        write_evaluation(folder, name, 40, quality + 0.02 * index, **changes)
    write_evaluation(folder, "plain", 60, 0.2)
    (folder / "checkpoints" / "best" / "40").mkdir(parents=True)
    config = common.get_config()
    config.learning_rate = 0.123
    configuration.write(config, epath.Path(folder / "config.json"))
    return folder


def make_logged_run(folder):
    """`make_run`, and the events of a run that was killed after step 40, and went on from 30."""
    make_run(folder)
    for first in (0, 30):
        writer = metric_writers.create_default_writer(str(folder), asynchronous=False)
        for step in range(first + 10, 41 if first == 0 else 61, 10):
            speed = {"train/pictures_per_second": 7.0, "train/learning_rate": 0.1}
            writer.write_scalars(step, {"train/loss": 100 * first + step} | speed)
            writer.write_scalars(step, {"eval/mIoU": step / 100})
        writer.write_images(
            first, {"eval/sheet": np.random.default_rng(0).integers(0, 255, (1, 300, 300, 3), np.uint8)}
        )
        writer.flush()
        writer.close()
    return folder


def write_events(path, steps, start, tag="train/loss"):
    """An event file as TensorFlow writes it, of scalars that are their steps; added to what is there."""
    with path.open("ab") as file:
        for index, step in enumerate(steps):
            event = Event(step=step, wall_time=start + index)
            value = event.summary.value.add(tag=tag, tensor=tensor_util.make_tensor_proto(float(step)))
            value.metadata.plugin_data.plugin_name = "scalars"
            data = event.SerializeToString()
            for part in (struct.pack("<Q", len(data)), data):
                file.write(part + struct.pack("<I", masked_crc32c(part)))

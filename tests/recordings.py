"""What was recorded from PaddleSeg, and how far each piece of ours is from it, which tests hold to its limit.

The numbers are in ../shared/parity, whose README says how they were recorded; `equivalence` makes a page of all.
"""

import functools
import pathlib
import runpy
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dlv3p_jax.configs import common
from dlv3p_jax.data import colors, size_buckets
from dlv3p_jax.evaluation import metrics
from dlv3p_jax.evaluation.views import Views, predict_logits
from dlv3p_jax.models import build_model, tiles
from dlv3p_jax.training import losses, steps
from dlv3p_jax.weights.paddle import convert, revert


class Row(NamedTuple):
    """One measurement: what was compared with what, how far apart the two are, and how far they may be."""

    piece: str
    case: str
    compared: str
    error: float
    limit: float


def hold(rows) -> None:
    """Asserts that there are rows and that each is within its limit."""
    rows = list(rows)
    assert rows
    for row in rows:
        assert row.error <= row.limit, row


def relative(actual, expected) -> float:
    """The norm of the difference, relative to that of `expected`."""
    expected = np.asarray(expected, np.float64)
    return float(np.linalg.norm(np.asarray(actual, np.float64) - expected) / np.linalg.norm(expected))


def last(x: np.ndarray) -> np.ndarray:
    """PaddleSeg's `[B, C, H, W]` as `[B, H, W, C]`."""
    return x.transpose(0, 2, 3, 1)


def recorded(shared: pathlib.Path, name: str) -> dict[str, np.ndarray]:
    with np.load(shared / "parity" / f"{name}.npz") as file:
        return dict(file)


@functools.cache
def recorded_state(shared: pathlib.Path, backbone: str, num_classes: int) -> dict[str, np.ndarray]:
    """PaddleSeg's names and the weights that the numbers were recorded with."""
    make_state = runpy.run_path(shared / "parity" / "weights.py")["make_state"]
    return make_state(shared / "parity" / f"deeplabv3p_{backbone}_c{num_classes}.json")


def network(shared: pathlib.Path, backbone: str = "resnet18_vd", num_classes: int = 2, **settings):
    """A model and its variables, with the weights that the numbers were recorded with."""
    config = common.get_config()
    config.num_classes = num_classes
    config.model.update({"backbone": backbone} | settings)
    if backbone == "resnet18_vd":
        config.model.multi_grid = (1, 1)
    model = build_model(config)
    return model, convert(recorded_state(shared, backbone, num_classes), model)


# Weights.

STATES = [("resnet18_vd", 2), ("resnet50_vd", 19), ("resnet50_vd", 21), ("resnet101_vd", 19), ("resnet101_vd", 21)]


def weights(shared: pathlib.Path, backbone: str, num_classes: int) -> Iterator[Row]:
    state = recorded_state(shared, backbone, num_classes)
    model, variables = network(shared, backbone, num_classes)
    back = revert(variables, model)
    assert list(back) == list(state)
    case = f"{backbone}, {num_classes} classes: {len(state)} arrays"
    different = sum(
        back[name].dtype != value.dtype or back[name].tobytes() != value.tobytes() for name, value in state.items()
    )
    yield Row("weights", case, "arrays that differ in a bit after convert and revert", different, 0)


# Forward.

FORWARD = {
    "r18_os8": {"backbone": "resnet18_vd"},
    "r50_os8": {"backbone": "resnet50_vd"},
    "r50_os16": {"backbone": "resnet50_vd", "output_stride": 16, "aspp_rates": (1, 6, 12, 18)},
    "r50_c21_odd": {"backbone": "resnet50_vd"},
    "r101_align": {"backbone": "resnet101_vd", "align_corners": True},
}


def beside_another(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [B, H, W, 3] in a larger batch, with noise around them and one more picture, and the size of each."""
    batch, height, width, _ = images.shape
    room = -(-(height + 5) // 32) * 32, -(-(width + 37) // 32) * 32
    padded = np.random.default_rng(1).normal(size=(batch + 1, *room, 3)).astype(np.float32)
    padded[:batch, :height, :width] = images
    return padded, np.array([(height, width)] * batch + [room], np.int32)


def forward(shared: pathlib.Path, name: str, dtype: str, beside: bool = False) -> Iterator[Row]:
    """Logits, where recorded also features of the stages, and the classes that they give; perhaps `beside_another`."""
    expected = {key: last(value) for key, value in recorded(shared, f"forward_{name}").items()}
    num_classes = expected["logits"].shape[-1]
    model, variables = network(shared, num_classes=num_classes, dtype=dtype, **FORWARD[name])

    def is_stage(module, method):
        return (module.name or "").startswith(("backbone", "aspp", "branch", "decoder"))

    @jax.jit
    def run(variables, images, sizes):
        return model.apply(variables, images, train=False, sizes=sizes, capture_intermediates=is_stage)

    images = expected.pop("x")
    logits, state = run(variables, *(beside_another(images) if beside else (images, None)))
    logits = logits[: len(images), : images.shape[1], : images.shape[2]]
    assert logits.dtype == np.float32
    case = f"forward_{name}, {dtype}" + beside * ", beside another"
    labels = np.argmax(expected["logits"], -1)
    differing = float(np.mean(np.argmax(logits, -1) != labels))
    if dtype == "bfloat16":
        assert np.any(logits != expected["logits"])
        yield Row("forward", case, "pixels of another class (share)", differing, 0.025)
        return
    found = {"logits": logits}
    if "stage1" in expected:
        stages = state["intermediates"]
        features = stages["backbone"]["__call__"][0]
        found |= {f"stage{i + 1}": tiles.whole(x) for i, x in enumerate(features)}
        branches = [stages["aspp"][f"branch{i + 1}"]["__call__"][0] for i in range(4)]
        found |= {f"aspp_block{i}": tiles.whole(branch) for i, branch in enumerate(branches)}
        found |= {name: tiles.whole(stages[name]["__call__"][0]) for name in ("aspp", "decoder")}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        ours = np.asarray(found[name][tuple(map(slice, value.shape))])
        assert ours.shape == value.shape
        error = float(np.abs(ours - value).max() / value.std())
        yield Row("forward", case, f"{name}: largest difference, in standard deviations", error, 1e-4)
    yield Row("forward", case, "pixels of another class (share)", differing, 1e-4)


# Losses.

CROSS_ENTROPY = {"plain": {}, "weighted": {"class_weights": "class_weights"}, "top20": {"top_k": 0.2}}
DICE_LOVASZ = ("dice", "dice_first_ignored", "lovasz", "weighted_top30")


def cross_entropy(shared: pathlib.Path, name: str) -> Iterator[Row]:
    arrays = recorded(shared, "loss_ce")
    options = {key: arrays.get(value, value) for key, value in CROSS_ENTROPY[name].items()}
    loss = functools.partial(losses.cross_entropy, **options)
    yield from _loss(f"cross-entropy, {name}", loss, arrays, arrays[f"{name}/loss"], arrays[f"{name}/grad"])


def rmi(shared: pathlib.Path, name: str) -> Iterator[Row]:
    arrays = recorded(shared, f"loss_{name}")
    config = common.get_config()
    config.num_classes = arrays["logits"].shape[1]
    config.loss.rmi = 1.0
    config.loss.cross_entropy = 0.0
    if name == "mixed":
        config.loss.update({"cross_entropy": 0.5, "rmi": 0.5})
    weighted = losses.weighted(config)
    loss = lambda logits, labels: weighted(logits, labels)[0]  # noqa: E731
    yield from _loss(f"loss_{name}", loss, arrays, arrays["loss"], arrays["grad"])


def dice_lovasz(shared: pathlib.Path, name: str) -> Iterator[Row]:
    arrays = recorded(shared, "loss_dice_lovasz")
    weighted = functools.partial(losses.cross_entropy, class_weights=arrays["class_weights"], top_k=0.3)
    loss = {"lovasz": losses.lovasz, "weighted_top30": weighted}.get(name, losses.dice)
    if name == "dice_first_ignored":  # the first picture has no valid pixel
        arrays["labels"] = arrays["first_ignored_labels"]
    case = {"dice_first_ignored": "dice, a picture all ignored", "weighted_top30": "cross-entropy, weighted and top30"}
    yield from _loss(case.get(name, name), loss, arrays, arrays[f"{name}/loss"], arrays[f"{name}/grad"])


def _loss(case, loss, arrays, expected, expected_gradient) -> Iterator[Row]:
    logits = jnp.asarray(last(arrays["logits"]))
    value, gradient = jax.jit(jax.value_and_grad(loss))(logits, arrays["labels"])
    yield Row("losses", case, "value, relative", abs(float(value) / float(expected) - 1), 1e-5)
    yield Row("losses", case, "gradient, relative (L2)", relative(gradient, last(expected_gradient)), 1e-4)


# Training.


@functools.cache
def train_steps(shared: pathlib.Path) -> dict[str, tuple]:
    """Our five steps in float32 and in float64: scalars of each step, and PaddleSeg's names after steps 1 and 5."""
    arrays = recorded(shared, "train_r18")
    config = common.get_config()
    changes = {"num_classes": 2, "num_train_steps": 20, "model.backbone": "resnet18_vd", "model.multi_grid": (1, 1)}
    config.update_from_flattened_dict(changes | {"model.dropout": 0.0})
    model = build_model(config)
    initial = jax.device_get(convert(recorded_state(shared, "resnet18_vd", 2), model))

    def run(dtype):
        cast = lambda x: np.asarray(x, dtype)  # noqa: E731
        parts = {name: getattr(model, name).clone(dtype=dtype) for name in ("backbone", "aspp", "decoder")}
        train_step = jax.jit(steps.make_train_step(config, model.clone(**parts)))
        state = steps.create_train_state(config, jax.tree.map(cast, initial))
        batch = {"image": cast(last(arrays["x"])), "label": arrays["labels"].astype(np.uint8)}
        scalars, after = [], {}
        for step in range(1, 6):
            state, values = train_step(state, batch, jax.random.key(0))
            scalars.append({name: float(value) for name, value in values.items()})
            if step in (1, 5):
                variables = jax.tree.map(np.float32, state.variables)
                after |= {f"step{step}/{k}": v for k, v in revert(variables, model).items()}
        return scalars, after

    float32 = run(np.float32)
    jax.config.update("jax_enable_x64", True)
    try:
        float64 = run(np.float64)
    finally:
        jax.config.update("jax_enable_x64", False)
    return {"float32": float32, "float64": float64}


def training(shared: pathlib.Path, step: int, dtype: str) -> Iterator[Row]:
    """Loss, rate, parameters and running statistics of step 1 or 5.

    In float64 the first step agrees as well as float32 storage lets it, and would show a missing weight decay (4e-7).
    Five steps amplify rounding: ten times what our float32 and float64 differ by is allowed where that is more.
    """
    arrays, runs = recorded(shared, "train_r18"), train_steps(shared)
    (scalars32, after32), (scalars64, after64) = runs.values()
    scalars, after = runs[dtype]
    names = [name for name in arrays if name.startswith(f"step{step}/")]
    assert len(names) == 13
    limits = dict.fromkeys(names, 0.0001 if dtype == "float32" else 2.5e-07)
    loss_limit = 2e-6
    if step == 5:
        rounding = {name: relative(after32[name], after64[name]) for name in names}
        assert max(rounding.values()) < 5e-3
        limits = {name: max(1e-4, 10 * rounding[name]) for name in names}
        loss_limit = max(1e-4, 10 * abs(scalars32[4]["loss"] / scalars64[4]["loss"] - 1))
    errors = {name: relative(after[name], arrays[name]) for name in names}
    worst = max(names, key=lambda name: errors[name] / limits[name])
    case = f"train_r18, step {step}, {dtype}"
    what = f"worst of 13 parameters and statistics, relative (L2): {worst.partition('/')[2]}"
    yield Row("training", case, what, errors[worst], limits[worst])
    loss_error = abs(scalars[step - 1]["loss"] / float(arrays["loss"][step - 1]) - 1)
    yield Row("training", case, "loss, relative", loss_error, loss_limit)
    rates = [abs(values["learning_rate"] / rate - 1) for values, rate in zip(scalars, arrays["lr"], strict=True)]
    yield Row("training", case, "learning rates up to here, relative", float(max(rates[:step])), 1e-6)


# Test-time augmentation.

SIX_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
VIEWS = {
    ("tta_r18", "flip"): {"flip": True},
    ("tta_r18", "ms"): {"scales": (0.75, 1.0, 1.25)},
    ("tta_r18", "ms_flip"): {"scales": SIX_SCALES, "flip": True},
    ("tta_r18", "slide"): {"window": (48, 64), "stride": (32, 40)},
    ("tta_legacy_r18", "flip"): {"flip": True, "average": "legacy"},
    ("tta_legacy_r18", "ms"): {"scales": (0.75, 1.0, 1.25), "average": "legacy"},
    ("tta_legacy_r18", "ms_flip"): {"scales": (0.75, 1.0, 1.25), "flip": True, "average": "legacy"},
    ("tta_legacy_r18", "ms_flip_six"): {"scales": SIX_SCALES, "flip": True, "average": "legacy"},
}


def predict(model, variables, images, looked_at: Views, beside: bool) -> np.ndarray:
    """Mean scores of pictures [B, H, W, 3], perhaps `beside_another`."""
    if not beside:
        return jax.jit(lambda *inputs: predict_logits(model, *inputs, looked_at))(variables, images)
    padded, sizes = beside_another(images)
    every = looked_at.sizes_of_each(map(tuple, sizes.tolist()))
    rooms = [size_buckets.room(tuple(room)) for room in every[:, 1:].max(0).tolist()]
    run = jax.jit(lambda variables, images, sizes: predict_logits(model, variables, images, looked_at, sizes, rooms))
    return run(variables, padded, every)[: len(images), : images.shape[1], : images.shape[2]]


def views(shared: pathlib.Path, file: str, case: str, beside: bool = False) -> Iterator[Row]:
    model, variables = network(shared)
    arrays = recorded(shared, file)
    kind = "probabilities" if file == "tta_legacy_r18" else "logits"
    result = predict(model, variables, last(arrays["x"]), Views(**VIEWS[file, case]), beside)
    expected = last(arrays[f"{case}/{kind}"])
    assert result.dtype == jnp.float32 and result.shape == expected.shape
    name = f"{file}, {case}" + beside * ", beside another"
    yield Row("views", name, f"{kind}: largest difference", float(np.abs(result - expected).max()), 1e-5)
    differing = np.mean(np.argmax(result, -1) != arrays[f"{case}/pred"].reshape(result.shape[:-1]))
    yield Row("views", name, "pixels of another class (share)", float(differing), 0)


# Transforms.

COLOURS = {
    "brightness": colors.adjust_brightness,
    "contrast": colors.adjust_contrast,
    "saturation": colors.adjust_saturation,
    "hue": colors.adjust_hue,
}


def transforms(shared: pathlib.Path) -> Iterator[Row]:
    arrays = recorded(shared, "transforms")
    images = arrays["image"][None]
    error = float(np.abs(colors.normalize(images)[0] - arrays["normalize"]).max())
    yield Row("transforms", "normalize", "largest difference", error, 2e-7)
    for name, adjust in COLOURS.items():
        keys = [key for key in arrays if key.startswith(f"{name}/")]
        assert len(keys) >= 2
        for key in keys:
            adjusted = jax.jit(adjust)(images, float(key.partition("/")[2]))
            assert adjusted.dtype == jnp.uint8
            error = np.abs(np.int32(adjusted[0]) - np.int32(arrays[key])).max()
            yield Row("transforms", key, "largest difference, in grey levels", int(error), 0)


def geometry(shared: pathlib.Path) -> Iterator[Row]:
    """Scaled, padded and cropped pictures, as uint8 after truncation, and their labels."""
    from dlv3p_jax.data import augment  # needs TensorFlow

    arrays = recorded(shared, "transforms")
    image, label = arrays["image"].astype(np.uint8), arrays["label"].astype(np.uint8)
    cases = {
        key.removesuffix("/image"): (0, 0) for key in arrays if key.startswith("resize/") and key.endswith("/image")
    }
    assert cases
    cases["padcrop"] = arrays["padcrop/offset_yx"]
    for case, offset in cases.items():
        expected, expected_label = arrays[f"{case}/image"], arrays[f"{case}/label"]
        size = expected_label.shape
        scaled = label.shape
        if case != "padcrop":
            scaled = tuple(round(side * float(case.partition("/")[2])) for side in label.shape)
            assert size == scaled
        crop, crop_label = augment.resample_crop(image, label, scaled, offset, size, False, 255)
        error = np.abs(crop.numpy().astype(int) - np.floor(expected).astype(int))
        yield Row("transforms", case, "largest difference, in grey levels", int(error.max()), 1)
        yield Row("transforms", case, "values that differ (share)", float((error > 0).mean()), 0.02)
        yield Row("transforms", case, "labels that differ (share)", float(np.mean(crop_label != expected_label)), 0)
    padded = arrays["pad_eval/image"]
    ours = np.zeros((1, *padded.shape), np.float32)
    ours[0, : image.shape[0], : image.shape[1]] = image
    ours = tiles.cleared(tiles.Tiled(colors.normalize(ours), sizes=np.array([image.shape[:2]])))
    error = float(np.abs(ours[0] - (padded / 127.5 - 1)).max())
    yield Row("transforms", "pad_eval", "normalised: largest difference", error, 2e-7)


# Metrics.


def scores(shared: pathlib.Path) -> Iterator[Row]:
    arrays = recorded(shared, "metrics")
    num_classes = int(arrays["num_classes"])
    matrix = np.asarray(metrics.confusion_matrix(arrays["labels"], arrays["predictions"], num_classes))
    areas = {"intersect": np.diagonal(matrix), "pred_area": matrix.sum(0), "label_area": matrix.sum(1)}
    for name, area in areas.items():
        yield Row("metrics", name, "largest difference, in pixels", int(np.abs(area - arrays[name]).max()), 0)
    summary = metrics.summarize(matrix, absent_class="one")
    names = {"mIoU": "miou", "IoU": "iou", "accuracy": "accuracy", "kappa": "kappa", "dice": "dice"}
    for ours, theirs in (names | {"class_dice": "class_dice"}).items():
        yield Row("metrics", ours, "largest difference", float(np.abs(summary[ours] - arrays[theirs]).max()), 1e-12)
    present = arrays["label_area"] > 0  # of the absent class PaddleSeg says 0, we say NaN
    for ours, theirs in {"class_accuracy": "class_recall", "class_precision": "class_precision"}.items():
        error = np.abs(summary[ours] - arrays[theirs])[present].max()
        yield Row("metrics", ours, "largest difference", float(error), 1e-12)

"""MMSegmentation's configs, read without running them: what they say of a DeepLabV3+ that its arrays do not.

settings(text) == {"model.output_stride": 8, "model.align_corners": False, ...}

A config is a Python file, and a checkpoint's `meta` has its text. It is parsed, and of what it says only literals and
`dict(...)` are taken; one that stands on others (`_base_`) is not followed: MMSegmentation writes whole ones beside its
checkpoints.
"""

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging

_MAX_CHARACTERS = 1_000_000
_DILATIONS = {(1, 2, 1, 1): (1, 1, 2, 4), (1, 2, 2, 1): (1, 1, 1, 2)}  # by strides, of an output stride of 8 and of 16
_NORMS = ("BN", "BN2d", "SyncBN", "MMSyncBN")
_USUAL_STEPS = {  # of a test; what others do to pictures is not done here
    *("LoadImageFromFile", "LoadAnnotations", "MultiScaleFlipAug", "TestTimeAug", "Resize", "RandomFlip", "Normalize"),
    *("ImageToTensor", "DefaultFormatBundle", "Collect", "PackSegInputs"),
}


class NoConfig(ValueError):
    """A text that is no whole config, and so says nothing of a network."""


def text_of(meta: Mapping[str, Any]) -> str | None:
    """The config's text in a checkpoint's `meta`: `cfg` in version 1, `config` before."""
    return next((meta[key] for key in ("cfg", "config") if isinstance(meta.get(key), str)), None)


def settings(text: str) -> dict[str, Any]:
    """Keys of our configuration that a config sets: what its arrays do not show of the network, and how it is tested.

    What it does in a test that is not done here is logged.

    Raises:
        NoConfig: it is no such text, or a part of one.
        ValueError: it is of a network that does not convert; the message names the key.
    """
    values = _read(text)
    model = _dict(values, "model")
    backbone, head = _dict(model, "backbone"), _dict(model, "decode_head")
    if "type" not in head:
        if "_base_" in values or "read_base" in text:
            raise NoConfig("it stands on other files (_base_): give the config of the work_dir, which is whole")
        raise NoConfig("it has no model with a decode_head")
    if _type(head) != "DepthwiseSeparableASPPHead":
        raise ValueError(f"its decode_head is {_type(head)!r}, and no DepthwiseSeparableASPPHead")
    for name, part in (("backbone", backbone), ("decode_head", head)):
        norm = _dict(part, "norm_cfg")
        if norm and _type(norm) not in _NORMS or norm.get("eps", 1e-5) != 1e-5:
            raise ValueError(f"its {name} has norm_cfg={norm}: what converts is BatchNorm with eps=1e-5")
    found = _backbone(backbone) | _normalization(values)
    found["model.align_corners"] = found["eval.align_corners"] = bool(head.get("align_corners", False))
    if isinstance(rates := head.get("dilations", (1, 6, 12, 18)), tuple):
        found["model.aspp_rates"] = rates
    if isinstance(dropout := head.get("dropout_ratio", 0.1), int | float):
        found["model.dropout"] = float(dropout)
    if isinstance(head.get("num_classes"), int):
        found["num_classes"] = head["num_classes"]
    test = _dict(model, "test_cfg") or _dict(values, "test_cfg")
    if test.get("mode") == "slide":
        found |= {"eval.window": test.get("crop_size"), "eval.stride": test.get("stride")}
    return found | _test_size(values)


def _backbone(backbone: Mapping[str, Any]) -> dict[str, Any]:
    if _type(backbone) not in ("ResNet", "ResNetV1c"):
        raise ValueError(f"its backbone is {_type(backbone)!r}: what converts are ResNet and ResNetV1c")
    strides, dilations = backbone.get("strides", (1, 2, 2, 2)), backbone.get("dilations", (1, 1, 1, 1))
    if strides not in tuple(_DILATIONS):  # it may hold what has no hash
        raise ValueError(f"its backbone has the strides {strides}: what converts has an output stride of 8 or 16")
    if dilations != _DILATIONS[strides]:
        raise ValueError(
            f"its backbone has the dilations {dilations} with the strides {strides}: what converts has "
            f"{_DILATIONS[strides]} with them"
        )
    unlike = {"style": "pytorch", "avg_down": False}
    if backbone.get("depth") in (18, 34):
        del unlike["style"]  # which is of bottlenecks
    for key, value in unlike.items():
        if backbone.get(key, value) != value:
            raise ValueError(f"its backbone has {key}={backbone[key]!r}: what converts has {key}={value!r}")
    found: dict[str, Any] = {
        "model.output_stride": 8 if strides == (1, 2, 1, 1) else 16,
        "model.contract_dilation": bool(backbone.get("contract_dilation", False)),
    }
    if backbone.get("multi_grid") is not None:
        found |= {"model.multi_grid": backbone["multi_grid"], "model.multi_grid_kind": "dilations"}
    return found


def _normalization(values: Mapping[str, Any]) -> dict[str, Any]:
    """`model.mean` and `model.std`, of data_preprocessor in version 1 and of Normalize or img_norm_cfg in version 0."""
    preprocessors = [_dict(_dict(values, "model"), "data_preprocessor"), _dict(values, "data_preprocessor")]
    preprocessors = [each for each in preprocessors if each]
    steps = [step for step in _test_steps(values) if _type(step) == "Normalize"]
    places = preprocessors or [*steps, _dict(values, "img_norm_cfg")]
    given = next((each for each in places if each.get("mean") is not None), places[0])
    # A preprocessor is given BGR, which either key swaps; the steps before it had one key, which was on.
    is_rgb = given.get("bgr_to_rgb") or given.get("rgb_to_bgr") if preprocessors else given.get("to_rgb", True)
    if not is_rgb:
        raise ValueError("its network sees BGR (no bgr_to_rgb=True, or to_rgb=False): what converts sees RGB")
    if preprocessors and given.get("mean") is None:  # which leaves colours as they are
        return {"model.mean": (0.0, 0.0, 0.0), "model.std": (1.0, 1.0, 1.0)}
    found = {}
    for key in ("mean", "std"):
        if key in given:
            color = given[key]
            if not isinstance(color, tuple) or len(color) != 3 or not all(isinstance(v, int | float) for v in color):
                raise ValueError(f"its {key} of colours is {color}: give three numbers")
            found[f"model.{key}"] = tuple(map(float, color))
    return found


def _test_steps(values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The steps of its test_pipeline, and those within others, as in MultiScaleFlipAug."""
    steps = values.get("test_pipeline")
    for step in steps if isinstance(steps, tuple) else ():
        if isinstance(step, Mapping):
            yield step
            yield from _test_steps({"test_pipeline": step.get("transforms")})


def _test_size(values: Mapping[str, Any]) -> dict[str, Any]:
    """What pictures are resized to fit before they are tested: (width, height) there, of version 1 and of version 0."""
    steps = list(_test_steps(values))
    if unusual := sorted({_type(step) for step in steps} - _USUAL_STEPS):
        logging.warning("Its test has steps that are not done here: %s", ", ".join(unusual))
    resizing = [step for step in steps if _type(step) == "Resize" or "img_scale" in step]
    sizes = [step[key] for step in resizing for key in ("scale", "img_scale") if key in step]
    sizes = [size for size in sizes if isinstance(size, tuple) and len(size) == 2 and all(map(_is_side, size))]
    if not sizes:
        return {}
    # Of a Resize of version 1, which has the size itself, it is False by default.
    keeps_ratio = all(step.get("keep_ratio", "scale" not in step) for step in resizing if _type(step) == "Resize")
    if not keeps_ratio:
        logging.warning(
            "Its test makes every picture %s (width, height), without keep_ratio=True; here pictures keep their shape, "
            "and are tested as large as they are",
            sizes[0],
        )
        return {}
    return {"eval.resize": sizes[0][::-1]}


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def _type(part: Mapping[str, Any]) -> str:
    """The name of a class, without the package that some configs have before it."""
    return str(part.get("type")).rpartition(".")[2]


def _dict(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = values.get(key)
    return value if isinstance(value, Mapping) else {}


def _read(text: str) -> dict[str, Any]:
    """Names that a file sets to literals and dicts; lists become tuples."""
    if len(text) > _MAX_CHARACTERS:
        raise NoConfig(f"it has {len(text):,} characters, and is no config")
    values: dict[str, Any] = {}
    try:
        for statement in ast.parse(text).body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                values[statement.targets[0].id] = _value(statement.value, values)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NoConfig(f"it is no Python: {type(error).__name__}") from error
    return values


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    """A literal, a `dict(...)` or what a name was set to, and of a class, its name; None for all else."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return values.get(node.id, node.id)
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as number)):
            return -number
        case ast.List() | ast.Tuple():
            return tuple(_value(item, values) for item in node.elts)
        case ast.Dict():
            pairs = zip(node.keys, node.values, strict=True)
            return {key.value: _value(value, values) for key, value in pairs if isinstance(key, ast.Constant)}
        case ast.Call(ast.Name("dict")):
            found: dict[str, Any] = {}
            for keyword in node.keywords:
                value = _value(keyword.value, values)
                found |= {keyword.arg: value} if keyword.arg else value if isinstance(value, dict) else {}
            return found
    return None

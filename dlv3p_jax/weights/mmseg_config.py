"""MMSegmentation's configs, read without running them: what they say of a DeepLabV3+ that its arrays do not.

settings(text) == {"model.output_stride": 8, "model.align_corners": False, ...}

A config is a Python file, and a checkpoint's `meta` has its text. It is parsed, and of what it says only literals and
`dict(...)` are taken; one that stands on others (`_base_`) is not followed: MMSegmentation writes whole ones beside its
checkpoints.
"""

import ast
from collections.abc import Mapping
from typing import Any

_MAX_CHARACTERS = 1_000_000


def text_of(meta: Mapping[str, Any]) -> str | None:
    """The config's text in a checkpoint's `meta`: `cfg` in version 1, `config` before."""
    return next((meta[key] for key in ("cfg", "config") if isinstance(meta.get(key), str)), None)


def settings(text: str) -> dict[str, Any]:
    """Keys of our configuration that a config sets: dilations, `align_corners`, and how it is tested.

    Raises:
        ValueError: it is no such text, or of another network than DeepLabV3+.
    """
    values = _read(text)
    model = _dict(values, "model")
    backbone, head = _dict(model, "backbone"), _dict(model, "decode_head")
    if head.get("type") != "DepthwiseSeparableASPPHead":
        if "_base_" in values and not head:
            raise ValueError("it stands on other files (_base_): give the config of the work_dir, which is whole")
        raise ValueError(f"its decode_head is {head.get('type')!r}, and no DepthwiseSeparableASPPHead")
    found: dict[str, Any] = {}
    strides = backbone.get("strides", (1, 2, 2, 2))
    if strides not in ((1, 2, 1, 1), (1, 2, 2, 1)):
        raise ValueError(f"its backbone has the strides {strides}: what converts has an output stride of 8 or 16")
    found["model.output_stride"] = 8 if strides == (1, 2, 1, 1) else 16
    found["model.contract_dilation"] = bool(backbone.get("contract_dilation", False))
    if backbone.get("multi_grid") is not None:
        found |= {"model.multi_grid": backbone["multi_grid"], "model.multi_grid_kind": "dilations"}
    found["model.align_corners"] = found["eval.align_corners"] = bool(head.get("align_corners", False))
    if isinstance(head.get("dilations"), tuple):
        found["model.aspp_rates"] = head["dilations"]
    if isinstance(head.get("dropout_ratio"), int | float):
        found["model.dropout"] = float(head["dropout_ratio"])
    test = _dict(model, "test_cfg") or _dict(values, "test_cfg")
    if test.get("mode") == "slide":
        found |= {"eval.window": test.get("crop_size"), "eval.stride": test.get("stride")}
    return found | _test_size(values)


def _test_size(values: Mapping[str, Any]) -> dict[str, Any]:
    """What pictures are resized to fit before they are tested: (width, height) there, of version 1 and of version 0."""
    steps = [step for step in values.get("test_pipeline") or () if isinstance(step, Mapping)]
    for step in steps:
        size = step.get("scale") if step.get("type") == "Resize" else step.get("img_scale")
        if isinstance(size, tuple) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size):
            return {"eval.resize": size[::-1]}
    return {}


def _dict(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = values.get(key)
    return value if isinstance(value, Mapping) else {}


def _read(text: str) -> dict[str, Any]:
    """Names that a file sets to literals and dicts; lists become tuples."""
    if len(text) > _MAX_CHARACTERS:
        raise ValueError(f"it has {len(text):,} characters, and is no config")
    try:
        statements = ast.parse(text).body
        return {
            statement.targets[0].id: _value(statement.value)
            for statement in statements
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"it is no Python: {type(error).__name__}") from error


def _value(node: ast.expr) -> Any:
    """A literal or a `dict(...)`; None for all else."""
    match node:
        case ast.Constant():
            return node.value
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as number)):
            return -number
        case ast.List() | ast.Tuple():
            return tuple(map(_value, node.elts))
        case ast.Dict():
            pairs = zip(node.keys, node.values, strict=True)
            return {key.value: _value(value) for key, value in pairs if isinstance(key, ast.Constant)}
        case ast.Call(ast.Name("dict")):
            return {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg}
    return None

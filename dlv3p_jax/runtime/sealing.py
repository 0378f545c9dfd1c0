"""JSON that shows whether it was damaged: its own digest among its keys, which what older versions wrote lacks."""

import hashlib
import json
from typing import Any

KEY = "seal"


def seal(values: dict[str, Any]) -> dict[str, Any]:
    """JSON values with the digest of all of them added, under KEY."""
    return values | {KEY: _digest(values)}


def unseal(values: Any) -> Any:
    """What `seal` was given, from what was read; as it is where it has no seal.

    Raises:
        ValueError: it is not what was sealed.
    """
    if not isinstance(values, dict):
        return values
    if KEY not in values:
        for key in values:  # a damaged name of the seal is no file without one
            if values[key] == _digest({other: value for other, value in values.items() if other != key}):
                raise ValueError(f'it is not what was written: its "{key}" was its "{KEY}"')
        return values
    rest = {key: value for key, value in values.items() if key != KEY}
    if values[KEY] != _digest(rest):
        raise ValueError(f'it is not what was written; where it was changed on purpose, remove its "{KEY}"')
    return rest


def _digest(values: dict[str, Any]) -> str:
    """Of the values, however they are laid out; 64 bits are plenty against chance."""
    text = json.dumps(json.loads(json.dumps(values)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

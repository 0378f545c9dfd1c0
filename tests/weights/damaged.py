"""Files of weights with bytes changed or the end cut off, at random."""

import random
from collections.abc import Iterator


def variants(good: bytes, number: int, within: int | None = None) -> Iterator[bytes]:
    """A fifth is cut off; in all, one to three bytes are others, among the first `within` if that is given."""
    rng = random.Random(0)
    for _ in range(number):
        content = bytearray(good[: rng.randrange(len(good))] if rng.random() < 0.2 else good)
        for _ in range(rng.randrange(1, 4)):
            if content:
                content[rng.randrange(min(len(content), within or len(content)))] = rng.randrange(256)
        yield bytes(content)

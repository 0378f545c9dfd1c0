"""Pictures of more than 8 bits: which values become 0 and 255.

Cameras, microscopes and satellites write 12 bits into files of 16. Taken for 16 bits, such pictures are nearly black.
"""

from collections.abc import Sequence

import numpy as np

from dlv3p_jax.data.errors import DatasetError

Range = tuple[float, float]  # the values that become 0 and 255

_NARROW = 1 / 4  # of the range that a file has room for: 14 bits and fewer in a file of 16


def parse(text: str | Sequence[str] | None) -> Range | None:
    """`--picture_range`, like "0,4095"; raises DatasetError."""
    if text is None:
        return None
    parts = text.split(",") if isinstance(text, str) else list(text)
    try:
        low, high = map(float, parts)
        if not -1e38 < low < high < 1e38:
            raise ValueError
    except ValueError:
        message = f"--picture_range={','.join(parts)}: give LOW,HIGH without blanks, like 0,4095"
        raise DatasetError(message) from None
    return low, high


def stretch(values: np.ndarray, to_eight_bits: Range) -> np.ndarray:
    """Values of any shape and type as uint8: LOW and below is 0, HIGH and above 255; NaN is 0.

    Of 16 bits in full, it is the high byte, as Pillow takes it of 16-bit colours.
    """
    low, high = to_eight_bits
    if low == 0 and high == 65535 and values.dtype.kind in "iu":
        return (np.clip(values, 0, 65535) >> 8).astype(np.uint8)
    scaled = np.rint((np.nan_to_num(values.astype(np.float64), nan=low) - low) * (255 / (high - low)))
    return np.clip(scaled, 0, 255).astype(np.uint8)


def show(values: Sequence[float]) -> str:
    """Like "0..4095"."""
    return f"{values[0]:.9g}..{values[1]:.9g}"


class Seen:
    """Gathers the smallest and largest values of pictures of more than 8 bits whose range nobody gave."""

    def __init__(self) -> None:
        self._count, self._share, self._values, self._file = 0, 0.0, (0.0, 0.0), ""

    def add(self, file: str, values: Range, of: Range) -> None:
        """Takes a picture's smallest and largest value, and the range that it was taken for."""
        share = (values[1] - of[0]) / (of[1] - of[0])
        if not self._count or share > self._share:
            self._share, self._file = share, file
        low, high = self._values if self._count else values
        self._values, self._count = (min(low, values[0]), max(high, values[1])), self._count + 1

    def complaint(self) -> str | None:
        """What is wrong if all pictures are far darker than their files allow; None if it is not so."""
        if not self._count or self._share > _NARROW:
            return None
        bits = next((bits for bits in (8, 10, 12, 14) if self._values[1] < 2**bits), 16)
        return (
            f"pictures of more than 8 bits hold {show(self._values)} (the largest value is in {self._file}), far below "
            f"what their files have room for, and would become nearly black. Give the values that are to become black "
            f"and white, for example --picture_range=0,{2**bits - 1}; if they are meant to be so dark, "
            "--picture_range=0,65535"
        )

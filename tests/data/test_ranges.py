import numpy as np
import pytest

from dlv3p_jax.data import ranges
from dlv3p_jax.data.errors import DatasetError


def test_a_range_is_two_numbers_in_order():
    assert ranges.parse("0,4095") == ranges.parse(["0", "4095"]) == (0, 4095)
    assert ranges.parse("-100.5,3e3") == (-100.5, 3000)
    assert ranges.parse(None) is None
    for text in ("4095", "0,4095,1", "9,0", "1,1", "a,b", "nan,1", "0,inf", ""):
        with pytest.raises(DatasetError, match=f"--picture_range={text}"):
            ranges.parse(text)


def test_stretching_is_linear_and_ends_at_black_and_white():
    values = np.array([-5, 0, 1, 2047.5, 4095, 9999, np.nan, np.inf, -np.inf])
    np.testing.assert_array_equal(ranges.stretch(values, (0, 4095)), [0, 0, 0, 128, 255, 255, 0, 255, 0])
    for dtype in (np.uint16, np.int32):
        found = ranges.stretch(np.array([0, 255, 257, 511, 65535], dtype), (0, 65535))
        np.testing.assert_array_equal(found, [0, 0, 1, 1, 255])
    np.testing.assert_array_equal(ranges.stretch(np.int32([-1, 70_000]), (0, 65535)), [0, 255])


@pytest.mark.parametrize(
    ("pictures", "advice"),
    [
        ([(997, 1989)], "--picture_range=0,4095"),
        ([(0, 900), (3, 1023)], "--picture_range=0,1023"),
        ([(0, 16383)], "--picture_range=0,16383"),
        ([(0, 100), (0, 60000)], None),
        ([(0, 20000)], None),
        ([], None),
    ],
)
def test_only_pictures_that_are_all_far_too_dark_are_told(pictures, advice):
    seen = ranges.Seen()
    for index, values in enumerate(pictures):
        seen.add(f"{index}.png", values, (0, 65535))
    complaint = seen.complaint()
    if advice is None:
        assert complaint is None
    else:
        assert f"{advice};" in complaint
        assert f"{min(low for low, _ in pictures)}..{max(high for _, high in pictures)}" in complaint
        assert f"{len(pictures) - 1}.png" in complaint

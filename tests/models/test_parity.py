"""The network against numbers recorded from PaddleSeg, see ../shared/parity/README.md."""

import pytest
import recordings


# Compiling takes long: the other half is measured for docs/equivalence.md, and test_sizes.py has both alike to 1e-9.
@pytest.mark.parametrize(
    ("name", "beside"), [(name, name in ("r18_os8", "r50_c21_odd")) for name in recordings.FORWARD]
)
def test_float32_logits_and_features(shared, name, beside):
    recordings.hold(recordings.forward(shared, name, "float32", beside))


def test_bfloat16_gives_nearly_the_same_labels(shared):
    recordings.hold(recordings.forward(shared, "r50_os8", "bfloat16"))

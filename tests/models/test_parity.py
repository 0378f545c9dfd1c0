"""The network against numbers recorded from PaddleSeg, see ../shared/parity/README.md."""

import equivalence
import pytest


# Alone, most are measured for docs/equivalence.md; test_sizes.py has the two alike to nine places.
@pytest.mark.parametrize(("name", "beside"), [("r18_os8", False), *((name, True) for name in equivalence.FORWARD)])
def test_float32_logits_and_features(shared, name, beside):
    equivalence.hold(equivalence.forward(shared, name, "float32", beside))


@pytest.mark.parametrize("name", ["r18_os8", "r50_os8", "r50_os16"])
def test_bfloat16_gives_nearly_the_same_labels(shared, name):
    equivalence.hold(equivalence.forward(shared, name, "bfloat16"))

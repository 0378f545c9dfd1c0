"""What a type checker says of a user's script. Nothing runs this: `make lint` checks it, and its ignores, with mypy."""

from typing import assert_type

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dlv3p_jax import Segmenter

segmenter = Segmenter.from_pretrained("voc_r50", flip=True, scales=[0.75, 1.0])
assert_type(segmenter, Segmenter)
assert_type(segmenter.with_views(window=(512, 512), stride=None), Segmenter)
assert_type(segmenter.classes, tuple[str, ...])
assert_type(segmenter("street.jpg"), NDArray[np.int32])
assert_type(segmenter.overlay(Image.new("RGB", (8, 8)), alpha=0.3), NDArray[np.uint8])
assert_type(segmenter.probabilities(np.zeros((8, 8, 3), np.uint8)), NDArray[np.float32])
assert_type(segmenter(["a.jpg", "b.jpg"], batch_size=2), list[NDArray[np.int32]])
assert_type(segmenter.features("street.jpg"), dict[str, NDArray[np.float32]])

segmenter(3)  # type: ignore[call-overload]
segmenter.warm_up(512)  # type: ignore[arg-type]
segmenter.overlays("street.jpg")  # type: ignore[attr-defined]
Segmenter.from_checkpoint("workdir/mine", flips=True)  # type: ignore[call-arg]
Segmenter.from_pretrained("voc_r50", window=512)  # type: ignore[arg-type]

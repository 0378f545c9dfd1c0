"""DeepLabV3+ semantic segmentation in JAX and Flax, with PaddleSeg's numbers.

from dlv3p_jax import Segmenter
labels = Segmenter.from_checkpoint("workdir/mine")("street.jpg")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlv3p_jax.inference.segmenter import Segmenter as Segmenter

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Segmenter":  # imports JAX, for which the commands' flags do not wait
        from dlv3p_jax.inference.segmenter import Segmenter

        return Segmenter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

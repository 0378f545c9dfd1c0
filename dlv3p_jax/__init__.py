"""DeepLabV3+ semantic segmentation in JAX and Flax, with PaddleSeg's numbers."""

__version__ = "0.1.0"

"""A network that can be written down, and what NumPy and OpenCV find in the views of a picture with it."""

import math

import cv2
import jax.numpy as jnp
import numpy as np

from dlv3p_jax.models import resizing, tiles


class FormulaModel:
    """Logits of every pixel from itself, its left neighbour (so that flips matter) and the mean of what is seen."""

    def apply(self, variables, images, train, output_size=None, sizes=None, output_sizes=None):
        assert not train
        own, left, mean = variables["params"]["kernels"]
        shifted = jnp.pad(images, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]
        seen = images.mean((1, 2), keepdims=True)
        if sizes is not None:
            seen = tiles.cleared(tiles.Tiled(images, sizes=sizes)).sum((1, 2)) / sizes.prod(1, keepdims=True)
            seen = seen[:, None, None]
        logits = tiles.Tiled(images @ own + shifted @ left + seen @ mean, sizes=sizes)
        to = images.shape[1:3], False, output_size, sizes, output_sizes
        return resizing.resize(logits, *to).array

    @staticmethod
    def numpy(kernels, image):
        own, left, mean = kernels
        shifted = np.concatenate([np.zeros_like(image[:, :1]), image[:, :-1]], axis=1)
        return image @ own + shifted @ left + image.mean((0, 1)) @ mean


MODEL = FormulaModel()
KERNELS = np.random.default_rng(0).normal(size=(3, 3, 3)).astype(np.float32)
VARIABLES = {"params": {"kernels": KERNELS}}


def resize(image, height, width):
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def slide(image, window, stride):
    height, width = image.shape[:2]
    total, visits = np.zeros((height, width, 3)), np.zeros((height, width, 1))
    rows = max(math.ceil((height - window[0]) / stride[0]), 0) + 1
    columns = max(math.ceil((width - window[1]) / stride[1]), 0) + 1
    for row in range(rows):
        for column in range(columns):
            bottom, right = min(row * stride[0] + window[0], height), min(column * stride[1] + window[1], width)
            at = slice(max(bottom - window[0], 0), bottom), slice(max(right - window[1], 0), right)
            total[at] += FormulaModel.numpy(KERNELS, image[at])
            visits[at] += 1
    return total / visits


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def expected_scores(image, scales=(1.0,), flip=False, window=None, stride=None, average="logits"):
    """One picture, one view after the other."""
    height, width = image.shape[:2]
    views, previous = [], image
    for scale in scales:
        size = int(height * scale + 0.5), int(width * scale + 0.5)
        previous = resize(previous if average == "legacy" else image, *size)
        for mirrored in (False, True)[: 1 + flip]:
            view = np.ascontiguousarray(previous[:, ::-1]) if mirrored else previous
            logits = slide(view, window, stride) if window else FormulaModel.numpy(KERNELS, view)
            logits = resize(np.ascontiguousarray(logits[:, ::-1] if mirrored else logits), height, width)
            views.append(softmax(logits) if average == "legacy" else logits)
    return np.mean(views, axis=0)

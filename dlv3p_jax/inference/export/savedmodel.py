"""TensorFlow's SavedModel, which needs TensorFlow alone to run."""

import pathlib
from collections.abc import Callable

import jax
import numpy as np
import tensorflow as tf
from jax.experimental import jax2tf

from dlv3p_jax.inference.export import programs


def write(model, variables, folder: pathlib.Path, height: int, width: int) -> None:
    """Writes two signatures for any number of pictures of one size, with the weights as one set of variables.

    Both take `image`, uint8 `[B, height, width, 3]`. `serving_default` gives `labels`, uint8 `[B, height, width]`, and
    `logits` gives `logits`, float32 `[B, height, width, num_classes]`.
    """
    module = tf.Module()
    module.weights = jax.tree.map(lambda leaf: tf.Variable(leaf, trainable=False), variables)

    def make_signature(output: str):
        convert = jax2tf.convert(
            lambda weights, image: programs.predict(model, weights, image)[output],
            polymorphic_shapes=[None, "(batch, ...)"],
            native_serialization_platforms=programs.PLATFORMS,
            with_gradient=False,
        )
        image = tf.TensorSpec((None, height, width, 3), tf.uint8, "image")
        function = tf.function(lambda image: {output: convert(module.weights, image)}, autograph=False)
        return function.get_concrete_function(image)

    signatures = {"serving_default": make_signature("labels"), "logits": make_signature("logits")}
    tf.saved_model.save(module, str(folder), signatures)


def load(folder: pathlib.Path) -> Callable:
    """uint8 `[B, H, W, 3]` -> what `programs.predict` returns."""
    signatures = tf.saved_model.load(str(folder)).signatures

    def predict(images: np.ndarray) -> dict[str, np.ndarray]:
        images = tf.constant(images)
        outputs = signatures["serving_default"](image=images) | signatures["logits"](image=images)
        return {name: value.numpy() for name, value in outputs.items()}

    return predict

"""toy_streets: street scenes drawn by a program, as a data set to try everything with."""

import os

import tensorflow_datasets as tfds

from dlv3p_jax.data import records
from dlv3p_jax.data.pictures import Example, encode_example
from dlv3p_jax.datasets.builder import PictureBuilder
from dlv3p_jax.datasets.toy_streets.scenes import CLASS_NAMES, NUM_PICTURES, PALETTE, VOID, draw_scene


class ToyStreets(PictureBuilder):
    """Synthetic pictures of streets, the same on every machine, with the classes of `scenes.CLASS_NAMES`."""

    VERSION = tfds.core.Version(records.VERSIONS["toy_streets"])

    def __init__(self, data_dir: str | os.PathLike, workers: int = 1):
        """Takes all scenes of all splits.

        Args:
            data_dir: where TFDS makes toy_streets/VERSION.
            workers: number of processes that draw.
        """
        super().__init__(
            data_dir,
            {split: [(split, index) for index in range(count)] for split, count in NUM_PICTURES.items()},
            draw_example,
            class_names=CLASS_NAMES,
            palette=PALETTE,
            ignore_label=VOID,
            description="Synthetic street scenes, drawn by a program: good for trying things, not for judging them.",
            synthetic=True,
            workers=workers,
        )


def draw_example(item: tuple[str, int]) -> Example:
    """The record of picture (split, index)."""
    split, index = item
    return encode_example(f"{split}_{index:04d}", *draw_scene(split, index), len(CLASS_NAMES), VOID)

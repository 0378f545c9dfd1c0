"""toy_streets: street scenes drawn by a program, as a data set to try everything with."""

import os

from dlv3p_jax.data.example import Example, encode_example
from dlv3p_jax.datasets.builder import PictureBuilder
from dlv3p_jax.datasets.toy_streets.scenes import CLASS_NAMES, NUM_PICTURES, PALETTE, VOID, draw_scene


def make_builder(data_dir: str | os.PathLike, *, name: str = "toy_streets", workers: int = 1) -> PictureBuilder:
    """The builder of synthetic pictures of streets, the same on every machine, with `scenes.CLASS_NAMES`.

    Args:
        data_dir: where TFDS makes NAME/VERSION.
        name: what the data set is called.
        workers: number of processes that draw.
    """
    return PictureBuilder(
        data_dir,
        {split: [(split, index) for index in range(count)] for split, count in NUM_PICTURES.items()},
        draw_example,
        name=name,
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

"""Files that are no ordinary pictures: pipes, copies in smaller sizes, and pictures larger than strangers' may be."""

import io
import os
import socket

import numpy as np
import pytest
from PIL import Image

from dlv3p_jax.data import labels, opening, pictures
from dlv3p_jax.data.errors import DatasetError

PICTURE = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def tiff(*pages) -> bytes:
    """A TIFF of pages (array, NewSubfileType)."""
    buffer = io.BytesIO()
    images = [Image.fromarray(array) for array, _ in pages]
    for image, (_, kind) in zip(images, pages, strict=True):
        image.encoderinfo = {"tiffinfo": {254: kind}}
    images[0].save(buffer, "TIFF", save_all=True, append_images=images[1:], tiffinfo={254: pages[0][1]})
    return buffer.getvalue()


@pytest.mark.parametrize("first", [0, 1])
def test_smaller_copies_and_masks_in_a_tiff_are_no_pictures(first):
    mask = np.full((8, 12), 255, np.uint8)
    pages = [(PICTURE, 0), (PICTURE[::2, ::2], 1), (mask, 4), (mask[::2, ::2], 5)]
    data = tiff(*pages[first:], *pages[:first])  # the picture may come behind its copies
    np.testing.assert_array_equal(pictures.read_rgb(data), PICTURE)
    with pytest.raises(DatasetError, match="2 pictures"):
        pictures.read_rgb(tiff(*pages, (PICTURE, 0)))


def test_a_label_with_overviews_is_read(tmp_path):
    label = np.arange(96, dtype=np.uint8).reshape(8, 12)
    np.testing.assert_array_equal(labels.read_label(tiff((label, 0), (label[::2, ::2], 1))), label)


def test_a_picture_larger_than_pillow_takes_from_strangers_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8 * 12 // 3)
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "a.png")
    np.testing.assert_array_equal(pictures.read_rgb(tmp_path / "a.png"), PICTURE)
    np.testing.assert_array_equal(pictures.read_rgb(tiff((PICTURE, 0), (PICTURE[::2], 1))), PICTURE)
    assert Image.MAX_IMAGE_PIXELS == 8 * 12 // 3  # for what else is in the process


def test_pipes_sockets_and_devices_are_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.png"))
    os.symlink("/dev/zero", tmp_path / "device.png")
    for name in ("pipe", "socket", "device"):
        for read in (pictures.read_rgb, labels.read_label):
            with pytest.raises(DatasetError, match=rf"{name}.png: is a .*{name}"):
                read(tmp_path / f"{name}.png")


def test_endings_are_counted_most_first():
    assert opening.by_suffix(["a.HEIC", "b.mp4", "c.heic", "README"]) == "2 .heic, 1 .mp4, 1 without an ending"

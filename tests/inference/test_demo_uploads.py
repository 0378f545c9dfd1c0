"""The pictures that the demo's page takes, in which order they may come, and what it refuses."""

import base64
import io
import struct
import threading
import zlib

import numpy as np
import pytest
from demo_visits import MAX_BYTES, NAMES, Bands, bands, encode, expected_legend, gradient, legend, upload, wait_until
from PIL import Image

from dlv3p_jax.datasets.toy_streets import scenes
from dlv3p_jax.inference import demo_uploads


def test_pictures_are_upright_and_the_page_shows_what_is_predicted():
    image = gradient()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right
    for data, expected in (
        (encode(image), image),
        (encode(np.rot90(image).copy(), exif=exif), image),
        (encode(np.dstack([image, image[..., :1]])), image),
        (encode(image, "WEBP", lossless=True), image),
        (encode(image[..., 0]), np.dstack([image[..., 0]] * 3)),
        (encode(image[..., 0].astype(np.uint16) * 257), np.dstack([image[..., 0]] * 3)),
    ):
        picture = demo_uploads.read_picture("street", data, max_pixels=60 * 90)
        np.testing.assert_array_equal(picture.image, expected)
        in_page = Image.open(io.BytesIO(base64.b64decode(picture.url.partition(",")[2])))
        np.testing.assert_array_equal(np.asarray(in_page.convert("RGB")), expected)
        with pytest.raises(ValueError, match="5,400 pixels, and 5,399 are"):
            demo_uploads.read_picture("street", data, max_pixels=60 * 90 - 1)
    data = encode(image[..., 0].astype(np.uint16) * 10)
    picture = demo_uploads.read_picture("street", data, 60 * 90, picture_range=(0, 2550))
    np.testing.assert_array_equal(picture.image, np.dstack([image[..., 0]] * 3))


def test_the_example_is_a_picture_of_the_run_or_drawn(page, tmp_path):
    page.get_by_text("Try an example").click()
    page.get_by_text("lamp.png: 90 x 40 pixels").wait_for()
    name, data = demo_uploads.find_example(tmp_path)
    assert name == "drawn_street.png" and Image.open(io.BytesIO(data)).size == scenes.SIZE[::-1]


def test_what_cannot_be_predicted_is_said(page, served, tmp_path):
    header = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", struct.pack(">IIBBBBB", 60_000, 50_000, 8, 2, 0, 0, 0)), (b"IEND", b"")):
        header += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    alert = page.get_by_role("alert")
    for name, data, message in (
        ("notes.txt", b"no picture", "notes.txt is no picture of these formats: JPEG, PNG"),
        ("cut.png", encode(gradient())[:-100], "cut.png cannot be read: damaged or truncated"),
        ("scan.eps", encode(gradient(), "EPS"), "scan.eps is no picture of these formats"),
        ("bomb.png", header, "bomb.png is 60000 x 50000: 3,000,000,000 pixels, and 100,000"),
        ("large.png", encode(np.zeros((400, 300), np.uint8)), "large.png is 300 x 400: 120,000 pixels, and 100,000"),
        ("heavy.png", encode(noise), "This file is larger than 0.2 MB"),
        ("tiny.png", encode(gradient(7)), "tiny.png was not predicted: RESOURCE_EXHAUSTED: out of memory. Try a sm"),
    ):
        upload(page, data, name)
        alert.filter(has_text=message).wait_for()
        assert not page.locator(".layers").count() and legend(page) == list(NAMES)
    assert len(served[1]) == 1
    (tmp_path / "street.png").write_bytes(encode(gradient()))
    for calls in (2, 3):  # the same file twice
        page.set_input_files("input[type=file]", tmp_path / "street.png")
        wait_until(page, lambda calls=calls: len(served[1]) == calls)
    page.locator(".layers").wait_for()
    assert not alert.is_visible()


@pytest.fixture
def slow_to_read(monkeypatch):
    """Files called slow.png are decoded only after this event; gives another for when they begin."""
    from dlv3p_jax.inference import demo_page  # NiceGUI, without which `page` skips

    may_end, begun = threading.Event(), threading.Event()
    read_picture = demo_page.read_picture

    def read(name, *arguments):
        if name == "slow.png":
            begun.set()
            assert may_end.wait(30)
        return read_picture(name, *arguments)

    monkeypatch.setattr(demo_page, "read_picture", read)
    yield may_end, begun
    may_end.set()


@pytest.mark.parametrize("slow", [encode(gradient(70)), b"no picture"])
def test_a_file_that_is_slow_to_decode_does_not_replace_a_newer_one(page, served, slow_to_read, slow):
    may_end, begun = slow_to_read
    upload(page, slow, "slow.png")
    wait_until(page, begun.is_set)
    image = gradient(50)
    upload(page, encode(image), "quick.png")
    page.get_by_text("quick.png: 90 x 50 pixels").wait_for()
    may_end.set()
    page.get_by_text("Flip").click()
    wait_until(page, lambda: legend(page) == expected_legend(2 - bands(image), NAMES))
    assert len(served[1]) == 2 and not page.get_by_role("alert").is_visible()


def test_a_file_that_is_slow_to_decode_comes_after_an_older_one_that_cannot_be_predicted(page, served, slow_to_read):
    may_end, begun = slow_to_read
    Bands.may_answer.clear()
    upload(page, encode(gradient(7)), "tiny.png")
    wait_until(page, lambda: len(served[1]) == 1)
    upload(page, encode(gradient(70)), "slow.png")
    wait_until(page, begun.is_set)
    Bands.may_answer.set()
    page.get_by_role("alert").filter(has_text="tiny.png was not predicted").wait_for()
    may_end.set()
    page.get_by_text("slow.png: 90 x 70 pixels").wait_for()


def test_a_file_that_is_slow_to_decode_does_not_replace_the_refusal_of_a_newer_one(page, served, slow_to_read):
    may_end, begun = slow_to_read
    upload(page, encode(gradient(70)), "slow.png")
    wait_until(page, begun.is_set)
    upload(page, bytes(MAX_BYTES + 1), "heavy.png")
    page.get_by_role("alert").filter(has_text="This file is larger").wait_for()
    may_end.set()
    upload(page, encode(gradient(50)))
    page.get_by_text("street.png: 90 x 50 pixels").wait_for()
    assert len(served[1]) == 1


def test_nothing_is_predicted_for_a_visit_that_is_over(page, visit, served, slow_to_read):
    import nicegui

    may_end, begun = slow_to_read
    upload(page, encode(gradient(70)), "slow.png")
    wait_until(page, begun.is_set)
    client = nicegui.Client.instances[page.evaluate("window.clientId")]
    nicegui.core.loop.call_soon_threadsafe(client.delete)
    wait_until(page, lambda: client.is_deleted)
    may_end.set()
    other = visit(served[0])
    upload(other, encode(gradient(50)))
    other.get_by_text("street.png: 90 x 50 pixels").wait_for()
    assert len(served[1]) == 1

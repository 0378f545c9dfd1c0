"""Pictures and labels of the kinds that people have: which are kept, converted or refused, and as what."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dlv3p_jax.data.errors import DatasetError, UnmappedColors
from dlv3p_jax.data.label_map import parse
from dlv3p_jax.data.pictures import Example, Pair, Problem, read_image, read_label, read_pair

BLOCKS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
RGB = np.kron(BLOCKS, np.ones((4, 4, 1), np.uint8))  # 20x28


def encode(picture, file_format: str, **options) -> bytes:
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def png(bits: int, color_type: int, rows: list[bytes], width: int) -> bytes:
    """A PNG file of the kinds that Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, len(rows), bits, color_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: show the picture a quarter turn clockwise
    return exif


def palette_png(indices: np.ndarray) -> bytes:
    picture = Image.fromarray(indices).convert("P")
    picture.putpalette(np.random.default_rng(1).integers(0, 256, 768).tolist())
    return encode(picture, "PNG")


GREY = Image.fromarray(RGB).convert("L")
KEPT = {
    "RGB JPEG": encode(RGB, "JPEG"),
    "progressive JPEG": encode(RGB, "JPEG", progressive=True),
    "grey JPEG": encode(GREY, "JPEG"),
    "phone's JPEG": encode(Image.fromarray(RGB), "MPO", save_all=True, append_images=[Image.fromarray(RGB)]),
    "RGB PNG": encode(RGB, "PNG"),
    "grey PNG": encode(GREY, "PNG"),
}


@pytest.mark.parametrize("kind", KEPT)
def test_plain_files_are_kept_and_both_decoders_agree_on_them(tmp_path, kind):
    import tensorflow as tf

    (tmp_path / "a").write_bytes(KEPT[kind])
    data, size, notes = read_image(tmp_path / "a")
    assert data == KEPT[kind]
    assert size == RGB.shape[:2]
    assert notes == ()
    decode = tf.io.decode_png if "PNG" in kind else lambda d, c: tf.io.decode_jpeg(d, c, dct_method="INTEGER_ACCURATE")
    np.testing.assert_array_equal(decode(data, 3).numpy(), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


SIXTEEN = RGB.astype(np.uint16) * 257
CONVERTED = {
    # name: (file, the RGB values it shows, how far off they may be, what the summary says)
    "CMYK JPEG": (
        encode(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=100, subsampling=0),
        RGB,
        8,
        "CMYK JPEG",
    ),
    "alpha": (encode(Image.fromarray(RGB).convert("RGBA"), "PNG"), RGB, 0, "PNG with alpha"),
    "transparent color": (encode(RGB, "PNG", transparency=(0, 0, 0)), RGB, 0, "PNG with alpha"),
    "grey and alpha": (encode(GREY.convert("LA"), "PNG"), np.stack([GREY] * 3, -1), 0, "PNG with alpha"),
    "palette": (encode(Image.fromarray(RGB).quantize(64), "PNG"), RGB, 0, "palette PNG"),
    "16-bit RGB": (png(16, 2, [r.astype(">u2").tobytes() for r in SIXTEEN], 28), RGB, 0, "16-bit PNG"),
    "16-bit grey": (encode(SIXTEEN[..., 0], "PNG"), np.stack([RGB[..., 0]] * 3, -1), 0, "16-bit PNG"),
    "1-bit": (encode(Image.fromarray(RGB[..., 0] > 99), "PNG"), (RGB[..., :1] > 99) * np.full(3, 255), 0, "1-bit PNG"),
    "EXIF": (encode(RGB, "PNG", exif=turned()), np.rot90(RGB, -1), 0, "PNG with an EXIF orientation"),
    "BMP": (encode(RGB, "BMP"), RGB, 0, "BMP file"),
    "TIFF": (encode(RGB, "TIFF"), RGB, 0, "TIFF file"),
    "CMYK TIFF": (encode(Image.fromarray(RGB).convert("CMYK"), "TIFF"), RGB, 0, "TIFF file"),
    "WebP": (encode(RGB, "WEBP", lossless=True), RGB, 0, "WEBP file"),
}


@pytest.mark.parametrize("kind", CONVERTED)
def test_other_files_become_the_rgb_png_that_a_viewer_shows(tmp_path, kind):
    file, shown, distance, note = CONVERTED[kind]
    (tmp_path / "a").write_bytes(file)
    data, size, notes = read_image(tmp_path / "a")
    picture = Image.open(io.BytesIO(data))
    assert (picture.format, picture.mode) == ("PNG", "RGB")
    assert size == shown.shape[:2]
    assert notes == (f"{note} stored as RGB PNG",)
    assert np.abs(np.asarray(picture).astype(int) - shown).max() <= distance


@pytest.mark.parametrize("kind", ["RGB JPEG", "progressive JPEG", "grey JPEG", "RGB PNG", "grey PNG"])
def test_a_file_cut_anywhere_is_refused_by_name(tmp_path, kind):
    path = tmp_path / "cut.bin"
    for length in range(len(KEPT[kind])):
        path.write_bytes(KEPT[kind][:length])
        with pytest.raises(DatasetError, match="cut.bin"):
            read_image(path)


def test_a_png_with_any_flipped_bit_is_refused(tmp_path):
    # Pillow alone accepts many of these, on which tf.io.decode_png then fails in the middle of training.
    rng, path = np.random.default_rng(2), tmp_path / "flipped.png"
    for _ in range(200):
        data = bytearray(KEPT["RGB PNG"])
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        with pytest.raises(DatasetError, match=r"flipped\.png"):
            read_image(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"GIF, or so it says", "not a picture"),
        (encode(RGB, "TIFF", save_all=True, append_images=[Image.fromarray(RGB)]), "holds 2 pictures"),
        (encode(RGB[..., 0].astype(np.float32), "TIFF"), "no known range"),
        # The type of StripOffsets is text, with which Pillow computes.
        (encode(RGB, "TIFF").replace(b"\x11\x01\x04\0", b"\x11\x01\x02\0"), "damaged or truncated"),
    ],
)
def test_unusable_pictures(tmp_path, data, message):
    (tmp_path / "bad.dat").write_bytes(data)
    with pytest.raises(DatasetError, match=rf"bad\.dat.*{message}"):
        read_image(tmp_path / "bad.dat")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"gone\.png: cannot be read"):
        read_image(tmp_path / "gone.png")


IDS = np.array([[0, 1], [15, 255]], np.uint8)
LABELS = {
    "palette PNG": palette_png(IDS),  # L02, L03: indices, not the luminance of colours
    "grey PNG": encode(IDS, "PNG"),
    "16-bit PNG": encode(IDS.astype(np.uint16), "PNG"),  # L08
    "three equal channels": encode(np.stack([IDS] * 3, -1), "PNG"),  # L06
    "BMP": encode(IDS, "BMP"),
    "TIFF": encode(IDS, "TIFF"),
    "16-bit TIFF": encode(IDS.astype(np.uint16), "TIFF"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_give_their_indices(tmp_path, kind):
    np.testing.assert_array_equal(read_label(LABELS[kind]), IDS)
    (tmp_path / "a").write_bytes(LABELS[kind])
    np.testing.assert_array_equal(read_label(tmp_path / "a"), IDS)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("color_type", [0, 3])
def test_labels_of_few_bits_are_not_stretched(bits, color_type):
    values = np.arange(8, dtype=np.uint8) % 2**bits
    row = np.packbits(np.unpackbits(values[:, None], axis=1)[:, -bits:])
    file = png(bits, 0, [row.tobytes()], 8)
    if color_type == 3:
        picture = Image.fromarray(values[None]).convert("P")
        picture.putpalette(list(range(3 * 2**bits)))
        file = encode(picture, "PNG", bits=bits)
        assert file[24:26] == bytes([bits, 3])
    np.testing.assert_array_equal(read_label(file)[0], values)


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
def test_lossy_labels_are_refused(tmp_path, file_format):  # L10
    path = tmp_path / "mask.png"  # the format counts, not what the file is called
    path.write_bytes(encode(IDS, file_format, quality=90))
    with pytest.raises(DatasetError, match=rf"mask\.png: .* {file_format}.*save them as PNG"):
        read_label(path)


def test_a_tiff_with_jpeg_inside_is_lossy_too():
    with pytest.raises(DatasetError, match="lossy"):
        read_label(encode(IDS, "TIFF", compression="jpeg"))


def test_colour_labels_are_refused_with_their_shape_and_colours(tmp_path):  # L04, L20
    path = tmp_path / "colours.png"
    path.write_bytes(encode(np.full((3, 5, 3), (128, 64, 128), np.uint8), "PNG"))
    with pytest.raises(UnmappedColors, match=r"colours\.png.*3x5x3.*--label_map") as error:
        read_label(path)
    assert error.value.colors == (((128, 64, 128), 15),)


def test_colours_are_mapped_as_listed():
    colors = np.array([[[128, 64, 128], [0, 0, 0]], [[1, 2, 3], [128, 64, 128]]], np.uint8)
    table = parse("128-64-128:4,#000000:ignore,1-2-3:0", ignore_label=255)
    expected = [[4, 255], [0, 4]]
    np.testing.assert_array_equal(read_label(encode(colors, "PNG"), table), expected)
    alpha = np.dstack([colors, np.full((2, 2), 255, np.uint8)])
    np.testing.assert_array_equal(read_label(encode(alpha, "PNG"), table), expected)
    picture = Image.fromarray(np.array([[2, 1], [0, 2]], np.uint8)).convert("P")
    picture.putpalette([1, 2, 3, 0, 0, 0, 128, 64, 128])
    np.testing.assert_array_equal(read_label(encode(picture, "PNG"), table), expected)
    with pytest.raises(DatasetError, match=r"1-2-3 \(1 pixel\) not in the label map"):
        read_label(encode(colors, "PNG"), parse("128-64-128:4,#000000:ignore", 255))
    with pytest.raises(DatasetError, match="lists colours only"):
        read_label(encode(IDS, "PNG"), table)


def test_values_that_the_map_lacks_are_named(tmp_path):
    path = tmp_path / "mask.png"
    path.write_bytes(encode(np.array([[0, 254, 255]], np.uint8), "PNG"))
    with pytest.raises(DatasetError, match=r"mask\.png: value 254 \(1 pixel\) not in the label map"):
        read_label(path, parse("0:0,255:1", 255))


def pair_of(tmp_path, label, image=None) -> Pair:
    """A pair of files: a label of these bytes or integers, and a picture, by default one that fits."""
    label = label if isinstance(label, bytes) else encode(np.asarray(label, np.uint8), "PNG")
    if image is None:
        image = encode(np.zeros((*read_label(label).shape, 3), np.uint8), "PNG")
    (tmp_path / "image").write_bytes(image)
    (tmp_path / "label.png").write_bytes(label)
    return Pair("one", str(tmp_path / "image"), str(tmp_path / "label.png"))


def test_a_good_pair(tmp_path):
    example = read_pair(pair_of(tmp_path, [[0, 1, 1], [2, 255, 1]]), num_classes=4, ignore_label=255)
    assert isinstance(example, Example)
    assert example.size == (2, 3)
    assert example.class_pixels.tolist() == [1, 3, 1, 0]
    assert example.ignored_pixels == 1
    stored = Image.open(io.BytesIO(example.label))
    assert (stored.format, stored.mode) == ("PNG", "L")
    np.testing.assert_array_equal(np.asarray(stored), [[0, 1, 1], [2, 255, 1]])


def test_equal_channels_are_said(tmp_path):  # L06
    example = read_pair(pair_of(tmp_path, LABELS["three equal channels"]), num_classes=16, ignore_label=255)
    assert example.notes == ("label of three equal channels, read as one",)


@pytest.mark.parametrize(
    ("values", "num_classes", "ignore_label", "expected"),
    [
        ([[0, 19, 19, 255]], 19, 255, r"value 19 \(2 pixels\) outside the 19 classes \(0\.\.18\)"),  # L13
        ([[0, 15]], 2, 255, r"value 15 \(1 pixel\) outside"),
        ([[0, 1, 2, 3]], 3, 255, r"value 3 .*background.*begin at 1"),  # L14
        ([[0, 38, 75, 147]], 4, 255, r"values 38 .*, 75 .*, 147 .*the file holds 0, 38, 75, 147"),  # L05
        ([[7, 11, 26]], 19, 255, r"value 26 .*Cityscapes labelIds"),  # L31
        ([[0, 255]], 2, 254, r'value 255 .*--label_map "0:0,255:1"'),  # L01
        ([[0, 128]], 3, 255, r"value 128 .*--label_map"),  # L17
    ],
)
def test_values_outside_the_classes(tmp_path, values, num_classes, ignore_label, expected):
    problem = read_pair(pair_of(tmp_path, values), num_classes, ignore_label)
    assert isinstance(problem, Problem)
    assert re.search(rf"label\.png: {expected}", problem.message), problem.message


def test_a_16_bit_value_is_not_wrapped(tmp_path):
    label = encode(np.array([[0, 257]], np.uint16), "PNG")
    assert "value 257" in read_pair(pair_of(tmp_path, label), 2, 255).message


def test_another_value_can_be_ignored(tmp_path):  # L15
    example = read_pair(pair_of(tmp_path, [[0, 1, 2, 4]]), num_classes=3, ignore_label=4)
    assert (example.class_pixels.tolist(), example.ignored_pixels) == ([1, 1, 1], 1)


def test_void_as_zero_can_be_moved_away(tmp_path):  # L16: ADE20K's 0
    table = parse("0:ignore,1:0,2:1", 255)
    example = read_pair(pair_of(tmp_path, [[0, 1, 2, 2]]), 2, 255, table)
    assert (example.class_pixels.tolist(), example.ignored_pixels) == ([1, 2], 1)


def test_sizes_that_differ(tmp_path):
    problem = read_pair(pair_of(tmp_path, [[0, 1, 0]], encode(RGB, "PNG")), 2, 255)
    assert "is 28x20 (width x height) but its label" in problem.message
    assert problem.message.endswith("is 3x1")


def test_a_label_made_before_the_picture_was_turned(tmp_path):
    image = encode(RGB, "JPEG", exif=turned())
    turned_label = read_pair(pair_of(tmp_path, np.zeros((28, 20)), image), 2, 255)
    assert turned_label.size == (28, 20)
    assert "EXIF" in read_pair(pair_of(tmp_path, np.zeros((20, 28)), image), 2, 255).message


@pytest.mark.parametrize("size", [(1, 2048), (17, 31), (497, 500), (1, 1)])
def test_odd_sizes(tmp_path, size):
    example = read_pair(pair_of(tmp_path, np.zeros(size)), 2, 255)
    assert example.size == size

"""Pictures and labels of the kinds that people have: which are kept, converted or refused, and as what."""

import io
import re

import numpy as np
import pytest
from PIL import Image
from raw_pictures import pack, png, tiff

from dlv3p_jax.data.errors import DatasetError, UnmappedColors
from dlv3p_jax.data.example import Example, Pair, Problem, read_pair
from dlv3p_jax.data.label_map import parse
from dlv3p_jax.data.labels import read_label
from dlv3p_jax.data.pictures import read_image

BLOCKS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
RGB = np.kron(BLOCKS, np.ones((4, 4, 1), np.uint8))  # 20x28


def encode(picture, file_format: str, **options) -> bytes:
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


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
    image = read_image(tmp_path / "a")
    data = image.data
    assert data == KEPT[kind]
    assert image.size == RGB.shape[:2]
    assert image.notes == ()
    decode = tf.io.decode_png if "PNG" in kind else lambda d, c: tf.io.decode_jpeg(d, c, dct_method="INTEGER_ACCURATE")
    np.testing.assert_array_equal(decode(data, 3).numpy(), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


SIXTEEN = RGB.astype(np.uint16) * 257
CONVERTED = {
    # name: (file, the RGB values it shows, how far off they may be, what the summary says)
    "CMYK JPEG": (
        encode(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=100, subsampling=0),
        RGB,
        8,
        "CMYK JPEG stored as RGB",
    ),
    "alpha": (
        encode(Image.fromarray(RGB).convert("RGBA"), "PNG"),
        RGB,
        0,
        "PNG with alpha stored as RGB, alpha dropped",
    ),
    "transparent color": (
        encode(RGB, "PNG", transparency=(0, 0, 0)),
        RGB,
        0,
        "PNG with alpha stored as RGB, alpha dropped",
    ),
    "grey and alpha": (
        encode(GREY.convert("LA"), "PNG"),
        np.stack([GREY] * 3, -1),
        0,
        "PNG with alpha stored as RGB, alpha dropped",
    ),
    "palette": (encode(Image.fromarray(RGB).quantize(64), "PNG"), RGB, 0, "palette PNG stored as RGB"),
    "16-bit RGB": (
        png(16, 2, [r.astype(">u2").tobytes() for r in SIXTEEN], 28),
        RGB,
        0,
        "16-bit PNG stored as 8-bit RGB",
    ),
    "16-bit grey": (
        encode(SIXTEEN[..., 0], "PNG"),
        np.stack([RGB[..., 0]] * 3, -1),
        0,
        "16-bit PNG stored as 8-bit RGB",
    ),
    "1-bit": (
        encode(Image.fromarray(RGB[..., 0] > 99), "PNG"),
        (RGB[..., :1] > 99) * np.full(3, 255),
        0,
        "1-bit PNG stored as RGB",
    ),
    "EXIF": (encode(RGB, "PNG", exif=turned()), np.rot90(RGB, -1), 0, "PNG with an EXIF orientation stored as RGB"),
    "BMP": (encode(RGB, "BMP"), RGB, 0, "BMP file stored as RGB"),
    "TIFF": (encode(RGB, "TIFF"), RGB, 0, "TIFF file stored as RGB"),
    "CMYK TIFF": (encode(Image.fromarray(RGB).convert("CMYK"), "TIFF"), RGB, 0, "TIFF file stored as RGB"),
    "WebP": (encode(RGB, "WEBP", lossless=True), RGB, 0, "WEBP file stored as RGB"),
}


@pytest.mark.parametrize("kind", CONVERTED)
def test_other_files_become_the_rgb_png_that_a_viewer_shows(tmp_path, kind):
    file, shown, distance, note = CONVERTED[kind]
    (tmp_path / "a").write_bytes(file)
    image = read_image(tmp_path / "a")
    picture = Image.open(io.BytesIO(image.data))
    assert (picture.format, picture.mode) == ("PNG", "RGB")
    assert image.size == shown.shape[:2]
    assert image.notes == (note,)
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
        ([[0, 1, 2, 3]], 3, 255, r"value 3 .*background.*begin at 1.*\"0:0,1:1,2:2,3:ignore\""),  # L14
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


TWELVE = np.random.default_rng(3).integers(997, 4000, (3, 5, 3)).astype(np.uint16)
GREY_TWELVE = np.repeat(TWELVE[..., :1], 3, axis=-1)


def rows(values: np.ndarray) -> list[bytes]:
    return [row.astype(">u2").tobytes() for row in values]


def with_band(values: np.ndarray) -> np.ndarray:
    return np.dstack([values, np.full(values.shape[:2], 50_000)]).astype(np.uint16)


def tiff_of(values: np.ndarray, dtype: str, **options) -> bytes:
    return tiff(values.astype(dtype).tobytes(), (3, 5), order="<" if dtype[0] == "<" else ">", **options)


COLORS = dict(bits=16, photometric=2)
WIDE = {
    "PNG": (png(16, 0, rows(TWELVE[..., 0]), 5), GREY_TWELVE, "16-bit PNG stored as 8-bit RGB"),
    "RGB PNG": (png(16, 2, rows(TWELVE), 5), TWELVE, "16-bit PNG stored as 8-bit RGB"),
    "PNG with alpha": (
        png(16, 4, rows(with_band(TWELVE[..., 0])), 5),
        GREY_TWELVE,
        "16-bit PNG with alpha stored as 8-bit RGB, alpha dropped",
    ),
    "RGBA PNG": (
        png(16, 6, rows(with_band(TWELVE)), 5),
        TWELVE,
        "16-bit PNG with alpha stored as 8-bit RGB, alpha dropped",
    ),
    "TIFF": (tiff_of(TWELVE[..., 0], "<u2", bits=16), GREY_TWELVE, "TIFF with 1 band of 16 bits stored as 8-bit RGB"),
    "RGB TIFF": (
        tiff_of(TWELVE, "<u2", bands=3, **COLORS),
        TWELVE,
        "TIFF with 3 bands of 16 bits stored as 8-bit RGB",
    ),
    "big-endian RGB TIFF": (
        tiff_of(TWELVE, ">u2", bands=3, **COLORS),
        TWELVE,
        "TIFF with 3 bands of 16 bits stored as 8-bit RGB",
    ),
    "deflated RGB TIFF": (
        tiff_of(TWELVE, "<u2", bands=3, deflated=True, **COLORS),
        TWELVE,
        "TIFF with 3 bands of 16 bits stored as 8-bit RGB",
    ),
    "deflated big-endian TIFF of four bands": (
        tiff_of(with_band(TWELVE), ">u2", bands=4, extra=0, deflated=True, **COLORS),
        TWELVE,
        "TIFF with 4 bands of 16 bits stored as 8-bit RGB of the first three",
    ),
    "TIFF of four bands": (
        tiff_of(with_band(TWELVE), "<u2", bands=4, extra=0, **COLORS),
        TWELVE,
        "TIFF with 4 bands of 16 bits stored as 8-bit RGB of the first three",
    ),
    "PGM": (b"P5 5 3 65535\n" + b"".join(rows(TWELVE[..., 0])), GREY_TWELVE, "PPM with 1 band of 16 bits stored as"),
    "PPM": (b"P6 5 3 65535\n" + b"".join(rows(TWELVE)), TWELVE, "PPM with 3 bands of 16 bits stored as"),
    "PPM of 12 bits": (b"P6 5 3 4095\n" + b"".join(rows(TWELVE)), TWELVE, "PPM with 3 bands of 12 bits stored as"),
    "TIFF of 12 bits": (
        tiff(pack(TWELVE[..., 0], 12), (3, 5), bits=12),
        GREY_TWELVE,
        "TIFF with 1 band of 12 bits stored as",
    ),
    "signed TIFF": (tiff_of(TWELVE[..., 0], "<i2", bits=16, sample_format=2), GREY_TWELVE, "of 16 bits stored as"),
    "TIFF of floats": (tiff_of(TWELVE[..., 0], "<f4", bits=32, sample_format=3), GREY_TWELVE, "of 32 bits stored as"),
}


@pytest.mark.parametrize("kind", WIDE)
def test_a_range_is_of_the_values_that_the_file_holds(kind):
    data, values, note = WIDE[kind]
    image = read_image(data, (0, 4095))
    np.testing.assert_array_equal(image.pixels(), np.rint(values / 4095 * 255))
    assert image.values == (values.min(), values.max()) and image.taken_for is None
    assert note in image.notes[0] and image.notes[0].endswith(", 0..4095 as 0..255")


@pytest.mark.parametrize("kind", WIDE)
def test_without_a_range_all_that_a_file_has_room_for_is_taken(kind):
    data, values, note = WIDE[kind]
    if kind in ("signed TIFF", "TIFF of floats"):
        with pytest.raises(DatasetError, match="--picture_range"):
            read_image(data)
        return
    image, top = read_image(data), 4095 if "12 bits" in kind else 65535
    assert image.taken_for == (0, top) and image.values == (values.min(), values.max())
    assert np.abs(image.pixels() - values / top * 255).max() < 1
    assert note in image.notes[0]


def test_a_turned_picture_of_16_bits_is_turned():
    data = encode(TWELVE[..., 0], "PNG", exif=turned())
    expected = np.rint(np.rot90(GREY_TWELVE, -1) / 4095 * 255)
    np.testing.assert_array_equal(read_image(data, (0, 4095)).pixels(), expected)


def test_eight_bits_with_a_sign_keep_it():
    data = tiff_of(np.repeat([[-128], [-1], [127]], 5, axis=1), "i1", bits=8, sample_format=2)
    with pytest.raises(DatasetError, match="values of the type int8 have no known range"):
        read_image(data)
    shown = read_image(data, (-128, 127)).pixels()
    np.testing.assert_array_equal(shown[:, 0, 0], [0, 127, 255])


def test_eight_bits_know_no_range():
    assert read_image(KEPT["RGB PNG"], (0, 4095)).data == KEPT["RGB PNG"]
    np.testing.assert_array_equal(read_image(CONVERTED["BMP"][0], (0, 4095)).pixels(), RGB)


@pytest.mark.parametrize("deflated", [False, True])
def test_separate_planes_of_16_bits_are_read_right_or_not_at_all(tmp_path, deflated):
    planes = np.moveaxis(TWELVE * 16, -1, 0)
    path = tmp_path / "planes.tif"
    path.write_bytes(tiff(planes.astype("<u2").tobytes(), (3, 5), bands=3, deflated=deflated, planar=True, **COLORS))
    with pytest.raises(DatasetError, match=r"planes\.tif: .*INTERLEAVE=PIXEL"):
        read_image(path, (0, 4095))
    if deflated:
        np.testing.assert_array_equal(read_image(path).pixels(), TWELVE * 16 >> 8)
    else:
        with pytest.raises(DatasetError, match=r"planes\.tif: .*INTERLEAVE=PIXEL"):
            read_image(path)

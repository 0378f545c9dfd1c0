"""Label files of kinds whose values Pillow changes: they give what they hold, or are refused."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image, ImageOps
from raw_pictures import pack, png, tiff

from dlv3p_jax.data import decoding
from dlv3p_jax.data.errors import DatasetError, UnmappedColors
from dlv3p_jax.data.example import Example, Pair, Problem, read_pair
from dlv3p_jax.data.label_map import parse
from dlv3p_jax.data.labels import decode, read_label
from dlv3p_jax.data.pictures import read_image

VALUES = np.array([[0, 1, 2, 3], [3, 2, 0, 0], [1, 1, 3, 2]])
SIZE = VALUES.shape
BINARY = VALUES % 2
EIGHT, SIXTEEN = VALUES.astype(np.uint8).tobytes(), VALUES.astype(">u2").tobytes()


def pnm(kind: str, maxval: int | None, data: bytes) -> bytes:
    header = [kind, "4 3"] if maxval is None else [kind, "4 3", str(maxval)]
    return "\n".join([*header, ""]).encode() + data


def text(values) -> bytes:
    return "\n".join(" ".join(map(str, row)) for row in values).encode()


def encode(picture, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(buffer, file_format, **options)
    return buffer.getvalue()


STORED = {
    **{f"PGM, maxval {maxval}": (pnm("P5", maxval, EIGHT), VALUES) for maxval in (3, 4, 18, 100, 254, 255)},
    **{f"PGM, maxval {maxval}": (pnm("P5", maxval, SIXTEEN), VALUES) for maxval in (256, 1000, 4095, 65534, 65535)},
    **{f"plain PGM, maxval {maxval}": (pnm("P2", maxval, text(VALUES)), VALUES) for maxval in (3, 19, 255, 777, 65535)},
    "PGM whose values pass its maxval": (pnm("P5", 1, EIGHT), VALUES),
    "PBM": (pnm("P4", None, pack(BINARY, 1)), BINARY),
    "plain PBM": (pnm("P1", None, text(BINARY)), BINARY),
    **{
        f"TIFF of {bits} bits, photometric {photometric}, {order}": (
            tiff(pack(VALUES % 2**bits, bits), SIZE, bits=bits, photometric=photometric, order=order),
            VALUES % 2**bits,
        )
        for bits, photometric, order in itertools.product((1, 2, 4, 8), (0, 1), "<>")
    },
    "TIFF of 12 bits": (tiff(pack(VALUES, 12), SIZE, bits=12), VALUES),
    "TIFF of 16 bits": (tiff(VALUES.astype("<u2").tobytes(), SIZE, bits=16), VALUES),
    "big-endian TIFF of 16 bits": (tiff(SIXTEEN, SIZE, bits=16, order=">"), VALUES),
    "WhiteIsZero TIFF of 16 bits": (tiff(VALUES.astype("<u2").tobytes(), SIZE, bits=16, photometric=0), VALUES),
    "signed TIFF of 16 bits": (tiff(VALUES.astype("<i2").tobytes(), SIZE, bits=16, sample_format=2), VALUES),
    "TIFF of 32 bits": (tiff(VALUES.astype("<u4").tobytes(), SIZE, bits=32), VALUES),
    "TIFF of floats": (tiff(VALUES.astype("<f4").tobytes(), SIZE, bits=32, sample_format=3), VALUES),
    "big-endian TIFF of floats": (
        tiff(VALUES.astype(">f4").tobytes(), SIZE, bits=32, sample_format=3, order=">"),
        VALUES,
    ),
    "TIFF of a band and another": (
        tiff(np.dstack([VALUES, VALUES * 50]).astype(np.uint8).tobytes(), SIZE, bands=2, extra=0),
        VALUES,
    ),
    "compressed TIFF": (encode(VALUES.astype(np.uint8), "TIFF", compression="tiff_lzw"), VALUES),
    "deflated TIFF of 4 bits": (tiff(pack(VALUES, 4), SIZE, bits=4, photometric=0, deflated=True), VALUES),
    "deflated TIFF of 16 bits": (tiff(SIXTEEN, SIZE, bits=16, order=">", deflated=True), VALUES),
    "deflated signed TIFF": (
        tiff(VALUES.astype(">i2").tobytes(), SIZE, bits=16, sample_format=2, order=">", deflated=True),
        VALUES,
    ),
    "deflated TIFF of 32 bits": (tiff(VALUES.astype("<u4").tobytes(), SIZE, bits=32, deflated=True), VALUES),
    "deflated TIFF of floats": (
        tiff(VALUES.astype(">f4").tobytes(), SIZE, bits=32, sample_format=3, order=">", deflated=True),
        VALUES,
    ),
    "compressed TIFF of 1 bit": (encode(BINARY.astype(bool), "TIFF", compression="group4"), BINARY),
    "grey BMP": (encode(VALUES.astype(np.uint8), "BMP"), VALUES),
    "BMP of 1 bit": (encode(BINARY.astype(bool), "BMP"), BINARY),
    "TGA": (encode(VALUES.astype(np.uint8), "TGA"), VALUES),
    "GIF": (encode(VALUES.astype(np.uint8), "GIF"), VALUES),
    "constant alpha": (
        encode(Image.merge("LA", [Image.fromarray(VALUES.astype(np.uint8)), Image.new("L", (4, 3), 77)]), "PNG"),
        VALUES,
    ),
}


@pytest.mark.parametrize("kind", STORED)
def test_labels_give_the_values_that_are_stored(kind):
    data, expected = STORED[kind]
    np.testing.assert_array_equal(read_label(data), expected)


def sixteen(color_type: int, bands: int) -> bytes:
    pixels = np.repeat(VALUES[..., None], bands, -1).astype(">u2")
    return png(16, color_type, [row.tobytes() for row in pixels], 4)


def test_a_grey_bmp_with_two_colours_in_eight_bits_is_no_picture_of_one_bit():
    picture = Image.fromarray(BINARY.astype(np.uint8)).convert("P")
    picture.putpalette([0, 0, 0, 255, 255, 255])
    data = bytearray(encode(picture, "BMP"))
    data[46:50] = (2).to_bytes(4, "little")  # biClrUsed
    start = int.from_bytes(data[10:14], "little")
    del data[54 + 8 : start]
    data[10:14] = (54 + 8).to_bytes(4, "little")
    with pytest.raises(DatasetError, match="8 bits"):
        read_label(bytes(data))


RGBA = np.dstack([VALUES, VALUES, VALUES, VALUES * 85]).astype(np.uint8)
REFUSED = {
    "16-bit RGB PNG": (sixteen(2, 3), "PNG of 16 bits"),
    "16-bit RGBA PNG": (sixteen(6, 4), "PNG of 16 bits"),
    "16-bit PNG with alpha": (sixteen(4, 2), "PNG of 16 bits"),
    "16-bit RGB TIFF": (
        tiff(np.repeat(VALUES, 3).astype("<u2").tobytes(), SIZE, bits=16, photometric=2, bands=3),
        "TIFF of 16 bits",
    ),
    "PPM with a small maxval": (pnm("P6", 3, np.repeat(VALUES, 3).astype(np.uint8).tobytes()), "PPM of 2 bits"),
    "PPM with an odd maxval": (pnm("P6", 200, np.repeat(VALUES, 3).astype(np.uint8).tobytes()), "PPM of 8 bits"),
    "plain PPM with a small maxval": (pnm("P3", 3, text(np.repeat(VALUES, 3, 1))), "PPM of 2 bits"),
    "16-bit PPM": (pnm("P6", 65535, np.repeat(VALUES, 3).astype(">u2").tobytes()), "PPM of 16 bits"),
    "CMYK": (encode(Image.new("CMYK", (4, 3)), "TIFF"), "CMYK"),
    "transparent rows": (encode(RGBA, "PNG"), "alpha differs"),
    "grey with transparent rows": (encode(Image.fromarray(RGBA).convert("LA"), "PNG"), "alpha differs"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_labels_whose_values_are_lost_are_refused(tmp_path, kind):
    data, message = REFUSED[kind]
    (tmp_path / "mask.png").write_bytes(data)
    with pytest.raises(DatasetError, match=rf"mask\.png: .*{message}"):
        read_label(tmp_path / "mask.png", parse("0-0-0:0,other:1", 255) if kind == "transparent rows" else None)


def test_the_same_alpha_everywhere_is_noted():
    data, _ = STORED["constant alpha"]
    assert "alpha" in " ".join(decode(data).notes)


FLOATS = np.array([[0, 1, 2], [-9999, np.nan, 0.5]], np.float32)


def test_values_that_are_no_indices_are_named_with_the_map_that_would_help(tmp_path):
    path = tmp_path / "mask.tif"
    path.write_bytes(encode(np.array([[-1, 0, 2]], np.int32), "TIFF"))
    with pytest.raises(DatasetError, match=r'mask\.tif: values -1 \(1 pixel\).*--label_map.*"-1:ignore,0:0,2:2"'):
        read_label(path)
    path.write_bytes(encode(FLOATS, "TIFF"))
    with pytest.raises(DatasetError, match=r"mask\.tif: .*0\.5 \(1 pixel\).*nan \(1 pixel\).*nan:ignore,other:ignore"):
        read_label(path)
    with pytest.raises(DatasetError, match=r"mask\.tif: values 0\.5 \(1 pixel\), nan \(1 pixel\) not in the label map"):
        read_label(path, parse("-9999:ignore,0:0,1:1,2:2", 255))
    path.write_bytes(tiff(np.array([[-1, 0, 3]], np.int8).tobytes(), (1, 3), sample_format=2))
    with pytest.raises(DatasetError, match="value.* -1 "):
        read_label(path)
    path.write_bytes(tiff(np.array([[2**32 - 1, 0]], np.uint32).tobytes(), (1, 2), bits=32))
    np.testing.assert_array_equal(read_label(path, parse(f"{2**32 - 1}:ignore,0:0", 255)), [[255, 0]])


def test_a_map_says_what_negative_values_and_others_mean():
    label = decode(encode(FLOATS, "TIFF"), parse("-9999:7,0:0,1:1,2:2,nan:8,other:ignore", 255))
    np.testing.assert_array_equal(label.values, [[0, 1, 2], [7, 8, 255]])
    assert "other:255" in " ".join(label.notes)
    label = decode(encode(FLOATS, "TIFF"), parse("0:0,1:1,2:2,other:9", 255))
    np.testing.assert_array_equal(label.values, [[0, 1, 2], [9, 9, 9]])
    (note,) = decode(STORED["TIFF of floats"][0]).notes
    assert "float" in note


def test_smoothed_edges_of_colours_are_others():
    blend = np.stack([np.linspace((128, 64, 128), (0, 0, 142), 12).round()] * 2).astype(np.uint8)
    data = encode(blend, "PNG")
    with pytest.raises(UnmappedColors, match="other:ignore"):
        read_label(data, parse("128-64-128:0,0-0-142:1", 255))
    found = read_label(data, parse("128-64-128:0,0-0-142:1,other:ignore", 255))
    np.testing.assert_array_equal(found, [[0] + [255] * 10 + [1]] * 2)


def with_turn(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_is_pillows(orientation):
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    image = Image.open(io.BytesIO(encode(picture, "PNG", exif=with_turn(orientation))))
    np.testing.assert_array_equal(decoding.turn(picture, orientation), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_a_label_is_turned_as_its_own_exif_says(orientation, file_format):
    data = encode(VALUES.astype(np.uint8), file_format, exif=with_turn(orientation))
    label = decode(data)
    np.testing.assert_array_equal(label.values, decoding.turn(VALUES, orientation))
    assert label.orientation == orientation
    assert bool(label.notes) == (orientation != 1)


@pytest.mark.parametrize(
    ("size", "picture", "label", "is_told"),
    [
        ((4, 4), 6, 1, True),  # square: the label fits both ways
        ((4, 6), 3, 1, True),  # half a turn: it fits both ways
        ((4, 6), 3, 3, False),
        ((4, 4), 6, 6, False),
        ((4, 4), 1, 1, False),
    ],
)
def test_a_label_whose_size_does_not_tell_how_it_lies_is_said(tmp_path, size, picture, label, is_told):
    (tmp_path / "a.png").write_bytes(encode(np.zeros((*size, 3), np.uint8), "PNG", exif=with_turn(picture)))
    (tmp_path / "b.png").write_bytes(encode(np.zeros(size, np.uint8), "PNG", exif=with_turn(label)))
    example = read_pair(Pair("a", str(tmp_path / "a.png"), str(tmp_path / "b.png")), 2, 255)
    assert isinstance(example, Example)
    assert ("does not tell" in " ".join(example.notes)) == is_told


def test_a_label_that_fits_without_its_own_turn_is_told_so(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(np.zeros((4, 6, 3), np.uint8), "PNG"))
    (tmp_path / "b.png").write_bytes(encode(np.zeros((4, 6), np.uint8), "PNG", exif=with_turn(6)))
    problem = read_pair(Pair("a", str(tmp_path / "a.png"), str(tmp_path / "b.png")), 2, 255)
    assert isinstance(problem, Problem) and "its own EXIF" in problem.message


@pytest.mark.parametrize("raised", [RuntimeError, KeyError, MemoryError, AssertionError, ZeroDivisionError])
@pytest.mark.parametrize("when", ["open", "load"])
def test_whatever_a_plugin_raises_names_the_file(tmp_path, monkeypatch, raised, when):
    path = tmp_path / "picture.png"
    path.write_bytes(encode(VALUES.astype(np.uint8), "PNG"))

    def fail(*args, **options):
        raise raised("in the decoder")

    monkeypatch.setattr(Image, "open", fail) if when == "open" else monkeypatch.setattr(Image.Image, "load", fail)
    if when == "load":
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    readers = [decoding.open_picture, decode] + [decoding.read_size] * (when == "open")
    for read in readers:
        with pytest.raises(DatasetError, match=r"picture\.png"):
            read(path)


def test_what_fails_after_decoding_names_the_file_too(tmp_path, monkeypatch):
    path = tmp_path / "picture.tif"
    path.write_bytes(STORED["TIFF of 16 bits"][0])

    def fail(*args, **options):
        raise TypeError("a tag of another type")

    monkeypatch.setattr("dlv3p_jax.data.stored.bits_of", fail)
    monkeypatch.setattr("dlv3p_jax.data.stored.one_channel", fail)
    for read in (read_image, decode):
        with pytest.raises(DatasetError, match=r"picture\.tif.*another type"):
            read(path)


def test_a_damaged_avif_names_its_file(tmp_path):
    pytest.importorskip("PIL._avif", reason="Pillow was built without AVIF")
    data = encode(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8), "AVIF")
    path, causes = tmp_path / "picture.avif", set()
    for place in range(60, 180):  # in the tables before the pixels
        path.write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
        try:
            decoding.open_picture(path)
        except DatasetError as error:
            assert "picture.avif: " in str(error)
            causes.add(type(error.__cause__))
    assert RuntimeError in causes

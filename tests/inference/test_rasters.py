"""GeoTIFFs in and out (dlv3p_jax.predict --geotiff); the segmenter stands aside, so that nothing is compiled."""

import resource
import sys

import numpy as np
import pytest

from dlv3p_jax.data.pictures import read_rgb
from dlv3p_jax.inference import finding, folder_record, rasters
from dlv3p_jax.inference.finding import Picture
from dlv3p_jax.runtime import files

SIZE = (70, 90)


class Bright:
    """Calls what is brighter than 127 class 1; remembers the sizes of what it saw."""

    classes, palette, picture_range = ("dark", "bright"), np.array([[200, 0, 0], [0, 0, 200]], np.uint8), None

    def __init__(self):
        self.seen = []

    def __call__(self, image):
        assert image.dtype == np.uint8
        self.seen.append(image.shape[:2])
        return (image.mean(-1) > 127).astype(np.int32)


def make_ledger(output, overwrite=False, **how):
    return folder_record.Ledger(output, {"weights": "w", "checkpoint": "c"} | how, overwrite)


def test_labels_lie_where_the_raster_does_and_are_made_window_by_window(tmp_path, monkeypatch):
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    monkeypatch.setattr(rasters, "_SIDE", 32)
    monkeypatch.setattr(rasters, "_MARGIN", 4)
    values = np.random.default_rng(0).integers(0, 65536, (4, *SIZE)).astype(np.uint16)
    values[:, :, 60:] = 7  # no data there
    place = dict(crs="EPSG:32633", transform=rasterio.transform.from_origin(500000, 5400000, 0.5, 0.5))
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", height=70, width=90, count=4, dtype="uint16", nodata=7, **place
    ) as raster:
        raster.write(values)
    (tmp_path / "b.tif").write_bytes(b"no raster")
    pictures = [Picture(tmp_path / f"{name}.tif", f"sub/{name}") for name in "ab"]
    segmenter = Bright()
    pixels, problems = rasters.write_all(pictures, segmenter, tmp_path / "out", make_ledger(tmp_path / "out"))
    # Each with what is around it; none where the raster has no data.
    assert segmenter.seen == [(36, 36), (36, 40), (40, 36), (40, 40), (10, 36), (10, 40)]
    expected = np.where(np.arange(90) < 60, (values[:3] >> 8).mean(0) > 127, 255)
    with rasterio.open(tmp_path / "out" / "geotiffs" / "sub" / "a.tif") as made:
        assert (made.crs, made.transform, made.nodata, made.shape) == (place["crs"], place["transform"], 255, SIZE)
        found = made.read(1)
        assert made.colormap(1)[1] == (0, 0, 200, 255) and made.tags(1)["class_1"] == "bright"
    np.testing.assert_array_equal(found, expected)
    assert pixels.tolist() == [(found == 0).sum(), (found == 1).sum()]
    counted = pixels
    assert [problem.id for problem in problems] == ["sub/b"] and "b.tif" in problems[0].message
    pixels, _ = rasters.write_all(pictures[:1], segmenter, tmp_path / "out", make_ledger(tmp_path / "out"))
    assert len(segmenter.seen) == 6 and pixels.tolist() == counted.tolist()  # it is there


def test_what_was_made_otherwise_or_of_another_raster_is_refused(tmp_path):
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    output = tmp_path / "out"
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        made_as = dict(driver="GTiff", height=40, width=40, count=1, dtype="uint8")
        with rasterio.open(tmp_path / folder / "a.tif", "w", **made_as) as raster:
            raster.write(np.full((1, 40, 40), 200 if folder == "two" else 20, np.uint8))
    one, two = ([Picture(tmp_path / folder / "a.tif", "a")] for folder in ("one", "two"))
    (output / "geotiffs").mkdir(parents=True)
    (output / "geotiffs" / "a.tif").touch()
    for _ in range(2):  # and does not forget that it did
        with pytest.raises(ValueError, match="a.tif is there already, and nothing in .*predict.jsonl says"):
            rasters.write_all(one, Bright(), output, make_ledger(output))
    assert rasters.write_all(one, Bright(), output, make_ledger(output, overwrite=True))[0].tolist() == [1600, 0]
    with pytest.raises(ValueError, match="two/a.tif: give another --output, or --overwrite"):
        rasters.write_all(two, Bright(), output, make_ledger(output))
    (output / "geotiffs" / "b.tif").touch()  # the user's own, beside those of predict
    (tmp_path / "one" / "a.tif").rename(tmp_path / "one" / "b.tif")
    with pytest.raises(ValueError, match="b.tif is there already"):
        rasters.write_all([Picture(tmp_path / "one" / "b.tif", "b")], Bright(), output, make_ledger(output))
    with pytest.raises(ValueError, match="(?s)made otherwise:.*picture_range"):
        make_ledger(output, picture_range=(0, 4095))
    assert rasters.write_all(two, Bright(), output, make_ledger(output, overwrite=True))[0].tolist() == [0, 1600]


def test_what_could_not_be_written_whole_does_not_appear(tmp_path):
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    noise = np.random.default_rng(0).integers(0, 256, (1, 300, 300)).astype(np.uint8)
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", height=300, width=300, count=1, dtype="uint8"
    ) as raster:
        raster.write(noise)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))  # GDAL meets it as it closes the file, and says nothing
    try:
        with pytest.raises(OSError, match=r"File too large: .*geotiffs/a\.tif"):
            rasters.write_all(
                [Picture(tmp_path / "a.tif", "a")], Bright(), tmp_path / "out", make_ledger(tmp_path / "out")
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "out" / "geotiffs").iterdir()) == []


def test_dark_values_are_warned_of_and_palettes_refused(tmp_path, caplog):
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    profile = dict(driver="GTiff", height=40, width=40, count=1)
    dark = np.full((1, 40, 40), 900, np.uint16)
    dark[0, 0] = 65535
    with rasterio.open(tmp_path / "a.tif", "w", dtype="uint16", nodata=65535, **profile) as raster:
        raster.write(dark)
    with rasterio.open(tmp_path / "b.tif", "w", dtype="uint8", **profile) as raster:
        raster.write(np.ones((1, 40, 40), np.uint8))
        raster.write_colormap(1, {1: (255, 255, 255)})
    pictures = [Picture(tmp_path / f"{name}.tif", name) for name in "ab"]
    (tmp_path / "out" / "geotiffs").mkdir(parents=True)
    (tmp_path / "out" / "geotiffs" / files.unfinished_name()).touch()  # of a run that was killed
    pixels, problems = rasters.write_all(pictures, Bright(), tmp_path / "out", make_ledger(tmp_path / "out"))
    assert pixels.tolist() == [39 * 40, 0]
    assert "a.tif), far below what their files have room for" in caplog.text
    assert [problem.id for problem in problems] == ["b"] and "expand rgb" in problems[0].message
    assert [path.name for path in (tmp_path / "out" / "geotiffs").iterdir()] == ["a.tif"]
    found, problems = finding.find_pictures([tmp_path / "out"], tmp_path / "out")
    assert found == [] and "no pictures beside those of this folder of outputs" in problems[0].message


@pytest.mark.parametrize(
    ("dtype", "options", "light"),
    [
        ("uint8", {"photometric": "MINISWHITE"}, [0, 100]),
        ("uint16", {"photometric": "MINISWHITE"}, [0, 30_000]),
        ("uint8", {"nbits": 4}, [8, 15]),
        ("uint16", {"nbits": 12}, [2100, 4095]),
    ],
)
def test_values_are_read_as_pillow_reads_them(tmp_path, dtype, options, light):
    """Of 4 columns, the middle two are light."""
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    bits = options.get("nbits", np.iinfo(dtype).bits)
    dark = [2**bits - 1, 2**bits - 50] if "photometric" in options else [0, 2]
    row = np.repeat([dark[0], *light, dark[1]], 8)
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", height=20, width=32, count=1, dtype=dtype, **options
    ) as raster:
        raster.write(np.broadcast_to(row, (1, 20, 32)).astype(dtype))
    picture = Picture(tmp_path / "a.tif", "a")
    pixels, problems = rasters.write_all([picture], Bright(), tmp_path / "out", make_ledger(tmp_path / "out"))
    assert problems == []
    with rasterio.open(tmp_path / "out" / "geotiffs" / "a.tif") as made:
        np.testing.assert_array_equal(made.read(1)[0], np.repeat([0, 1, 1, 0], 8))
    np.testing.assert_array_equal(read_rgb(picture.path).mean(-1)[0] > 127, np.repeat([0, 1, 1, 0], 8))


def test_the_value_of_no_data_is_no_class(tmp_path):
    pytest.importorskip("rasterio", reason="rasterio is not installed")
    segmenter = Bright()
    segmenter.classes = [str(number) for number in range(256)]
    with pytest.raises(ValueError, match="255 is for no data, so 255 classes are the most"):
        rasters.write_all([], segmenter, tmp_path, make_ledger(tmp_path))


def test_a_missing_package_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(ValueError, match=r"pip install 'dlv3p_jax\[geo\]'"):
        rasters.write_all([], Bright(), tmp_path, make_ledger(tmp_path))

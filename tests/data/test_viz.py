import io

import numpy as np
import pytest
from PIL import Image

from dlv3p_jax.data import classes, viz


def test_palette_is_pascal_voc_s():
    # From the development kit's documentation: aeroplane, bicycle, ..., person, potted plant, TV; and void.
    colors = viz.palette(256).tolist()
    assert colors[:6] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128]]
    assert colors[15:17] == [[192, 128, 128], [0, 64, 0]]
    assert colors[20] == [0, 64, 128]
    assert colors[255] == [224, 224, 192]
    assert len(set(map(tuple, colors))) == 256
    assert list(viz.IGNORED) not in colors
    np.testing.assert_array_equal(viz.palette(21), colors[:21])
    with pytest.raises(ValueError, match="num_classes = 257"):
        viz.palette(257)


def apart(colors) -> float:
    """The smallest distance of two colours in CIELAB, as OpenCV computes it."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    lab = cv2.cvtColor(np.float32(colors)[None] / 255, cv2.COLOR_RGB2LAB)[0]
    distances = np.linalg.norm(lab[:, None] - lab, axis=-1)
    return distances[np.triu_indices(len(lab), 1)].min()


def test_colours_of_classes_without_any_are_told_apart():
    for num_classes, least in ((12, 45), (24, 34), (255, 11)):
        assert apart([*viz.class_colors(num_classes), viz.IGNORED]) > least
    assert apart(viz.palette(12)) < 13  # three dark reds among them
    assert viz.class_colors(24)[:5] == viz.class_colors(5) and viz.class_colors(2)[0] == [0, 0, 0]
    known = {0: (250, 0, 0), 2: (0, 0, 0), 3: (0, 160, 0)}
    colors = viz.class_colors(8, known)
    assert {index: tuple(colors[index]) for index in known} == known and apart(colors) > 45


def test_marks_have_colours_that_no_class_has():
    for palette in (classes.CITYSCAPES.palette, viz.palette(21), viz.class_colors(24)):
        first, second = viz.free_colors(palette, 2)
        assert min(apart([color, other]) for color in (first, second) for other in (*palette, viz.IGNORED)) > 40
        assert apart([first, second]) > 40


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_colorize_shows_everything_outside_the_palette_as_ignored(dtype):
    label = np.array([[0, 1], [2, 255]], dtype)
    colors = viz.colorize(label, [(1, 2, 3), (4, 5, 6)])
    assert colors.dtype == np.uint8
    assert colors.tolist() == [[[1, 2, 3], [4, 5, 6]], [list(viz.IGNORED)] * 2]


def test_overlay_blends_classes_and_leaves_ignored_pixels_alone():
    image = np.full((1, 3, 3), 100, np.uint8)
    label = np.array([[0, 1, 255]], np.uint8)
    blended = viz.overlay(image, label, [(0, 0, 0), (200, 100, 0)], alpha=0.25)
    assert blended.dtype == np.uint8
    assert blended.tolist() == [[[75, 75, 75], [125, 100, 75], [100, 100, 100]]]
    with pytest.raises(ValueError, match="differ in height or width"):
        viz.overlay(image, label.T, [(0, 0, 0)])


def test_label_png_keeps_the_indices_and_shows_the_colours():
    label = np.array([[0, 1, 20, 255]], np.int32)
    file = io.BytesIO()
    viz.label_png(label, viz.palette(21)).save(file, "PNG")
    read = Image.open(file)
    assert read.mode == "P"
    np.testing.assert_array_equal(np.asarray(read), label)
    np.testing.assert_array_equal(np.asarray(read.convert("RGB")), viz.colorize(label, viz.palette(21)))
    with pytest.raises(ValueError, match=r"0\.\.256"):
        viz.label_png(np.array([[0, 256]]), viz.palette(21))


def test_errors_lie_over_a_picture():
    label, prediction = np.array([[0, 1, 255, 7]]), np.array([[0, 0, 1, 1]])
    png = viz.marks_png(label != prediction, label >= 2, [(1, 2, 3)])
    right, wrong, *ignored = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))[0].tolist()
    assert right[3] == 0 and wrong == [1, 2, 3, 255]
    assert all(pixel[:3] == list(viz.IGNORED) and 0 < pixel[3] < 255 for pixel in ignored)


def test_a_palette_that_is_not_colours_is_refused():
    with pytest.raises(ValueError, match="colours"):
        viz.colorize(np.zeros((1, 1), int), [(0, 0, 300)])


@pytest.fixture
def sheet():
    """A picture of two halves: the left predicted well, the right half wrong and half ignored."""
    image = np.full((20, 40, 3), 200, np.uint8)
    label = np.zeros((20, 40), np.uint8)
    label[:, 20:] = 1
    label[:10, 20:] = 255
    prediction = np.zeros((20, 40), np.int32)
    small = (image[:8, :8], label[:8, :8], prediction[:8, :8])
    triples = zip((image, label, prediction), small, strict=True)
    return viz.contact_sheet(*triples, ["sky", "road"], viz.palette(2), cell_width=80)


def test_contact_sheet_lines_pictures_up(sheet):
    pixels = np.asarray(sheet.convert("RGB"))
    assert pixels.shape[1] > 4 * 80
    left, top = 12, 12 + 26  # of the first cell
    cells = [pixels[top : top + 40, x : x + 80] for x in range(left, 4 * 92, 92)]
    assert np.all(cells[0] == 200)
    assert cells[1][30, 10].tolist() == [0, 0, 0]
    assert cells[1][30, 70].tolist() == [128, 0, 0]
    assert cells[1][10, 70].tolist() == list(viz.IGNORED)
    assert np.all(cells[2] == 0)
    wrong = np.all(cells[3] == viz.free_colors(viz.palette(2), 1), axis=-1)
    assert wrong[20:, 40:].all()
    assert wrong.sum() == 20 * 40  # nothing that is right or ignored
    assert np.all(cells[3][:20, 40:] == viz.IGNORED)


def test_contact_sheet_has_headings_and_a_legend(sheet):
    pixels = np.asarray(sheet.convert("RGB")).astype(int)
    dark = (pixels < 100).all(-1)
    assert dark[12:38].any(axis=0)[12:92].any()  # letters above the first column
    legend = pixels[38 + 40 + 12 + 80 + 12 :]
    for color in (*viz.palette(2).tolist(), viz.IGNORED, *viz.free_colors(viz.palette(2), 1)):
        assert (legend == color).all(-1).sum() >= 17 * 17


def test_contact_sheet_needs_a_colour_for_each_class():
    with pytest.raises(ValueError, match="1 colours for 2 classes"):
        viz.contact_sheet([], [], [], ["a", "b"], viz.palette(1))

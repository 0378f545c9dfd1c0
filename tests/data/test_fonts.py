"""Class names of any script in pictures: letters where the font has them, else the class's number; never a box."""

import warnings

import numpy as np
from PIL import Image, ImageDraw

from dlv3p_jax.data import fonts, viz
from dlv3p_jax.reporting import charts


def ink(text) -> np.ndarray:
    image = Image.new("L", (40, 40))
    ImageDraw.Draw(image).text((2, 2), text, 255, fonts.font(24))
    return np.asarray(image)


def test_a_letter_is_drawn_and_not_the_box_of_what_is_missing():
    box = ink("\U000e1000")  # a private character, which no font has
    for letter in "aßéЖλעعř":
        assert fonts.drawable(letter) == letter and not np.array_equal(ink(letter), box), letter
    assert np.array_equal(ink("道"), box)


def test_names_without_letters_are_numbers_and_that_is_said_once(caplog):
    names = ["Straße", "道路", "улица", "空 sky"]
    for _ in range(2):
        assert fonts.drawable_names(names) == ["Straße", "class 1", "улица", "class 3"]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and "class 1 for '道路', class 3 for '空 sky'" in lines[0]
    assert fonts.drawable("図1.png") == "?1.png"


def test_contact_sheets_and_charts_take_any_name_without_a_raw_warning():
    picture, label = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sheets = [
            np.asarray(viz.contact_sheet([picture], [label], [label], [name], viz.palette(1)))
            for name in ("道路", "class 0")
        ]
        chart = charts.intervals("iou", "IoU", ["道路"], {"IoU": (np.array([0.5]), None)})
    np.testing.assert_array_equal(*sheets)
    assert "道路" in chart  # text that the browser draws, with its own fonts

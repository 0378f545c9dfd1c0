"""The demo's page in a headless Chromium."""

import base64
import gc

import numpy as np
import pytest
from demo_visits import (
    NAMES,
    PALETTE,
    Bands,
    bands,
    encode,
    expected_legend,
    gradient,
    legend,
    shown,
    upload,
    wait_until,
)
from PIL import Image

from dlv3p_jax.data import viz


def test_a_picture_is_seen_under_its_classes(page, served):
    page.get_by_text("Trained on stripes, step 3").wait_for()
    assert "workdir" not in page.content()
    assert legend(page) == list(NAMES)
    image = gradient()
    upload(page, encode(image))
    page.get_by_text("street.png: 90 x 60 pixels").wait_for()
    assert legend(page) == expected_legend(bands(image), NAMES)
    page.get_by_text("Not in this picture: <b>unseen</b>").wait_for()
    swatches = page.locator(".swatch").evaluate_all("all => all.map(one => getComputedStyle(one).backgroundColor)")
    order = [NAMES.index(entry.split()[0]) for entry in legend(page)]
    assert swatches == ["rgb({}, {}, {})".format(*PALETTE[index]) for index in order]
    # The browser's opacity and its products have 8 bits.
    assert np.abs(shown(page) - viz.overlay(image, bands(image), PALETTE, 0.5)).max() <= 2

    for what, expected in (("labels", bands(image)), ("overlay", viz.overlay(image, bands(image), PALETTE, 0.5))):
        with page.expect_download() as download:
            page.get_by_text(f"Download the {what}").click()
        assert download.value.suggested_filename == f"street_{what}.png"
        np.testing.assert_array_equal(np.asarray(Image.open(download.value.path())), expected)
    box = page.locator(".layers").bounding_box()
    for x in (10, 70, 85):
        page.mouse.move(box["x"] + x + 0.5, box["y"] + 20.5)
        assert page.locator("#under").inner_text() == NAMES[bands(image)[20, x]]
    page.mouse.move(box["x"] + 200, box["y"] + 300)
    assert not page.locator("#under").count()

    page.locator(".q-slider [tabindex]").press("ArrowRight")
    page.wait_for_function("getComputedStyle(document.querySelector('.layers .classes')).opacity == '0.55'")
    assert np.abs(shown(page) - viz.overlay(image, bands(image), PALETTE, 0.55)).max() <= 2
    assert served[1] == [{"flip": False, "scales": (0.5,)}]


def test_flip_and_scales_predict_again(page, visit, served):
    page.get_by_text("Flip").click()  # without a picture there is nothing to predict
    page.get_by_text("Flip").click()
    image = gradient()
    upload(page, encode(image))
    page.get_by_text("street.png: 90 x 60 pixels").wait_for()
    page.get_by_text("Flip").click()
    wait_until(page, lambda: legend(page) == expected_legend(2 - bands(image), NAMES))
    page.get_by_label("Scales").click()
    page.get_by_role("option", name="0.75, 1, 1.25", exact=True).click()
    wait_until(page, lambda: len(served[1]) == 3)
    page.get_by_label("Scales").click()
    page.get_by_role("option", name="1", exact=True).click()
    wait_until(page, lambda: len(served[1]) == 4)
    page.get_by_text("Flip").click()
    wait_until(page, lambda: legend(page) == expected_legend(bands(image), NAMES))
    views = [(False, (0.5,)), (True, (0.5,)), (True, (0.75, 1.0, 1.25)), (True, (1.0,)), (False, (1.0,))]
    assert served[1] == [{"flip": flip, "scales": scales} for flip, scales in views]
    gc.collect()
    assert len(Bands.alive) == 1 + 4  # what they compile takes memory: not all that were ever asked for are kept
    assert legend(visit(served[0])) == list(NAMES)  # another visit sees nothing of this one


def test_the_page_says_that_it_works_and_shows_only_what_was_asked_last(page, served):
    Bands.may_answer.clear()
    upload(page, encode(gradient(50)))
    page.get_by_text("Predicting street.png.").wait_for()
    assert page.locator(".layers .picture").is_visible() and not page.locator(".layers .classes").count()
    wait_until(page, lambda: len(served[1]) == 1)
    upload(page, encode(gradient(70)), "lane.png")
    page.get_by_text("Predicting lane.png.").wait_for()
    upload(page, encode(gradient(80)), "path.png")
    page.get_by_text("Predicting path.png.").wait_for()
    Bands.may_answer.set()
    page.get_by_text("path.png: 90 x 80 pixels").wait_for()
    assert not page.get_by_text("Predicting").is_visible()
    assert len(served[1]) == 2  # the one in between was not begun


def test_a_dropped_picture_and_a_long_name_fit_on_a_phone(page):
    image = Image.fromarray(gradient(150, 600))
    dropped = page.evaluate_handle(
        """([data, name]) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))
            const transfer = new DataTransfer()
            transfer.items.add(new File([bytes], name, {type: "image/png"}))
            return transfer
        }""",
        [base64.b64encode(encode(image)).decode(), "street" * 40 + ".png"],
    )
    page.dispatch_event(".q-uploader", "dragover", {"dataTransfer": dropped})
    page.dispatch_event(".q-uploader__dnd", "drop", {"dataTransfer": dropped})
    page.get_by_text("600 x 150 pixels").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    boxes = [page.locator(f".layers .{name}").bounding_box() for name in ("picture", "classes")]
    assert boxes[0] == boxes[1] and boxes[0]["width"] == pytest.approx(4 * boxes[0]["height"], rel=0.01)

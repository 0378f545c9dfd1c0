"""What the tests of the pages share."""

import re

import pytest


@pytest.fixture
def page_of(browser):
    """Opens a file as a reader would, without a network.

    The page has to fit its window and to be as dark as is asked for; whatever it asks for or complains of is an error.
    """
    contexts, troubles = [], []

    def open_page(path, width=390, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "request", lambda asked: troubles.append(asked.url) if not asked.url.startswith(("file:", "data:")) else 0
        )
        page.goto(f"file://{path}")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 3 * 80) == (scheme == "dark")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []

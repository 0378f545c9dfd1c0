"""Visits to the page of dlv3p_jax.demo, with a model that tells brightness in place of a network."""

import contextlib
import http.client
import io
import threading
import time
import types
import weakref

import numpy as np
from PIL import Image

NAMES = ("floor", "wall", "lamp", "<b>unseen</b>")
PALETTE = np.array([(230, 25, 75), (60, 180, 75), (0, 130, 200), (255, 225, 25)], np.uint8)
MAX_PIXELS, MAX_BYTES = 100_000, 200_000


def gradient(height=60, width=90) -> np.ndarray:
    """Noise, dark to light from left to right."""
    rng = np.random.default_rng(height)
    ramp = 230 * np.linspace(0, 1, width)[:, None] ** 2 + rng.uniform(0, 20, (height, width, 3))
    return ramp.astype(np.uint8)


def bands(image) -> np.ndarray:
    return image.mean(axis=-1).astype(np.int32) // 86


def encode(image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


class Bands:
    """Stands for a Segmenter: three classes by brightness, the other way round with flip; notes its calls."""

    classes, palette, source, picture_range = NAMES, PALETTE, "workdir/bands, step 3", None
    may_answer = threading.Event()
    may_answer.set()
    alive = weakref.WeakSet()

    def __init__(self, calls, **views):
        self.calls, self.views = calls, views
        self.alive.add(self)
        model = types.SimpleNamespace(backbone="resnet18_vd")
        self.config = types.SimpleNamespace(dataset="stripes", eval=types.SimpleNamespace(**views), model=model)

    def with_views(self, **views):
        return Bands(self.calls, **views)

    def __call__(self, image):
        self.calls.append(self.views)
        self.may_answer.wait()
        if len(image) == 7:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return 2 - bands(image) if self.views["flip"] else bands(image)


@contextlib.contextmanager
def visits(browser):
    """Gives a function that opens pages of 390 x 800 pixels; they have to keep silent and to ask nobody else."""
    pages, said, asked = [], [], []

    def open_page(url):
        page = browser.new_page(viewport={"width": 390, "height": 800})
        pages.append(page)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        page.get_by_text("Opacity").wait_for()
        ours = tuple(start + url.partition(":")[2] for start in ("http:", "ws:", "blob:http:")) + ("data:",)
        assert not [other for other in asked if not other.startswith(ours)]
        return page

    yield open_page
    for page in pages:
        page.close()
    assert not [message for message in said if "ERR_CONNECTION_REFUSED" not in message]  # after Ctrl-C


def upload(page, data, name="street.png") -> None:
    page.set_input_files("input[type=file]", {"name": name, "mimeType": "image/png", "buffer": data})


def shown(page) -> np.ndarray:
    """What the picture looks like on the screen, int [H, W, 3]; at a whole pixel, where nothing is resampled."""
    page.add_style_tag(
        content=".layers { position: fixed; left: 0; top: 50px; z-index: 9 } .layers img { min-width: 0 }"
    )
    data = page.locator(".layers").screenshot()
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def legend(page) -> list[str]:
    return page.get_by_role("listitem").all_inner_texts()


def expected_legend(label, names) -> list[str]:
    shares = {name: 100 * np.mean(label == index) for index, name in enumerate(names)}
    return [f"{name} {share:.1f} %" for name, share in sorted(shares.items(), key=lambda item: -item[1]) if share]


def status(url, method="GET", path="/", **headers) -> int:
    """Of a request that ends behind its headers."""
    connection = http.client.HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=30)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse().status
    connection.close()
    return answer


def wait_until(page, holds) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        page.wait_for_timeout(20)

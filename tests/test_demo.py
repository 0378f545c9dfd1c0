"""The demo's page in a headless Chromium, and the command that serves it."""

import base64
import gc
import http.client
import io
import json
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import types
import urllib.error
import urllib.request
import weakref
import zlib

import drawn
import numpy as np
import pytest
from absl import app
from PIL import Image

from dlv3p_jax import demo
from dlv3p_jax.data import viz
from dlv3p_jax.datasets.toy_streets import scenes
from dlv3p_jax.inference.segmenter import Segmenter

pytest.importorskip("nicegui", reason="nicegui is not installed (the extra demo)")
import nicegui  # noqa: E402
import uvicorn  # noqa: E402

from dlv3p_jax.inference import demo_page, demo_uploads  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
NAMES = ("floor", "wall", "lamp", "<b>unseen</b>")
PALETTE = np.array([(230, 25, 75), (60, 180, 75), (0, 130, 200), (255, 225, 25)], np.uint8)
MAX_PIXELS, MAX_BYTES = 100_000, 200_000
UPGRADE = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13"}
UPGRADE |= {"Sec_WebSocket_Key": base64.b64encode(bytes(16)).decode()}
COMMAND = """
import sys
from dlv3p_jax.runtime import cli
from dlv3p_jax import demo
demo.define_flags()
try:
    cli.run(demo.main, "demo")
finally:
    assert "jax" not in sys.modules
"""


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


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workdir")
    drawn.save_checkpoint(folder, drawn.make_config())
    return folder


@pytest.fixture(scope="module")
def served():
    """The page at a port of its own, in a thread; gives its address and the calls of the segmenter."""
    calls = []
    segmenter, example = Bands(calls, flip=False, scales=(0.5,)), ("lamp.png", encode(gradient(40)))
    page = demo_page.make_app(segmenter, MAX_PIXELS, MAX_BYTES, ["127.0.0.1", "[::1]"], example)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(page, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/", calls
    server.should_exit = True
    thread.join()


@pytest.fixture
def visit(browser):
    """Opens pages of 390 x 800 pixels that keep their consoles silent and ask nobody else for anything."""
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


@pytest.fixture
def page(visit, served):
    served[1].clear()
    return visit(served[0])


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


def test_the_command_serves_a_checkpoint_until_ctrl_c(workdir, visit):
    process = subprocess.Popen(
        [sys.executable, "-m", "dlv3p_jax.demo", f"--checkpoint={workdir}", "--port=0"],
        **dict(cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True),
    )
    try:
        url = re.search(r"http://127.0.0.1:\d+/?", process.stdout.readline())[0]
        assert status(url, Host="rebound.example") == 400
        page = visit(url)
        image = drawn.draw_picture(np.random.default_rng(0), 40, 56)
        upload(page, encode(image))
        page.get_by_text("street.png: 56 x 40 pixels").wait_for()
        process.send_signal(signal.SIGINT)
        output, log = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0 and output.strip() == "Stopped", log
    assert "Traceback" not in log and "WARNING" not in log
    segmenter = Segmenter.from_checkpoint(workdir)
    assert legend(page) == expected_legend(segmenter(image), segmenter.classes)
    assert np.abs(shown(page) - segmenter.overlay(image)).max() <= 2


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


def post(url, data, **headers):
    """(status, type, body) of POST /predict."""
    request = urllib.request.Request(f"{url}predict", data, {k.replace("_", "-"): v for k, v in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers["content-type"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["content-type"], error.read()


def test_programs_send_pictures_and_get_labels(served):
    image = gradient()
    head = b'Content-Disposition: form-data; name="picture"; filename="a.png"'
    form = b"--x\r\n" + head + b"\r\n\r\n" + encode(image) + b"\r\n--x--"
    for data, kind in ((encode(image), "image/png"), (form, "multipart/form-data; boundary=x")):
        code, answered, labels = post(served[0], data, Content_Type=kind)
        assert (code, answered) == (200, "image/png")
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(labels))), bands(image))
        described = json.loads(post(served[0], data, Content_Type=kind, Accept="application/json")[2])
        assert base64.b64decode(described.pop("labels_png")) == labels
        assert (described["width"], described["height"]) == (90, 60)
        assert {row["name"]: row["pixels"] for row in described["classes"]} == {
            name: np.count_nonzero(bands(image) == index) for index, name in enumerate(NAMES[:3])
        }


@pytest.mark.parametrize(
    ("data", "headers", "code", "message"),
    [
        (b"", {}, 400, "no picture: send it as the body"),
        (b"no parts", {"Content_Type": "multipart/form-data"}, 400, "Missing boundary"),
        (b"text", {}, 400, "the picture is no picture of these formats"),
        (encode(np.zeros((400, 300), np.uint8)), {}, 400, "120,000 pixels, and 100,000 are the most"),
        (encode(gradient()), {"Sec_Fetch_Site": "cross-site"}, 403, "pages of other sites"),
        (encode(gradient(7)), {}, 500, "the picture was not predicted: RESOURCE_EXHAUSTED"),
    ],
)
def test_pictures_that_are_not_predicted_are_answered(served, data, headers, code, message):
    answer = post(served[0], data, **{"Content_Type": "image/png"} | headers)
    assert answer[:2] == (code, "application/json") and message in json.loads(answer[2])["error"]


def test_the_example_is_a_picture_of_the_run_or_drawn(page, tmp_path):
    page.get_by_text("Try an example").click()
    page.get_by_text("lamp.png: 90 x 40 pixels").wait_for()
    name, data = demo_uploads.find_example(tmp_path)
    assert name == "drawn_street.png" and Image.open(io.BytesIO(data)).size == scenes.SIZE[::-1]


@pytest.fixture
def slow_to_read(monkeypatch):
    """Files called slow.png are decoded only after this event; gives another for when they begin."""
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
        ("bomb.png", header, "bomb.png cannot be read: Image size (3000000000 pixels) exceeds limit"),
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


@pytest.mark.parametrize(
    ("header", "answer"), [({"Content_Length": "220000"}, 413), ({"Transfer_Encoding": "chunked"}, 411)]
)
def test_large_requests_are_refused_unread(served, header, answer):
    assert status(served[0], "POST", "/_nicegui/client/x/upload/1", **header) == answer


@pytest.mark.parametrize(
    ("path", "headers", "answer"), [("/", {}, 200), ("/_nicegui_ws/socket.io/?EIO=4&transport=websocket", UPGRADE, 101)]
)
def test_the_page_and_its_socket_answer_under_known_names_alone(served, path, headers, answer):
    for host in ("127.0.0.1:8080", "[::1]:8080"):
        assert status(served[0], path=path, Host=host, **headers) == answer
    for host in ("rebound.example:8080", "127.0.0.1.rebound.example", ""):
        assert status(served[0], path=path, Host=host, **headers) == 400


def test_only_a_loopback_address_has_known_names():
    assert set(demo._known_hosts("mine", "127.0.1.1")) == {"mine", "localhost", "127.0.0.1", "[::1]"}
    assert demo._known_hosts("0.0.0.0", "0.0.0.0") == demo._known_hosts("[::]", "::") == ["*"]


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


@pytest.mark.parametrize(
    ("words", "values", "message"),
    [
        (["picture.png"], {}, "unexpected argument 'picture.png'"),
        ([], {"checkpoint": None}, "give --checkpoint=WORKDIR"),
        ([], {"scales": ["0.5", "big"]}, "--scales=0.5,big: give positive numbers"),
        ([], {"scales": ["0", "1"]}, "--scales=0,1: give positive numbers"),
        ([], {"scales": ["0.5"]}, "pip install '.[demo]'"),
    ],
)
def test_wrong_flags_are_answered(monkeypatch, words, values, message):
    monkeypatch.setattr(
        demo.flags, "FLAGS", types.SimpleNamespace(**{"checkpoint": "w", "flip": None, "scales": None} | values)
    )
    monkeypatch.setitem(sys.modules, "nicegui", None)
    with pytest.raises((app.UsageError, SystemExit), match=re.escape(message)):
        demo.main(["demo", *words])


def test_a_port_in_use_is_told_before_jax_is_imported():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = f"--port={listening.getsockname()[1]}"
        command = [sys.executable, "-c", COMMAND, "--checkpoint=w", port]
        process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr == f"demo: cannot listen at --host=127.0.0.1 {port}: Address already in use; give others\n"

"""What the demo's server answers without a browser: POST /predict, requests that are too large, and other names."""

import base64
import io
import json
import urllib.error
import urllib.request

import numpy as np
import pytest
from demo_visits import NAMES, bands, encode, gradient, status
from PIL import Image, TiffImagePlugin

UPGRADE = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13"}
UPGRADE |= {"Sec_WebSocket_Key": base64.b64encode(bytes(16)).decode()}


def post(url, data, **headers):
    """(status, type, body) of POST /predict."""
    request = urllib.request.Request(f"{url}predict", data, {k.replace("_", "-"): v for k, v in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers["content-type"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["content-type"], error.read()


def small_before_large():
    """A TIFF whose first page is a smaller copy of the second, as those of GeoTIFFs may be."""
    file = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(file, True) as pages:
        for shape, kind in (((8, 8), 1), ((400, 300), 0)):
            Image.fromarray(np.zeros(shape, np.uint8)).save(pages, "TIFF", tiffinfo={254: kind})
            pages.newFrame()
    return file.getvalue()


def test_programs_send_pictures_and_get_labels(served):
    image = gradient()
    head = b'Content-Disposition: form-data; name="picture"; filename="a.png"'
    form = b"--x\r\n" + head + b"\r\n\r\n" + encode(image) + b"\r\n--x--"
    for data, kind in ((encode(image), "image/png"), (form, "Multipart/form-data; boundary=x")):
        code, answered, labels = post(served[0], data, Content_Type=kind)
        assert (code, answered) == (200, "image/png")
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(labels))), bands(image))
        described = json.loads(post(served[0], data, Content_Type=kind, Accept="Application/json")[2])
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
        (encode(np.zeros((1, 179_000_000), bool)), {}, 400, "179,000,000 pixels, and 100,000 are the most"),
        (small_before_large(), {}, 400, "120,000 pixels, and 100,000 are the most"),
        (encode(gradient()), {"Sec_Fetch_Site": "cross-site"}, 403, "pages of other sites"),
        (encode(gradient(7)), {}, 500, "the picture was not predicted: RESOURCE_EXHAUSTED"),
    ],
)
def test_pictures_that_are_not_predicted_are_answered(served, data, headers, code, message):
    answer = post(served[0], data, **{"Content_Type": "image/png"} | headers)
    assert answer[:2] == (code, "application/json") and message in json.loads(answer[2])["error"]


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

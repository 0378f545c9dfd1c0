"""Downloads from a server on this machine that stalls, breaks off, lies and changes its mind."""

import contextlib
import hashlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
from absl import logging

from dlv3p_jax.weights import download, receiving
from dlv3p_jax.weights.download import DownloadError

CONTENT = bytes(range(256)) * 1201  # 307,456 bytes, more than are read at once
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers each request as the next function of `server.script` says; the last one stays."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests.append(dict(self.headers))
        script = self.server.script
        act = script.pop(0) if len(script) > 1 else script[0]
        self.close_connection = True
        with contextlib.suppress(ConnectionError):  # clients that have seen enough
            act(self)

    def answer(self, status, headers=(), body=b""):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *args):
        del args


def serve(content=CONTENT, etag='"v1"', stop=None, pause=0.0, status=None, **headers):
    """An honest answer, with ranges; of the body only `stop` bytes, then a break or, first, a pause.

    Other headers replace the true ones, None leaves one out.
    """

    def act(handler):
        begin = 0
        given = {"ETag": etag}
        asked = handler.headers.get("Range")
        if asked and handler.headers["If-Range"] == etag and status != 200:
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
            if begin >= len(content):
                return handler.answer(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": 0})
            given["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        body = content[begin:]
        given["Content-Length"] = len(body)
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        given = {name: value for name, value in given.items() if value is not None}
        handler.answer(status or (206 if "Content-Range" in given else 200), given, body[:stop])
        time.sleep(pause)
        return None

    return act


def fail(status, body=b"no"):
    return lambda handler: handler.answer(status, {"Content-Length": len(body)}, body)


@pytest.fixture
def server(monkeypatch):
    """A server with `url`, `script` and `requests`, which are the headers of each."""
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.url = f"http://127.0.0.1:{server.server_port}/folder/model.bin"
        server.script, server.requests = [serve()], []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "model.bin"


@pytest.fixture
def log(caplog):
    caplog.set_level("INFO", logger=logging.get_absl_logger().name)
    return caplog


def get(server, path, **changes):
    return download.download(server.url, path, **{"timeout": 5, "attempts": 4, "backoff": 0.01} | changes)


def assert_whole(path, content=CONTENT):
    """The file, its record, and nothing else."""
    assert path.read_bytes() == content
    assert sorted(os.listdir(path.parent)) == [path.name, f"{path.name}.json"]
    assert json.loads((path.parent / f"{path.name}.json").read_text())["sha256"] == hashlib.sha256(content).hexdigest()


def refusal(server, path, **changes):
    """The message with which a download fails; nothing looks finished then, and it tells where a file may be put."""
    with pytest.raises(DownloadError) as error:
        get(server, path, **changes)
    assert not path.exists() and not path.with_name("model.bin.json").exists()
    message = str(error.value)
    assert server.url in message and str(path) in message and "\n" not in message
    return message


def test_a_file_comes_once_with_its_record(server, path, log):
    assert get(server, path) == path
    assert_whole(path)
    record = json.loads(path.with_name("model.bin.json").read_text())
    assert record.pop("date").startswith("20")
    assert record == {"url": server.url, "bytes": len(CONTENT), "sha256": SHA256, "etag": '"v1"'}
    assert SHA256 in log.text and server.url in log.text
    assert get(server, path) == path and len(server.requests) == 1
    assert server.requests[0]["Accept-Encoding"] == "identity" and "Range" not in server.requests[0]


def test_the_progress_bar_counts_every_byte_once(server, path, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, total, initial, **kwargs):
            self.total, self.at = total, initial
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def update(self, count):
            self.at += count

    monkeypatch.setattr(receiving, "tqdm", Bar)
    server.script = [serve(stop=100_000), serve()]
    get(server, path)
    assert [(bar.total, bar.at) for bar in bars] == [(len(CONTENT), 100_000), (len(CONTENT), len(CONTENT))]


@pytest.mark.parametrize("pause", [0.0, 0.9], ids=["broken", "stalled"])
def test_a_connection_that_breaks_or_stalls_goes_on_where_it_stopped(server, path, pause, log):
    server.script = [serve(stop=100_000, pause=pause), serve(stop=50_000, pause=pause), serve()]
    get(server, path, timeout=0.5)
    assert_whole(path)
    assert [request.get("Range") for request in server.requests] == [None, "bytes=100000-", "bytes=150000-"]
    assert [request.get("If-Range") for request in server.requests] == [None, '"v1"', '"v1"']
    assert ("no answer for 0.5 s" if pause else "broke off after 100,000 of 307,456 bytes") in log.text


def test_last_modified_serves_where_there_is_no_strong_etag(server, path):
    date = "Wed, 01 Feb 2023 10:00:00 GMT"
    whole = serve(etag='W/"1"', Last_Modified=date, stop=1000)
    server.script = [whole, serve(etag=date, ETag='W/"1"', Last_Modified=date)]  # which takes the date for If-Range
    get(server, path)
    assert_whole(path)
    assert (server.requests[1]["Range"], server.requests[1]["If-Range"]) == ("bytes=1000-", date)


@pytest.mark.parametrize("size", [len(CONTENT), 90_000, 400_000])
def test_a_file_that_changes_between_attempts_is_taken_afresh(server, path, size):
    changed = bytes(reversed(CONTENT * 2))[:size]
    server.script = [serve(stop=100_000), serve(changed, etag='"v2"')]
    get(server, path)
    assert_whole(path, changed)
    assert json.loads(path.with_name("model.bin.json").read_text())["etag"] == '"v2"'


def redirect(target):
    return lambda handler: handler.answer(302, {"Location": target, "Content-Length": 0})


@pytest.mark.parametrize(
    ("act", "options", "words", "asked"),
    [
        *((fail(status), {}, [f"the server answered {status}"], 1) for status in (403, 404, 410)),
        (serve(Content_Encoding="gzip"), {}, ["Content-Encoding: gzip"], 1),
        (serve(Content_Length=None), {}, ["does not state a Content-Length"], 1),
        (serve(), {"max_bytes": 300_000}, ["307,456 bytes, but the file must have 1 to 300,000"], 1),
        (
            *(serve(Content_Length=1000), {"min_bytes": 100_000, "max_bytes": 400_000}),
            *(["1,000 bytes, but the file must have 100,000 to 400,000"], 1),
        ),
        (serve(Content_Length=len(CONTENT) + 500), {}, ["broke off after 307,456 of 307,956 bytes", "416"], 4),
        (lambda handler: time.sleep(0.5), {"timeout": 0.1, "attempts": 3}, ["no answer for 0.1 s (3 times)"], 3),
        *(
            (redirect(target), {}, [target], 1)
            for target in ("file:///etc/passwd", "ftp://127.0.0.1/model.bin", "data:,x")
        ),
    ],
)
def test_what_is_not_the_file_is_refused_and_asked_for_again_only_where_that_may_help(
    server, path, act, options, words, asked
):
    server.script = [act]
    message = refusal(server, path, **options)
    assert all(word in message for word in words) and len(server.requests) == asked
    if asked == 1:  # nothing of it has come
        assert os.listdir(path.parent) == ["model.bin.lock"]


@pytest.mark.parametrize(
    ("first", "then", "ranges"),
    [
        (serve(etag=None, stop=1000), [serve(etag=None)], [None, None]),  # nothing says which version it was
        (serve(stop=100_000), [serve(status=200)], [None, "bytes=100000-"]),  # a server without ranges
        (serve(stop=100_000), [fail(416), serve()], [None, "bytes=100000-", None]),
        *(
            (serve(stop=100_000), [serve(**lie), serve()], [None, "bytes=100000-", None])
            for lie in (
                {"ETag": '"v2"'},
                {"Content_Range": f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"},
                {"Content_Range": f"bytes 100000-{len(CONTENT)}/{len(CONTENT) + 1}"},
                {"Content_Range": "bytes */*"},
                {"Content_Range": None, "status": 206},
                {"Content_Length": len(CONTENT)},
            )
        ),
    ],
)
def test_a_rest_that_cannot_be_had_or_does_not_fit_is_not_appended(server, path, first, then, ranges):
    server.script = [first, *then]
    get(server, path)
    assert_whole(path)
    assert [request.get("Range") for request in server.requests] == ranges


def test_a_page_instead_of_the_file_is_refused_and_what_came_before_is_kept(server, path):
    page = b"<html>Please log in</html>".ljust(2000)
    server.script = [serve(stop=100_000), serve(page, etag=None, Content_Type="text/html")]
    message = refusal(server, path, min_bytes=200_000)
    assert "(text/html) 2,000 bytes" in message and "100,000 bytes are here" in message
    server.script = [serve()]
    get(server, path, min_bytes=200_000)
    assert_whole(path)
    assert server.requests[-1]["Range"] == "bytes=100000-"


def test_trouble_of_the_server_passes_or_is_given_up(server, path):
    server.script = [fail(503), fail(500), serve()]
    get(server, path)
    assert_whole(path)
    path.unlink()
    path.with_name("model.bin.json").unlink()
    server.script, server.requests = [fail(503)], []
    assert "503 Service Unavailable (4 times)" in refusal(server, path)


def test_a_redirect_is_followed_with_the_range(server, path):
    to = server.url.replace("folder", "mirror")
    server.script = [serve(stop=100_000), lambda handler: handler.answer(302, {"Location": to}), serve()]
    get(server, path)
    assert_whole(path)
    assert server.requests[2]["Range"] == "bytes=100000-"


def test_a_redirect_leaves_no_encryption_behind():
    request = urllib.request.Request("https://example.com/a")
    with pytest.raises(receiving._Refusal, match="http://example.com/a, which is not followed"):
        receiving._HttpRedirects().redirect_request(request, None, 302, "Found", {}, "http://example.com/a")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "/mirror/model.bin", "ftp://127.0.0.1/a"])
def test_only_http_is_taken(path, url):
    with pytest.raises(DownloadError, match=f"{url} cannot be downloaded: this is no http or https address"):
        download.download(url, path)


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("host", "proxy", "words"),
    [
        ("127.0.0.1:{}", None, "no connection: Connection refused"),
        ("no-such-host.invalid", None, "no connection: "),
        (
            "example.invalid",
            "http://me:secret@127.0.0.1:{}",
            "no connection through the proxy 127.0.0.1:{}: Connection refused",
        ),
    ],
    ids=["refused", "dns", "proxy"],
)
def test_offline_says_at_once_where_to_put_the_file(path, monkeypatch, host, proxy, words):
    port = closed_port()
    for name in ("http_proxy", "no_proxy", "HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    if proxy:
        monkeypatch.setenv("http_proxy", proxy.format(port))
    url = f"http://{host.format(port)}/model.bin"
    with pytest.raises(DownloadError) as error:
        download.download(url, path, timeout=2, backoff=60)
    assert str(error.value).startswith(f"{url} cannot be downloaded: {words.format(port)}")
    assert str(error.value).endswith(f"put the file there by hand: {path}") and "secret" not in str(error.value)


def test_a_connection_lost_on_the_way_is_sought_again(server, path, monkeypatch):
    """A refused connection means being offline only where nothing has come yet."""
    refused = urllib.error.URLError(ConnectionRefusedError(111, "Connection refused"))
    answers = [None, refused, None]
    opened = urllib.request.OpenerDirector.open

    def open_or_fail(*args, **kwargs):
        if (error := answers.pop(0)) is not None:
            raise error
        return opened(*args, **kwargs)

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", open_or_fail)
    server.script = [serve(stop=1000), serve()]
    get(server, path)
    assert_whole(path)


def test_a_changed_file_in_the_cache_is_an_error_every_time(server, path):
    get(server, path)
    changed = bytearray(CONTENT)
    changed[1000] ^= 1
    path.write_bytes(changed)
    for _ in range(2):
        with pytest.raises(DownloadError) as error:
            get(server, path)
        for words in (f"{path} has changed", SHA256, hashlib.sha256(changed).hexdigest(), "Delete the file"):
            assert words in str(error.value)
    path.unlink()
    get(server, path)
    assert_whole(path)


def test_a_file_put_there_by_hand_is_taken_and_held_to_its_sha256_from_then_on(server, path, log):
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    get(server, path, min_bytes=300_000, max_bytes=310_000)
    assert_whole(path)
    assert f"{path} was put there by hand" in log.text and SHA256 in log.text and not server.requests
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(DownloadError, match="has changed"):
        get(server, path)
    path.with_name("model.bin.json").unlink()  # which the message says, to keep it
    get(server, path)
    assert_whole(path, CONTENT[::-1])


def test_a_file_put_there_by_hand_with_a_wrong_size_is_refused(server, path):
    path.parent.mkdir()
    path.write_bytes(b"<html>")
    with pytest.raises(DownloadError, match=r"model.bin has 6 bytes, but the file must have at least 100; delete it"):
        get(server, path, min_bytes=100)
    assert os.listdir(path.parent) == ["model.bin"]


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"sha256": 1}', b"\xff\xfe\x00"])
def test_a_damaged_record_is_an_error(server, path, text):
    get(server, path)
    path.with_name("model.bin.json").write_bytes(text)
    with pytest.raises(DownloadError, match="model.bin.json is damaged: delete it"):
        get(server, path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"url": 1, "num_bytes": 2}', "null"])
def test_a_part_of_unknown_origin_is_not_built_on(server, path, text):
    path.parent.mkdir()
    path.with_name("model.bin.part").write_bytes(b"x" * 1000)
    path.with_name("model.bin.part.json").write_text(text)
    get(server, path)
    assert_whole(path)


def test_a_part_from_another_address_is_not_built_on(server, path):
    server.script = [serve(stop=1000)]
    refusal(server, path, attempts=1)
    server.script = [serve()]
    download.download(server.url.replace("folder", "mirror"), path)
    assert_whole(path)
    assert "Range" not in server.requests[-1]


def test_a_full_disk_is_told_and_is_not_tried_again(server, path):
    path.parent.mkdir()
    path.with_name("model.bin.part").symlink_to("/dev/full")
    with pytest.raises(DownloadError, match="model.bin.part cannot be written: No space left on device"):
        get(server, path)
    assert len(server.requests) == 1


def test_a_folder_that_cannot_be_written_is_told(server, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DownloadError, match="cache/a/model.bin cannot be written: Not a directory"):
        get(server, tmp_path / "cache" / "a" / "model.bin")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DownloadError, match="folder cannot be read: Is a directory"):
        get(server, tmp_path / "folder")


def start(url, path):
    script = f"from dlv3p_jax.weights.download import download; download({url!r}, {str(path)!r}, timeout=20)"
    return subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)


def test_a_killed_download_goes_on_and_ends_bit_identical(server, path):
    server.script = [serve(stop=200_000, pause=15), serve()]
    process = start(server.url, path)
    part = path.with_name("model.bin.part")
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size == 200_000) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not path.exists() and part.read_bytes() == CONTENT[:200_000]
    get(server, path)
    assert_whole(path)
    assert server.requests[1]["Range"] == "bytes=200000-"


def test_a_download_killed_before_its_end_needs_no_more_bytes(server, path):
    server.script = [serve(stop=200_000)]
    refusal(server, path, attempts=1)
    path.with_name("model.bin.part").write_bytes(CONTENT)  # as if the rest had come, too
    get(server, path)
    assert_whole(path)
    assert len(server.requests) == 1


def test_two_processes_download_once(server, path):
    def slowly(handler):
        serve(stop=200_000)(handler)
        time.sleep(1.0)
        handler.wfile.write(CONTENT[200_000:])

    server.script = [slowly]
    processes = [start(server.url, path) for _ in range(2)]
    errors = [process.communicate(timeout=30)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert_whole(path)
    assert len(server.requests) == 1


def test_a_process_waits_for_the_lock_and_asks_for_nothing(server, path, log):
    """While another one, here a thread, is downloading."""

    def slowly(handler):
        serve(stop=1000)(handler)
        begun.set()
        deadline = time.monotonic() + 5
        while "Another process" not in log.text and time.monotonic() < deadline:
            time.sleep(0.02)
        handler.wfile.write(CONTENT[1000:])

    begun = threading.Event()
    server.script = [slowly]
    other = threading.Thread(target=get, args=(server, path))
    other.start()
    assert begun.wait(5)
    get(server, path)
    other.join()
    assert f"Another process is downloading {path}" in log.text and len(server.requests) == 1
    assert_whole(path)

"""Pictures by their addresses, from a server on this machine."""

import functools
import http.server
import pathlib
import threading

import pytest

from dlv3p_jax.inference import addresses, finding


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served" / "a").mkdir(parents=True)
    for name in ("a/street 1.jpg", "a/street.png", "index.html"):
        (tmp_path / "served" / name).write_bytes(name.encode())
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_addresses_are_fetched_once_and_become_files_that_are_found(server, tmp_path):
    address, output = f"http://127.0.0.1:{server.server_port}", tmp_path / "out"
    given = [f"{address}/a/street%201.jpg", f"{address}/a/street.png?size=2", f"{address}/a/street.png", "gs://b/c.png"]
    paths, problems = addresses.fetch(given, output)
    assert problems == [] and paths[3] == "gs://b/c.png"
    assert [pathlib.Path(path).read_text() for path in paths[:3]] == ["a/street 1.jpg", "a/street.png", "a/street.png"]
    assert len(set(paths)) == 4
    assert all(str(output / "downloads" / "127.0.0.1") in path for path in paths[:3])
    pictures, problems = finding.find_pictures(paths, output)
    assert [picture.name for picture in pictures][::2] == ["street 1", "street"]
    assert "gs://b/c.png: http and https addresses of single pictures are fetched" in problems[0].message
    server.shutdown()
    assert addresses.fetch(given, output)[0] == paths  # they are there


def test_what_cannot_be_fetched_is_told_and_the_others_are_there(server, tmp_path):
    address = f"http://127.0.0.1:{server.server_port}"
    outside = f"{address}/%2e%2e/%2e%2e/x%2f..%2fy.png"
    paths, problems = addresses.fetch([f"{address}/none.png", f"{address}/", outside], tmp_path / "out")
    assert [path.removeprefix(str(tmp_path / "out" / "downloads")) for path in paths] == ["/127.0.0.1/picture"]
    assert [problem.id for problem in problems] == [f"{address}/none.png", outside]
    assert "the server answered 404" in problems[0].message
    assert str(tmp_path / "out" / "downloads" / "127.0.0.1" / "_" / "_" / "x_.._y.png") in problems[1].message

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
    assert all(str(output / "downloads" / f"127.0.0.1_{server.server_port}") in path for path in paths[:3])
    pictures, problems = finding.find_pictures(paths, output)
    assert [picture.name for picture in pictures][::2] == ["street 1", "street"]
    assert "gs://b/c.png: http and https addresses of single pictures are fetched" in problems[0].message
    server.shutdown()
    assert addresses.fetch(given, output)[0] == paths  # they are there


def test_what_cannot_be_fetched_is_told_and_the_others_are_there(server, tmp_path):
    address = f"http://127.0.0.1:{server.server_port}"
    outside = f"{address}/%2e%2e/%2e%2e/x%2f..%2fy.png"
    paths, problems = addresses.fetch([f"{address}/none.png", f"{address}/", outside], tmp_path / "out")
    host = tmp_path / "out" / "downloads" / f"127.0.0.1_{server.server_port}"
    assert paths == [str(host / "picture")]
    assert [problem.id for problem in problems] == [f"{address}/none.png", outside]
    assert "the server answered 404" in problems[0].message
    assert str(host / "_" / "_" / "x_.._y-") in problems[1].message


def test_different_addresses_have_different_files_inside_the_folder():
    long = "ü" * 300
    given = ["h:1/a.png", "h:2/a.png", "h/a%2Fb.png", "h/a_b.png", "h/a:b.png", f"h/{long}a.png", f"h/{long}b.png"]
    given += ["../a.png", "%2e%2e/a.png", "[::1]/a.png"]
    places = [addresses._place(f"http://{address}") for address in given]
    assert len(set(places)) == len(given)
    assert all(place.suffix == ".png" and not {"..", "/"} & set(place.parts) for place in places)
    assert all(len(part.encode()) < 200 for place in places for part in place.parts)

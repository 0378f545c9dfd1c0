"""What the tests of the demo's page share."""

import socket
import threading

import pytest
from demo_visits import MAX_BYTES, MAX_PIXELS, Bands, encode, gradient, visits


@pytest.fixture(scope="session")
def served():
    """The page at a port of its own, in a thread; gives its address and the calls of the segmenter.

    Of the session, since NiceGUI allows one application in a process.
    """
    pytest.importorskip("nicegui", reason="nicegui is not installed (the extra demo)")
    from dlv3p_jax.inference import demo_page

    calls = []
    segmenter, example = Bands(calls, flip=False, scales=(0.5,)), ("lamp.png", encode(gradient(40)))
    page = demo_page.make_app(segmenter, MAX_PIXELS, MAX_BYTES, ["127.0.0.1", "[::1]"], example)
    listening = socket.create_server(("127.0.0.1", 0))
    server = demo_page.make_server(page)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/", calls
    server.should_exit = True
    thread.join()


@pytest.fixture
def visit(browser):
    with visits(browser) as open_page:
        yield open_page


@pytest.fixture
def page(visit, served):
    served[1].clear()
    return visit(served[0])

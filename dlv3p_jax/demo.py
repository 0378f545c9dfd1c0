"""A local page to try a model on: python -m dlv3p_jax.demo --checkpoint=WORKDIR

Drop a picture on it, and see it under the colours of its classes, with the share of the pixels that each has. Opacity,
flip and scales can be changed there. Programs send a picture to POST /predict, and get its labels. It needs NiceGUI
(pip install '.[demo]') and no network.
"""

import importlib.util
import ipaddress
import os
import socket
import sys
from typing import Any

from absl import app, flags, logging

from dlv3p_jax.runtime import cli


def define_flags() -> None:
    """Defines the command's flags; not at import, since tests import this module beside others."""
    flags.DEFINE_string("checkpoint", None, "A workdir, a checkpoint, a .pdparams file or a published model's name.")
    flags.DEFINE_string(
        "host",
        "127.0.0.1",
        "The address to listen at; 0.0.0.0 is all of this machine's, for others. Of a loopback address, requests must "
        "name this host or localhost.",
    )
    flags.DEFINE_integer("port", 8080, "The port to listen at; 0 is any that is free.", 0, 65535)
    flags.DEFINE_bool("flip", None, "Begin with flip; config.eval.flip by default.")
    flags.DEFINE_list("scales", None, "Begin with these scales, such as 0.75,1.0,1.25; config.eval.scales by default.")
    flags.DEFINE_integer(
        "max_pixels",
        4_000_000,
        "The largest picture that is taken. A million pixels need about 1.2 GB of memory with ResNet-50_vd and output "
        "stride 8, times the square of the largest scale.",
        1,
    )
    flags.DEFINE_float("max_megabytes", 30.0, "The largest file that is taken.", 0.001, 1000)


def main(argv: list[str]) -> None:
    values = flags.FLAGS
    cli.refuse_words(argv)
    if values.checkpoint is None:
        raise app.UsageError("give --checkpoint=WORKDIR, or another checkpoint")
    views = _views(values.flip, values.scales)
    if importlib.util.find_spec("nicegui") is None:
        sys.exit("demo: the page needs NiceGUI, which is not installed: pip install '.[demo]'")
    cli.configure_logging()
    try:
        with _listen(values.host, values.port) as listening:
            _serve(values, views, listening)
    except KeyboardInterrupt:
        print("\nStopped", flush=True)
        os._exit(0)  # Python would wait for a prediction, and for what is compiled for it


def _views(flip: bool | None, scales: list[str] | None) -> dict[str, Any]:
    """The flags that are given, as `Segmenter` takes them."""
    views: dict[str, Any] = {} if flip is None else {"flip": flip}
    if scales is not None:
        views["scales"] = cli.parse_scales(scales)
    return views


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
        raise ValueError(f"cannot listen at --host={host} --port={port}: {reason}; give others") from error


def _known_hosts(host: str, address: str) -> list[str]:
    """The names under which the page is served: a site whose name turns into a loopback address is to get nothing."""
    if ipaddress.ip_address(address).is_loopback:
        return [host, "localhost", "127.0.0.1", "[::1]"]
    return ["*"]  # others know this machine by names that are not known here


def _serve(values, views: dict[str, Any], listening: socket.socket) -> None:
    from dlv3p_jax.inference import demo_page, demo_uploads  # NiceGUI and JAX: wrong flags do not wait for them
    from dlv3p_jax.inference.segmenter import Segmenter

    address, port = listening.getsockname()[:2]
    host = f"[{values.host}]" if ":" in values.host else values.host
    hosts = _known_hosts(host, address)
    if "*" in hosts:
        logging.warning("--host=%s: whoever reaches this machine can use the page, without a password", values.host)
    segmenter = Segmenter.from_checkpoint(values.checkpoint, **views)
    example = demo_uploads.find_example(values.checkpoint)
    page = demo_page.make_app(segmenter, values.max_pixels, int(values.max_megabytes * 1e6), hosts, example)
    server = demo_page.make_server(page)  # sets up logging, which a Ctrl-C is not to interrupt
    print(f"Open http://{host}:{port} in a browser; Ctrl-C ends this", flush=True)
    server.run(sockets=[listening])


if __name__ == "__main__":
    define_flags()
    cli.run(main, "demo")

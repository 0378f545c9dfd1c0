"""Pages that hold all they need: templates filled in, pictures as data, written whole or not at all."""

import base64
import datetime
import math
import pathlib

import jinja2
from etils import epath

from dlv3p_jax import __version__
from dlv3p_jax.runtime import files, text


def _range(bounds) -> str:
    lower, upper = bounds
    return f"[{100 * lower:.1f}, {100 * upper:.1f}]"


def _signed(fraction: float) -> str:
    return "n/a" if math.isnan(fraction) else f"{100 * fraction:+.2f}"


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
)
_TEMPLATES.filters |= {"percent": text.percent, "range": _range, "signed": _signed}


def write(path: epath.Path, template: str, **values) -> None:
    """Fills a template of templates/ in and writes the page; it appears whole or not at all."""
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = _TEMPLATES.get_template(template).render(values | {"version": __version__, "date": date})
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, page)


def data_uri(data: bytes, kind: str) -> str:
    """A file, such as one of kind 'image/png', as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"

"""The page of dlv3p_jax.demo: a picture is dropped on it, and seen under the colours of its classes.

NiceGUI makes it, and serves all that it needs: nothing is fetched from a network. A picture, its label and the settings
belong to one visit of the page, and go when it is left.
"""

import asyncio
import concurrent.futures
import functools
import json
import pathlib
import re
import typing
from collections.abc import Callable, Iterable, Sequence

import fastapi
import numpy as np
import uvicorn
from absl import logging
from nicegui import events, ui
from starlette.middleware import trustedhost

from dlv3p_jax.data import viz
from dlv3p_jax.data.pictures import encode
from dlv3p_jax.inference import demo_api
from dlv3p_jax.inference.demo_uploads import Upload, data_url, read_picture

if typing.TYPE_CHECKING:
    from dlv3p_jax.inference.segmenter import Segmenter

_SCALES = ((1.0,), (0.75, 1.0, 1.25), (0.5, 0.75, 1.0, 1.25, 1.5, 1.75))  # what the page offers
_OPACITY = 0.5  # at first
_FORM_BYTES = 10_000  # of an upload beside the file
_KEPT_VIEWS = 4  # flip and scales; each keeps its compiled programs
_CSS = """
:root { --opacity: OPACITY }
.layers { display: grid; justify-items: start }
.layers img { grid-area: 1 / 1; min-width: min(30rem, 100%); max-width: 100%; max-height: 85vh; object-fit: contain }
.layers .classes { opacity: var(--opacity); image-rendering: pixelated }
.layers .indices { display: none }
#under { position: fixed; z-index: 9999; padding: .1rem .5rem; border-radius: 4px; background: #000c; color: #fff;
  pointer-events: none; transform: translate(-50%, -2.2rem) }
.swatch { width: 1.1rem; height: 1.1rem; border: 1px solid #8888; border-radius: 3px; flex: none }
.words { overflow-wrap: anywhere }
.q-uploader { width: 100%; max-height: none }
.q-uploader__subtitle { display: none }
.q-uploader__list { min-height: 4rem; display: grid; align-content: center; border: 2px dashed #8888 }
""".replace("OPACITY", str(_OPACITY))
# The class under the pointer, from a grey PNG of class indices that nobody sees.
_SCRIPT = """<script>
addEventListener("pointermove", under); addEventListener("pointerdown", under)
const canvas = document.createElement("canvas"), pen = canvas.getContext("2d", {willReadFrequently: true})
let drawn = null
function under(event) {
  const layers = event.target.closest?.(".layers"), indices = layers?.querySelector(".indices")
  let words = document.getElementById("under"), name
  if (indices?.complete) {
    const box = layers.querySelector(".picture").getBoundingClientRect()
    const {naturalWidth: width, naturalHeight: height} = indices
    const scale = Math.min(box.width / width, box.height / height)
    const x = Math.floor((event.clientX - box.left - (box.width - scale * width) / 2) / scale)
    const y = Math.floor((event.clientY - box.top - (box.height - scale * height) / 2) / scale)
    if (drawn !== indices.src) {
      drawn = indices.src; canvas.width = width; canvas.height = height; pen.drawImage(indices, 0, 0)
    }
    const inside = x >= 0 && y >= 0 && x < width && y < height
    name = inside ? JSON.parse(layers.dataset.names)[pen.getImageData(x, y, 1, 1).data[0]] : undefined
  }
  if (name === undefined) return words?.remove()
  if (!words) { words = document.createElement("div"); words.id = "under"; document.body.append(words) }
  words.textContent = name
  words.style.left = event.clientX + "px"; words.style.top = event.clientY + "px"
}
</script>"""


def make_app(
    segmenter: "Segmenter", max_pixels: int, max_bytes: int, hosts: Sequence[str], example: tuple[str, bytes]
) -> fastapi.FastAPI:
    """The web application. NiceGUI allows one in a process.

    Args:
        segmenter: the model, with the views that the page begins with.
        max_pixels, max_bytes: the largest picture that is taken, and the largest file.
        hosts: what requests may call this machine, such as "localhost" or "[::1]"; "*" is anything.
        example: the name and the file of a picture to try the page with.
    """
    worker = concurrent.futures.ThreadPoolExecutor(1)  # one at a time: each prediction may need all the memory
    segmenter_of = functools.lru_cache(_KEPT_VIEWS)(lambda flip, scales: segmenter.with_views(flip=flip, scales=scales))

    async def predict(image, flip, scales, is_wanted: Callable[[], bool]) -> np.ndarray | None:
        return await asyncio.get_running_loop().run_in_executor(
            worker, lambda: segmenter_of(flip, scales)(image) if is_wanted() else None
        )

    @ui.page("/")
    def page() -> None:
        _Visit(segmenter, predict, max_pixels, max_bytes, example)

    async def predict_as_begun(image) -> np.ndarray:
        views = segmenter.config.eval
        label = await predict(image, views.flip, tuple(views.scales), lambda: True)
        assert label is not None  # it is wanted
        return label

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    demo_api.add_predict(app, segmenter, predict_as_begun, max_pixels)
    app.add_middleware(demo_api.LimitBodies, max_bytes=max_bytes + _FORM_BYTES)
    # NiceGUI's socket takes every origin: another site reaches it once its name turns into this machine's address.
    app.add_middleware(trustedhost.TrustedHostMiddleware, allowed_hosts=hosts)
    # A browser that is slow to answer while all cores compute is not taken for gone.
    ui.run_with(app, title="dlv3p_jax", dark=None, language="en-US", reconnect_timeout=30, show_welcome_message=False)
    return app


def make_server(app: fastapi.FastAPI) -> uvicorn.Server:
    """A server whose `run(sockets=[…])` serves until SIGINT, which raises KeyboardInterrupt, or SIGTERM."""
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))


class _Visit:
    """One visit of the page: what it shows, and what happens on it."""

    def __init__(self, segmenter: "Segmenter", predict, max_pixels: int, max_bytes: int, example: tuple[str, bytes]):
        self._classes, self._palette, self._predict = segmenter.classes, segmenter.palette, predict
        self._max_pixels, self._picture_range = max_pixels, segmenter.picture_range
        self._forget()
        ui.context.client.on_delete(self._forget)

        ui.add_css(_CSS)
        ui.add_body_html(_SCRIPT)
        views = segmenter.config.eval
        megabytes = f"{max_bytes / 1e6:g} MB"
        with ui.column().classes("w-full max-w-6xl mx-auto p-2 gap-4"):
            ui.label(f"DeepLabV3+ on {segmenter.config.model.backbone}").classes("text-xl font-bold words")
            step = re.search(r"step \d+[^/]*$", segmenter.source)  # where the weights lie is nobody's business here
            trained = f"Trained on {segmenter.config.dataset}" if segmenter.config.dataset else ""
            ui.label(", ".join(filter(None, (trained, step and step[0])))).classes("words")
            upload = ui.upload(
                label=f"A picture of at most {max_pixels:,} pixels and {megabytes}",
                auto_upload=True,
                max_file_size=max_bytes,
                on_upload=self._take,
                on_rejected=lambda: self._reject(f"This file is larger than {megabytes} (--max_megabytes)."),
            )
            upload.on("finish", js_handler=f"() => runMethod({upload.id}, 'reset', [])")  # or it refuses the same again
            upload.on("failed", lambda: self._reject("The upload failed: try again."), args=[])
            with upload.add_slot("list"):  # in place of the files that were uploaded
                ui.label("Drop it here, or choose it with +").classes("text-center")
            ui.button("Try an example", on_click=lambda: self._read(*example)).props("outline no-caps")
            with ui.row().classes("w-full items-center gap-x-8 gap-y-2"):
                with ui.row().classes("items-center no-wrap gap-4 w-64"):
                    ui.label("Opacity")
                    # In the browser alone: the picture and the colours are two layers.
                    self._opacity = ui.slider(min=0, max=1, step=0.05, value=_OPACITY)
                    self._opacity.props('label aria-label="Opacity"').on(
                        "update:model-value",
                        js_handler="(value) => document.documentElement.style.setProperty('--opacity', value)",
                    )
                self._flip = ui.switch("Flip", value=views.flip, on_change=self._show)
                offered = {
                    scales: ", ".join(f"{scale:g}" for scale in scales) for scales in (tuple(views.scales), *_SCALES)
                }
                self._scales = ui.select(
                    offered, label="Scales", value=tuple(views.scales), on_change=self._show
                ).classes("w-64")
            self._wrong = ui.label().props("role=alert").classes("bg-negative text-white rounded p-2 words")
            with ui.row().classes("items-center no-wrap") as self._working:
                ui.spinner().classes("flex-none")
                self._doing = ui.label().classes("words")
            self._result = ui.column().classes("w-full gap-4")
        self._refuse("")

    def _forget(self) -> None:
        """Drops the picture, and whatever is still being read or predicted."""
        self._picture: Upload | None = None
        self._upload: object | None = None  # stands for the newest file; those before it are not taken
        self._wanted: object | None = None  # stands for the newest prediction; those before it are not shown

    def _refuse(self, wrong: str) -> None:
        """Says what is wrong, in place of a picture; a file that is still being read comes after it."""
        self._picture = self._wanted = None
        self._say(wrong=wrong)
        self._result.clear()
        with self._result:
            self._legend(range(len(self._classes)))

    def _reject(self, wrong: str) -> None:
        """Says what is wrong with a file that has not come, in place of those before it."""
        self._forget()
        self._refuse(wrong)

    def _say(self, wrong: str = "", doing: str = "") -> None:
        self._wrong.text, self._wrong.visible = wrong, bool(wrong)
        self._doing.text, self._working.visible = doing, bool(doing)

    async def _take(self, event: events.UploadEventArguments) -> None:
        self._upload = upload = object()
        data = await event.file.read()
        if self._upload is upload:
            await self._read(event.file.name, data)

    async def _read(self, name: str, data: bytes) -> None:
        self._upload = upload = object()
        try:
            picture = await asyncio.to_thread(read_picture, name, data, self._max_pixels, self._picture_range)
        except ValueError as error:
            if self._upload is upload:
                self._refuse(str(error))
            return
        if self._upload is upload:
            self._picture = picture
            self._draw_picture(picture)
            await self._show()

    async def _show(self) -> None:
        """Predicts the picture, if there is one, with the views that are set, and draws the result."""
        picture = self._picture
        if picture is None:
            return
        self._wanted = wanted = object()
        height, width = picture.image.shape[:2]
        self._say(
            doing=f"Predicting {picture.name}. The first picture of a size ({width} x {height}) with a setting takes "
            "longer, up to minutes on a CPU: the network is compiled for it."
        )
        try:
            label = await self._predict(
                picture.image, self._flip.value, self._scales.value, lambda: self._wanted is wanted
            )
        except Exception as error:  # XLA has many; what helps is the same
            reason = str(error).partition("\n")[0]
            logging.error("%s (%d x %d) was not predicted: %s", picture.name, width, height, reason)
            if self._wanted is wanted:
                self._refuse(f"{picture.name} was not predicted: {reason}. Try a smaller picture, or fewer scales.")
            return
        if self._wanted is wanted:
            self._say()
            self._draw(picture, label)

    def _draw_picture(self, picture: Upload) -> None:
        """Shows the picture alone; what is found in it comes later."""
        self._result.clear()
        with self._result:
            self._layers = ui.element("div").classes("layers")
            self._layers.props["data-names"] = json.dumps(self._classes)
            self._found = ui.column().classes("w-full gap-4")
        self._add_layer("picture", picture.url, f"picture of {picture.name}")

    def _add_layer(self, name: str, url: str, alt: str) -> None:
        with self._layers:
            image = ui.element("img").classes(name)
        image.props["src"], image.props["alt"] = url, alt

    def _draw(self, picture: Upload, label: np.ndarray) -> None:
        """Shows what was found in the picture, in place of what was found before."""
        height, width = label.shape
        pixels = np.bincount(label.ravel(), minlength=len(self._classes))
        for layer in list(self._layers)[1:]:
            self._layers.remove(layer)
        classes = encode(viz.label_png(label, self._palette))
        self._add_layer("classes", data_url(classes), f"classes of {picture.name}")
        self._add_layer("indices", data_url(encode(label.astype(np.uint8))), "")

        def download_overlay() -> None:
            blend = viz.overlay(picture.image, label, self._palette, self._opacity.value)
            ui.download(encode(blend), f"{stem}_overlay.png")

        stem = pathlib.PurePath(picture.name).stem
        self._found.clear()
        with self._found:
            ui.label(f"{picture.name}: {width} x {height} pixels").classes("text-sm words")
            with ui.row():
                for what, download in (
                    ("labels", lambda: ui.download(classes, f"{stem}_labels.png")),
                    ("overlay", download_overlay),
                ):
                    ui.button(f"Download the {what}", on_click=download).props("outline no-caps")
            present = np.argsort(-pixels, kind="stable")[: np.count_nonzero(pixels)]
            self._legend(present, pixels / label.size)
            if absent := [name for name, count in zip(self._classes, pixels, strict=True) if not count]:
                ui.label(f"Not in this picture: {', '.join(absent)}").classes("text-sm words")

    def _legend(self, classes: Iterable[int], shares: np.ndarray | None = None) -> None:
        """Colours and names of `classes`, with the `shares` of all pixels that they have."""
        with ui.row().classes("w-full gap-x-6 gap-y-1").props("role=list"):
            for index in classes:
                with ui.row().classes("items-center no-wrap gap-2").props("role=listitem"):
                    color = "rgb({}, {}, {})".format(*self._palette[index])
                    ui.element("div").classes("swatch").style(f"background: {color}")
                    ui.label(self._classes[index] + ("" if shares is None else f" {100 * shares[index]:.1f} %"))

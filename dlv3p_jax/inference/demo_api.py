"""POST /predict of dlv3p_jax.demo, and the largest request that its server takes."""

import asyncio
import base64
import typing
from collections.abc import Awaitable, Callable

import fastapi
import numpy as np
from absl import logging
from starlette import datastructures, exceptions, requests, types

from dlv3p_jax.data import viz
from dlv3p_jax.data.pictures import encode
from dlv3p_jax.inference import demo_uploads

if typing.TYPE_CHECKING:
    from dlv3p_jax.inference.segmenter import Segmenter


def add_predict(
    app: fastapi.FastAPI,
    segmenter: "Segmenter",
    predict: Callable[[np.ndarray], Awaitable[np.ndarray]],
    max_pixels: int,
) -> None:
    """Adds POST /predict: a picture, as the body or as a file of multipart/form-data, is answered with its labels.

    The answer is a palette PNG whose pixels are class indices. With "Accept: application/json" it is JSON: width,
    height, the classes that the picture shows (index, name, color, pixels), and the PNG in base64 as labels_png. Errors
    are JSON, {"error": what}: 400 where there is no picture that can be read, or it has more than `max_pixels` pixels;
    403 from a page of another site; 500 where it was not predicted. Of `LimitBodies`, 411 and 413 are text.
    """

    @app.post("/predict")
    async def answer(request: fastapi.Request) -> fastapi.Response:
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return _error(403, "pages of other sites cannot use this")
        try:
            name, data = await _picture(request)
        except exceptions.HTTPException as error:  # a form that is broken, or has too many parts
            return _error(error.status_code, str(error.detail))
        except requests.ClientDisconnect:
            return _error(400, "it was not sent to its end")  # which nobody reads
        if not data:
            return _error(400, "no picture: send it as the body, or as a file of multipart/form-data")
        try:
            picture = await asyncio.to_thread(
                demo_uploads.read_picture, name, data, max_pixels, segmenter.picture_range
            )
        except ValueError as error:
            return _error(400, str(error))
        try:
            label = await predict(picture.image)
        except Exception as error:  # XLA has many
            reason = str(error).partition("\n")[0]
            logging.error("POST /predict: %s was not predicted: %s", name, reason)
            return _error(500, f"{name} was not predicted: {reason}")
        png = encode(viz.label_png(label, segmenter.palette))
        if "application/json" not in request.headers.get("accept", "").lower():
            return fastapi.Response(png, media_type="image/png")
        described = _describe(segmenter, label) | {"labels_png": base64.b64encode(png).decode()}
        return fastapi.responses.JSONResponse(described)


async def _picture(request: fastapi.Request) -> tuple[str, bytes]:
    """The name and the bytes of the file that was sent; none if there is no file."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return "the picture", await request.body()
    async with request.form() as form:
        for value in form.values():
            if isinstance(value, datastructures.UploadFile):
                return value.filename or "the picture", await value.read()
    return "", b""


def _describe(segmenter: "Segmenter", label: np.ndarray) -> dict[str, typing.Any]:
    pixels = np.bincount(label.ravel(), minlength=len(segmenter.classes)).tolist()
    rows = zip(segmenter.classes, segmenter.palette.tolist(), pixels, strict=True)
    classes = [
        {"index": index, "name": name, "color": color, "pixels": count}
        for index, (name, color, count) in enumerate(rows)
        if count
    ]
    return {"width": label.shape[1], "height": label.shape[0], "classes": classes}


def _error(status: int, what: str) -> fastapi.Response:
    return fastapi.responses.JSONResponse({"error": what}, status)


class LimitBodies:
    """Refuses requests with more than `max_bytes` before they are received, whatever sends them."""

    def __init__(self, app: types.ASGIApp, max_bytes: int):
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            too_large = int(headers.get(b"content-length", 0)) > self._max_bytes
            if too_large or b"transfer-encoding" in headers:  # in chunks, of which nobody says how many
                response = fastapi.Response("too large" if too_large else "length required", 413 if too_large else 411)
                return await response(scope, receive, send)
        return await self._app(scope, receive, send)

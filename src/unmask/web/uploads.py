"""What comes from a browser: images of strangers, kept in memory and nowhere else, and errors in one line."""

import functools
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from torch import Tensor

from unmask.data.decode import UnreadableImage, decode, size_of
from unmask.errors import BadInput

MOST_BYTES = 32 * 2**20
"""Of an upload."""
MOST_PIXELS = 40_000_000
"""Of an upload: a camera's picture, decoded within a second or two and half a gigabyte."""
KEPT = 256 * 2**20
"""Bytes of uploads that are kept; the oldest go first."""


class Uploads:
    """Images that visitors have sent, by names that nobody can guess. Safe to be asked from several threads."""

    def __init__(self):
        self._files: OrderedDict[str, tuple[str, bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, name: str, data: bytes) -> str:
        """Keep a file, and return how it can be asked for. BadInput if it is no image that can be taken."""
        opened(data, name)
        token = secrets.token_urlsafe(16)
        with self._lock:
            self._files[token] = name, data
            while sum(len(data) for _, data in self._files.values()) > KEPT:
                self._files.popitem(last=False)
        return token

    def name(self, token: str) -> str:
        """What the file was called. BadInput if it is not kept."""
        return self._get(token)[0]

    def image(self, token: str) -> Tensor:
        """Its pixels: (C, H, W), uint8 or float32. BadInput if it is not kept."""
        name, data = self._get(token)
        return opened(data, name)

    def _get(self, token: str) -> tuple[str, bytes]:
        with self._lock:
            if token not in self._files:
                raise BadInput("this image is not kept any more: choose it again")
            return self._files[token]


def opened(data: bytes, name: str) -> Tensor:
    """The pixels of an uploaded file: (C, H, W), uint8 or float32. BadInput, in one line, for what is no image, damaged or too
    large; the size is looked at before anything is decoded."""
    try:
        _, height, width, _ = size_of(data)
        if height * width > MOST_PIXELS:
            raise BadInput(
                f"{name} has {height * width / 1e6:.0f} megapixels, {MOST_PIXELS / 1e6:.0f} at most: shrink it"
            )
        return decode(data)
    except UnreadableImage as error:
        raise BadInput(f"{name}: {error}") from None


def receive(app: FastAPI, uploads: Uploads) -> None:
    """Let the application take images: POST /upload with the file as its body and its name in the query."""

    @app.post("/upload")
    async def upload(request: Request, name: str = "image") -> JSONResponse:
        name, data = name[:80], bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > MOST_BYTES:
                return JSONResponse({"error": f"{name} is larger than {MOST_BYTES // 2**20} MiB: make it smaller"}, 413)
        try:
            return JSONResponse({"token": await run_in_threadpool(uploads.put, name, bytes(data))})
        except BadInput as error:
            return JSONResponse({"error": str(error)}, 400)


def told(act: Callable) -> Callable:
    """`act`, whose BadInput is shown in the page as one line."""

    @functools.wraps(act)
    def wrapped(*given: Any, **named: Any) -> Any:
        try:
            return act(*given, **named)
        except (BadInput, UnreadableImage, OSError) as error:  # OSError: a run that was deleted meanwhile
            raise gr.Error(str(error), print_exception=False) from None

    return wrapped

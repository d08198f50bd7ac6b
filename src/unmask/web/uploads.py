"""What comes from a browser: images of strangers, and errors in one line."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from torch import Tensor

from unmask.data.decode import UnreadableImage, decode, size_of
from unmask.errors import BadInput

MOST_BYTES = 32 * 2**20
"""Of an upload."""
MOST_PIXELS = 40_000_000
"""Of an upload: a camera's picture, decoded within a second or two and half a gigabyte."""


def opened(path: str | Path) -> Tensor:
    """The pixels of an uploaded file: (C, H, W), uint8 or float32. BadInput, in one line, for what is no image, damaged or too
    large; the size is looked at before anything is decoded."""
    path = Path(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BadInput(f"{path.name} is larger than {MOST_BYTES // 2**20} MiB: make it smaller")
        _, height, width, _ = size_of(path)
        if height * width > MOST_PIXELS:
            raise BadInput(
                f"{path.name} has {height * width / 1e6:.0f} megapixels, {MOST_PIXELS / 1e6:.0f} at most: shrink it"
            )
        return decode(path)
    except (UnreadableImage, OSError) as error:
        raise BadInput(f"{path.name}: {getattr(error, 'strerror', None) or error}") from None


def told(act: Callable) -> Callable:
    """`act`, whose BadInput is shown in the page as one line."""

    @functools.wraps(act)
    def wrapped(*given: Any, **named: Any) -> Any:
        try:
            return act(*given, **named)
        except (BadInput, UnreadableImage) as error:
            raise gr.Error(str(error), print_exception=False, title="Cannot do that") from None

    return wrapped

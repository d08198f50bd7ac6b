"""Pictures in the page: one that is painted on or clicked, small ones to pick from, some beside each other. No files."""

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image
from torch import Tensor

from unmask import figures

JS = (Path(__file__).parent / "canvas.js").read_text(encoding="utf-8")

class Canvas(gr.HTML):
    """A picture that tells where it is touched: `touched` with event data {"x", "y"}, shares of its width and height from its
    upper left corner. With a grid of patches it can be painted on: `painted` with {"hidden": [indices row by row]}, as often
    as the stroke reaches another patch. Its value is what `drawn` returns.

        canvas.painted(fn, ..., outputs=...)      # fn(event: gr.EventData): event.hidden
        canvas.touched(fn, ...)                   # fn(event: gr.EventData): event.x, event.y
    """

    def __init__(self, **told: Any):
        super().__init__(
            value="", html_template='<div class="canvas"></div>', js_on_load=JS, apply_default_css=False, **told
        )
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

def drawn(
    png: bytes,
    alt: str,
    grid: tuple[int, int] | None = None,
    hidden: Sequence[int] | None = None,
    mark: Sequence[float] = (),
) -> str:
    """The value of a Canvas: a picture, with the lines between its patches if a grid (rows, columns) is given; with `hidden`,
    those that are, it can be painted on. `mark`, x, y, width and height as shares of the picture's, is framed."""
    told = {"image": uri(png), "alt": alt, "grid": grid, "hidden": list(hidden or ()), "mark": list(mark)}
    return json.dumps(told | {"paintable": hidden is not None})

def uri(png: bytes) -> str:
    """A PNG as a data: address."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"

def tiles(pictures: Sequence[tuple[str, bytes]], note: str = "") -> str:
    """HTML of pictures side by side, wrapped where there is no room, each with its words below."""
    shown = "".join(
        f'<figure><img src="{uri(png)}" alt="{html.escape(words)}"><figcaption>{html.escape(words)}</figcaption></figure>'
        for words, png in pictures
    )
    return f'<div class="tiles">{shown}</div>' + (f'<p class="note">{html.escape(note)}</p>' if note else "")

class Strip(gr.HTML):
    """Small pictures in a row, of which one is picked: `picked` with event data {"index"}. Its value is what `strip` returns.

    strip.picked(fn, ..., outputs=...)      # fn(event: gr.EventData): event.index
    """

    def __init__(self, **told: Any):
        super().__init__(
            value="",
            js_on_load="""element.addEventListener("click", (event) => {
                const button = event.target.closest("button");
                if (button) trigger("picked", { index: Number(button.dataset.index) });
            });""",
            apply_default_css=False,
            **told,
        )
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

def strip(pictures: Sequence[tuple[str, bytes]]) -> str:
    """The value of a Strip: pictures with their words, which are read aloud and shown on hovering."""
    buttons = "".join(
        f'<button type="button" data-index="{i}" title="{html.escape(words)}">'
        f'<img src="{uri(png)}" alt="{html.escape(words)}"></button>'
        for i, (words, png) in enumerate(pictures)
    )
    return f'<div class="strip">{buttons}</div>'

def png(image: Tensor) -> bytes:
    """An image (C, H, W) in [0, 1], of any number of channels, as a PNG of its own size."""
    pixels = (figures.displayable(image) * 255).round().astype("uint8")
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, format="PNG", compress_level=1)
        return file.getvalue()

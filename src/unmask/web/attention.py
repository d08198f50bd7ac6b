"""The tab Attention: where the heads of the last block look in an image, from the whole image or from a patch that is clicked."""

from typing import Any

import gradio as gr
import torch
from torch import Tensor

from unmask import figures
from unmask.errors import BadInput
from unmask.evaluate.attention import MASS, attention, holding, last_attention, main_object, pooling_weights
from unmask.models.compact import CCT
from unmask.models.vit import ViT
from unmask.web.canvas import canvas, drawn, png, tiles
from unmask.web.samples import Chooser, Chosen, seen
from unmask.web.shelf import Shelf
from unmask.web.uploads import told

FINEST = 4096
"""Patches of an image that are looked at, at most: a map is as large as their square."""

EMPTY = '<p class="note">No encoder yet: <code>unmask quickstart</code> trains one in minutes.</p>'


def tab(shelf: Shelf, page: gr.Blocks) -> None:
    """Build it."""
    gr.HTML(
        '<p class="lead">Click a patch to see where each head of the last block looks from there. Without a click it is the '
        "class token that looks, and of an encoder without one all patches on average.</p>"
    )
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            chooser = Chooser(shelf, page, lambda: list(shelf.encoders()))
            mass = gr.Slider(0.05, 0.99, value=MASS, step=0.01, label="Share of the attention that is shown in colour")
            times = gr.Radio([1, 2, 4], value=1, label="Size of the image, times that of training: finer maps")
            whole = gr.Button("From the whole image", size="sm")
        with gr.Column(scale=4, min_width=300):
            picture = canvas(elem_id="look")
        with gr.Column(scale=4, min_width=300):
            looks = gr.HTML("" if shelf.encoders() else EMPTY, elem_id="looks")
    place = gr.State(None)
    given = [chooser.run, chooser.chosen, mass, times, place]

    @told
    def draw(
        run: str | None, chosen: Chosen | None, mass: float, times: int, place: tuple[float, float] | None
    ) -> tuple[str, str]:
        if not run or chosen is None:
            return "", EMPTY
        encoder, preprocess = shelf.encoder(run)
        if not isinstance(encoder, ViT | CCT):
            raise BadInput(f"{run} has no attention: choose a ViT or a compact transformer")
        height, width = (side * int(times) for side in encoder.image_size)
        rows, columns = grid = encoder.grid_for((height, width))
        if rows * columns > FINEST:
            raise BadInput(f"{rows} x {columns} patches are too many to look at: choose a smaller size")
        images = seen(shelf, chosen, preprocess, (height, width))
        image = preprocess.denormalise(images[0])
        mark, patch = (), None
        if place is not None:
            x, y = place
            row, column = int(y * rows), int(x * columns)
            mark, patch = (column / columns, row / rows, 1 / columns, 1 / rows), row * columns + column
        clicked = drawn(png(image), "the image; click a patch", grid if isinstance(encoder, ViT) else None, mark=mark)
        return clicked, show(encoder, images, image, mass, patch, chosen.words(shelf))

    @told
    def touch(event: gr.EventData) -> tuple[float, float]:
        x, y = event.x, event.y
        if not all(isinstance(each, int | float) and 0 <= each < 1 for each in (x, y)):
            raise BadInput("that is outside of the picture")
        return x, y

    quick: dict[str, Any] = {"outputs": [picture, looks], "show_progress": "hidden", "trigger_mode": "always_last"}
    gr.on([mass.input, times.change, place.change, chooser.chosen.change, chooser.run.change], draw, given, **quick)
    picture.touched(touch, None, place, show_progress="hidden", trigger_mode="multiple")
    whole.click(lambda: None, None, place, show_progress="hidden")


@torch.inference_mode()
def show(encoder: ViT | CCT, images: Tensor, image: Tensor, mass: float, patch: int | None, name: str) -> str:
    """HTML of where the heads look in an image, (1, C, H, W) normalised and (C, H, W) to be shown, from a patch or, if that is
    None, from all of it."""
    pictures = []
    if patch is None:
        looks = last_attention(encoder, images)[0]  # (heads, rows, columns)
        size = (image.shape[1], image.shape[2])
        pictures.append(("the main object", png(figures.cut_out(image, main_object(looks.mean(dim=0), size, mass)))))
        if encoder.pool is not None:
            weights = pooling_weights(encoder, images)[0]
            pictures.append(
                ("what its vector is made of", png(figures.attended(image, weights, holding(weights, mass))))
            )
    else:
        grid = encoder.grid_for((images.shape[2], images.shape[3]))
        looks = attention(encoder, images)[:, encoder.prefix + patch].unflatten(-1, grid)
    maps = {"mean of the heads": looks.mean(dim=0)} | {f"head {i}": head for i, head in enumerate(looks, 1)}
    pictures += [(name, png(figures.attended(image, m, holding(m, mass)))) for name, m in maps.items()]
    where = (
        "from the clicked patch"
        if patch is not None
        else "from the class token"
        if encoder.prefix
        else "from all patches"
    )
    return tiles(
        pictures, f"In colour: the fewest patches that hold {mass:.0%} of the attention {where}, in the last block."
    )

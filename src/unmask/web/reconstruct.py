"""The tab Reconstruct: hide patches of an image by a ratio or by hand, and see what a masked autoencoder paints there."""

import dataclasses
import html
from typing import Any, get_args, get_type_hints

import gradio as gr
import torch
from torch import Tensor

from unmask import figures
from unmask.data.augment import sample_seeds
from unmask.data.decode import Preprocess
from unmask.errors import BadInput
from unmask.layers import patchify, take, unpatchify
from unmask.methods.mae import MAE, Settings
from unmask.web.canvas import Canvas, drawn, png, tiles
from unmask.web.samples import Chooser, Chosen, seen
from unmask.web.shelf import Shelf
from unmask.web.uploads import told

MASKINGS = get_args(get_type_hints(Settings)["masking"])
LATTICES = (3 / 4, 8 / 9, 15 / 16)
"""What a lattice can hide: all but one patch of 4, 9 or 16."""
BRIGHT = 0.5
"""The difference of a pixel that is drawn brightest, as a share of the range from black to white."""


def tab(shelf: Shelf, page: gr.Blocks) -> None:
    """Build it."""
    gr.HTML(
        '<p class="lead">A masked autoencoder sees the patches that are not grey, and paints the others. Slide how many are '
        "hidden, or draw on the picture: a stroke hides patches, one that begins on a hidden patch shows them again.</p>"
    )
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            chooser = Chooser(shelf, page, lambda: list(shelf.autoencoders()))
            ratio = gr.Slider(0.05, 0.95, value=0.75, step=0.01, label="Share of the patches that is hidden")
            masking = gr.Radio(MASKINGS, value="random", label="How they are chosen")
            again = gr.Button("Another mask", size="sm")
        with gr.Column(scale=4, min_width=300):
            canvas = Canvas(elem_id="paint")
        with gr.Column(scale=4, min_width=300):
            painted = gr.HTML(elem_id="painted")
    seed = gr.State(0)
    given = [chooser.run, chooser.chosen, ratio, masking, seed]

    @told
    def draw(run: str | None, chosen: Chosen | None, ratio: float, masking: str, seed: int) -> tuple[str, str]:
        if not run or chosen is None:
            return "", empty(shelf)
        method, preprocess = shelf.autoencoder(run)
        images = seen(shelf, chosen, preprocess, method.encoder.image_size)
        if masking == "grid":
            ratio = min(LATTICES, key=lambda each: abs(each - ratio))
        settings = dataclasses.replace(method.settings, mask_ratio=ratio, masking=masking)
        grid = method.encoder.grid_for((images.shape[2], images.shape[3]))
        keep, hidden = method.sample(sample_seeds(seed, 0, torch.zeros(1, dtype=torch.int64)), grid, settings)
        picture = drawn(
            png(preprocess.denormalise(images[0])),
            "the image with its hidden patches in grey",
            grid,
            hidden[0].tolist(),
        )
        return picture, show(method, images, preprocess, keep)

    @told
    def paint(run: str, chosen: Chosen, event: gr.EventData) -> str:
        method, preprocess = shelf.autoencoder(run)
        images = seen(shelf, chosen, preprocess, method.encoder.image_size)
        rows, columns = method.encoder.grid_for((images.shape[2], images.shape[3]))
        return show(method, images, preprocess, kept(event.hidden, rows * columns)[None])

    quick: dict[str, Any] = {"outputs": [canvas, painted], "show_progress": "hidden", "trigger_mode": "always_last"}
    ratio.input(draw, given, **quick)
    gr.on([masking.change, chooser.chosen.change, seed.change], draw, given, **quick)
    again.click(lambda seed: seed + 1, seed, seed, show_progress="hidden")
    chooser.run.change(draw, given, **quick)
    canvas.painted(paint, [chooser.run, chooser.chosen], painted, show_progress="hidden", trigger_mode="always_last")


def kept(hidden: Any, patches: int) -> Tensor:
    """The patches that are not in a list that a browser sent, (K,) int64. BadInput for a list that is none, hides nothing or
    everything."""
    if not isinstance(hidden, list) or not all(isinstance(i, int) and 0 <= i < patches for i in hidden):
        raise BadInput("the strokes do not fit this picture: load the page anew")
    hiding = torch.zeros(patches, dtype=torch.bool)
    hiding[hidden] = True
    if not hiding.any():
        raise BadInput("nothing is hidden: draw on the picture, or slide the ratio")
    if hiding.all():
        raise BadInput("everything is hidden: begin a stroke on a grey patch to show it again")
    return (~hiding).nonzero()[:, 0]


@torch.inference_mode()
def show(method: MAE, images: Tensor, preprocess: Preprocess, keep: Tensor) -> str:
    """HTML of what is painted in an image (1, C, H, W), normalised, from its patches at `keep` (1, K): the original, the
    reconstruction, that with the visible patches pasted over it, the difference."""
    P, (H, W) = method.encoder.patch_size, images.shape[2:]
    patches = patchify(images, P)  # (1, N, P*P*C)
    N = patches.shape[1]
    painted = method.reconstruct(images, keep)
    visible = keep[..., None].expand(-1, -1, patches.shape[2])
    pasted = unpatchify(patchify(painted, P).scatter(1, visible, take(patches, keep)), (H, W), P)
    original, painted, pasted = (preprocess.denormalise(each)[0] for each in (images, painted, pasted))
    away = (original - pasted).abs().mean(dim=0)  # (H, W), zero where it was seen
    heat = torch.from_numpy(figures.HEAT((away / BRIGHT).clamp(max=1).numpy())[..., :3]).permute(2, 0, 1)
    hiding = torch.ones(N, dtype=torch.bool)
    hiding[keep[0]] = False
    told = method.loss(images, keep, hiding.nonzero()[:, 0][None])
    loss, constant = (float(told[name]) for name in ("loss", "uninformed"))
    words = f"{N - keep.shape[1]} of {N} patches hidden: loss {loss:.3f}; the best constant for these very patches has {constant:.3f}."
    return tiles(
        (
            ("original", png(original)),
            ("reconstruction", png(painted)),
            ("with what was seen", png(pasted)),
            (f"difference, brightest from {BRIGHT:.0%} of the range", png(heat)),
        ),
        words,
    )


def empty(shelf: Shelf) -> str:
    """What to do where there is nothing to show."""
    roots = ", ".join(html.escape(str(root)) for root in shelf.roots)
    return (
        f'<p class="note">No masked autoencoder in {roots} yet. <code>unmask quickstart</code> trains one in minutes, '
        "<code>unmask pretrain mae --data path/to/images --out runs/mine</code> one on your own images.</p>"
    )

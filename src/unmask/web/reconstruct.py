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
from unmask.web.canvas import canvas, drawn, png, tiles
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
            picture = canvas(elem_id="paint")
        with gr.Column(scale=4, min_width=300):
            painted = gr.HTML("" if shelf.autoencoders() else empty(shelf), elem_id="painted")
    seed = gr.State(0)
    given = [chooser.run, chooser.chosen, ratio, masking, seed]

    @told
    def draw(run: str | None, chosen: Chosen | None, ratio: float, masking: str, seed: int) -> tuple[str, str]:
        if not run or chosen is None:
            return "", empty(shelf)
        method, images, preprocess = looked_at(shelf, run, chosen)
        if masking == "grid":
            ratio = min(LATTICES, key=lambda each: abs(each - ratio))
        settings = dataclasses.replace(method.settings, mask_ratio=ratio, masking=masking)
        grid = method.encoder.grid_for(method.encoder.image_size)
        keep, _ = method.sample(sample_seeds(seed, 0, torch.zeros(1, dtype=torch.int64)), grid, settings)
        return show(method, images, preprocess, keep, chosen.words(shelf))

    @told
    def paint(run: str, chosen: Chosen, event: gr.EventData) -> tuple[str, str]:
        method, images, preprocess = looked_at(shelf, run, chosen)
        rows, columns = method.encoder.grid_for(method.encoder.image_size)
        return show(method, images, preprocess, kept(event.hidden, rows * columns)[None], chosen.words(shelf))

    quick: dict[str, Any] = {"outputs": [picture, painted], "show_progress": "hidden", "trigger_mode": "always_last"}
    ratio.input(draw, given, **quick)
    gr.on([masking.change, chooser.chosen.change, seed.change], draw, given, **quick)
    again.click(lambda seed: seed + 1, seed, seed, show_progress="hidden")
    chooser.run.change(draw, given, **quick)
    picture.painted(paint, given[:2], [picture, painted], show_progress="hidden", trigger_mode="multiple")


def looked_at(shelf: Shelf, run: str, chosen: Chosen) -> tuple[MAE, Tensor, Preprocess]:
    """The autoencoder called so, what it sees of an image, (1, C, H, W) normalised, and how that is made."""
    method, preprocess = shelf.autoencoder(run)
    return method, seen(shelf, chosen, preprocess, method.encoder.image_size), preprocess


def kept(hidden: Any, patches: int) -> Tensor:
    """The patches that are not in a list that a browser sent, (K,) int64. BadInput for a list that is none."""
    if not isinstance(hidden, list) or not all(type(i) is int and 0 <= i < patches for i in hidden):
        raise BadInput("the strokes do not fit this picture: load the page anew")
    return torch.tensor(sorted({*range(patches)} - {*hidden}), dtype=torch.int64)


@torch.inference_mode()
def show(method: MAE, images: Tensor, preprocess: Preprocess, keep: Tensor, name: str) -> tuple[str, str]:
    """The value of a canvas with an image (1, C, H, W), normalised, and its hidden patches, all but those at `keep` (1, K); and
    HTML of what is painted there: the original, the reconstruction, that with what was seen pasted over it, the difference."""
    P, (H, W) = method.encoder.patch_size, images.shape[2:]
    original = preprocess.denormalise(images)[0]
    N = H * W // P**2
    hidden = sorted({*range(N)} - {*keep[0].tolist()})
    masked = drawn(png(original), "the image with its hidden patches in grey", (H // P, W // P), hidden)
    if not hidden:
        return masked, '<p class="note">Nothing is hidden: draw on the picture, or slide the ratio.</p>'
    if len(hidden) == N:
        return masked, '<p class="note">Everything is hidden: begin a stroke on a grey patch to show it again.</p>'
    patches = patchify(images, P)  # (1, N, P*P*C)
    painted = method.reconstruct(images, keep)
    visible = keep[..., None].expand(-1, -1, patches.shape[2])
    pasted = unpatchify(patchify(painted, P).scatter(1, visible, take(patches, keep)), (H, W), P)
    painted, pasted = (preprocess.denormalise(each)[0] for each in (painted, pasted))
    away = (original - pasted).abs().mean(dim=0)  # (H, W), zero where it was seen
    heat = torch.from_numpy(figures.HEAT((away / BRIGHT).clamp(max=1).numpy())[..., :3]).permute(2, 0, 1)
    told = method.loss(images, keep, torch.tensor([hidden]))
    loss, constant = (float(told[name]) for name in ("loss", "uninformed"))
    words = (
        f"{len(hidden)} of {N} patches hidden: loss {loss:.3f}; the best constant for these patches "
        f"has {constant:.3f}. {name}"
    )
    shown = tiles(
        (
            ("original", png(original)),
            ("reconstruction", png(painted)),
            ("with what was seen", png(pasted)),
            (f"difference, brightest from {BRIGHT:.0%} of the range", png(heat)),
        ),
        words,
    )
    return masked, shown


def empty(shelf: Shelf) -> str:
    """What to do where there is nothing to show."""
    roots = ", ".join(html.escape(str(root)) for root in shelf.roots)
    return (
        f'<p class="note">No masked autoencoder in {roots} yet. <code>unmask quickstart</code> trains one in minutes, '
        "<code>unmask pretrain mae --data path/to/images --out runs/mine</code> one on your own images.</p>"
    )

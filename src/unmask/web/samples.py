"""Choosing an encoder, and an image for it: a sample of a collection, or one's own."""

import functools
import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np
from torch import Tensor

from unmask.data.decode import SUFFIXES, Preprocess, UnreadableImage
from unmask.data.loader import centred
from unmask.data.source import Source
from unmask.errors import BadInput
from unmask.web.canvas import dropzone, picker, png, strip
from unmask.web.shelf import OWN, Shelf
from unmask.web.uploads import MOST_BYTES, MOST_PIXELS, told

SHOWN = 12
"""Samples at a time."""
SIDE = 64
"""Height and width of a sample in the strip, in pixels."""


@dataclass(frozen=True)
class Chosen:
    """An image that a visitor chose. Only handlers of the page make one."""

    collection: str = ""
    number: int = 0
    """Of the image in its collection."""
    run: str = ""
    """Whose own images these are, if they are a run's."""
    upload: str = ""
    """What unmask.web.uploads knows it by, if it was uploaded."""

    def image(self, shelf: Shelf) -> Tensor:
        """Its pixels (C, H, W). BadInput or UnreadableImage if they cannot be had."""
        if self.upload:
            return shelf.uploads.image(self.upload)
        return shelf.images(self.run, self.collection).image(self.number)

    def words(self, shelf: Shelf) -> str:
        """What it is called, and its label."""
        if self.upload:
            return shelf.uploads.name(self.upload)
        known = shelf.images(self.run, self.collection).table.iloc[self.number]
        return " · ".join(str(known[column]) for column in ("path", "label") if known.get(column) is not None)


def whose(run: str, collection: str) -> str:
    """The run that a collection belongs to, if it is a run's own."""
    return run if collection == OWN else ""


@functools.lru_cache(maxsize=64)
def seen(shelf: Shelf, chosen: Chosen, preprocess: Preprocess, size: tuple[int, int]) -> Tensor:
    """What an encoder sees of an image that was chosen, (1, C, *size) normalised; not to be written to. BadInput or
    UnreadableImage if it cannot be had."""
    return centred(chosen.image(shelf), preprocess, size)[None]


def image_drop() -> gr.HTML:
    """Where an image of one's own is dropped."""
    words = (
        f"Drop an image of your own, or click: JPEG, PNG, WebP, BMP, GIF or TIFF, at most {MOST_BYTES // 2**20} MiB and "
        f"{MOST_PIXELS // 1_000_000} megapixels. It stays in this machine's memory."
    )
    return dropzone(words, sorted(SUFFIXES))


class Chooser:
    """The components by which an encoder and an image are chosen, and what is chosen."""

    run: gr.Dropdown
    """The encoder's name on the shelf."""
    chosen: gr.State
    """A `Chosen`, or None."""

    def __init__(self, shelf: Shelf, page: gr.Blocks, names: Callable[[], Sequence[str]]):
        """names: which encoders can be chosen, as they are now."""
        there = list(names())
        first = there[0] if there else None
        with gr.Row():
            self.run = gr.Dropdown(there, value=first, label="Encoder", filterable=True)
            collection = gr.Dropdown(shelf.offered(first), label="Samples of", filterable=True)
        samples = picker()
        more = gr.Button("Other samples", size="sm")
        drop = image_drop()
        self.chosen = gr.State(None)
        turn, numbers = gr.State(0), gr.State([])

        def look(run: str | None, name: str, turn: int, chosen: Chosen | None) -> tuple[Any, ...]:
            if not run:
                return "", [], chosen
            try:
                source, (_, preprocess) = shelf.images(run, name), shelf.encoder(run)
                if not (found := shown(source, preprocess, turn)):
                    raise BadInput(
                        f"nothing of {name} can be shown to {run}, which takes {preprocess.channels} channels"
                    )
            except BadInput as error:  # said where the samples would be: another collection may be chosen
                return f'<p class="note">{html.escape(str(error))}</p>', [], chosen
            if chosen is None or not (chosen.upload or (chosen.collection, chosen.run) == (name, whose(run, name))):
                varied = max(found, key=lambda number: float(found[number].std()))  # not a blank one
                chosen = Chosen(name, varied, whose(run, name))
            paths = source.table["path"]
            return strip([(str(paths.iat[i]), png(small)) for i, small in found.items()]), list(found), chosen

        outputs = [samples, numbers, self.chosen]
        given = [self.run, collection, turn, self.chosen]
        gr.on([self.run.change, collection.change, page.load], look, given, outputs, show_progress="hidden")
        more.click(lambda turn: turn + 1, turn, turn).then(look, given, outputs, show_progress="hidden")
        page.load(lambda: gr.update(choices=list(names())), outputs=self.run)
        self.run.change(lambda run: gr.update(choices=shelf.offered(run)), self.run, collection, show_progress="hidden")

        @told
        def pick(run: str, name: str, numbers: list[int], event: gr.EventData) -> Chosen:
            index = event.index  # from a browser: anything
            if not isinstance(index, int) or not 0 <= index < len(numbers):
                raise BadInput("there is no such sample: load the page anew")
            return Chosen(name, numbers[index], whose(run, name))

        samples.picked(pick, [self.run, collection, numbers], self.chosen, trigger_mode="multiple")

        @told
        def take(run: str | None, event: gr.EventData) -> Chosen:
            chosen = Chosen(upload=str(event.token))
            if run:  # an image that it cannot see leaves all as it is
                seen(shelf, chosen, shelf.encoder(run)[1], (SIDE, SIDE))
            return chosen

        drop.uploaded(take, self.run, self.chosen)


def shown(source: Source, preprocess: Preprocess, turn: int) -> dict[int, Tensor]:
    """Samples of a source by their number, small (C, SIDE, SIDE) in [0, 1]: other ones at each turn, always the same at one. What
    cannot be shown is left out."""
    order, found = np.random.default_rng(0).permutation(len(source)), {}
    for number in np.roll(order, -turn * SHOWN)[: 4 * SHOWN].tolist():
        try:
            pixels = source.shrunk(number, lambda h, w: min(h, w) / SIDE).pixels
            found[number] = preprocess.denormalise(centred(pixels, preprocess, (SIDE, SIDE)))
        except UnreadableImage:
            continue
        if len(found) == SHOWN:
            break
    return found

"""The tab Neighbours: which images the encoder holds for alike, and whether those are of the same kind."""

import dataclasses
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import numpy as np

from unmask.data.decode import SUFFIXES
from unmask.data.loader import centred
from unmask.web.canvas import Strip, png, uri
from unmask.web.collection import (
    LEARNT,
    NEAR,
    PIXELS,
    UNTRAINED,
    Asked,
    Index,
    asked_for,
    cards,
    choosers,
    empty,
    facts,
    indices,
    moving,
    number,
    text,
)
from unmask.web.shelf import Shelf
from unmask.web.uploads import opened, told

SAMPLES = 12
"""Images at a time to choose the query from."""


@dataclass(frozen=True)
class Look:
    """What one visitor looks at."""

    asked: Asked
    turn: int = 0
    """Of the samples."""
    row: int = 0
    """The query, counted in the whole collection, so that another encoder finds it again."""
    upload: Path | None = None
    """The query, if it was uploaded."""


def tab(shelf: Shelf, page: gr.Blocks) -> None:
    """Build it."""
    made = indices(shelf)
    gr.HTML(
        '<p class="lead">Which images does an encoder hold for alike? Look at a collection, then pick an image: if the encoder '
        "works, its neighbours are of the same kind, not just of the same colours.</p>"
    )
    encoder, collection, look = choosers(shelf, page)
    status = gr.HTML(empty("Nothing has been looked at yet: choose an encoder and a collection, and press the button."))
    with gr.Column(visible=False) as found:
        samples = Strip(elem_id="neighbours-samples")
        with gr.Row(equal_height=True):
            more = gr.Button("Other samples", size="sm", min_width=120)
            upload = gr.UploadButton(
                "Your own image",
                file_types=sorted(SUFFIXES),
                type="filepath",
                size="sm",
                min_width=120,
            )
        by = gr.Radio([LEARNT, UNTRAINED, PIXELS], value=LEARNT, label="Alike by")
        with gr.Row():
            with gr.Column(scale=2, min_width=260):
                query = gr.HTML(elem_id="query")
            with gr.Column(scale=5, min_width=300):
                near = Strip(elem_id="near")
    state = gr.State(None)
    outputs = [state, found, status, samples, query, near]

    def show(seen: Look, index: Index) -> tuple:
        return (seen, gr.update(visible=True), said(index), shown(index, some(index, seen.turn)), *answer(index, seen))

    @told
    def begin(encoder: str, collection: str, by: str, seen: Look | None, progress: gr.Progress = gr.Progress()):  # noqa: B008
        asked = asked_for(encoder, collection, by)
        index = made.index(asked, moving(progress))
        if seen is None or (seen.asked.collection, seen.upload) != (collection, None):
            seen = Look(asked, row=int(index.rows[some(index, 0)[0]]))
        return show(dataclasses.replace(seen, asked=asked), index)

    @told
    def others(seen: Look):
        return show(dataclasses.replace(seen, turn=seen.turn + 1), made.index(seen.asked))

    @told
    def pick(seen: Look, event: gr.EventData):
        index = made.index(seen.asked)
        return show(dataclasses.replace(seen, row=int(index.rows[number(event, len(index))]), upload=None), index)

    @told
    def take(seen: Look, path: str):
        opened(path)  # what cannot be opened leaves all as it is
        return show(dataclasses.replace(seen, upload=Path(path)), made.index(seen.asked))

    gr.on([look.click, by.input], begin, [encoder, collection, by, state], outputs, show_progress_on=status)
    more.click(others, state, outputs, show_progress="hidden")
    samples.picked(pick, state, outputs, show_progress="hidden")
    near.picked(pick, state, outputs, show_progress="hidden")
    upload.upload(take, [state, upload], outputs, show_progress_on=query)


def some(index: Index, turn: int) -> list[int]:
    """Which images are shown as samples at a turn, always the same, turning round at the end."""
    order = np.random.default_rng(0).permutation(len(index))
    return np.roll(order, -turn * SAMPLES)[:SAMPLES].tolist()


def shown(index: Index, images: Sequence[int]) -> str:
    """The value of a Strip of samples."""
    buttons = []
    for i, small in zip(images, index.pictures(images, side=64), strict=True):
        words = html.escape(" · ".join(x for x in (index.known(i, "path"), index.known(i, "label")) if x))
        buttons.append(
            f'<button type="button" data-index="{i}" title="{words}"><img src="{uri(small)}" alt="{words}"></button>'
        )
    return f'<div class="strip">{"".join(buttons)}</div>'


def answer(index: Index, seen: Look) -> tuple[str, str]:
    """HTML of the query with what its neighbours say, and the value of the Strip of them."""
    if seen.upload is not None:
        image = centred(opened(seen.upload), index.preprocess, index.size)
        images, distances = index.nearest(index.vector(image))
        picture = big(png(index.preprocess.denormalise(image)))
        return f'{picture}<p class="judged">{html.escape(seen.upload.name)}, uploaded</p>', cards(
            index, images, distances
        )
    i = int(np.searchsorted(index.rows, seen.row).clip(max=len(index) - 1))
    images, distances = index.nearest(i)
    return big(index.pictures([i], side=320)[0]) + judged(index, i, images) + facts(index, i), cards(
        index, images, distances, like=i
    )


def big(picture: bytes) -> str:
    """The picture of the query."""
    return f'<img class="query" src="{uri(picture)}" alt="the image whose neighbours are shown">'


def judged(index: Index, i: int, images: Sequence[int]) -> str:
    """How many of the neighbours share the query's label and group, beside what chance would bring."""
    lines = []
    for column in ("label", "group"):
        own = index.known(i, column)
        if own is None or len(index) < 2:
            continue
        shared = sum(index.known(j, column) == own for j in images)
        others = sum(text(value) == own for value in index.source.table[column]) - 1
        chance = len(images) * others / (len(index) - 1)
        lines.append(
            f"<b>{shared} of {len(images)}</b> share its {column} “{html.escape(own[:60])}”; chance would bring {chance:.1f}."
        )
    if not lines:
        lines.append("Nothing is known of its kind: judge by eye.")
    return "".join(f'<p class="judged">{line}</p>' for line in lines)


def said(index: Index) -> str:
    """What was looked at, what the numbers mean, and what the neighbours of the whole collection say."""
    words = [html.escape(index.said())]
    words.append(
        "The number at a neighbour is its distance, 1 − cosine: 0 is the same, 1 is no more alike than two taken at random."
    )
    if (judged := index.agreement) is not None:
        shared, chance = judged
        most = min(NEAR, len(index) - 1)
        words.append(
            f"<b>Over the collection, {shared:.1f} of {most} share their image's label; chance would bring {chance:.1f}.</b>"
        )
    elif index.source.classes:
        words.append("There are not two labels to judge neighbours by.")
    else:
        words.append("No labels are known here: judge by eye, or name a folder with a subfolder a class, or a table.")
    return f'<p class="note">{" ".join(words)}</p>'

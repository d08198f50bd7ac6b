"""The tab Map: all images of a collection in two dimensions, in the colours of what is known of them."""

import dataclasses
import html
import io
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from unmask import figures
from unmask.errors import BadInput
from unmask.web.canvas import canvas, drawn, picker, uri
from unmask.web.collection import Asked, Index, asked_for, cards, choosers, empty, facts, indices, moving, number, text
from unmask.web.shelf import Shelf
from unmask.web.uploads import told

FAINT = ("#CCFFB3", "#00FFE6", "#F0E442")
"""Colours of classes that cannot be seen as points on white."""
COMPONENTS = 50
"""Principal components that UMAP is given, as its authors advise for long vectors."""
FEWEST = 10
"""Images below which UMAP has no neighbourhoods to keep."""
NAMED = 12
"""Classes in colours of their own."""
PALETTE = tuple(colour for colour in figures.CLASSES if colour not in FAINT)[:NAMED]
AROUND = 6
"""Neighbours that are shown of a point."""
MARGIN = 0.04
"""Around the points, as a share of the picture."""
PIXELS = 960
"""Height and width of the picture."""
SCALE = colormaps["viridis"]
OTHERS = "#BBBBBB"
FLAT, NEAR = "principal components", "UMAP"
PLAIN = "nothing"
"""The choice not to colour, among the columns."""


LAYING = threading.Lock()
"""UMAP's threads bear one at a time."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Images in two dimensions."""

    places: NDArray[np.float64]
    """Shares of the picture's width from the left and of its height from the top, (N, 2)."""
    inside: NDArray[np.bool_]
    """Which lie in the picture, (N,)."""
    words: str
    """How to read it."""

    def at(self, x: float, y: float) -> int:
        """The image in the picture nearest to a place in it; of equally near ones the first."""
        away = np.square(self.places - (x, y)).sum(axis=1)
        return int(np.where(self.inside, away, np.inf).argmin())


@dataclass(frozen=True, eq=False)
class Colours:
    """The colours of images, and what they mean."""

    of: NDArray[Any]
    """Of each image, "#RRGGBB", (N,)."""
    entry: NDArray[np.int64]
    """Which entry each image belongs to, (N,); of a scale 0, or 1 where nothing is known."""
    entries: tuple[tuple[str, int, str], ...]
    """Name, images and colour of each."""
    ends: tuple[str, str] | None = None
    """Least and greatest number of a scale."""


@dataclass(frozen=True)
class View:
    """What one visitor looks at."""

    asked: Asked
    layout: str = FLAT
    column: str = PLAIN
    only: int | None = None
    """Which entry of the legend is brought out."""
    chosen: int | None = None
    """Which image was clicked."""


def tab(shelf: Shelf, page: gr.Blocks) -> None:
    """Build it."""
    made = indices(shelf)
    gr.HTML(
        '<p class="lead">A point is an image; those that the encoder holds for alike lie together. Look at a collection, colour '
        "it by what you know, then click a point to see its image, or a name in the legend to bring it out.</p>"
    )
    encoder, collection, look = choosers(shelf, page)
    status = gr.HTML(empty("Nothing has been looked at yet: choose an encoder and a collection, and press the button."))
    with gr.Column(visible=False) as found:
        with gr.Row():
            layout = gr.Radio([FLAT, NEAR], value=FLAT, label="Laid out by", min_width=200)
            column = gr.Dropdown([PLAIN], value=PLAIN, label="Coloured by", min_width=160)
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                picture = canvas(elem_id="map")
                legend = picker(elem_id="legend")
            with gr.Column(scale=4, min_width=300):
                one = gr.HTML(elem_id="point")
                near = picker(elem_id="around")
    state = gr.State(None)
    outputs = [state, found, status, layout, column, picture, legend, one, near]

    def show(view: View, index: Index, layout: Layout, *choose: Any) -> tuple:
        colours = coloured(index, view.column)
        points = drawn(draw(layout, colours, view, around(index, view)), f"{len(index):,} images as points")
        words = f'<p class="note">{html.escape(index.said())} {html.escape(layout.words)}</p>'
        return (
            view,
            gr.update(visible=True),
            words,
            *(choose or (gr.update(), gr.update())),
            points,
            key(colours, view),
            *point(index, view),
        )

    @told
    def begin(encoder: str, collection: str, layout: str, view: View | None, progress: gr.Progress = gr.Progress()):  # noqa: B008
        asked = asked_for(encoder, collection)
        index = made.index(asked, moving(progress))
        progress(None, desc=f"laying out {len(index):,} images")
        places = laid_out(index, layout)
        columns = [PLAIN, *colourable(index)]
        if view is None or view.asked != asked:
            known = columns[1] if len(columns) > 1 else PLAIN
            kept = view.column if view is not None and view.column in columns and view.column != PLAIN else known
            view = View(asked, column=kept)
        view = dataclasses.replace(view, layout=layout)
        ways = [(FLAT, FLAT), (f"UMAP (once about {30 + len(index) // 200} s)", NEAR)]
        return show(view, index, places, gr.update(choices=ways), gr.update(choices=columns, value=view.column))

    def again(view: View) -> tuple:
        index = made.index(view.asked)
        return show(view, index, laid_out(index, view.layout))

    @told
    def colour(view: View, column: str):
        return again(dataclasses.replace(view, column=column, only=None))

    @told
    def touch(view: View, event: gr.EventData):
        index = made.index(view.asked)
        layout = laid_out(index, view.layout)
        return show(dataclasses.replace(view, chosen=layout.at(*place(event))), index, layout)

    @told
    def bring_out(view: View, event: gr.EventData):
        index = made.index(view.asked)
        clicked = number(event, len(coloured(index, view.column).entries))
        return again(dataclasses.replace(view, only=None if clicked == view.only else clicked))

    @told
    def go(view: View, event: gr.EventData):
        return again(dataclasses.replace(view, chosen=number(event, len(made.index(view.asked)))))

    gr.on([look.click, layout.input], begin, [encoder, collection, layout, state], outputs, show_progress_on=status)
    column.input(colour, [state, column], outputs, show_progress="hidden")
    picture.touched(touch, state, outputs, show_progress="hidden", trigger_mode="multiple")
    legend.picked(bring_out, state, outputs, show_progress="hidden")
    near.picked(go, state, outputs, show_progress="hidden")


def place(event: gr.EventData) -> tuple[float, float]:
    """Where the picture was touched. BadInput for what no page of ours sends."""
    told = event._data if isinstance(event._data, dict) else {}
    x, y = told.get("x"), told.get("y")
    if not isinstance(x, int | float) or not isinstance(y, int | float) or not (0 <= x <= 1 and 0 <= y <= 1):
        raise BadInput("that is no place in the picture: load the page anew")
    return float(x), float(y)


# Places


def laid_out(index: Index, name: str) -> Layout:
    """Images in two dimensions, FLAT or NEAR; made once, the same each time. BadInput where umap-learn is missing."""
    if name not in (FLAT, NEAR):
        raise BadInput("choose how the images are laid out")
    if name in index.layouts:
        return index.layouts[name]
    with LAYING:
        if name not in index.layouts:
            index.layouts[name] = principal(index) if name == FLAT else neighbourly(index)
        return index.layouts[name]


def components(index: Index, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The first principal components of the vectors, (N, <= count), and their shares of the variance."""
    X = index.vectors.numpy()
    if len(X) < 2 or np.ptp(X, axis=0).max() < 1e-6:
        return np.zeros((len(X), 2)), np.zeros(2)
    solver = PCA(min(count, *X.shape), random_state=0)
    scores = solver.fit_transform(X).astype(np.float64)
    missing = max(0, 2 - scores.shape[1])
    return np.pad(scores, ((0, 0), (0, missing))), np.pad(solver.explained_variance_ratio_, (0, missing))


def principal(index: Index) -> Layout:
    """By the two directions in which they differ most."""
    scores, shares = components(index, 2)
    words = (
        f"Two principal components hold {shares[:2].sum():.0%} of how the vectors differ ({shares[0]:.0%} from left to right, "
        f"{shares[1]:.0%} upwards); what the others tell apart may lie together here."
    )
    return framed(scores[:, :2], words)


def neighbourly(index: Index) -> Layout:
    """By UMAP (McInnes et al. 2018), which keeps together what is near."""
    if len(index) < FEWEST:
        raise BadInput(f"UMAP needs {FEWEST} images at least, and here are {len(index)}: take the principal components")
    try:
        from umap import UMAP
    except ImportError:
        raise BadInput("UMAP needs a package that is not installed: pip install 'unmask[ui]'") from None
    scores, _ = components(index, COMPONENTS)
    near, init = min(15, len(index) - 1), "spectral" if len(index) > 50 else "random"
    layout = UMAP(n_neighbors=near, random_state=0, n_jobs=1, init=init, verbose=False)
    words = (
        "UMAP keeps together what is near. How far clusters lie from each other, how large they are and in which direction "
        "means little: whether two are alike, Neighbours tells."
    )
    return framed(np.asarray(layout.fit_transform(scores), dtype=np.float64), words)


def framed(places: NDArray[np.float64], words: str) -> Layout:
    """Places (N, 2) in a square picture, both directions on one scale; the outermost hundredth may lie outside."""
    low, high = np.percentile(places, (0.5, 99.5), axis=0)
    room = 0.12 * np.maximum(high - low, 1e-9)
    low, high = np.maximum(low - room, places.min(axis=0)), np.minimum(high + room, places.max(axis=0))
    side = float((high - low).max()) or 1.0
    shares = 0.5 + (1 - 2 * MARGIN) * (places - (low + high) / 2) / side
    shares[:, 1] = 1 - shares[:, 1]
    inside = ((shares >= 0) & (shares <= 1)).all(axis=1)
    out = int((~inside).sum())
    return Layout(
        shares, inside, words + (f" {out:,} far away {'lies' if out == 1 else 'lie'} outside." if out else "")
    )


# Colours


def numbers(values: pd.Series) -> NDArray[np.float64] | None:
    """A column as numbers (N,), NaN where there are none, if it holds a quantity, not names."""
    kind = pd.api.types
    if not kind.is_numeric_dtype(values) or kind.is_bool_dtype(values) or values.nunique() <= NAMED:
        return None
    x = values.to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.isfinite(x), x, np.nan)


def colourable(index: Index) -> list[str]:
    """The columns by which images can be coloured, label and group first: quantities, and names that recur."""
    found = []
    for column in index.source.table:
        values = pd.Series(index.source.table[column])
        names = {text(value) for value in values} - {None} if numbers(values) is None else {"low", "high"}
        if column != "path" and 1 < len(names) <= max(NAMED, len(index) // 2):
            found.append(str(column))
    return sorted(found, key=lambda name: {"label": 0, "group": 1}.get(name, 2))


def coloured(index: Index, column: str) -> Colours:
    """The colours of images by a column, or PLAIN. BadInput for a column by which none can be coloured."""
    n = len(index)
    if column == PLAIN:
        return Colours(
            np.full(n, figures.BLUE, dtype=object), np.zeros(n, dtype=np.int64), (("images", n, figures.BLUE),)
        )
    if column not in colourable(index):
        raise BadInput("images cannot be coloured by that: choose another column")
    if (x := numbers(pd.Series(index.source.table[column]))) is not None:
        low, high = np.nanpercentile(x, (1, 99))
        unknown = np.isnan(x)
        of = np.array(
            [to_hex(colour) for colour in SCALE(np.nan_to_num((x - low) / ((high - low) or 1.0)))], dtype=object
        )
        of[unknown] = OTHERS
        entries = [(column, int((~unknown).sum()), ""), ("unknown", int(unknown.sum()), OTHERS)]
        return Colours(
            of, unknown.astype(np.int64), tuple(entries[: 1 + bool(unknown.any())]), (f"{low:.4g}", f"{high:.4g}")
        )
    names = [text(value) for value in index.source.table[column]]
    counts = Counter(name for name in names if name is not None)
    common = sorted(counts, key=lambda name: (-counts[name], name))[:NAMED]
    order = [name for name in (index.source.classes if column == "label" else sorted(common)) if name in common]
    turn = {name: i for i, name in enumerate(order)}
    entry = np.array([turn.get(name or "", len(order)) for name in names])
    entries = [(name, counts[name], colour) for name, colour in zip(order, PALETTE, strict=False)]
    if (rest := int((entry == len(order)).sum())) > 0:
        what = [f"{len(counts) - len(order):,} others"] * (len(counts) > len(order)) + ["unknown"] * (None in names)
        entries.append((" or ".join(what), rest, OTHERS))
    return Colours(np.array([colour for _, _, colour in entries], dtype=object)[entry], entry, tuple(entries))


# Pictures


def around(index: Index, view: View) -> list[int]:
    """The neighbours of the image that was clicked."""
    return [] if view.chosen is None else index.nearest(view.chosen, AROUND)[0]


def draw(layout: Layout, colours: Colours, view: View, near: Sequence[int]) -> bytes:
    """The points as a PNG: the one that was clicked with a ring, its neighbours with thin ones."""
    figure = Figure(figsize=(PIXELS / 100, PIXELS / 100), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 1), ylim=(1, 0))
    axes.set_axis_off()
    n = len(layout.places)
    size = float(np.clip(40_000 / max(n, 1), 7, 90))
    order = np.random.default_rng(0).permutation(n)  # so that no class lies above another
    order = order[layout.inside[order]]
    out = np.ones(n, dtype=bool) if view.only is None else colours.entry == view.only
    alpha = 0.35 if n > 5000 else 0.55 if n > 800 else 0.8
    for rows, shade in ((order[~out[order]], "#E4E4E4"), (order[out[order]], None)):
        if len(rows):
            axes.scatter(*layout.places[rows].T, s=size, c=shade or list(colours.of[rows]), alpha=alpha, linewidths=0)
    for rows, large in ((near, 1), ([] if view.chosen is None else [view.chosen], 2.5)):
        dot = large * max(2 * size, 70)
        for area, colour in ((2.6 * dot, figures.INK), (1.8 * dot, "white"), (dot, list(colours.of[rows]))):
            if rows:
                axes.scatter(*layout.places[rows].T, s=area, c=colour, linewidths=0, clip_on=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100, metadata={"Software": None}, pil_kwargs={"compress_level": 3})
    return file.getvalue()


def key(colours: Colours, view: View) -> str:
    """The value of a picker: what the colours mean, each entry to be clicked."""
    shown = []
    for i, (name, count, colour) in enumerate(colours.entries):
        words = html.escape(name[:40])
        if colour:
            words = f'<i style="background:{colour}"></i>{words} <small>{count:,}</small>'
        elif colours.ends:
            band = ",".join(to_hex(SCALE(x)) for x in np.linspace(0, 1, 9))
            band = f'<i class="band" style="background:linear-gradient(90deg,{band})"></i>'
            words = f"{words}: {colours.ends[0]} {band} {colours.ends[1]}"
        pressed = "true" if view.only == i else "false"
        shown.append(f'<button type="button" data-index="{i}" aria-pressed="{pressed}">{words}</button>')
    return f'<div class="key">{"".join(shown)}</div>'


def point(index: Index, view: View) -> tuple[str, str]:
    """HTML of the image that was clicked and what is known of it, and the value of the picker of its neighbours."""
    if view.chosen is None:
        return empty("Click a point to see its image."), ""
    i = view.chosen
    picture = f'<img class="query" src="{uri(index.pictures([i], side=320)[0])}" alt="the image that was clicked">'
    images, distances = index.nearest(i, AROUND)
    words = '<p class="judged">Its nearest, by all numbers of the vectors, not by this picture:</p>' if images else ""
    return picture + facts(index, i) + words, cards(index, images, distances, like=i)

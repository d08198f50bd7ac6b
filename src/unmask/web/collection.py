"""What Neighbours and Map know of a collection: a vector for each image, and who is near whom. Made once for each encoder and
collection, which takes as long as looking at every image, and kept while the page is served."""

import copy
import functools
import html
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unmask.data.augment import View
from unmask.data.decode import Preprocess
from unmask.data.loader import Loader
from unmask.data.source import Source
from unmask.errors import BadInput
from unmask.evaluate.features import Pixels, extract, scales
from unmask.evaluate.knn import nearest
from unmask.models import rebuild
from unmask.training import engine
from unmask.web.canvas import png, uri
from unmask.web.shelf import Shelf

MOST = 20_000
"""Images of a collection that are looked at."""
KEPT = 4
"""Pairs of an encoder and a collection that are kept: 20,000 vectors of 768 numbers take 61 MB."""
NEAR = 12
"""Neighbours that are shown, and counted."""
JUDGED = 1000
"""Images whose neighbours are counted for the whole collection."""
SIDE = 160
"""Of the longer side of a picture in the page, in pixels, at most."""

LEARNT, UNTRAINED, PIXELS = "what it learnt", "the same encoder, untrained", "raw pixels"


@dataclass(frozen=True)
class Asked:
    """Which vectors are wanted."""

    encoder: str
    """As the shelf calls it."""
    collection: str
    """As the shelf calls it, or OWN."""
    by: str = LEARNT
    """LEARNT, UNTRAINED or PIXELS."""


@dataclass(frozen=True, eq=False)
class Index:
    """Images and their vectors, of length 1 after all dimensions were brought to one scale: the product of two is the cosine
    that `unmask probe` judges by, too."""

    source: Source
    """The images that could be read, at most MOST."""
    rows: NDArray[np.int64]
    """Which of the whole collection each is, ascending, (N,)."""
    total: int
    """Images in the whole collection."""
    unreadable: dict[str, str]
    """Reasons by path."""
    vectors: Tensor
    """(N, D) float32 on the CPU."""
    scale: tuple[Tensor, Tensor]
    """Mean and deviation of each dimension before, (D,) float64 each."""
    module: nn.Module
    """What makes the vectors."""
    preprocess: Preprocess
    size: tuple[int, int]
    """Height and width that it sees."""
    device: torch.device
    precision: str
    layouts: dict[str, Any] = field(default_factory=dict)
    """What the map has made of it, by name."""

    def __len__(self) -> int:
        return len(self.rows)

    @torch.no_grad()
    def vector(self, image: Tensor) -> Tensor:
        """The vector (D,) of another image, (C, *size) as `data.loader.centred` makes it."""
        with engine.autocast(self.device, self.precision):
            found = self.module(image[None].to(self.device)).float().cpu()
        return unit(found, self.scale)[0]

    def nearest(self, query: int | Tensor, k: int = NEAR) -> tuple[list[int], list[float]]:
        """The k images most alike, the nearest first, and their distances 1 - cosine, from 0 to 2: to one of the images, which is
        itself left out, or to another's vector (D,). Of equally near ones the first in the collection come first."""
        inside = isinstance(query, int)
        similar = self.vectors @ (self.vectors[query] if inside else query)
        if inside:
            similar[query] = -torch.inf
        values, places = nearest(similar[None], min(k, len(self) - inside))
        return places[0].tolist(), (1 - values[0]).clamp(0, 2).tolist()

    @functools.cached_property
    def agreement(self) -> tuple[float, float] | None:
        """Of the NEAR nearest of up to JUDGED images with a label, how many share it on average, and how many chance would bring.
        None without two labels."""
        targets = torch.from_numpy(self.source.targets()) if self.source.classes else torch.full((len(self),), -1)
        asked = (targets >= 0).nonzero()[:, 0]
        if len(targets[asked].unique()) < 2 or len(self) < 2:
            return None
        asked = asked[torch.from_numpy(spread(len(asked), JUDGED))]
        k, shared = min(NEAR, len(self) - 1), 0
        for part in asked.split(64):
            similar = self.vectors[part] @ self.vectors.T
            similar[torch.arange(len(part)), part] = -torch.inf
            shared += int((targets[nearest(similar, k)[1]] == targets[part][:, None]).sum())
        counts = targets[targets >= 0].bincount()
        chance = k * float((counts[targets[asked]] - 1).double().mean()) / (len(self) - 1)
        return shared / len(asked), chance

    def known(self, i: int, column: str) -> str | None:
        """What is known of an image in a column of its table, as text; None where nothing is."""
        return text(self.source.table[column].iat[i]) if column in self.source.table else None

    def pictures(self, images: Sequence[int], side: int = SIDE) -> list[bytes]:
        """Images as the encoder sees them, at most so many pixels a side, as PNG; one that cannot be read any more is grey."""
        scale = min(1.0, side / max(self.size))
        size = (max(1, round(scale * self.size[0])), max(1, round(scale * self.size[1])))
        view = View(size, crop_scale=None, flip=0.0)
        found = dict.fromkeys(range(len(images)), png(torch.full((1, *size), 0.5)))
        for batch in Loader(self.source.subset(images), self.preprocess, (view,), 64).once():
            shown = self.preprocess.denormalise(batch.views[0])
            found |= {i: png(image) for i, image in zip(batch.index.tolist(), shown, strict=True)}
        return list(found.values())

    def said(self) -> str:
        """What was looked at, in a sentence."""
        left = len(self.unreadable)
        most = f"{len(self) + left:,} of {self.total:,} images, evenly spread over the collection"
        words = most if self.total > len(self) + left else f"All {self.total:,} images"
        words += (
            f"{f'; {left:,} could not be read' if left else ''}. Each is a vector of {self.vectors.shape[1]} numbers."
        )
        if len(self) > 1 and not self.vectors.any():
            words += " All have the same vector: the encoder has collapsed, and nobody is nearer than another."
        return words


def unit(vectors: Tensor, scale: tuple[Tensor, Tensor]) -> Tensor:
    """Vectors (N, D) with all dimensions on one scale, of length 1, float32; 0 where nothing tells them from the mean."""
    mean, std = scale
    wide = (vectors.double() - mean) / std
    return F.normalize(wide * (wide.norm(dim=1, keepdim=True) > 1e-6), dim=1).float()


def spread(n: int, most: int, seed: int = 0) -> NDArray[np.int64]:
    """Which of n things are taken, at most so many: one at random out of each of as many equal stretches. Ascending."""
    if n <= most:
        return np.arange(n)
    edges = np.arange(most + 1) * n // most
    return np.random.default_rng(seed).integers(edges[:-1], edges[1:])


class Watched(nn.Module):
    """An encoder that tells how many images it has seen."""

    def __init__(self, module: nn.Module, said: Callable[[int], None]):
        super().__init__()
        self.module, self.said, self.seen = module, said, 0

    def forward(self, images: Tensor) -> Tensor:
        vectors = self.module(images)
        self.seen += len(images)
        self.said(self.seen)
        return vectors


def made(shelf: Shelf, asked: Asked, said: Callable[[int, int], None]) -> Index:
    """Look at every image. said: is told how many have been seen, and of how many. BadInput where there is no such encoder or
    collection, the two do not fit, or the encoder has diverged."""
    encoder, preprocess = shelf.encoder(asked.encoder)
    whole = shelf.images(asked.encoder, asked.collection)
    rows = spread(len(whole), MOST)
    source = whole if len(rows) == len(whole) else whole.subset(rows)
    device = torch.device("cpu") if asked.by == PIXELS else engine.choose_device("auto")
    precision, _ = engine.choose_precision("auto", device)
    if asked.by == PIXELS:
        module, precision = Pixels(), "float32"
    elif asked.by == UNTRAINED:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = rebuild(encoder.config).eval()
    else:
        module = (
            encoder if device.type == "cpu" else copy.deepcopy(encoder)
        )  # the shelf's own stays where others use it
    unreadable: dict[str, str] = {}
    try:
        vectors, index = extract(
            Watched(module, lambda seen: said(seen, len(source))),
            source,
            preprocess,
            encoder.image_size,
            device=device,
            precision=precision,
            unreadable=unreadable.__setitem__,
        )
    except BadInput as error:
        why = f" ({next(iter(unreadable.values()))})" if unreadable else ""
        raise BadInput(f"{error}{why}: choose another collection, or an encoder of such images") from None
    if not vectors.isfinite().all():
        raise BadInput(
            f"{asked.encoder} makes vectors that are NaN or infinite: the encoder has diverged, train it anew"
        )
    scale = scales(vectors)
    kept = source if len(index) == len(source) else source.subset(index.numpy())
    return Index(
        kept,
        rows[index.numpy()],
        len(whole),
        unreadable,
        unit(vectors, scale),
        scale,
        module,
        preprocess,
        encoder.image_size,
        device,
        precision,
    )


class Indices:
    """What has been looked at, on one shelf. Safe to be asked from several threads: two who ask at once make it once."""

    def __init__(self, shelf: Shelf):
        self.shelf, self.kept, self.making = shelf, {}, threading.Lock()

    def index(self, asked: Asked, said: Callable[[int, int], None] = lambda seen, total: None) -> Index:
        """The vectors that were asked for, from memory where they are there; see `made`."""
        key = (asked, self.shelf.written(asked.encoder))  # a run that goes on is looked at anew
        if (found := self.kept.get(key)) is not None:
            return found
        with self.making:  # one at a time: each takes all cores
            if key not in self.kept:
                found = made(self.shelf, asked, said)
                while len(self.kept) >= KEPT:
                    self.kept.pop(next(iter(self.kept)), None)
                self.kept[key] = found
            return self.kept[key]


@functools.lru_cache(maxsize=4)
def indices(shelf: Shelf) -> Indices:
    """What has been looked at on a shelf, the same for all its tabs."""
    return Indices(shelf)


# In the page


def text(value: Any) -> str | None:
    """A value of a table as text, None where it is missing."""
    if isinstance(value, (list, dict, tuple, np.ndarray)):
        return str(value)
    if pd.isna(value):
        return None
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def choosers(shelf: Shelf, page: gr.Blocks) -> tuple[gr.Dropdown, gr.Dropdown, gr.Button]:
    """What both tabs begin with: an encoder, a collection, and a button, for looking at all images may take minutes."""
    with gr.Row(equal_height=True, elem_classes="choose"):
        encoder = gr.Dropdown([], label="Encoder", min_width=160)
        collection = gr.Dropdown([], label="Collection", min_width=160)
        look = gr.Button("Look at every image", variant="primary", min_width=160)

    def begin() -> tuple[dict, dict, dict]:
        names = list(shelf.encoders())
        chosen = names[0] if names else None
        return gr.update(choices=names, value=chosen), collections(chosen, None), gr.update(interactive=bool(names))

    def collections(encoder: str | None, chosen: str | None) -> dict:
        there = shelf.offered(encoder)
        names = [name for _, name in there]
        return gr.update(choices=there, value=chosen if chosen in names else next(iter(names), None))

    page.load(begin, outputs=[encoder, collection, look], show_progress="hidden")
    encoder.input(collections, [encoder, collection], collection, show_progress="hidden")
    return encoder, collection, look


def asked_for(encoder: str | None, collection: str | None, by: str = LEARNT) -> Asked:
    """What was chosen. BadInput for what no page of ours sends."""
    if not encoder:
        raise BadInput("there is no encoder yet: run `unmask quickstart`, then load this page anew")
    if not collection or by not in (LEARNT, UNTRAINED, PIXELS):
        raise BadInput("choose a collection")
    return Asked(encoder, collection, by)


def moving(progress: gr.Progress) -> Callable[[int, int], None]:
    """Tells the page how far looking has come."""

    def said(seen: int, total: int) -> None:
        progress((seen, total), desc="looking at every image", unit="images")

    progress(0, desc="waiting for its turn")
    return said


def number(event: gr.EventData, most: int) -> int:
    """What was clicked, one of so many. BadInput for what no page of ours sends."""
    clicked = event._data.get("index") if isinstance(event._data, dict) else None
    if not isinstance(clicked, int) or not 0 <= clicked < most:
        raise BadInput("that is not here any more: press the button again")
    return clicked


def cards(index: Index, images: Sequence[int], distances: Sequence[float], like: int | None = None) -> str:
    """The value of a picker of neighbours: each with its distance, label, group and name. like: of which image those with the
    same label are marked."""
    label = None if like is None else index.known(like, "label")
    shown = []
    for i, picture, distance in zip(images, index.pictures(images), distances, strict=True):
        same = label is not None and index.known(i, "label") == label
        words = [html.escape(x) for x in (index.known(i, "label"), group_of(index, i)) if x]
        path = html.escape(index.known(i, "path") or "")
        shown.append(
            f'<button type="button" data-index="{i}" class="near{" same" * same}" title="{path}">'
            f'<img src="{uri(picture)}" alt="{path}"><b>{"✓ " * same}{distance:.3f}</b>'
            + "".join(f"<span>{word}</span>" for word in words)
            + f"<small>{path.rsplit('/', 1)[-1]}</small></button>"
        )
    return f'<div class="alike">{"".join(shown)}</div>'


def group_of(index: Index, i: int) -> str | None:
    """The group of an image, in words."""
    group = index.known(i, "group")
    return None if group is None else f"group {group}"


def facts(index: Index, i: int, columns: int = 12) -> str:
    """A table of what is known of an image."""
    names = [name for name in index.source.table.columns if index.known(i, str(name)) is not None]
    lines = "".join(
        f"<tr><th>{html.escape(str(name))}</th><td>{html.escape((index.known(i, str(name)) or '')[:200])}</td></tr>"
        for name in names[:columns]
    )
    more = f'<p class="note">and {len(names) - columns} more columns</p>' if len(names) > columns else ""
    return f'<div class="scroll"><table class="facts">{lines}</table></div>{more}'


def empty(words: str) -> str:
    """What stands where there is nothing to see yet."""
    return f'<p class="empty">{html.escape(words)}</p>'

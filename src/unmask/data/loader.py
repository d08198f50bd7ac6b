"""Batches from a source: read, prepare and render in workers, normalise on the device."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from unmask.data.augment import View, sample_seeds
from unmask.data.decode import Preprocess, UnreadableImage
from unmask.data.sources import Source
from unmask.errors import BadInput

KEPT = 2**30
"""Bytes of prepared images that all workers together keep from one epoch to the next."""


@dataclass
class Batch:
    """What a method sees of B samples."""

    views: tuple[Tensor, ...]
    """One normalised float32 tensor (B, C, H, W) a view."""
    index: Tensor
    """Which image of the source each sample is, (B,) int64."""
    seed: Tensor
    """The sample's own seed for all that is random about it, (B,) int64."""
    targets: Tensor | None = None
    """Class of each sample, (B,) int64, where there are labels and they are asked for."""


class Key(NamedTuple):
    epoch: int
    samples: np.ndarray


@dataclass(frozen=True)
class Loader:
    """Endless shuffled batches for training (`loader(first_step)`), or one pass in order (`loader.once()`)."""

    source: Source
    preprocess: Preprocess
    views: tuple[View, ...]
    batch_size: int
    """Samples of a batch, those of all processes together."""
    seed: int = 0
    workers: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    unreadable: Callable[[str, str], None] = lambda path, reason: None
    """Told the path and the reason of each image that could not be read; may raise to end it all."""
    part: int = 0
    """Which part of each shuffled batch is wanted, for one process among several, …"""
    parts: int = 1
    """… and of how many parts of the same size."""

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass; the rest of a shuffled pass is dropped."""
        return max(1, len(self.source) // self.batch_size)

    def __call__(self, first: int = 0) -> Iterator[Batch]:
        """Shuffled batches, endlessly, from batch number `first` on. A sample that cannot be read is replaced by the
        next one of the source that can."""
        return self._batches(self._shuffled(first), replace=True)

    def once(self) -> Iterator[Batch]:
        """Every image once, in order. A sample that cannot be read is left out."""
        indices = np.arange(len(self.source))
        keys = [Key(0, indices[i : i + self.batch_size]) for i in range(0, len(indices), self.batch_size)]
        return self._batches(keys, replace=False)

    def _shuffled(self, first: int) -> Iterator[Key]:
        n = len(self.source)
        while True:
            epoch, start = divmod(first, self.steps_per_epoch)
            order = np.random.default_rng((self.seed, epoch)).permutation(n)
            size = self.batch_size // self.parts
            for step in range(start, self.steps_per_epoch):
                begin = step * self.batch_size + self.part * size
                yield Key(epoch, order[begin : begin + size])
            first = (epoch + 1) * self.steps_per_epoch

    def _batches(self, keys, replace: bool) -> Iterator[Batch]:
        loader = DataLoader(
            Renderer(self.source, self.preprocess, self.views, self.seed, replace, KEPT // max(1, self.workers)),  # type: ignore[arg-type]
            batch_size=None,
            sampler=keys,
            num_workers=self.workers,
            collate_fn=_as_is,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=4 if self.workers else None,
            generator=torch.Generator(),  # or it would draw a seed for workers from the caller's random numbers
            worker_init_fn=_leave_group,
        )
        for views, index, seed, failures in loader:
            for path, reason in failures:
                self.unreadable(path, reason)
            if len(index) == 0:
                continue
            views = tuple(self.preprocess.normalise(view.to(self.device, non_blocking=True)) for view in views)
            yield Batch(views, index.to(self.device), seed.to(self.device))


@dataclass
class Renderer:
    """The part of the loader that runs in workers: a key in, uint8 (or float32) views of a whole batch out."""

    source: Source
    preprocess: Preprocess
    views: tuple[View, ...]
    seed: int
    replace: bool
    room: int
    """Bytes of prepared images that may be kept for later epochs."""
    kept: dict[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.source)

    def prepared(self, i: int, aspect: float) -> Tensor:
        """Image `i` of the source, decoded, trimmed and padded: read once where it is small enough to be kept."""
        if i in self.kept:
            return self.kept[i]
        image = self.preprocess.prepare(self.source.image(i), aspect)
        if self.replace and image.nbytes <= self.room:  # one pass in order sees nothing twice
            self.room -= image.nbytes
            self.kept[i] = image.clone()  # a crop would keep the whole image alive
        return image

    def __getitem__(self, key: Key):
        aspect = self.views[0].size[1] / self.views[0].size[0]
        images, indices, failures = [], [], []
        for index in key.samples.tolist():
            for candidate in range(index, index + len(self.source)) if self.replace else [index]:
                i = candidate % len(self.source)
                try:
                    images.append(self.prepared(i, aspect))
                    indices.append(i)
                    break
                except UnreadableImage as error:
                    failures.append((self.source.table["path"].iat[i], str(error)))
            else:
                if self.replace:
                    raise BadInput(f"{self.source.name}: no image can be read ({failures[-1][1]})")
        index = torch.tensor(indices, dtype=torch.int64)
        # the seed is that of the place in the order, so that a replaced sample is not drawn twice alike
        seeds = sample_seeds(self.seed, key.epoch, torch.as_tensor(key.samples) if self.replace else index)
        heights, widths = (torch.tensor([image.shape[axis] for image in images], dtype=torch.int64) for axis in (1, 2))
        views = []
        for number, view in enumerate(self.views):
            drawn = view.draw(seeds, heights, widths, number)
            rendered = [view.render(image, row) for image, row in zip(images, drawn, strict=True)]
            views.append(torch.stack(rendered) if rendered else torch.empty(0))
        return views, index, seeds, failures


def _as_is(batch):
    return batch


def _leave_group(worker: int) -> None:
    """Ctrl-C in a terminal, and a scheduler's SIGTERM, go to a whole group of processes. The workers go on until the
    process that reads from them has ended its step; they see for themselves when it is gone."""
    os.setpgrp()

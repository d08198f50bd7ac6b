"""Batches from a source: read, prepared and rendered in workers, or, where all of it fits, held on the device and rendered
there in whole batches; normalised on the device. Either way a sample is drawn alike."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from unmask.data import policies
from unmask.data.augment import View, sample_seeds
from unmask.data.decode import Preprocess, Shrunk, UnreadableImage
from unmask.data.source import Source
from unmask.errors import BadInput
from unmask.screen import track

KEPT = 2**30
"""Bytes of prepared images that all workers together keep from one epoch to the next."""

SPARE = 2
"""A large JPEG is decoded at a fraction of its size, but not below so many times the pixels a side that a crop will have:
then the crop is resized as antialiased as from the whole image."""


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
    """Class of each sample, (B,) int64, or where it may have several, which, (B, K) float32; None where the loader has none."""
    crops: tuple[Tensor, ...] = ()
    """What each view shows of each image: its rows of `View.draw`, (B, 5) int64 on the CPU, in pixels of the prepared image."""
    maps: Tensor | None = None
    """What each pixel of the first view is, (B, H, W) int64; None where the loader has no maps."""


def centred(image: Tensor, preprocess: Preprocess, size: tuple[int, int]) -> Tensor:
    """What an encoder sees of one image (C, H, W): its largest centred box, (channels, *size) float32, normalised.
    UnreadableImage if its channels cannot be converted."""
    view = View(size, crop_scale=None, flip=0.0)
    image = preprocess.prepare(image, size[1] / size[0])
    box = view.draw(torch.zeros(1, dtype=torch.int64), torch.tensor([image.shape[1]]), torch.tensor([image.shape[2]]))
    return preprocess.normalise(view.render(image, box[0]))


class Maps(Protocol):
    """What each pixel of each image of a source is."""

    def __call__(self, i: int) -> Tensor:
        """The map of image `i`, (H, W) uint8, of the image's size. UnreadableImage if it cannot be read."""
        ...


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
    hold: bool = False
    """Read every image once, hold all of them on the device, and render whole batches there. They must be of one size."""
    targets: Tensor | None = None
    """What each image of the source is, (N,) int64, or (N, K) float32 where it may be several things."""
    maps: Maps | None = None
    """What each pixel is, where that is to be learnt. An image without its map counts as unreadable."""
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
        if self.hold and self.maps is not None:
            raise BadInput("--hold: images whose pixels have classes are not held on the device: leave it out")
        keys = self._shuffled(first)
        return self._held(keys) if self.hold else self._batches(keys, replace=True)

    def once(self) -> Iterator[Batch]:
        """Every image once, in order. A sample that cannot be read is left out."""
        return self._batches(self._ordered(), replace=False)

    def _ordered(self) -> list[Key]:
        indices = np.arange(len(self.source))
        return [Key(0, indices[i : i + self.batch_size]) for i in range(0, len(indices), self.batch_size)]

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

    @cached_property
    def held(self) -> "Held":
        """Every image, read once, with a progress bar. BadInput if they are not of one size, or none can be read."""
        images, found, mixed = [], [], False
        keys = self._ordered()
        reader = Reader(self.source, self.preprocess, self.views[0].size[1] / self.views[0].size[0])
        for batch, indices, failures in track(self._workers(reader, keys), "reading images", len(keys), "batches"):
            for path, reason in failures:
                self.unreadable(path, reason)
            if not indices:
                continue
            if batch is None or (images and images[0][0].shape != batch[0].shape):
                mixed = True  # an error raised here would keep the bar, and with it a lock
                break
            images.append(batch.clone())  # what comes from a worker keeps a file open
            found += indices
        if mixed:
            raise BadInput(f"{self.source.name}: images of several sizes cannot be held together: leave --hold out")
        if not found:
            raise BadInput(f"{self.source.name}: no image can be read")
        index = torch.tensor(found)
        stands = torch.searchsorted(index, torch.arange(len(self.source))) % len(index)
        return Held(torch.cat(images).to(self.device), index.to(self.device), stands.to(self.device))

    def _held(self, keys: Iterator[Key]) -> Iterator[Batch]:
        held, known = self.held, None if self.targets is None else self.targets.to(self.device)
        height, width = torch.tensor(held.images.shape[2:], device=self.device)
        for key in keys:
            samples = torch.from_numpy(key.samples)
            near = sample_seeds(self.seed, key.epoch, samples)  # on the CPU, where colours are drawn
            seeds = near.to(self.device, non_blocking=True)
            places = held.stands[samples.to(self.device, non_blocking=True)]
            chosen, views, crops = held.images[places], [], []
            for number, view in enumerate(self.views):
                drawn = view.draw(seeds, height.expand_as(seeds), width.expand_as(seeds), number)
                crops.append(drawn)
                rendered = view.render_batch(chosen, drawn)
                views.append(self.preprocess.normalise(altered(rendered, view, near, number, self.preprocess)))
            index = held.index[places]
            yield Batch(tuple(views), index, seeds, None if known is None else known[index], tuple(crops))

    def _workers(self, dataset: "Renderer | Reader", keys: Any) -> DataLoader:
        return in_workers(dataset, keys, self.workers, self.device)

    def _batches(self, keys: Any, replace: bool) -> Iterator[Batch]:
        on_cpu = self.device.type == "cpu"
        room = KEPT // max(1, self.workers)
        renderer = Renderer(self.source, self.preprocess, self.views, self.seed, replace, on_cpu, room, self.maps)
        for views, index, seed, crops, maps, failures in self._workers(renderer, keys):
            for path, reason in failures:
                self.unreadable(path, reason)
            if len(index) == 0:
                continue
            views = [view.to(self.device, non_blocking=True) for view in views]
            if not on_cpu:
                views = [
                    altered(images, view, seed, number, self.preprocess)
                    for number, (images, view) in enumerate(zip(views, self.views, strict=True))
                ]
            targets = None if self.targets is None else self.targets[index].to(self.device, non_blocking=True)
            views = tuple(map(self.preprocess.normalise, views))
            maps = None if maps is None else maps.to(self.device, non_blocking=True).long()
            yield Batch(views, index.to(self.device), seed.to(self.device), targets, crops, maps)


@dataclass(frozen=True)
class Held:
    """All of a source on the device."""

    images: Tensor
    """(N, C, H, W), uint8 or float32, prepared."""
    index: Tensor
    """Which image of the source each is, (N,) int64, ascending."""
    stands: Tensor
    """For each image of the source, which of `images` it is, or the next that could be read: (len(source),) int64."""


@dataclass
class Renderer:
    """The part of the loader that runs in workers: a key in, uint8 (or float32) views of a whole batch out."""

    source: Source
    preprocess: Preprocess
    views: tuple[View, ...]
    seed: int
    replace: bool
    alter: bool
    """Whether policies, shifts and colours are done here, not on the device."""
    room: int
    """Bytes of prepared images that may be kept for later epochs."""
    maps: Maps | None = None
    kept: dict[int, Shrunk] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, i: int, seed: Tensor, aspect: float) -> Shrunk:
        """Image `i` of the source, decoded, trimmed and padded: read once where it is small enough to be kept."""
        if i in self.kept:
            return self.kept[i]
        if self.preprocess.trim or self.preprocess.pad:  # which look at all of it
            image = self.preprocess.prepare(self.source.image(i), aspect)
            found = Shrunk(image, image.shape[1], image.shape[2], 1)
        else:
            found = self.source.shrunk(i, lambda height, width: self.shrinkable(seed, height, width))
            found = found._replace(pixels=self.preprocess.prepare(found.pixels, aspect))
        # One pass in order sees nothing twice, and what is decoded at a fraction of its size depends on its crop
        keep = self.replace and not self.large(found.height, found.width)
        if keep and found.pixels.nbytes <= self.room:
            self.room -= found.pixels.nbytes
            self.kept[i] = found._replace(pixels=found.pixels.clone())  # a crop would keep the whole image alive
        return found

    def large(self, height: int, width: int) -> bool:
        """Whether some crop of so large an image may be decoded at a fraction of its size."""
        return all(min(height / view.size[0], width / view.size[1]) >= 2 * SPARE for view in self.views)

    def shrinkable(self, seed: Tensor, height: int, width: int) -> float:
        """How many times smaller an image may be decoded, for the crops of a sample of this seed, () int64."""
        if not self.large(height, width):
            return 1
        sides = torch.tensor([height]), torch.tensor([width])
        crops = [view.draw(seed[None], *sides, number)[0].tolist() for number, view in enumerate(self.views)]
        ratios = [
            min(crop[2] / view.size[0], crop[3] / view.size[1]) for crop, view in zip(crops, self.views, strict=True)
        ]
        return min(ratios) / SPARE

    def __getitem__(self, key: Key):
        aspect = self.views[0].size[1] / self.views[0].size[0]
        # the seed is that of the place in the order, so that a replaced sample is not drawn twice alike
        seeds = sample_seeds(self.seed, key.epoch, torch.as_tensor(key.samples))
        images, maps, indices, used, failures = [], [], [], [], []
        for place, index in enumerate(key.samples.tolist()):
            for candidate in range(index, index + len(self.source)) if self.replace else [index]:
                i = candidate % len(self.source)
                try:
                    image = self.read(i, seeds[place], aspect)
                    if self.maps is not None:
                        maps.append(self.maps(i))
                    images.append(image)
                    indices.append(i)
                    used.append(place)
                    break
                except UnreadableImage as error:
                    failures.append((self.source.table["path"].iat[i], str(error)))
            else:
                if self.replace:
                    raise BadInput(f"{self.source.name}: no image can be read ({failures[-1][1]})")
        seeds = seeds[used]
        heights, widths = (torch.tensor([image[axis] for image in images], dtype=torch.int64) for axis in (1, 2))
        views, crops = [], []
        for number, view in enumerate(self.views):
            drawn = view.draw(seeds, heights, widths, number)
            crops.append(drawn)
            rendered = [
                view.render(image.pixels, row if image.factor == 1 else image.box(row))
                for image, row in zip(images, drawn, strict=True)
            ]
            if self.alter and view.altered and rendered:
                views.append(altered(torch.stack(rendered), view, seeds, number, self.preprocess))
            else:
                views.append(stacked(rendered) if rendered else torch.empty(0))
        seen = None
        if maps:
            look = zip(maps, crops[0], strict=True)
            seen = torch.stack([self.views[0].render_map(each, row) for each, row in look])
        return views, torch.tensor(indices, dtype=torch.int64), seeds, tuple(crops), seen, failures


def stacked(images: list[Tensor]) -> Tensor:
    """Images (C, H, W) as one batch (B, C, H, W), channels side by side in memory as most of them come; in a worker it is
    made where the other process sees it."""
    return default_collate([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def altered(images: Tensor, view: View, seeds: Tensor, number: int, preprocess: Preprocess) -> Tensor:
    """Rendered images (B, C, H, W) of view `number` through its policy, shift and colours, for sample seeds (B,) int64 on the
    CPU. Black and white of floats are what is shown as such: `low` and `high` of the preprocessing."""
    if not view.altered:
        return images
    low, span, mean = 0.0, 1.0, torch.tensor(preprocess.mean)
    if images.dtype != torch.uint8 and preprocess.low:
        low = images.new_tensor(preprocess.low)[:, None, None]
        span = images.new_tensor(preprocess.high)[:, None, None] - low
        images = (images - low) / span
        mean = (mean - torch.tensor(preprocess.low)) / (torch.tensor(preprocess.high) - torch.tensor(preprocess.low))
    if view.policy is not None:
        images = policies.apply(images, view.policy, policies.draw(view.policy, seeds, number), mean)
    if view.shift:
        images = policies.shifted(images, policies.draw_shift(view.shift, seeds, number), view.shift)
    if view.colourful:
        images = view.colour(images, view.draw_colour(seeds, number))
    return images if isinstance(low, float) else images * span + low


@dataclass
class Reader:
    """A key in, its prepared images out as they are: (B, C, H, W), or None if they are of several sizes."""

    source: Source
    preprocess: Preprocess
    aspect: float

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> tuple[Tensor | None, list[int], list[tuple[str, str]]]:
        images, indices, failures = [], [], []
        for i in key.samples.tolist():
            try:
                images.append(self.preprocess.prepare(self.source.image(i), self.aspect))
                indices.append(i)
            except UnreadableImage as error:
                failures.append((self.source.table["path"].iat[i], str(error)))
        alike = len({(image.shape, image.dtype) for image in images}) == 1
        return (torch.stack(images) if alike else None), indices, failures


def in_workers(dataset: Any, keys: Any, workers: int, device: torch.device) -> DataLoader:
    """What `dataset` makes of each of the keys, in their order, made in so many processes; 0: in this one."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # or it would draw a seed for workers from the caller's random numbers
        worker_init_fn=partial(_begin_worker, os.getpid()),
    )


def _as_is(batch):
    return batch


def _begin_worker(parent: int, worker: int) -> None:
    """Ctrl-C in a terminal, and a scheduler's SIGTERM, go to a whole group of processes. The workers go on until the
    process that reads from them, `parent`, has ended its step, and end with it: torch's own watch begins too late for a
    parent that is killed while they start."""
    os.setpgrp()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if multiprocessing.get_start_method() == "fork" and os.getppid() != parent:
        os._exit(1)

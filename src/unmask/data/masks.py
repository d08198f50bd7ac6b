"""Images with a class for each pixel: label maps beside the images, checked as they are opened."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from unmask.data.source import Source

VOID = 255
"""The class number of pixels that are neither learnt from nor judged."""


@dataclass(frozen=True)
class Masks:
    """Where the label map of each image is; pickled without pixels, for spawned workers."""

    paths: tuple[str, ...]
    ignore: tuple[int, ...]
    """Class numbers that count as void, besides 255."""
    number: int
    """Of classes, K."""

    def __len__(self) -> int:
        return len(self.paths)

    def __call__(self, i: int) -> Tensor:
        """(H, W) uint8: class numbers 0 to K - 1, VOID where ignored. Raises UnreadableImage, BadInput."""
        raise NotImplementedError

    def check(self, i: int, height: int, width: int) -> None:
        """Raise UnreadableImage unless label map `i` has this size."""
        raise NotImplementedError

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Masks":
        raise NotImplementedError


@dataclass(frozen=True)
class Masked:
    """Images and the class of each of their pixels."""

    source: Source
    masks: Masks
    classes: tuple[str, ...]
    """Class number k of the label maps is `classes[k]`; an ignored number keeps its place, but for those at the end."""
    tallies: np.ndarray
    """Pixels of each class in each image, (N, K) int64."""
    remarks: tuple[tuple[str, str], ...] = ()
    """Path and reason of all that was left out."""

    def __len__(self) -> int:
        return len(self.source)

    @property
    def counts(self) -> Tensor:
        """Pixels of each class in all images, (K,) int64."""
        raise NotImplementedError

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Masked":
        raise NotImplementedError

    def fingerprint(self) -> str:
        raise NotImplementedError


def open_masks(
    spec: str | Path,
    *,
    masks: str | Path | None = None,
    classes: str | Path | Sequence[str] | None = None,
    ignore: Sequence[int] = (),
    image: str = "image",
    mask: str = "mask",
    strict: bool = False,
) -> Masked:
    raise NotImplementedError

"""Images with objects: boxes, classes and masks, from COCO's JSON or a Pascal VOC folder, checked as they are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from unmask.data.source import Source

Mask = tuple[np.ndarray, ...] | dict
"""Polygons, each (k, 2) float32 of x, y, or a run-length encoding as pycocotools takes it: `size` [height, width] and
`counts`, compressed bytes. No polygons: an object without a mask."""


class Cut(NamedTuple):
    """The objects of one image that are in a view of it, m of them."""

    boxes: Tensor
    """(m, 4) float32: left, top, right, bottom in pixels of the view."""
    classes: Tensor
    """(m,) int64."""
    crowd: Tensor
    """(m,) bool."""
    which: Tensor
    """(m,) int64: their numbers among the objects of the image, ascending."""
    masks: Tensor | None
    """(m, h, w) uint8, 1 where the object is; None where they were not asked for."""


@dataclass(frozen=True)
class Objects:
    """What is in one image, n objects, in pixels of the upright image at its full size."""

    boxes: Tensor
    """(n, 4) float32: left, top, right, bottom; an edge lies between pixels, so that right - left is the width."""
    classes: Tensor
    """(n,) int64."""
    crowd: Tensor
    """(n,) bool: COCO's iscrowd, VOC's difficult; neither learnt from nor counted against."""
    masks: tuple[Mask, ...]
    """A mask an object; () where no object of the image has one."""
    size: tuple[int, int]
    """Height and width of the image."""

    def __len__(self) -> int:
        return len(self.classes)

    def cut(self, crop: Tensor, size: tuple[int, int], least: float = 0.3, masks: bool = False) -> Cut:
        raise NotImplementedError


@dataclass(frozen=True)
class Annotated:
    """Images and the objects in them."""

    source: Source
    classes: tuple[str, ...]
    objects: tuple[Objects, ...]
    masked: bool
    """Whether every object that is no crowd has a mask."""
    remarks: tuple[tuple[str, str], ...] = ()
    """Path and reason of all that was left out or corrected."""

    def __len__(self) -> int:
        return len(self.objects)

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Annotated":
        raise NotImplementedError

    def fingerprint(self) -> str:
        raise NotImplementedError


def open_annotations(
    spec: str | Path,
    images: str | Path | None = None,
    classes: Sequence[str] | None = None,
    strict: bool = False,
) -> Annotated:
    raise NotImplementedError

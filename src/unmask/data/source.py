"""A source of images: what is known of each, and how its pixels are had. `unmask.data.sources` opens them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch

from unmask.data.decode import Shrunk, decode, decode_shrunk, size_of
from unmask.errors import BadInput


class Items(Protocol):
    """The images of a source: encoded, or, for built-in sets and stores, as tensors (C, H, W)."""

    def __getitem__(self, i: int) -> bytes | Path | torch.Tensor: ...

    def sizes(self) -> np.ndarray:
        """Bytes of each image, int64; -1 where it is missing."""
        ...


@runtime_checkable
class Headed(Items, Protocol):
    """Images that know more of themselves than their bytes tell."""

    def header(self, i: int) -> tuple[int, int, int, str]:
        """Channels, height, width and kind of image `i`, see `unmask.data.decode.size_of`."""
        ...


@dataclass(frozen=True)
class Source:
    """Images and what is known of each. Cheap to index; pickled without pixels, for spawned workers."""

    name: str
    """As typed."""
    table: pd.DataFrame
    """A row an image, RangeIndex: "path" (a name to print), "label" and "group" (str or None) where there are any, and
    the other columns as they came, with "column_" before those that would take one of these three names."""
    classes: tuple[str, ...]
    """Class names in order: the schema's where it names them, else sorted, numbers by value; () without labels."""
    items: Items
    """The images of this source and of all its subsets."""
    rows: np.ndarray
    """Index into `items` of each row of the table, int64 (N,)."""

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, i: int) -> torch.Tensor:
        """The pixels of image `i`: (C, H, W), uint8 or float32, see `unmask.data.decode.decode`.

        Raises:
            UnreadableImage: it is missing or damaged.
        """
        item = self.items[int(self.rows[i])]
        return item.clone() if isinstance(item, torch.Tensor) else decode(item)

    def shrunk(self, i: int, most: Callable[[int, int], float]) -> Shrunk:
        """Image `i`, perhaps at a fraction of its size, see `unmask.data.decode.decode_shrunk`. Its pixels may be those
        of the source itself and must not be written to.

        Raises:
            UnreadableImage: it is missing or damaged.
        """
        item = self.items[int(self.rows[i])]
        if isinstance(item, torch.Tensor):
            return Shrunk(item, item.shape[1], item.shape[2], 1)
        return decode_shrunk(item, most)

    def header(self, i: int) -> tuple[int, int, int, str]:
        """Channels, height, width and kind of image `i`, see `unmask.data.decode.size_of`.

        Raises:
            UnreadableImage: it is missing, or not an image.
        """
        if isinstance(self.items, Headed):
            return self.items.header(int(self.rows[i]))
        item = self.items[int(self.rows[i])]
        if isinstance(item, torch.Tensor):
            channels, height, width = item.shape
            return channels, height, width, "uint8"
        return size_of(item)

    def stored(self, i: int) -> bytes | Path | torch.Tensor:
        """Image `i` as the source keeps it: a file, its bytes, or pixels (C, H, W), which must not be written to.

        Raises:
            UnreadableImage: it is missing.
        """
        return self.items[int(self.rows[i])]

    def targets(self) -> np.ndarray:
        """Class index of each image, int64 (N,); -1 where the label is missing.

        Raises:
            BadInput: there are no labels.
        """
        if "label" not in self.table:
            raise BadInput(f"{self.name}: no labels; use a subfolder a class, or a table with --label COLUMN")
        return pd.Categorical(self.table["label"], categories=list(self.classes)).codes.astype(np.int64)

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Source":
        """The images at `indices`, in that order, with the same classes."""
        indices = np.asarray(indices, dtype=np.int64)
        table = self.table.iloc[indices].reset_index(drop=True)
        return Source(self.name, table, self.classes, self.items, self.rows[indices])

    def fingerprint(self) -> str:
        """12 hexadecimal digits of the names and sizes in bytes, which change when the data do; pixels are not read."""
        digest = hashlib.sha256("\0".join(self.table["path"]).encode("utf-8", "surrogateescape"))
        digest.update(self.items.sizes()[self.rows].tobytes())
        return digest.hexdigest()[:12]


def require_classes(source: Source) -> None:
    """Raise BadInput unless the source has labels of at least two classes."""
    counts = np.bincount(source.targets() + 1, minlength=len(source.classes) + 1)
    present = [c for c, n in zip(source.classes, counts[1:], strict=True) if n]
    if len(present) == 1:
        raise BadInput(
            f'{source.name}: one class only ("{present[0]}", {counts.max():,} images); a probe or a classifier needs '
            f"two or more: choose another column with --label"
        )
    if not present:
        raise BadInput(f"{source.name}: every label is missing; choose another column with --label")

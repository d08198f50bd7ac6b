"""Images with a class for each pixel: label maps beside the images, checked as they are opened.

The value of a pixel is the number of its class, as it stands in the file: a palette's colours say nothing, and nothing is
renumbered. 255 and the numbers that are to be ignored are void: neither learnt from nor judged.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unmask.data.decode import SUFFIXES, UnreadableImage, label_map
from unmask.data.source import Source
from unmask.data.sources import TABLES, open_source
from unmask.errors import BadInput
from unmask.screen import track

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
        """The classes of image `i`, (H, W) uint8: 0 to K - 1, VOID where ignored.

        Raises:
            UnreadableImage: it is missing or damaged.
            BadInput: it is of a wrong kind, or has a value that is no class.
        """
        path = Path(self.paths[i])
        values = label_map(path)
        void = values == VOID
        for number in self.ignore:
            void |= values == number
        if (strange := (values >= self.number) & ~void).any() or values.min(initial=0) < 0:
            value = int(values[strange][0]) if strange.any() else int(values.min())
            raise BadInput(
                f"{path}: has the value {value}, but the classes are 0 to {self.number - 1}; pass --ignore {value}, or name "
                f"it with --classes"
            )
        return torch.from_numpy(np.where(void, np.uint8(VOID), values.astype(np.uint8)))

    def check(self, i: int, height: int, width: int) -> Tensor:
        """The classes of image `i`, which is of this size.

        Raises:
            UnreadableImage: as by calling, or it is of another size than its image.
        """
        found = self(i)
        if found.shape != (height, width):
            size = f"{found.shape[1]} x {found.shape[0]}"
            raise UnreadableImage(
                f"its mask {self.paths[i]} is {size} pixels (width x height), it is {width} x {height}"
            )
        return found

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Masks":
        return replace(self, paths=tuple(self.paths[int(i)] for i in indices))


@dataclass(frozen=True)
class Masked:
    """Images and the class of each of their pixels."""

    source: Source
    """The images, without labels."""
    masks: Masks
    classes: tuple[str, ...]
    """The name of class k is `classes[k]`. An ignored number keeps its place, but for those at the end."""
    tallies: np.ndarray
    """Pixels of each class in each image, (N, K) int64; void ones are not counted."""
    remarks: tuple[tuple[str, str], ...] = ()
    """Path and reason of all that was left out."""

    @property
    def name(self) -> str:
        """As typed."""
        return self.source.name

    def __len__(self) -> int:
        return len(self.source)

    @property
    def counts(self) -> Tensor:
        """Pixels of each class in all images, (K,) int64."""
        return torch.from_numpy(self.tallies.sum(0))

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Masked":
        """The images at `indices`, in that order, with the same classes."""
        tallies = self.tallies[np.asarray(indices, dtype=np.int64)]
        return replace(self, source=self.source.subset(indices), masks=self.masks.subset(indices), tallies=tallies)

    def fingerprint(self) -> str:
        """12 hexadecimal digits, which change when the images do, or the names or pixels of the classes."""
        text = "\0".join([self.source.fingerprint(), *self.classes, *map(str, self.masks.ignore)])
        return hashlib.sha256(text.encode("utf-8", "surrogatepass") + self.tallies.tobytes()).hexdigest()[:12]


def open_masks(
    spec: str | Path,
    *,
    masks: str | Path | None = None,
    classes: str | Path | Sequence[str] | None = None,
    ignore: Sequence[int] = (),
    image: str = "image",
    mask: str = "mask",
    group: str = "group",
    strict: bool = False,
) -> Masked:
    """Find images and their masks, and read all masks once, with a progress bar.

    Args:
        spec: a folder of images, searched to any depth, or a .csv or .parquet table with a row an image.
        masks: the folder of the masks, each of the name and subfolder of its image, but for the suffix. None: where a
            folder in the path of the images is called `images`, the same path with `masks` in its place (camvid/images/train:
            camvid/masks/train); or `images` and `masks` in the folder itself. Not for tables.
        classes: names, the first that of number 0: a file of one a line, or the names themselves, as those of the training
            set. None: classes.txt beside the folders of images and masks or in one of them, or beside the table; else the
            numbers seen are the names.
        ignore: class numbers that are void, as 255 always is.
        image: the column of a table with the path of the image, relative to the table.
        mask: the same of the mask.
        group: the column of a table with what must not be on both sides of a split.
        strict: raise what would be left out: an image without a mask, with one of another size, or with one that is damaged or
            void everywhere.

    Raises:
        BadInput: nothing there, no masks, masks of a kind that holds no class numbers, a number that is no class, or no image
            with a mask that can be used.
    """
    name = str(spec)
    path = Path(name).expanduser()
    if path.suffix.lower() in TABLES and path.is_file():
        if masks is not None:
            raise BadInput(f'{name}: a table has a column of masks ("{mask}"); leave --masks out')
        source, paths, beside = *_columns(path, image, mask, group), [path.parent]
        sought = f'no path in column "{mask}"'
    elif path.is_dir():
        images, folder = _folders(path, masks)
        source = open_source(images)
        there, lossy = _by_stem(folder)
        if not there:
            kind = "holds only JPEGs, which blur class numbers" if lossy else "holds no mask"
            raise BadInput(f"{folder}: {kind}; wanted are PNGs of the names of the images")
        paths = [there.get(str(Path(x).with_suffix(""))) for x in source.table["path"]]
        beside = [path, folder, path.parent, folder.parent, images.parent]
        beside += [folder.parent.parent] if "masks" in folder.parts[:-1] else []  # of camvid/masks/train
        sought = f"no mask of its name in {folder}"
    else:
        what = "a table of images with paths" if path.exists() else "no such file or folder"
        raise BadInput(f"{name}: {what}; wanted is a folder of images, or a .csv or .parquet table") from None
    plain = Source(name, source.table.drop(columns="label", errors="ignore"), (), source.items, source.rows)
    wrong = [x for x in ignore if not 0 <= x < 65536]
    if wrong:
        raise BadInput(f"--ignore {wrong[0]}: not the value of a pixel; they are 0 to 65535")
    names = _names(classes, beside)
    return _checked(plain, paths, names, tuple(sorted(set(ignore))), sought, strict)


def _checked(
    source: Source, paths: list[str | None], names: list[str] | None, ignore: tuple[int, ...], sought: str, strict: bool
) -> Masked:
    """Read every mask: which can be used, and how many pixels each class has."""
    number = 255 if names is None else len(names)
    names_of = source.table["path"].tolist()
    everything = Masks(tuple(x or "" for x in paths), ignore, number)

    def read(i: int) -> np.ndarray | str:
        """Pixels of each class in an image, or why it is left out."""
        if paths[i] is None:
            return sought
        try:
            _, height, width, _ = source.header(i)
        except UnreadableImage as error:
            return str(error)
        try:
            found = everything.check(i, height, width)
        except UnreadableImage as error:
            return str(error) if str(error).startswith("its mask") else f"its mask {paths[i]}: {error}"
        tally = np.bincount(found.numpy().ravel(), minlength=256)[:number]
        return tally if tally.any() else f"its mask {paths[i]} is void everywhere"

    def told(i: int) -> np.ndarray | str:
        tally = read(i)
        if strict and isinstance(tally, str):
            raise BadInput(f"{names_of[i]}: {tally}")
        return tally

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        # nothing is raised outside of the bar: one that is left half-way may lock the next one
        tallies = list(track(pool.map(told, range(len(source))), "reading masks", len(source), "masks"))
    finally:
        pool.shutdown(cancel_futures=True)  # the first wrong mask ends it all
    kept = [i for i, tally in enumerate(tallies) if not isinstance(tally, str)]
    remarks = [(names_of[i], f"{tally}; left out") for i, tally in enumerate(tallies) if isinstance(tally, str)]
    if not kept:
        raise BadInput(f"{source.name}: none of {len(source):,} images can be used ({': '.join(remarks[-1])})")
    counted = np.stack([tally for tally in tallies if not isinstance(tally, str)]).astype(np.int64)
    seen = np.flatnonzero(counted.sum(0)).tolist()
    number = seen[-1] + 1 if names is None else number
    if names is None:
        if number > 32 and number > 2 * len(seen):
            some = ", ".join(map(str, seen[:8])) + (", …" if len(seen) > 8 else "")
            raise BadInput(
                f"{source.name}: its masks have the values {some}: shades of grey, not the class numbers 0, 1, 2, …; "
                f"write them again, or name every number with --classes"
            )
        names = [str(i) for i in range(number)]
    while number and number - 1 in ignore:  # such as CamVid's eleventh
        number -= 1
    if max(number, len(seen)) < 2:
        only = f'"{names[seen[0]]}"'
        raise BadInput(
            f"{source.name}: one class only ({only}) is in its masks, and 255 is void; two or more are needed: write "
            f"what is sought as 1 and the rest as 0"
        )
    masks = replace(everything.subset(kept), number=number)
    return Masked(source.subset(kept), masks, tuple(names[:number]), counted[:, :number], tuple(remarks))


def _folders(path: Path, masks: str | Path | None) -> tuple[Path, Path]:
    """Of the images and of their masks."""
    if masks is not None:
        folder = Path(masks).expanduser()
        if not folder.is_dir():
            raise BadInput(f"{folder}: no such folder; give the folder of the masks")
        return path, folder
    if (path / "images").is_dir() and (path / "masks").is_dir():
        return path / "images", path / "masks"
    parts = path.absolute().parts
    for place in range(len(parts) - 1, 0, -1):
        if parts[place] == "images":
            folder = Path(*parts[:place], "masks", *parts[place + 1 :])
            if folder.is_dir():
                return path, folder
            raise BadInput(f"{path}: no masks in {folder}; name their folder with --masks")
    raise BadInput(f"{path}: where its masks are is not to be seen; name their folder with --masks")


def _by_stem(folder: Path) -> tuple[dict[str, str], bool]:
    """The mask of each path without its suffix, and whether there are JPEGs besides."""
    found: dict[str, str] = {}
    lossy = False
    for path in sorted(folder.rglob("*")):
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES or path.name.startswith("."):
            continue
        if suffix not in (".png", ".bmp", ".gif", ".tif", ".tiff"):
            lossy = True
            continue
        stem = str(path.relative_to(folder).with_suffix(""))
        if stem not in found or suffix == ".png":
            found[stem] = str(path)
    return found, lossy


def _columns(path: Path, image: str, mask: str, group: str) -> tuple[Source, list[str | None]]:
    """The images of a table, and the masks."""
    source = open_source(path, image=image, group=group)
    column = "column_path" if mask == "path" else mask
    if column not in source.table or mask == image:
        known = ", ".join(str(x) for x in source.table.columns if x != "path")
        raise BadInput(f'{path}: no column "{mask}" with the paths of masks; it has {known or "no other column"}')
    paths: list[str | None] = []
    for row, value in enumerate(source.table[column].tolist()):
        if isinstance(value, str) and value:
            paths.append(str(path.parent / value))
        elif value is None or value == "" or value != value:  # NaN
            paths.append(None)
        else:
            kind = type(value).__name__
            raise BadInput(f'{path}: row {row} of column "{mask}" holds {kind}, not the path of a mask')
    return source, paths


def _names(classes: str | Path | Sequence[str] | None, beside: list[Path]) -> list[str] | None:
    """The names of the classes, None where there are none."""
    if classes is None:
        classes = next((x / "classes.txt" for x in beside if (x / "classes.txt").is_file()), None)
    if classes is None:
        return None
    where = "the classes"
    if isinstance(classes, (str, Path)):
        where = str(classes)
        try:
            text = Path(classes).expanduser().read_text(encoding="utf-8-sig")
        except OSError as error:
            raise BadInput(f"{where}: {error.strerror}; wanted is a file with the name of a class a line") from None
        except UnicodeDecodeError:
            raise BadInput(f"{where}: is not text; wanted is a file with the name of a class a line") from None
        names = [line.strip() for line in text.rstrip().splitlines()]
    else:
        names = [str(x) for x in classes]
    if not names or len(names) > VOID or len(set(names)) < len(names) or not all(names):
        raise BadInput(f"{where}: {len(names)} names; wanted are 1 to {VOID}, all different, none empty")
    return names

"""Images with objects: boxes, classes and masks, from COCO's JSON or a Pascal VOC folder, checked as they are read.

What is wrong with a file as a whole (not JSON, a class that is not known, an image listed twice) raises BadInput. What is
wrong with one object or one image leaves it out with a remark, a line with file, image and object, or raises where the
reading is strict: a box outside its image or without width or height, numbers that are not finite, a damaged mask, an image
that is missing or of another size than the boxes were drawn on. Boxes that stick out are clipped, and counted in one remark.
"""

import hashlib
import json
import math
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unmask.data.decode import SUFFIXES, UnreadableImage
from unmask.data.source import Source
from unmask.data.sources import Files
from unmask.errors import BadInput
from unmask.screen import track

KINDS = "a COCO .json file, or a Pascal VOC folder (Annotations/ beside JPEGImages/), of a split as FOLDER:train"
SPILL = 1.0, 0.01
"""A box may stick out of its image so many pixels, or by such a share of the side, before its clipping is worth a word."""

VOC_EDGES = "xmin", "ymin", "xmax", "ymax"

Mask = tuple[np.ndarray, ...] | dict[str, Any]
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

    def __reduce__(self):  # as arrays: each tensor would hold a file open in a spawned worker
        arrays = self.boxes.numpy(), self.classes.numpy(), self.crowd.numpy()
        return _objects, (*arrays, self.masks, self.size)

    def cut(self, crop: Tensor, size: tuple[int, int], least: float = 0.3, masks: bool = False) -> Cut:
        """The objects in a view of the image.

        Left out is what is under a pixel wide or high in the view, and an object with less than `least` of its box inside
        the crop; a crowd is kept with less, because what is found there must not count against the finder.

        Args:
            crop: (5,) int64, a row of `View.draw` for the whole image: top, left, height, width, flipped.
            size: height and width of the view that the crop is resized to.
            least: share of the area of a box that must be inside the crop.
            masks: whether masks are rendered, at the size of the view: polygons are moved there and filled as pycocotools
                fills them, run-length encodings decoded, cropped and resized to the nearest pixel. An object without a mask
                has an empty one.
        """
        top, left, height, width, flipped = crop.tolist()
        scale = torch.tensor([size[1] / width, size[0] / height] * 2)
        edges = torch.tensor([width, height] * 2)
        moved = self.boxes - torch.tensor([left, top] * 2)
        inside = torch.minimum(moved.clamp(min=0), edges)
        whole = (moved[:, 2:] - moved[:, :2]).prod(1)
        share = (inside[:, 2:] - inside[:, :2]).prod(1) / whole
        boxes = torch.minimum(inside * scale, torch.tensor([size[1], size[0]] * 2))  # rounding may pass the edge
        shown = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
        which = (shown & (self.crowd | (share >= least))).nonzero().squeeze(1)
        boxes = boxes[which]
        if flipped:
            boxes = torch.stack([size[1] - boxes[:, 2], boxes[:, 1], size[1] - boxes[:, 0], boxes[:, 3]], dim=1)
        rendered = None
        if masks:
            rendered = torch.zeros(len(which), *size, dtype=torch.uint8)
            for place, i in enumerate(which.tolist()):
                if self.masks:
                    rendered[place] = torch.from_numpy(render(self.masks[i], (top, left, height, width), size))
            rendered = rendered.flip(2) if flipped else rendered
        return Cut(boxes, self.classes[which], self.crowd[which], which, rendered)


def _objects(boxes, classes, crowd, masks, size) -> Objects:
    return Objects(torch.from_numpy(boxes), torch.from_numpy(classes), torch.from_numpy(crowd), masks, size)


def render(mask: Mask, crop: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """A mask as pixels (h, w) uint8 of `size`: what is in the crop (top, left, height, width), resized."""
    from pycocotools import mask as coco  # needed by few

    top, left, height, width = crop
    if isinstance(mask, dict):
        pixels = coco.decode(mask)[top : top + height, left : left + width]  # type: ignore[arg-type]
        rows, columns = (
            ((np.arange(n) + 0.5) * side / n).astype(int) for n, side in zip(size, (height, width), strict=True)
        )
        return pixels[rows[:, None], columns]
    if not mask:
        return np.zeros(size, dtype=np.uint8)
    scale = np.array([size[1] / width, size[0] / height])
    polygons = [((polygon - [left, top]) * scale).ravel().tolist() for polygon in mask]
    return coco.decode(coco.merge(coco.frPyObjects(polygons, *size)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Annotated:
    """Images and the objects in them."""

    source: Source
    """The images, without labels; "path" as the annotations name them."""
    classes: tuple[str, ...]
    objects: tuple[Objects, ...]
    """What is in each image."""
    masked: bool
    """Whether there are objects, and every one of them that is no crowd has a mask."""
    remarks: tuple[tuple[str, str], ...] = ()
    """Path and reason of all that was left out, clipped, or may surprise."""

    @property
    def name(self) -> str:
        """As typed."""
        return self.source.name

    def __len__(self) -> int:
        return len(self.objects)

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Annotated":
        """The images at `indices`, in that order, with the same classes."""
        objects = tuple(self.objects[int(i)] for i in indices)
        return replace(self, source=self.source.subset(indices), objects=objects)

    def fingerprint(self) -> str:
        """12 hexadecimal digits, which change when the images or the annotations do."""
        digest = hashlib.sha256("\0".join([self.source.fingerprint(), *self.classes]).encode("utf-8", "surrogatepass"))
        for objects in self.objects:
            digest.update(repr((len(objects), objects.size)).encode())
            for values in (objects.boxes, objects.classes, objects.crowd):
                digest.update(values.numpy().tobytes())
            for mask in objects.masks:
                if isinstance(mask, dict):
                    digest.update(mask["counts"])
                else:
                    for polygon in mask:
                        digest.update(polygon.tobytes())
        return digest.hexdigest()[:12]


def open_annotations(
    spec: str | Path,
    images: str | Path | None = None,
    classes: Sequence[str] | None = None,
    strict: bool = False,
) -> Annotated:
    """Read annotations, and find their images.

    Args:
        spec: one of

            - a COCO .json file of instances. Without `images`, an image is looked for beside the file, in `images/`, in the
              folder of the split beside the file's own (annotations/instances_train2017.json: ../train2017/), in
              ../images/ and in ../images/train2017/.
            - a Pascal VOC folder, with Annotations/ and JPEGImages/ in it or in one folder below (VOCdevkit: VOC2012); all
              annotated images, or those of a split, FOLDER:train, that ImageSets/Main/train.txt lists. Its boxes count
              pixels from 1, ends included: left = xmin - 1, right = xmax. Its masks (SegmentationObject) are not read.
        images: the folder of the images.
        classes: names in the order wanted, those of the training set; None: COCO's categories by id, VOC's names sorted
            (those of the split).
        strict: raise what would be left out.

    Raises:
        BadInput: nothing there, no image of it can be found, a file that cannot be read, or an object of no known class.
    """
    name = str(spec)
    remarks = Remarks(strict)
    folder = None if images is None else Path(images).expanduser()
    if folder is not None and not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; give the folder of the images")
    path, _, split = (name, "", "") if Path(name).expanduser().exists() else name.rpartition(":")
    path = Path(path or name).expanduser()
    if path.is_file() and path.suffix.lower() == ".json" and not split:
        found, names = _read_coco(path, folder, classes, remarks)
    elif path.is_dir():
        found, names = _read_voc(_voc_folder(path), split, folder, classes, remarks)
    elif path.exists():
        raise BadInput(f"{name}: not annotations; wanted is {KINDS}")
    else:
        raise BadInput(f"{path}: no such file or folder; wanted is {KINDS}")
    return _annotated(name, found, names, remarks)


@dataclass
class Remarks:
    """What is said of the annotations when they have been read."""

    strict: bool
    said: list[tuple[str, str]] = field(default_factory=list)
    clipped: list[str] = field(default_factory=list)
    """Where the boxes are that stick out."""
    bare: list[str] = field(default_factory=list)
    """Where the objects are that have no mask."""

    def left_out(self, path: str, reason: str) -> None:
        if self.strict:
            raise BadInput(f"{path}: {reason}")
        self.said.append((path, f"{reason}; left out"))


@dataclass
class Found:
    """An image as the annotations have it."""

    name: str
    """To print."""
    file: Path
    where: str
    """The file that annotates it, to print."""
    size: tuple[int, int] | None
    """Height and width as annotated, if they are."""
    objects: list["Object"]


class Object(NamedTuple):
    box: tuple[float, float, float, float]
    kind: int
    """Its class."""
    crowd: bool
    mask: Any
    """As it stands in the file; None if there is none."""
    place: str
    """What to print: its number or id."""


def _annotated(name: str, found: list[Found], classes: tuple[str, ...], remarks: Remarks) -> Annotated:
    """Check the images, then what is in them."""
    table = pd.DataFrame({"path": pd.Series([image.name for image in found], dtype=object)})
    source = Source(name, table, (), Files(tuple(str(image.file) for image in found)), np.arange(len(found)))

    def measured(i: int) -> tuple[int, int] | str:
        try:
            return source.header(i)[1:3]
        except UnreadableImage as error:
            return str(error)

    kept, objects = [], []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        # all of it, before anything is raised: a bar that is left half-way may lock the next one
        sizes = list(track(pool.map(measured, range(len(found))), "reading images' headers", len(found)))
    for i, (image, size) in enumerate(zip(found, sizes, strict=True)):
        if isinstance(size, str):
            remarks.left_out(image.name, f"cannot be read ({size})")
        elif image.size is not None and image.size != size:
            remarks.left_out(image.name, _other_size(image, size))
        else:
            kept.append(i)
            objects.append(_checked(image, size, remarks))
    if not kept:
        raise BadInput(f"{name}: none of {len(found):,} images can be used ({': '.join(remarks.said[-1])})")
    total = sum(map(len, objects))
    if not total:
        raise BadInput(f"{name}: no object in any of {len(kept):,} images; check that this is the file meant")
    if remarks.clipped:
        many = f"{len(remarks.clipped):,} of {total:,} boxes stick out of their images and were clipped"
        remarks.said.append((name, f"{many} (the first: {remarks.clipped[0]})"))
    if empty := sum(not len(x) for x in objects):
        remarks.said.append((name, f"{empty:,} of {len(kept):,} images have no objects; they are kept"))
    masked = any(x.masks for x in objects)
    if masked and remarks.bare:
        without = f"{len(remarks.bare):,} of {total:,} objects have no mask (the first: {remarks.bare[0]})"
        remarks.said.append((name, f"{without}, so that only boxes can be learnt"))
    all_masked = masked and not remarks.bare
    return Annotated(source.subset(kept), classes, tuple(objects), all_masked, tuple(remarks.said))


def _other_size(image: Found, size: tuple[int, int]) -> str:
    height, width = image.size or (0, 0)
    what = f"is {size[1]} x {size[0]} pixels (width x height), but {image.where} says {width} x {height}"
    if (width, height) == size:
        return (
            f"{what}: its boxes were drawn before EXIF turned it upright, or the two are swapped; annotate it as shown"
        )
    if abs(width * size[0] - height * size[1]) <= max(size):
        return f"{what}: it was resized after it was annotated; use the original, or scale its boxes"
    return f"{what}; find the image that was annotated, or correct the size"


def _checked(image: Found, size: tuple[int, int], remarks: Remarks) -> Objects:
    """The objects of an image of this height and width that can be used, clipped to it."""
    height, width = size
    boxes, kinds, crowds, masks = [], [], [], []
    for thing in image.objects:
        where, what = f"{image.where}, image {image.name}, {thing.place}", f"box {_box(thing.box)}"
        left, top, right, bottom = thing.box
        if not all(map(math.isfinite, thing.box)):
            remarks.left_out(where, f"{what} has a number that is not finite; correct or remove it")
            continue
        if right <= left or bottom <= top:
            remarks.left_out(where, f"{what} (left, top, right, bottom) has no width or height; correct or remove it")
            continue
        clipped = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
        if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
            remarks.left_out(where, f"{what} lies outside its image of {width} x {height}; correct or remove it")
            continue
        try:
            mask = _mask(thing.mask, size)
        except ValueError as error:
            remarks.left_out(where, f"{error}; correct or remove it")
            continue
        spilt = [abs(a - b) for a, b in zip(clipped, thing.box, strict=True)]
        if any(x > max(SPILL[0], SPILL[1] * side) for x, side in zip(spilt, (width, height) * 2, strict=True)):
            remarks.clipped.append(f"{where}, {what} in {width} x {height}")
        if not mask and not thing.crowd:
            remarks.bare.append(where)
        boxes.append(clipped)
        kinds.append(thing.kind)
        crowds.append(thing.crowd)
        masks.append(mask)
    return Objects(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(kinds, dtype=torch.int64),
        torch.tensor(crowds, dtype=torch.bool),
        tuple(masks) if any(masks) else (),
        size,
    )


def _box(box: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{x:g}" for x in box) + "]"


# --- masks


def _mask(given: Any, size: tuple[int, int]) -> Mask:
    """A COCO `segmentation` for an image of this height and width. ValueError: what is wrong with it."""
    if given is None or (isinstance(given, (list, dict)) and not given):
        return ()
    if isinstance(given, dict):
        return _runs(given, size)
    if not isinstance(given, list):
        raise ValueError("its segmentation is neither polygons nor a run-length encoding")
    return tuple(map(_polygon, given))


def _polygon(given: Any) -> np.ndarray:
    try:
        points = np.asarray(given, dtype=np.float32)
    except (ValueError, TypeError):
        points = np.empty(())
    if points.ndim != 1:
        raise ValueError("a polygon of its segmentation is not a list of numbers x, y, x, y, …")
    if len(points) % 2:
        raise ValueError(f"a polygon of its segmentation has {len(points)} numbers, which are no pairs of x and y")
    if len(points) < 6:
        raise ValueError(f"a polygon of its segmentation has {len(points) // 2} points, fewer than 3")
    if not np.isfinite(points).all():
        raise ValueError("a polygon of its segmentation has a number that is not finite")
    return points.reshape(-1, 2)


def _runs(given: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """A run-length encoding, compressed; its runs are added up first, because pycocotools writes without looking."""
    from pycocotools import mask as coco

    counts = given.get("counts")
    if given.get("size") != list(size):
        raise ValueError(f"its run-length encoding has the size {given.get('size')}, its image {list(size)}")
    if isinstance(counts, (str, bytes)):
        data = counts.encode() if isinstance(counts, str) else counts
        runs = _decompressed(data)
    elif isinstance(counts, list) and all(isinstance(x, int) for x in counts):
        data, runs = None, counts
    else:
        raise ValueError("its run-length encoding has no counts, a string or a list of whole numbers")
    if min(runs, default=-1) < 0 or sum(runs) != math.prod(size):
        raise ValueError(f"its run-length encoding is for {sum(runs):,} pixels, its image has {math.prod(size):,}")
    if data is None:
        data = coco.frPyObjects({"size": list(size), "counts": runs}, *size)["counts"]  # type: ignore[index]
    return {"size": list(size), "counts": data}


def _decompressed(data: bytes) -> list[int]:
    """The runs that COCO's string holds: five bits a character, the sixth says that there are more, and from the fourth run
    on the difference to the run before the last (rleFrString of its API)."""
    runs: list[int] = []
    value = shift = 0
    for byte in data:
        bits = byte - 48
        if not 0 <= bits < 64:
            raise ValueError("its run-length encoding has a character that cannot be in one")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its run-length encoding breaks off")
    return runs


# --- COCO


def _read_coco(
    path: Path, folder: Path | None, classes: Sequence[str] | None, remarks: Remarks
) -> tuple[list[Found], tuple[str, ...]]:
    where = str(path)
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: is not JSON ({' '.join(str(error).split())[:100]}); write it again") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            wanted = "a COCO file of instances, with images, annotations and categories"
            raise BadInput(f'{path}: has no list "{key}"; wanted is {wanted}')
    kinds, names = _categories(path, content["categories"], classes)
    places = _places(path, folder)
    tried = f"looked in {', '.join(map(str, places))}"
    found: dict[Any, Found] = {}
    left_out: set[Any] = set()
    for number, image in enumerate(content["images"]):
        if not isinstance(image, dict) or not isinstance(image.get("file_name"), str) or not _is_id(image.get("id")):
            raise BadInput(f'{path}: image number {number} has no "id" or no "file_name"; add them')
        key, name = image["id"], image["file_name"]
        if key in found or key in left_out:
            raise BadInput(f"{path}: two images have the id {key!r} (the second is {name}); give each its own")
        file = next((place / name for place in places if _is_file(place / name)), None)
        if file is None:
            left_out.add(key)
            remarks.left_out(name, f"no such image for {path} ({tried}); name the folder of the images")
            continue
        found[key] = Found(name, file, where, _annotated_size(image.get("height"), image.get("width")), [])
    if not found:
        raise BadInput(
            f"{path}: none of its {len(left_out):,} images is there ({tried}); name the folder of the images"
        )
    for position, thing in enumerate(content["annotations"]):
        if not isinstance(thing, dict):
            raise BadInput(
                f"{path}: annotation number {position} is not a record; wanted are image_id, category_id, bbox"
            )
        place = f"annotation {thing.get('id', f'number {position}')}"
        key, kind = thing.get("image_id"), thing.get("category_id")
        if not _is_id(key) or (key not in found and key not in left_out):
            remarks.left_out(
                f"{path}, {place}", f"is of image {key!r}, which is not listed; remove it or list the image"
            )
            continue
        if key in left_out:
            continue
        image = found[key]
        if not _is_id(kind) or kind not in kinds:
            raise BadInput(
                f"{path}, image {image.name}, {place}: category {kind!r} is not listed; add it to categories"
            )
        if (number := kinds[kind]) is None:
            unknown = next(x["name"] for x in content["categories"] if x["id"] == kind)
            raise BadInput(f"{path}, image {image.name}, {place}: {_unknown(unknown, names)}")
        box = thing.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            remarks.left_out(
                f"{path}, image {image.name}, {place}", '"bbox" is not [left, top, width, height]; correct it'
            )
            continue
        left, top, width, height = map(float, box)
        crowd = thing.get("iscrowd", 0) == 1
        image.objects.append(
            Object((left, top, left + width, top + height), number, crowd, thing.get("segmentation"), place)
        )
    return list(found.values()), names


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53)


def _annotated_size(height: Any, width: Any) -> tuple[int, int] | None:
    """None where it is missing, or zero as some tools write it."""
    known = _is_number(height) and _is_number(width) and height >= 1 and width >= 1
    return (int(height), int(width)) if known else None


def _places(path: Path, folder: Path | None) -> list[Path]:
    if folder is not None:
        return [folder]
    beside, above, split = path.parent, path.absolute().parent.parent, path.stem.rpartition("_")[2]
    return [beside, beside / "images", above / split, above / "images", above / "images" / split]


def _categories(
    path: Path, categories: list[Any], classes: Sequence[str] | None
) -> tuple[dict[Any, int | None], tuple[str, ...]]:
    """Class of each category id, None for one of another name than the classes wanted; and the classes."""
    names: dict[Any, str] = {}
    for number, category in enumerate(categories):
        if (
            not isinstance(category, dict)
            or not _is_id(category.get("id"))
            or not isinstance(category.get("name"), str)
        ):
            raise BadInput(f'{path}: category number {number} has no "id" or no "name"; add them')
        if category["id"] in names or category["name"] in names.values():
            raise BadInput(f"{path}: two categories have the id or the name of {category['name']!r}; keep one of them")
        names[category["id"]] = category["name"]
    if classes is None:
        ids = sorted(names, key=lambda x: (isinstance(x, str), x))  # numbers before words, which do not compare
        return {key: number for number, key in enumerate(ids)}, tuple(names[key] for key in ids)
    wanted = {name: number for number, name in enumerate(classes)}
    return {key: wanted.get(name) for key, name in names.items()}, tuple(classes)


def _unknown(name: str, classes: Sequence[str]) -> str:
    known = ", ".join(classes[:10]) + (", …" if len(classes) > 10 else "")
    return f'class "{name}" is none of {known}; correct it, or train with it'


# --- Pascal VOC


def _voc_folder(path: Path) -> Path:
    if (path / "Annotations").is_dir():
        return path
    below = sorted(x.parent for x in path.glob("*/Annotations") if x.is_dir())
    if len(below) > 1:
        raise BadInput(f"{path}: holds several annotated folders; name one: {', '.join(str(x) for x in below)}")
    if not below:
        tables = sorted(path.glob("*.json")) or sorted(path.glob("annotations/*.json"))
        hint = f", such as {tables[0]}" if tables else ""
        raise BadInput(f"{path}: has no folder Annotations; wanted is {KINDS}{hint}")
    return below[0]


def _read_voc(
    root: Path, split: str, folder: Path | None, classes: Sequence[str] | None, remarks: Remarks
) -> tuple[list[Found], tuple[str, ...]]:
    folder = root / "JPEGImages" if folder is None else folder
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; name the folder of the images")
    parsed = []
    for stem in _voc_stems(root, split):
        path = root / "Annotations" / f"{stem}.xml"
        try:
            parsed.append((path, ElementTree.parse(path).getroot()))
        except OSError as error:
            remarks.left_out(
                str(path), f"cannot be read ({error.strerror}); add it, or take it off the list of the split"
            )
        except (ElementTree.ParseError, ValueError, LookupError) as error:  # of the encodings that it may name
            remarks.left_out(str(path), f"is not XML ({error}); write it again")
    if not parsed:
        raise BadInput(f"{root}: none of its annotations can be read ({': '.join(remarks.said[-1])})")
    if classes is None:
        classes = sorted(
            {(x.findtext("name") or "").strip() for _, tree in parsed for x in tree.findall("object")} - {""}
        )
    wanted = {name: number for number, name in enumerate(classes)}
    found = []
    for path, tree in parsed:
        file = _voc_image(folder, path.stem, tree.findtext("filename"))
        if file is None:
            remarks.left_out(path.stem, f"no such image for {path} (looked in {folder}); name the folder of the images")
            continue
        try:
            size = _annotated_size(*(int(float(tree.findtext(f"size/{x}") or 0)) for x in ("height", "width")))
        except (ValueError, OverflowError):
            size = None
        image = Found(file.name, file, str(path), size, [])
        for number, thing in enumerate(tree.findall("object"), 1):
            kind, place = (thing.findtext("name") or "").strip(), f"object {number}"
            if kind not in wanted:
                reason = _unknown(kind, classes) if kind else "it has no name; add it"
                raise BadInput(f"{path}, {place}: {reason}")
            try:
                left, top, right, bottom = (float(thing.findtext(f"bndbox/{x}") or "") for x in VOC_EDGES)
            except ValueError:
                remarks.left_out(f"{path}, {place}", f"bndbox has not the numbers {', '.join(VOC_EDGES)}; correct it")
                continue
            if right <= left or bottom <= top:  # of one pixel as VOC counts, but what is meant is a slip of the hand
                what = f"box xmin, ymin, xmax, ymax {_box((left, top, right, bottom))} has no width or height"
                remarks.left_out(f"{path}, {place}", f"{what}; correct or remove it")
                continue
            difficult = (thing.findtext("difficult") or "0").strip() == "1"
            image.objects.append(Object((left - 1, top - 1, right, bottom), wanted[kind], difficult, None, place))
        found.append(image)
    if not found:
        raise BadInput(f"{root}: none of its images is there ({': '.join(remarks.said[-1])})")
    return found, tuple(classes)


def _voc_stems(root: Path, split: str) -> list[str]:
    """The names of the annotated images, those of a split where it is given."""
    lists = root / "ImageSets" / "Main"
    if not split:
        stems = sorted(path.stem for path in (root / "Annotations").glob("*.xml"))
        if not stems:
            raise BadInput(f"{root / 'Annotations'}: no .xml file in it; wanted is {KINDS}")
        return stems
    try:
        lines = (lists / f"{split}.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        # those with _ are lists of one class in VOC
        there = sorted(path.stem for path in lists.glob("*.txt") if "_" not in path.stem)
        choice = f"there is {', '.join(there)}" if there else f"{lists} has no list"
        raise BadInput(f'{root}: no split "{split}"; {choice}') from None
    stems = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
    if not stems:
        raise BadInput(f"{lists / split}.txt: no name in it; wanted is the name of an image a line")
    return stems


def _voc_image(folder: Path, stem: str, filename: str | None) -> Path | None:
    names = [stem + suffix for suffix in (".jpg", *sorted(SUFFIXES - {".jpg"}), ".JPG", ".PNG")]
    names += [Path(filename.strip()).name] if filename and filename.strip() else []
    return next((folder / name for name in names if _is_file(folder / name)), None)

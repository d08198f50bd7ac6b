"""What is in a source: sizes, channels, classes, groups, what is damaged, what is there twice."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from unmask.data.decode import UnreadableImage, content, content_box, thumbnail
from unmask.data.source import Source
from unmask.errors import BadInput

COMPARED_PIXELS = 5_000_000_000  # decoded for near duplicates at most: a minute or two of a processor
NEAR_BITS = 2  # of 64
NEAR_LIKENESS = 0.98  # correlation of two 32×32 thumbnails
NEIGHBOURS = 256  # compared with each image in a band at most
MIN_DETAIL = 12  # bits set, and bits not set, in a hash that says anything
THUMBNAIL = 32


@dataclass(frozen=True)
class LabelGroup:
    """How label and group hang together."""

    mixed: int
    """Groups with more than one label."""
    told: float
    """Share of labels guessed right as the commonest one among the other images of the group."""
    majority: float
    """Share of the commonest label: what guessing without the group gets right."""


@dataclass(frozen=True)
class Survey:
    """What `survey` found. Lists of paths hold the names in the source's table."""

    name: str
    """The source, as typed."""
    count: int
    """Images in the source."""
    surveyed: int
    """Images whose header was read: all, or the sample."""
    sizes: dict[str, tuple[int, int, int]]
    """Minimum, median and maximum of "height" and "width" in pixels."""
    smallest: tuple[str, int, int]
    """The image with the shortest side: path, height, width."""
    aspect: tuple[float, float, float]
    """5%, 50% and 95% quantile of width / height."""
    channels: dict[int, int]
    """Number of images by channels."""
    channel_examples: dict[int, str]
    """A path for each number of channels."""
    kinds: dict[str, int]
    """Number of images by kind of value: uint8, uint16, float32."""
    classes: dict[str, int]
    """Number of images of each class in the whole source, in the order of the classes; {} without labels."""
    unlabelled: int
    """Images without a label, in a source that has labels."""
    groups: dict[str, int]
    """"count" of groups, and "smallest", "median" and "largest" number of images in one; {} without groups."""
    label_group: LabelGroup | None
    """How label and group hang together; None without both."""
    unreadable: list[tuple[str, str]]
    """Path and reason. A damaged body is noticed only where the pixels were decoded."""
    exact_duplicates: list[list[str]]
    """Images whose files, byte for byte, are the same."""
    near_duplicates: list[tuple[str, str]]
    """Pairs that look the same: difference hashes at most 2 of 64 bits apart, and 32×32 thumbnails alike."""
    compared: int
    """Images that were compared for near duplicates."""
    content_share: float
    """Median share of the area of an image within the box that `trim` would keep."""
    blank_share: float
    """Median share of pixels that are of the colour of the border."""
    grey: bool
    """Whether images have three channels, and these were equal in each that was decoded."""


def survey(
    source: Source,
    *,
    sample: int | None = None,
    decode_sample: int = 512,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Survey:
    """Read the headers of a source, decode some of it, and say what is there.

    Args:
        source: the images.
        sample: how many images, chosen at random, to look at; None: all. Classes and groups are counted over all.
        decode_sample: how many of these to decode in full, for the content, blank and grey shares.
        seed: of the choice.
        progress: called with what is done and what there is to do, many times.

    Raises:
        BadInput: no image could be read.
    """
    rng = np.random.default_rng(seed)
    looked_at = rng.permutation(len(source))[:sample]
    to_decode = looked_at[:decode_sample]
    done, total = 0, 2 * len(looked_at) + len(to_decode)

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None and (done % 64 == 0 or done == total):
            progress(done, total)

    paths: list[str] = source.table["path"].tolist()
    unreadable: dict[int, str] = {}
    headers: dict[int, tuple[int, int, int, str]] = {}
    for i in sorted(looked_at.tolist()):
        try:
            headers[i] = source.header(i)
        except UnreadableImage as error:
            unreadable[i] = str(error)
        step()
    if not headers:
        i, reason = next(iter(unreadable.items()))
        raise BadInput(f"{source.name}: none of {len(unreadable):,} images can be read; {paths[i]}: {reason}")

    content_shares, blank_shares, grey = [], [], []
    for i in to_decode.tolist():
        step()
        if i in unreadable:
            continue
        try:
            image = source.image(i)
        except UnreadableImage as error:
            unreadable[i] = str(error)
            continue
        differs = content(image)
        box = content_box(differs)
        kept = (box[1] - box[0]) * (box[3] - box[2]) if box is not None else differs.size
        content_shares.append(kept / differs.size)
        blank_shares.append(1 - float(differs.mean()))
        if image.shape[0] == 3:
            grey.append(bool((image[:1] == image).all()))

    same = _exact_duplicates(source, list(headers))
    copies = {i for group in same for i in group[1:]}
    thumbnails: dict[int, np.ndarray] = {}
    budget = COMPARED_PIXELS
    for i in looked_at.tolist():
        step()
        if i in unreadable or i in copies or budget < 0:
            continue
        budget -= headers[i][1] * headers[i][2]
        try:
            thumbnails[i] = thumbnail(source.stored(i), THUMBNAIL, THUMBNAIL).numpy()
        except UnreadableImage as error:
            unreadable[i] = str(error)

    channels, height, width, kinds = zip(*headers.values(), strict=True)
    smallest = min(headers, key=lambda i: min(headers[i][1:3]))
    examples: dict[int, str] = {}
    for i, header in headers.items():
        examples.setdefault(header[0], paths[i])
    classes, unlabelled = _classes(source)
    return Survey(
        name=source.name,
        count=len(source),
        surveyed=len(looked_at),
        sizes={"height": _spread(height), "width": _spread(width)},
        smallest=(paths[smallest], headers[smallest][1], headers[smallest][2]),
        aspect=_quantiles(np.divide(width, height)),
        channels=dict(sorted(Counter(channels).items())),
        channel_examples=dict(sorted(examples.items())),
        kinds=dict(Counter(kinds).most_common()),
        classes=classes,
        unlabelled=unlabelled,
        groups=_groups(source),
        label_group=_label_group(source),
        unreadable=[(paths[i], unreadable[i]) for i in sorted(unreadable)],
        exact_duplicates=[[paths[i] for i in group] for group in same],
        near_duplicates=[(paths[a], paths[b]) for a, b in _near_duplicates(thumbnails)],
        compared=len(thumbnails),
        content_share=float(np.median(content_shares)) if content_shares else 1.0,
        blank_share=float(np.median(blank_shares)) if blank_shares else 0.0,
        grey=bool(grey) and all(grey),
    )


def channels_for(images: Source | Survey, *, sample: int = 2000, seed: int = 0) -> int:
    """The number of channels that a model needs: that of all the images, or 3 where grey and RGB are mixed.

    Args:
        images: a survey, or a source, of which the headers of a random sample are then read.
        sample: how many headers.
        seed: of the choice.

    Raises:
        BadInput: other counts are mixed, or no image can be read.
    """
    if isinstance(images, Survey):
        examples = images.channel_examples
    else:
        examples, reason = {}, "no images"
        for i in np.random.default_rng(seed).permutation(len(images))[:sample].tolist():
            try:
                examples.setdefault(images.header(i)[0], images.table["path"][i])
            except UnreadableImage as error:
                reason = f"{images.table['path'][i]}: {error}"
        if not examples:
            raise BadInput(f"{images.name}: no image can be read ({reason})")
    if len(examples) == 1:
        return next(iter(examples))
    if set(examples) == {1, 3}:
        return 3
    found = ", ".join(f"{path} has {n}" for n, path in sorted(examples.items(), reverse=True))
    raise BadInput(f"{images.name}: mixed channel counts: {found}; keep one kind or pass --channels")


def _spread(values: tuple[int, ...]) -> tuple[int, int, int]:
    return min(values), int(np.median(values)), max(values)


def _quantiles(values: np.ndarray) -> tuple[float, float, float]:
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95)).tolist()
    return low, middle, high


def _classes(source: Source) -> tuple[dict[str, int], int]:
    if not source.classes:
        return {}, 0
    counts = np.bincount(source.targets() + 1, minlength=len(source.classes) + 1).tolist()
    return dict(zip(source.classes, counts[1:], strict=True)), counts[0]


def _groups(source: Source) -> dict[str, int]:
    if "group" not in source.table:
        return {}
    counts = Counter(source.table["group"].dropna().tolist())
    if not counts:
        return {}
    smallest, median, largest = _spread(tuple(counts.values()))
    return {"count": len(counts), "smallest": smallest, "median": median, "largest": largest}


def _label_group(source: Source) -> LabelGroup | None:
    if not {"label", "group"} <= set(source.table.columns):
        return None
    known = source.table[["label", "group"]].dropna()
    if known.empty:
        return None
    # Leaving one out: an image's label is guessed right if, without it, it still is the commonest of its group.
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for label, group in zip(known["label"], known["group"], strict=True):
        counts[group][label] += 1
    right = 0
    for group in counts.values():
        (label, most), *others = group.most_common(2)
        second = others[0][1] if others else 0
        right += group[label] if most - 1 > second else 0
    majority = max(Counter(known["label"].tolist()).values())
    mixed = sum(len(group) > 1 for group in counts.values())
    return LabelGroup(mixed, right / len(known), majority / len(known))


def _exact_duplicates(source: Source, indices: list[int]) -> list[list[int]]:
    """Groups of the same bytes. Only files of a size that another has, too, are read."""
    sizes = source.items.sizes()[source.rows]
    by_size = defaultdict(list)
    for i in indices:
        by_size[int(sizes[i])].append(i)
    by_digest = defaultdict(list)
    for alike in by_size.values():
        for i in alike if len(alike) > 1 else ():
            try:
                data = source.stored(i)
                if isinstance(data, torch.Tensor):
                    data = np.array(data.shape).tobytes() + data.numpy().tobytes()
                data = data.read_bytes() if isinstance(data, Path) else data
            except (OSError, UnreadableImage):  # gone since its header was read
                continue
            by_digest[hashlib.blake2b(data, digest_size=16).digest()].append(i)
    return [group for group in by_digest.values() if len(group) > 1]


def _near_duplicates(thumbnails: dict[int, np.ndarray]) -> list[tuple[int, int]]:
    """Pairs of keys whose thumbnails, (32, 32) each, look the same."""
    if not thumbnails:
        return []
    keys, images = np.array(list(thumbnails)), np.stack(list(thumbnails.values()))
    # Difference hash: is each of 8×8 areas darker than the one to its right?
    columns = np.linspace(0, THUMBNAIL, 10).round().astype(int)[:-1]
    widths = np.diff([*columns, THUMBNAIL])
    small = np.add.reduceat(images.reshape(-1, 8, THUMBNAIL // 8, THUMBNAIL).mean(2), columns, axis=2) / widths  # 8 × 9
    bits = (small[:, :, 1:] > small[:, :, :-1]).reshape(-1, 64)
    detailed = np.minimum(bits.sum(1), 64 - bits.sum(1)) >= MIN_DETAIL
    keys, images, bits = keys[detailed], images[detailed].reshape(-1, THUMBNAIL**2), bits[detailed]
    images = images - images.mean(1, keepdims=True)
    images /= np.linalg.norm(images, axis=1, keepdims=True)

    # Of two hashes that differ in at most two bits, one of three bands is the same.
    pairs: set[tuple[int, int]] = set()
    for band in np.array_split(np.arange(64), 3):
        value = bits[:, band] @ (1 << np.arange(len(band)))
        order = np.argsort(value, kind="stable")
        for distance in range(1, min(NEIGHBOURS + 1, len(order))):
            first, second = order[:-distance], order[distance:]
            same = value[first] == value[second]
            if not same.any():
                break
            first, second = first[same], second[same]
            near = (bits[first] != bits[second]).sum(1) <= NEAR_BITS
            first, second = first[near], second[near]
            alike = (images[first] * images[second]).sum(1) >= NEAR_LIKENESS
            pairs.update(zip(first[alike].tolist(), second[alike].tolist(), strict=True))
    return sorted({(min(a, b), max(a, b)) for a, b in ((int(keys[a]), int(keys[b])) for a, b in pairs)})

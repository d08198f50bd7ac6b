"""Learning the class of every pixel, what is said of images of any size, and how good that is.

    unmask segment RUN --data images/ --masks masks/ --test test/images --out runs/b
    unmask segment RUN --head linear --data images/ --masks masks/ --out runs/probe

Recipes (values with † are from memory of the paper or its code, which were not at hand):
- "vit": He et al. 2021 (MAE), appendix A.4: UPerNet on ADE20K, all of it fine-tuned for 100 epochs with a batch of 16, following
  BEiT's code†: AdamW, 1e-4†, weight decay 0.05†, warm-up of 1,500 of 160,000 steps†, layer decay 0.65†, drop path 0.1†, the rate
  falling in a line to 0† (here along a cosine). Published, mIoU on ADE20K, ViT-B / L†: supervised 47.4 / 49.9, MAE 48.1 / 53.6.
- "resnet": the same without layer decay and drop path, as mmsegmentation trains ConvNeXt with UPerNet†. Its recipe for ResNets,
  SGD with 0.01†, is meant for 80,000 steps† from ImageNet's weights; AdamW's steps are of one size, and carry over to
  collections and networks of other sizes.
- linear: the encoder frozen, AdamW with 1e-3 at a batch of 16, weight decay 1e-4, 40,000 steps with 1,500 to warm up, as Oquab
  et al. 2023 (DINOv2) probe on ADE20K†. It sees crops and flips, no jitter.

Deviations: crops of a quarter to all of the image, resized, in place of mmsegmentation's 0.5 to 2 times† the size and a crop of
512 pixels: what is learnt from is never smaller than what is judged; the layer that names classes begins with how often each
occurs, not with all alike; a warm-up of 5% of the run; one coin for brightness, contrast, saturation and hue in
place of one for each; collections smaller than ADE20K get the rate that the run explains.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.data.augment import View, jittered
from unmask.data.decode import Preprocess, UnreadableImage
from unmask.data.loader import Batch
from unmask.data.masks import VOID
from unmask.data.source import Source
from unmask.errors import BadInput
from unmask.evaluate.splits import group_codes
from unmask.methods.method import Method, Paper
from unmask.models.segmentation import FCN, Segmenter, resized
from unmask.models.vit import ViT
from unmask.screen import bar
from unmask.training.engine import Clock, autocast

MOST = 40
"""How many times the paper's rate short runs take at most: the root of how many times fewer steps they make, as random steps add
up. Set by hand: a ViT-Ti/16 that MAE had trained on CamVid, 60 steps of 16, lost 61 percent of what an uninformed model loses at
16 times the paper's rate and 49 at 40 times; at 4 times it stood at 86 after 60 steps of 120."""
PAPERS = {
    "vit": Paper(
        "vit-base/16",
        16,
        1.6e-3,
        100,
        5,
        0.05,
        updates=126_000,
        most=MOST,
        drop_path=0.1,
        small_batch=16,
    ),
    "resnet": Paper(
        "resnet50",
        16,
        1.6e-3,
        100,
        5,
        0.05,
        updates=126_000,
        most=MOST,
        small_batch=16,
    ),
}
LINEAR = Paper("vit-base/16", 16, 1.6e-2, 32, 1.6, 1e-4, updates=40_000, most=10, small_batch=16)
"""Of the linear head, for any encoder."""
LAYER_DECAY = 0.65
"""Of a ViT that was trained before."""
AUXILIARY = 0.4
"""Weight of the auxiliary head's loss (mmsegmentation)."""
JITTER = 0.125, 0.5, 0.5, 0.1
"""Strengths of brightness, contrast, saturation and hue at a jitter of 1 (mmsegmentation's photometric distortion†)."""
OVERLAP = 1 / 3
"""Share of a tile that the next one covers again (mmsegmentation: tiles of 512 pixels every 341)."""
AT_ONCE = 2**26
"""Logits of an image at its full size that are held at a time."""


@dataclass(frozen=True)
class Settings:
    """What segmentation adds to the settings of training. What is not given is the recipe's."""

    head: Literal["upernet", "linear"] = "upernet"
    """UPerNet with all of the encoder learning; or one linear layer at each place of the last block, the encoder staying as it
    is: a test of what it knows."""
    crop_scale: tuple[float, float] = (0.25, 1.0)
    """Smallest and largest share of the image in a random crop."""
    flip: float = 0.5
    """Probability of flipping an image from left to right. 0 where left and right matter."""
    jitter: float | None = None
    """Strength of random brightness, contrast, saturation and hue, of half of the images. Default: 1 for UPerNet, none for the
    linear head."""
    layer_decay: float | None = None
    """Each layer learns this many times as fast as the one after it. Default: BEiT's and MAE's 0.65 for a ViT that was trained
    before, else 1."""
    class_weights: bool = False
    """Count rare classes as much as common ones: each pixel by one over how common its class is."""


class Segmentation(Method):
    """Cross-entropy of the classes of pixels; with UPerNet 0.4 times that of the auxiliary head is added.

    counts: pixels of each class in the training set, (K,). "uninformed" is the loss of a model that knows these, and of each
    batch's pixels no more than what they are judged by.
    """

    Settings = Settings
    weights: Tensor | None
    """What a pixel of each class counts, (K,)."""
    prior: Tensor
    """Log-probabilities (K,) that such a model says everywhere."""

    def __init__(self, segmenter: Segmenter, settings: Settings, counts: Tensor, size: tuple[int, int]):
        super().__init__()
        low, high = settings.crop_scale
        if not 0 < low <= high <= 1:
            raise BadInput("--crop-scale: give two shares of the image, above 0 and at most 1, as in 0.25 1.0")
        if settings.layer_decay not in (None, 1) and not isinstance(segmenter.encoder, ViT):
            raise BadInput(
                "--layer-decay is for transformers, whose blocks can be told apart: leave it out for this encoder"
            )
        self.segmenter, self.settings = segmenter, settings
        jitter = jittered(JITTER, settings.jitter or 0.0, 0.5)
        self.views = (View(size, crop_scale=settings.crop_scale, flip=settings.flip, **jitter),)
        self.auxiliary = None
        if settings.head == "linear":
            segmenter.encoder.requires_grad_(False)
        else:
            self.auxiliary = FCN(segmenter.maps.channels, len(segmenter.classes))
        shares = counts.double() / counts.sum()
        weights = torch.where(shares > 0, 1 / shares.clamp(min=1e-12), 0.0) if settings.class_weights else None
        seen = shares if weights is None else shares * weights
        self.register_buffer("weights", None if weights is None else (weights / seen.sum()).float())
        self.register_buffer("prior", (seen / seen.sum()).clamp(min=1e-6).log().float())
        for head in self.heads:
            head.name.bias.data.copy_(self.prior)

    @property
    def heads(self) -> list[Any]:
        """Those that learn, the one that is kept first."""
        return [self.segmenter.head, *([] if self.auxiliary is None else [self.auxiliary])]

    @property
    def encoder(self) -> Any:  # type: ignore[override]
        return self.segmenter.encoder

    def train(self, mode: bool = True) -> "Segmentation":
        """What does not learn is not in training either: nothing is dropped there, and no statistics move."""
        super().train(mode)
        if self.settings.head == "linear":
            self.encoder.eval()
        return self

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (images,), truth = batch.views, batch.maps
        assert truth is not None
        maps, known = self.segmenter.maps(images), truth != VOID
        logits = [resized(head(maps).float(), truth.shape[1:]) for head in self.heads]  # (B, K, H, W)
        scale = 1.0 if self.auxiliary is None else 1 + AUXILIARY
        right = (logits[0].argmax(dim=1) == truth) & known
        losses = [self.loss(x, truth) for x in logits]
        return {
            "loss": losses[0] + AUXILIARY * sum(losses[1:]),
            "uninformed": scale * self.blind(truth),
            "accuracy": right.sum() / known.sum().clamp(min=1),
        }

    def loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Mean over the pixels that are not void, as the weights count them, of logits (B, K, H, W) and classes (B, H, W); 0
        where all are void."""
        total = F.cross_entropy(logits, truth, self.weights, ignore_index=VOID, reduction="sum")
        return total / self.counted(truth).sum().clamp(min=1e-6)

    def blind(self, truth: Tensor) -> Tensor:
        """The same of saying `prior` everywhere."""
        counted = self.counted(truth)
        return -(counted * self.prior).sum() / counted.sum().clamp(min=1e-6)

    def counted(self, truth: Tensor) -> Tensor:
        """What the pixels of each class count together, (K,) float32."""
        pixels = truth[truth != VOID].bincount(minlength=len(self.prior)).float()
        return pixels if self.weights is None else pixels * self.weights


# What is said of new images


def starts(length: int, side: int) -> list[int]:
    """Where tiles of `side` pixels begin on a line of `length`, evenly spread, each over a third of the one before or more."""
    count = 1 + math.ceil((length - side) / (side * (1 - OVERLAP)))
    return [round(i * (length - side) / max(1, count - 1)) for i in range(count)]


@torch.no_grad()
def label(
    segmenter: Segmenter,
    image: Tensor,
    preprocess: Preprocess,
    device: torch.device,
    precision: str,
    batch_size: int = 8,
) -> Tensor:
    """The class of each pixel of an image (C, H, W) of any size, prepared but not normalised: (H, W) uint8 on the CPU.

    It is brought to the scale that is learnt on: just as large as covers what the segmenter sees at once (bicubic, antialiased).
    Tiles of that size are laid over it, logits are averaged where they overlap, and brought to (H, W) bilinearly. The segmenter
    is to be on `device`, in evaluation mode.
    """
    height, width = image.shape[1:]
    side = segmenter.encoder.image_size
    scale = max(side[0] / height, side[1] / width)
    inside = max(side[0], round(scale * height)), max(side[1], round(scale * width))
    seen = image[None]
    if inside != (height, width):
        seen = F.interpolate(seen, inside, mode="bicubic", antialias=True)
    seen = preprocess.normalise(seen).to(device)
    corners = [(top, left) for top in starts(inside[0], side[0]) for left in starts(inside[1], side[1])]
    total = torch.zeros(len(segmenter.classes), *inside, device=device)
    times = torch.zeros(inside, device=device)
    for begin in range(0, len(corners), batch_size):
        some = corners[begin : begin + batch_size]
        tiles = torch.cat([seen[..., top : top + side[0], left : left + side[1]] for top, left in some])
        with autocast(device, precision):
            logits = segmenter(tiles).float()
        for (top, left), each in zip(some, logits, strict=True):
            where = slice(top, top + side[0]), slice(left, left + side[1])
            total[:, where[0], where[1]] += each
            times[where] += 1
    return commonest(total / times, (height, width))


def commonest(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The class of the largest of logits (K, h, w) at each pixel of an image of `size`: (H, W) uint8 on the CPU."""
    best, found = None, None
    first = 0
    for some in logits.split(max(1, AT_ONCE // (size[0] * size[1]))):
        values, classes = resized(some[None], size)[0].max(dim=0)
        classes = (classes + first).to(torch.uint8)
        if best is None or found is None:
            best, found = values, classes
        else:
            found = torch.where(values > best, classes, found)
            best = torch.maximum(values, best)
        first += len(some)
    assert found is not None
    return found.cpu()


def labels(
    segmenter: Segmenter,
    source: Source,
    preprocess: Preprocess,
    *,
    device: torch.device,
    precision: str,
    unreadable: Callable[[str, str], None] = lambda path, reason: None,
    title: str | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Of each image of a source that can be read, in order: where it stands, and the class of each of its pixels, (H, W) uint8.

    The segmenter is moved to `device`, put in evaluation mode meanwhile and left in the mode it came in. title: what the progress
    bar says; None for no bar.
    """
    modes = {module: module.training for module in segmenter.modules()}
    side = segmenter.to(device).eval().encoder.image_size
    try:
        with bar(title, len(source)) as show:
            for i in range(len(source)):
                try:
                    image = preprocess.prepare(source.image(i), side[1] / side[0])
                except UnreadableImage as error:
                    unreadable(source.table["path"].iat[i], str(error))
                else:
                    yield i, label(segmenter, image, preprocess, device, precision)
                show(i + 1)
    finally:
        for module, training in modes.items():
            module.training = training


# How good that is


def tally(said: Tensor, truth: Tensor, classes: int) -> np.ndarray:
    """How many pixels of each class (a row) are called what (a column), (K, K) int64, of maps (H, W) uint8; void is not
    counted."""
    known = truth != VOID
    pairs = truth[known].long() * classes + said[known].long()
    return pairs.bincount(minlength=classes**2).view(classes, classes).numpy()


def sums(tallied: np.ndarray) -> np.ndarray:
    """What of a tally (…, K, K) its IoUs are made of: pixels that are right, those of each class, those so called, (…, 3, K)."""
    right = np.diagonal(tallied, axis1=-2, axis2=-1)
    return np.stack([right, tallied.sum(-1), tallied.sum(-2)], axis=-2)


def ious(counted: np.ndarray) -> np.ndarray:
    """Intersection over union (…, K) of `sums` (…, 3, K); NaN for a class that has no pixel."""
    right, there, said = (counted[..., i, :].astype(float) for i in range(3))
    with np.errstate(invalid="ignore"):
        return np.where(there > 0, right / (there + said - right), np.nan)


def means(values: np.ndarray) -> np.ndarray:
    """Means (…) of (…, K) over the classes that are there."""
    there = ~np.isnan(values)
    return np.where(there, values, 0).sum(-1) / np.maximum(there.sum(-1), 1)


def rates(counted: np.ndarray) -> dict[str, np.ndarray]:
    """What `sums` (…, 3, K) amount to."""
    right, there = counted[..., 0, :], counted[..., 1, :]
    recalls = np.where(there > 0, right / np.maximum(there, 1), np.nan)
    return {
        "miou": means(ious(counted)),
        "accuracy": right.sum(-1) / np.maximum(there.sum(-1), 1),
        "mean_accuracy": means(recalls),
    }


def report(
    counted: Sequence[np.ndarray] | np.ndarray,
    confusion: np.ndarray,
    classes: Sequence[str],
    usual: int,
    *,
    void: Sequence[int] = (),
    groups: Any = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """All that a test tells, for JSON. counted: `sums` (N, 3, K) of each image; confusion: the sum of their tallies, (K, K);
    void: numbers that are no classes, though they have a name.

    - "miou": mean over the classes of intersection over union, of all images' pixels together (not a mean over images);
      "accuracy": share of the pixels that are right; "mean_accuracy": mean over the classes of the share of their pixels that is
      found. Classes that no test image has are left out of the means, and named in "absent".
    - "classes": of each "name", "pixels", "images" that have it, "iou", and what of it is found ("recall") and right
      ("precision").
    - "majority": the same of always naming the class number `usual`, the commonest in training.

    Each has the ends of its 95% interval: a percentile bootstrap over images, or, where the group (N,) of each is given and there
    are two or more, over groups. A resample that lacks a class is averaged over those it has.
    """
    counted = np.asarray(counted)
    units, what = counted, "images"
    if groups is not None and len(codes := group_codes(groups, len(counted))) and codes.max() > 0:
        what, units = "groups", np.zeros((codes.max() + 1, *counted.shape[1:]), counted.dtype)
        np.add.at(units, codes, counted)
    rng, n = np.random.default_rng(seed), len(units)
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    again = np.tensordot(drawn.astype(float), units.astype(float), axes=1)  # (R, 3, K)
    whole = counted.sum(0)
    found: dict[str, Any] = {"n": len(counted), "pixels": int(whole[1].sum()), "resampled": what}
    found |= scored(whole, again)
    blind, blind_again = blinded(whole, usual), blinded(again, usual)
    found["majority"] = {"name": classes[usual], **scored(blind, blind_again)}
    each, spread = ious(whole), ious(again)
    found["classes"] = [
        {
            "name": name,
            "pixels": int(whole[1, k]),
            "images": int((counted[:, 1, k] > 0).sum()),
            "iou": known(each[k]),
            **dict(zip(("low", "high"), between(spread[:, k]), strict=True)),
            "recall": float(whole[0, k] / whole[1, k]) if whole[1, k] else None,
            "precision": float(whole[0, k] / whole[2, k]) if whole[2, k] else None,
            "said": int(whole[2, k]),
        }
        for k, name in enumerate(classes)
        if k not in void
    ]
    found["absent"] = [one["name"] for one in found["classes"] if not one["pixels"]]
    found["confusion"] = confusion.tolist()
    found["sentence"] = sentence(found)
    return found


def scored(whole: np.ndarray, again: np.ndarray) -> dict[str, float]:
    """`rates` of the whole (3, K) with the intervals of its resamples (R, 3, K)."""
    spread = rates(again)
    found = {}
    for name, value in rates(whole).items():
        low, high = between(spread[name])
        found |= {name: float(value), f"{name}_low": cast(float, low), f"{name}_high": cast(float, high)}
    return found


def blinded(counted: np.ndarray, usual: int) -> np.ndarray:
    """`sums` (…, 3, K) had every pixel been called `usual`."""
    there = counted[..., 1, :]
    right, said = np.zeros_like(there), np.zeros_like(there)
    right[..., usual], said[..., usual] = there[..., usual], there.sum(-1)
    return np.stack([right, there, said], axis=-2)


def between(values: np.ndarray) -> tuple[float | None, float | None]:
    """The ends of the middle 95% of values, of which NaN are none."""
    values = values[~np.isnan(values)]
    low, high = np.quantile(values, (0.025, 0.975)).tolist() if len(values) else (None, None)
    return low, high


def known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def sentence(found: dict[str, Any]) -> str:
    """What to remember of a report."""
    words = f"On images it never saw ({found['n']:,}): mIoU {found['miou']:.3f} "
    words += f"[{found['miou_low']:.3f}, {found['miou_high']:.3f}], {found['accuracy']:.1%} of the pixels right, where always "
    words += f"naming {found['majority']['name']} would get {found['majority']['miou']:.3f} and "
    words += f"{found['majority']['accuracy']:.1%}"
    there = [one for one in found["classes"] if one["pixels"]]
    best, worst = max(there, key=lambda one: one["iou"]), min(there, key=lambda one: one["iou"])
    if best is not worst:
        words += f"; best {best['name']} ({best['iou']:.2f}), worst {worst['name']} ({worst['iou']:.2f})"
    if found["absent"]:
        words += f"; no test image has {', '.join(found['absent'][:3])}" + ", …" * (len(found["absent"]) > 3)
        words += ", which the mean leaves out"
    return words + "."

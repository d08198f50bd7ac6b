"""Images to vectors: what a frozen encoder makes of each image of a source, and the raw pixels to compare it with."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.data.augment import View
from unmask.data.decode import Preprocess
from unmask.data.loader import Loader
from unmask.data.source import Source
from unmask.errors import BadInput
from unmask.screen import bar
from unmask.training.engine import autocast

PIXELS = 3072
"""Longest vector of raw pixels: that of CIFAR-10, 32 x 32 x 3."""


def _ignore(path: str, reason: str) -> None: ...


@torch.no_grad()
def extract(
    encoder: nn.Module,
    source: Source,
    preprocess: Preprocess,
    image_size: tuple[int, int],
    *,
    device: torch.device,
    precision: str,
    batch_size: int | None = None,
    workers: int = 0,
    unreadable: Callable[[str, str], None] = _ignore,
    title: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The vectors (N', D), float32 on the CPU, of the images of a source, and where each stands in it, (N',) int64.

    Each image is seen once, in order: its largest centred box of the aspect of `image_size`, resized, not flipped.
    Images that cannot be read are left out (so N' <= N) and told to `unreadable`(path, reason), which may raise.
    The encoder is moved to `device`, put in evaluation mode meanwhile and left in the mode it came in; the caller's
    random numbers are left as they were, so that a run does not depend on whether it was probed.

    encoder: images (B, C, *image_size) to vectors (B, D). batch_size: 64 on a CPU if not given, so that judging takes
    no more memory than training did, 256 elsewhere. title: what the progress bar says; None for no bar.
    Raises BadInput if no image can be read.
    """
    view = View(image_size, crop_scale=None, flip=0)
    batch_size = batch_size or (64 if device.type == "cpu" else 256)
    loader = Loader(source, preprocess, (view,), batch_size, workers=workers, device=device, unreadable=unreadable)
    modes = {module: module.training for module in encoder.modules()}
    vectors, index = [], []
    encoder.to(device).eval()
    try:
        with torch.random.fork_rng(devices=[]), bar(title, len(source)) as show:
            for batch in loader.once():
                with autocast(device, precision):
                    vectors.append(encoder(batch.views[0]).float().cpu())
                index.append(batch.index.cpu())
                show(int(index[-1][-1]) + 1)
    finally:
        for module, training in modes.items():
            module.training = training
    if not vectors:
        raise BadInput(f"{source.name}: none of {len(source)} images can be read")
    return torch.cat(vectors), torch.cat(index)


def pixels(
    source: Source,
    preprocess: Preprocess,
    image_size: tuple[int, int],
    *,
    batch_size: int | None = None,
    workers: int = 0,
    unreadable: Callable[[str, str], None] = _ignore,
    title: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The normalised pixels of each image as one vector, beside which an encoder must be worth its while.

    As `extract`, in the same order, with D = C * H * W. Images of more than 3072 numbers are averaged down to a height
    and width of about the same aspect that make no more (224 x 224 x 3 to 32 x 32 x 3), but not below 1 x 1.
    """
    return extract(
        Pixels(),
        source,
        preprocess,
        image_size,
        device=torch.device("cpu"),
        precision="float32",
        batch_size=batch_size,
        workers=workers,
        unreadable=unreadable,
        title=title,
    )


class Pixels(nn.Module):
    """An "encoder" that learnt nothing and knows nothing: images (B, C, H, W) to their own pixels (B, D), D <= 3072."""

    def forward(self, images: Tensor) -> Tensor:
        _, C, H, W = images.shape
        if C * H * W > PIXELS:
            shrink = math.sqrt(PIXELS / (C * H * W))
            height = max(1, int(H * shrink))
            width = max(1, min(int(W * shrink), PIXELS // (C * height)))
            images = F.adaptive_avg_pool2d(images, (height, width))
        return images.flatten(1)


def standardise(train: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Each dimension of vectors (N, D) with the mean 0 and the deviation 1 of the training vectors, the first; float32.

    What the batch norm without affine does that MAE (He et al. 2021, A.1) puts before its linear probe.
    """
    mean, std = scales(train)
    return tuple(((x.double() - mean) / std).float() for x in (train, *others))


def scales(train: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each dimension of vectors (N, D): (D,) float64 each. A dimension that is constant but for rounding
    tells nothing, and is not blown up: its deviation counts as 1."""
    wide = train.double()
    mean, std = wide.mean(dim=0), wide.std(dim=0, correction=0)
    return mean, std.where(std > 1e-7 * mean.abs(), torch.ones_like(std))


def check(train: Tensor, train_targets: Tensor, test: Tensor, classes: int) -> None:
    """Raise BadInput unless a probe can learn from train (N, D) with targets (N,) int64 and be tried on test (M, D)."""
    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1] or len(test) == 0:
        raise BadInput(f"features of shape {tuple(train.shape)} and {tuple(test.shape)}: (N, D) and (M, D) are needed")
    if train_targets.shape != train.shape[:1] or train_targets.dtype != torch.int64:
        raise BadInput(f"{tuple(train_targets.shape)} targets of {train_targets.dtype} for {len(train)} vectors")
    present = train_targets.unique()
    if len(present) and (present[0] < 0 or present[-1] >= classes):
        raise BadInput(f"targets must be from 0 to {classes - 1}: leave out images without a label")
    if len(present) < 2:
        raise BadInput("a probe needs training images of at least two classes")
    if not all(extreme.isfinite() for x in (train, test) for extreme in x.aminmax()):  # NaN is both; one pass, no copy
        raise BadInput("the features are NaN or infinite: the encoder has diverged")

"""SimCLR: Chen, Kornblith, Norouzi, Hinton 2020, "A Simple Framework for Contrastive Learning of Visual Representations",
and SimCLR v2: Chen, Kornblith, Swersky, Norouzi, Hinton 2020, "Big Self-Supervised Models are Strong Semi-Supervised
Learners".

    unmask pretrain simclr --data photos/ --out runs/a
    unmask pretrain simclr-v2 --data photos/ --out runs/a --memory 4096

Look at every image twice, through random crops and strong changes of colour, and tell the second view of an image from
all other views in the batch. The loss is taken behind a projection head g: encoder f gives h = f(x), which is kept, and
z = g(h), which is thrown away, for g forgets what the loss need not know (section 4.2). The report tests both.

Version 2 makes the head a layer deeper and keeps its first layer for fine-tuning (`SimCLR.middle`), and may add negatives
that a slowly moving copy of the network made of earlier batches, as MoCo does.

Published, ImageNet-1k, ResNet-50, linear probe: 64.5 percent after 100 epochs (the reference's README), 69.3 after 1000
(table 6); v2 71.7 after 800 (v2, table 1). CIFAR-10, ResNet-18, 1000 epochs: about 91 (README). ViT-S/16 and ViT-B/16,
300 epochs: 69.0 and 73.9 (Chen, Xie, He 2021, "An Empirical Study of Training Self-Supervised Vision Transformers").

Deviations from the reference code (google-research/simclr), none of which changes what is learnt:
- the rows of the batch stand in another order; the crop is torchvision's (same scales and aspects);
- LARS is timm's: the rate stands outside of its momentum, and its trust ratio divides by |g| + decay |w| for |g + decay w|.
Deviations that do:
- the loss is the mean over all 2N views, as in algorithm 1; the code adds up two means over N. The steps of matrices are
  the same by LARS, those of biases and norms are half as long;
- the rate goes with the root of the batch (0.075 sqrt(N), appendix B.1), which is the paper's 4.8 at its batch of 4096;
- the code of version 2's memory was not published: here its vectors are candidates beside those of the batch, which stay.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.data.augment import View
from unmask.data.loader import Batch
from unmask.errors import BadInput
from unmask.methods.method import Method, Paper, follow, length_of, momentum_copy
from unmask.training import distributed
from unmask.training.engine import Clock

SMALL = 64
"""Pixels of the shorter side up to which images are treated as the paper treats those of CIFAR-10."""


@dataclass(frozen=True)
class Settings:
    """What SimCLR adds to the settings of every method. Defaults: the paper's."""

    temperature: float | None = None
    """Of the loss: 0.1 (table 5), or 0.5 for images of at most 64 pixels (appendix B.9)."""
    strength: float | None = None
    """Of the colour distortion (appendix A): 1, or 0.5 for images of at most 64 pixels (appendix B.9)."""
    blur: float | None = None
    """Probability of a Gaussian blur: 0.5 (appendix A), or 0 for images of at most 64 pixels (appendix B.9)."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image in a random crop (appendix A)."""
    flip: float = 0.5
    """Probability of flipping an image from left to right. 0 where left and right matter."""
    projection: int = 128
    """Length of the vectors z that are compared (section 2.2)."""
    layers: int = 2
    """Layers of the projection head (section 2.1; three in version 2), all but the last as wide as h."""
    memory: int = 0
    """How many vectors of earlier batches stand among the negatives, 0 for none (version 2: 65,536, section 3.1)."""
    memory_momentum: float = 0.999
    """Of the network that makes the vectors of the memory (version 2, section 3.1)."""


@dataclass(frozen=True)
class SettingsV2(Settings):
    """What SimCLR v2 adds to the settings of every method. Defaults: the paper's."""

    layers: int = 3
    """Layers of the projection head (section 2, "Self-supervised pretraining"), all but the last as wide as h."""


class SimCLR(Method):
    """encoder: anything that makes one vector of an image."""

    SUMMARY = "tell the second view of an image from all other views in the batch (Chen et al. 2020)"
    Settings = Settings
    ENCODER: ClassVar = {"positions": "sincos", "pool": "class"}
    """How a ViT is built: as by Chen, Xie, He 2021 (section 4)."""
    PAPERS: ClassVar = {
        "resnet": Paper("resnet50", 4096, 0.3, 100, 10, weight_decay=1e-6, optimiser="lars", small_batch=256),
        "vit": Paper("vit-small/16", 4096, 1.5e-4, 300, 40, weight_decay=0.1, small_batch=256),
    }
    """Section 2.2, "Default setting"; for a ViT Chen, Xie, He 2021, table 4."""

    memory: Tensor | None
    """Unit vectors (K, d) of earlier batches, the newest first."""
    memory_network: Any

    def __init__(self, encoder: Any, settings: Settings = Settings()):  # noqa: B008
        super().__init__()
        if settings.layers < 1 or settings.projection < 1 or settings.memory < 0:
            raise BadInput("--layers and --projection are at least 1, --memory at least 0")
        self.encoder, self.settings = encoder, self.suit(settings, 0, 2, encoder.image_size, 1)[0]
        if self.settings.temperature <= 0:
            raise BadInput(f"--temperature is {settings.temperature}: give a number above 0, such as 0.1")
        s = self.settings.strength
        view = View(
            encoder.image_size,
            crop_scale=settings.crop_scale,
            flip=settings.flip,
            jitter=(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s),
            jitter_p=0.8,
            grey=0.2,
            blur=self.settings.blur,
        )
        self.views = (view, view)
        D = length_of(encoder)
        widths = [D] * settings.layers + [settings.projection]
        self.projection = nn.Sequential(
            *(layer(widths[i], widths[i + 1], i == settings.layers - 1) for i in range(settings.layers))
        )
        self.memory_network = momentum_copy(self.middle(settings.layers)) if settings.memory else None
        vectors = F.normalize(torch.randn(settings.memory, settings.projection), dim=1) if settings.memory else None
        self.register_buffer("memory", vectors)

    @classmethod
    def suit(
        cls, settings: Settings, images: int, batch_size: int, size: tuple[int, int], steps: int
    ) -> tuple[Any, dict[str, str]]:
        if batch_size < 2:
            raise BadInput(f"--batch-size is {batch_size}: views are told from those of other images, use 2 or more")
        if 0 < images < settings.memory:
            raise BadInput(
                f"--memory {settings.memory} of {images} images: its vectors would be of the very images in a batch"
            )
        paper = {"temperature": 0.1, "strength": 1.0, "blur": 0.5}
        why = "the paper's for ImageNet"
        if min(size) <= SMALL:
            paper = {"temperature": 0.5, "strength": 0.5, "blur": 0.0}
            why = f"{size[0]} x {size[1]} pixels: the paper's for CIFAR-10 (appendix B.9)"
        chosen = {name: value for name, value in paper.items() if getattr(settings, name) is None}
        return replace(settings, **chosen), dict.fromkeys(chosen, why)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        images = torch.cat(batch.views)  # (2B, C, H, W): the batch norms see both views at once
        z = F.normalize(self.projection(self.encoder(images)).float(), dim=1)  # (2B, d)
        loss, found, candidates = nt_xent(z, self.settings.temperature, self.memory)
        if self.memory is not None:
            with torch.no_grad():
                remembered = F.normalize(self.memory_network(images).float(), dim=1)
                remembered = remembered.unflatten(0, (2, -1)).transpose(0, 1)  # (B, 2, d): in the order of the images,
                remembered = distributed.gather(remembered).flatten(0, 1)  # (2N, d), which is that of one process
                self.memory = torch.cat([remembered, self.memory])[: self.settings.memory]  # first in, first out
        return {"loss": loss, "uninformed": loss.new_tensor(math.log(candidates)), "accuracy": found}

    def after_step(self, clock: Clock) -> None:
        if self.memory_network is not None:
            follow(self.memory_network, self.middle(self.settings.layers), self.settings.memory_momentum)

    def middle(self, layers: int = 1) -> nn.Sequential:
        """The encoder and so many layers of the head, images to vectors: where version 2 begins to fine-tune (section 2,
        "Fine-tuning": from the first layer of three). Shares its weights with this method."""
        return nn.Sequential(self.encoder, self.projection[:layers])


class SimCLRv2(SimCLR):
    """The same with a deeper head and another recipe."""

    SUMMARY = "SimCLR with a deeper head, kept in part for fine-tuning, and a memory (Chen et al. 2020b)"
    Settings = SettingsV2
    PAPERS: ClassVar = {
        "resnet": Paper("resnet50", 4096, 0.4, 800, 40, weight_decay=1e-4, optimiser="lars", small_batch=256),
        "vit": SimCLR.PAPERS["vit"],
    }
    """Section 3.1: rate 6.4 = 0.1 sqrt(4096), 5% of the epochs to warm up."""


def layer(width: int, out: int, last: bool) -> nn.Sequential:
    """A layer of the projection head of the reference: no bias but the batch norm's; none of either and no ReLU behind the
    last."""
    linear, norm = nn.Linear(width, out, bias=False), nn.BatchNorm1d(out)
    nn.init.normal_(linear.weight, std=0.01)
    norm.bias.requires_grad_(not last)
    return nn.Sequential(linear, norm) if last else nn.Sequential(linear, norm, nn.ReLU())


def nt_xent(z: Tensor, temperature: float, memory: Tensor | None = None) -> tuple[Tensor, Tensor, int]:
    """Normalised temperature-scaled cross-entropy (equation 1), averaged over the views of this process.

    z: unit vectors (2B, d) float32, those of all first views before those of all second views. Every view is to find the
    other one of its image among the 2N - 1 others of all processes, and the vectors of `memory` (K, d), if there is one.
    Returns the loss, the share of views for which the other one is the most similar, and how many candidates there are.
    """
    row = torch.arange(len(z), device=z.device)
    first = distributed.rank() * len(z)
    others = distributed.gather(z)  # (2N, d), with gradients, by process
    others = others if memory is None else torch.cat([others, memory])  # (2N + K, d)
    with torch.autocast(z.device.type, enabled=False):
        similarity = z @ others.T / temperature  # (2B, 2N + K)
    similarity[row, first + row] = -math.inf  # a view is not compared with itself
    other_view = first + row.roll(len(z) // 2)
    found = (similarity.argmax(dim=1) == other_view).float().mean()
    return F.cross_entropy(similarity, other_view), found, len(others) - 1

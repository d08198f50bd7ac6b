"""MoCo v3: Chen, Xie, He 2021, "An Empirical Study of Training Self-Supervised Vision Transformers".

    unmask pretrain moco-v3 --data photos/ --out runs/a

Of two views of an image, one becomes a query and the other a key, made by a slow average of the network; the query is to
be nearest to the key of its own image among those of the whole batch. There is no queue, but a predictor behind the
query. The projection of a ViT's patches stays as it was drawn: its gradient is what makes ViTs unstable (section 4.2).

Published, ImageNet-1k, linear (CONFIG.md of facebookresearch/moco-v3): ViT-S 73.2, ViT-B 76.7 (300 epochs); ResNet-50
68.9 / 72.8 / 74.6 (100 / 300 / 1000 epochs).

Deviations from the reference code, none of which changes the function learnt:
- the key encoder moves behind a step, not before its keys are computed, by the momentum of the next step.
Deviations that do: views are flipped before their colours change, and blurred in proportion to their size (the
reference's 2 pixels are meant for 224); heads of narrow encoders are narrower (`hidden_width`); weight decay is for
matrices alone; our ViT-S has 6 heads, not 12, and begins with queries, keys and values Xavier-uniform as one matrix, not
as three; the trust ratio of LARS is timm's; and a collection smaller than ImageNet gets the rate and batch that are printed.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.data.augment import View, blur_sigma, jittered
from unmask.data.loader import Batch
from unmask.errors import BadInput
from unmask.methods.method import Method, Paper, follow, length_of, momentum_copy
from unmask.models.compact import CCT
from unmask.models.vit import ViT
from unmask.training import distributed
from unmask.training.engine import Clock
from unmask.training.optim import cosine


@dataclass(frozen=True)
class Settings:
    """What MoCo v3 adds to the settings of every method. Defaults: CONFIG.md of the reference code."""

    dim: int = 256
    """Length of queries and keys."""
    hidden_width: int | None = None
    """Width of the hidden layers of both heads. Default: 4096 from ViT-S up, and in proportion for narrower encoders."""
    temperature: float | None = None
    """Temperature of the softmax over the batch. Default: 0.2 for transformers, 1 for ResNets."""
    momentum: float = 0.99
    """Of the key encoder at the start; it goes to 1 along a cosine. The paper's run of 1000 epochs has 0.996."""
    freeze_patches: bool = True
    """Leave a ViT's projection of patches as it was drawn (section 4.2, "a trick for improving stability")."""
    crop_scale: tuple[float, float] | None = None
    """Smallest and largest share of the image in a crop. Default: 0.08 1 for transformers, 0.2 1 for ResNets."""
    flip: float = 0.5
    """Probability of flipping a view from left to right. 0 where left and right matter."""
    jitter: float = 1.0
    """Strength of the changes of brightness, contrast, saturation (0.4, 0.4, 0.2) and hue (0.1). 0 where colour matters."""
    grey: float = 0.2
    """Probability of a view turning grey. 0 where colour matters."""


class MoCoV3(Method):
    """encoder: any, for queries; it is kept."""

    SUMMARY = "momentum contrast, version 3 (Chen et al. 2021): find your own image's other view in the batch; for ViTs"
    Settings = Settings
    ENCODER: ClassVar = {"positions": "sincos", "pool": "class"}
    PAPERS: ClassVar = {
        "vit": Paper("vit-small/16", 4096, 1.5e-4, 300, 40, weight_decay=0.1, small_batch=256),
        "resnet": Paper("resnet50", 4096, 0.3, 300, 10, 1e-6, optimiser="lars", scaling="linear", small_batch=256),
    }
    """CONFIG.md; ResNet-50 with 100 epochs has a base rate of 0.6, with 1000 epochs a weight decay of 1.5e-6. On a CPU, too,
    batches are large: what a query is told from is the batch."""

    def __init__(self, encoder: Any, settings: Settings = Settings()):  # noqa: B008
        super().__init__()
        s = self.settings = settings
        transformer = isinstance(encoder, ViT | CCT)
        self.temperature = (0.2 if transformer else 1.0) if s.temperature is None else s.temperature
        check(self.temperature, s.momentum, dim=s.dim, hidden_width=s.hidden_width)
        self.encoder = encoder
        if isinstance(encoder, ViT):
            encoder.patch_embedding.requires_grad_(not s.freeze_patches)

        # Section 3: every layer of both heads has a batch norm; the reference leaves out that behind a ResNet's predictor
        width = length_of(encoder)
        hidden = s.hidden_width or hidden_width(width)
        self.projector = mlp([width, *[hidden] * (2 if transformer else 1), s.dim])
        self.predictor = mlp([s.dim, hidden, s.dim], last_norm=transformer)
        self.key_encoder, self.key_projector = momentum_copy(self.encoder), momentum_copy(self.projector)

        crop: dict[str, Any] = {
            "crop_scale": s.crop_scale or ((0.08, 1.0) if transformer else (0.2, 1.0)),
            "flip": s.flip,
        }
        colours = jittered((0.4, 0.4, 0.2, 0.1), s.jitter) | {
            "grey": s.grey,
            "blur_sigma": blur_sigma(encoder.image_size),
        }
        self.views = (
            View(encoder.image_size, blur=1.0, **crop, **colours),
            View(encoder.image_size, blur=0.1, solarise=0.2, **crop, **colours),
        )

    # Algorithm 1

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        x1, x2 = batch.views
        q1, q2 = (self.predictor(self.projector(self.encoder(x))) for x in (x1, x2))  # (B, dim)
        with torch.no_grad():
            k1, k2 = (self.key_projector(self.key_encoder(x)) for x in (x1, x2))  # (B, dim)
        (loss1, accuracy1), (loss2, accuracy2) = self.contrast(q1, k2), self.contrast(q2, k1)
        candidates = len(x1) * distributed.world()
        uninformed = torch.full_like(loss1, 4 * self.temperature * math.log(candidates))
        return {"loss": loss1 + loss2, "uninformed": uninformed, "accuracy": (accuracy1 + accuracy2) / 2}

    def contrast(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """InfoNCE (equation 1) of queries (B, dim) and this process's keys (B, dim), times 2 tau, and the share of queries
        whose own key is the nearest of all processes'. In float32: bf16 rounds by 0.4%, of logits of 5."""
        with torch.autocast(q.device.type, enabled=False):
            q, k = (F.normalize(x.to(next(self.parameters()).dtype), dim=1) for x in (q, k))
            k = distributed.gather(k)  # (world * B, dim)
            logits = q @ k.T / self.temperature  # (B, world * B)
            own = torch.arange(len(q), device=q.device) + distributed.rank() * len(q)
            return 2 * self.temperature * F.cross_entropy(logits, own), (logits.argmax(dim=1) == own).float().mean()

    def after_step(self, clock: Clock) -> None:
        momentum = cosine(self.settings.momentum, 1.0, (clock.step + 1) / clock.steps)
        follow(self.key_encoder, self.encoder, momentum)
        follow(self.key_projector, self.projector, momentum)


def hidden_width(encoder_width: int) -> int:
    """Default width of the heads' hidden layers: 4096 for the encoders of the paper, the narrowest of which is ViT-S with
    384; narrower ones keep that proportion (ViT-Ti 2048). Else ViT-Ti's heads would have four times the weights it has."""
    return min(4096, max(256, round(encoder_width * 4096 / 384 / 64) * 64))


def mlp(widths: list[int], last_norm: bool = True) -> nn.Sequential:
    """Linear layers, each with a batch norm and a ReLU behind it, the last one with a batch norm without affine or none."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
    layers[-2:] = [nn.BatchNorm1d(widths[-1], affine=False)] * last_norm
    return nn.Sequential(*layers)


def check(temperature: float, momentum: float, **counts: int | None) -> None:
    """BadInput for settings that cannot work."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise BadInput(f"--{name.replace('_', '-')} is {count}: give a number above 0")
    if not temperature > 0:
        raise BadInput(f"--temperature is {temperature}: give a number above 0, such as 0.2")
    if not 0 <= momentum <= 1:
        raise BadInput(f"--momentum is {momentum}: give a share between 0 and 1, such as 0.99")

"""BYOL: Grill, Strub, Altché, Tallec, Richemond, Buchatskaya, Doersch, Pires, Guo, Azar, Piot, Kavukcuoglu, Munos, Valko
2020, "Bootstrap your own latent: A new approach to self-supervised Learning".

    unmask pretrain byol --data photos/ --out runs/a

Look at every image twice. An online network (encoder, projector, predictor) learns to say what a target network makes of
the other view; the target is a slowly moving average of the online encoder and projector. There are no negatives: that
everything does not become alike rests on the predictor, and on the target learning nothing by gradient.

Published, ImageNet-1k, ResNet-50, linear probe: 74.3 percent after 1000 epochs (table 1), 72.5 after 300. ViT-S/16 and
ViT-B/16, 300 epochs: 71.0 and 73.9 (Chen, Xie, He 2021, "An Empirical Study of Training Self-Supervised Vision
Transformers").

Deviations from the reference code (deepmind-research/byol), none of which changes what is learnt:
- the target begins as a copy of the online network, not as another random one (the authors saw no difference);
- brightness is a factor and not a shift, as in SimCLR and torchvision; LARS is timm's, whose trust ratio
  divides by |g| + decay |w| for |g + decay w|;
- no classifier is trained beside it: probes test the encoder.
Deviations that do: shorter hidden layers for encoders whose vectors are shorter than ResNet-50's (`Settings.hidden`), no
blur for small images, and the target's momentum by the length of the run (`Settings.momentum`).
"""

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
from unmask.training.optim import cosine

SMALL = 64
"""Pixels of the shorter side up to which a view is not blurred."""

MOMENTA = ((200_000, 0.996, "1000"), (25_000, 0.99, "100 to 300"), (0, 0.97, "40"))
"""Steps from which on, momentum of the target at the start, and the epochs that the reference has it for."""


@dataclass(frozen=True)
class Settings:
    """What BYOL adds to the settings of every method. Defaults: the paper's."""

    momentum: float | None = None
    """Of the target at the start; it rises to 1 along a cosine. By default the reference's for 1000 epochs of ImageNet,
    0.996, for runs of 200,000 steps and more; for 100 to 300 epochs, 0.99, from 25,000 steps on; and for 40 epochs, 0.97,
    below: a target that remembers longer than a short run lasts never learns."""
    hidden: int | None = None
    """Width of the hidden layer of projector and predictor: 4096 (section 3.2), which is twice the length of ResNet-50's
    vectors, and by default twice that of the encoder's where they are shorter."""
    projection: int = 256
    """Length of the vectors that are predicted (section 3.2)."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image in a random crop (appendix B)."""
    flip: float = 0.5
    """Probability of flipping an image from left to right. 0 where left and right matter."""
    blur: tuple[float, float] | None = None
    """Probability of a Gaussian blur in the first and the second view: 1 and 0.1 (table 6), or none for images of at most
    64 pixels."""
    solarise: tuple[float, float] = (0.0, 0.2)
    """Probability of inverting what is bright, in the first and the second view (table 6)."""


class BYOL(Method):
    """encoder: anything that makes one vector of an image."""

    SUMMARY = "predict what a slowly moving copy of the network makes of another view (Grill et al. 2020)"
    Settings = Settings
    ENCODER: ClassVar = {"positions": "sincos", "pool": "class"}
    """How a ViT is built: as by Chen, Xie, He 2021 (section 4)."""
    PAPERS: ClassVar = {
        "resnet": Paper(
            "resnet50", 4096, 0.2, 1000, 10, weight_decay=1.5e-6, optimiser="lars", scaling="linear", small_batch=256
        ),
        "vit": Paper("vit-small/16", 4096, 1.5e-4, 300, 40, weight_decay=0.1, small_batch=256),
    }
    """Section 3.2, "Optimization"; for a ViT Chen, Xie, He 2021, table 4."""

    def __init__(self, encoder: Any, settings: Settings = Settings()):  # noqa: B008
        super().__init__()
        if settings.momentum is not None and not 0 <= settings.momentum <= 1:
            raise BadInput(f"--momentum is {settings.momentum}: give a share from 0 to 1, such as 0.99")
        self.encoder, self.settings = encoder, self.suit(settings, 0, 2, encoder.image_size, 10**6)[0]
        self.views = tuple(
            View(
                encoder.image_size,
                crop_scale=settings.crop_scale,
                flip=settings.flip,
                jitter=(0.4, 0.4, 0.2, 0.1),
                jitter_p=0.8,
                grey=0.2,
                blur=blur,
                solarise=solarise,
            )
            for blur, solarise in zip(self.settings.blur, settings.solarise, strict=True)
        )
        D, d = length_of(encoder), settings.projection
        hidden = settings.hidden or min(4096, 2 * D)
        self.projection = mlp(D, hidden, d)
        self.prediction = mlp(d, hidden, d)
        self.target = momentum_copy(nn.Sequential(self.encoder, self.projection))

    @classmethod
    def suit(
        cls, settings: Settings, images: int, batch_size: int, size: tuple[int, int], steps: int
    ) -> tuple[Any, dict[str, str]]:
        if batch_size < 2:
            raise BadInput(f"--batch-size is {batch_size}: batch norms need 2 images or more")
        found, reasons = {}, {}
        if settings.momentum is None:
            found["momentum"], epochs = next(rest for least, *rest in MOMENTA if steps >= least)
            reasons["momentum"] = f"the reference's for {epochs} epochs of ImageNet; this run has {steps:,} steps"
        if settings.blur is None and min(size) <= SMALL:
            found["blur"] = (0.0, 0.0)
            reasons["blur"] = (
                f"{size[0]} x {size[1]} pixels: none, as SimCLR for CIFAR-10: a blur leaves nothing to see"
            )
        elif settings.blur is None:
            found["blur"], reasons["blur"] = (1.0, 0.1), "the paper's, of the first and the second view"
        return replace(settings, **found), reasons

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        predicted = [self.prediction(self.projection(self.encoder(view))) for view in batch.views]  # q(z), (B, d) each
        with torch.no_grad():
            wanted = [self.target(view) for view in batch.views]  # z' of the target, (B, d) each
        # each view predicts the other: L of equation 2 and L~ (section 3.1)
        loss = regression(predicted[0], wanted[1]) + regression(predicted[1], wanted[0])
        return {
            "loss": loss,
            "uninformed": loss.new_tensor(4.0),  # 2 a direction, of vectors at right angles
            "target_std": spread(torch.cat(wanted)),
            "target_momentum": loss.new_tensor(self.momentum(clock)),
        }

    def after_step(self, clock: Clock) -> None:
        follow(self.target, nn.Sequential(self.encoder, self.projection), self.momentum(clock))

    def momentum(self, clock: Clock) -> float:
        """tau of this step: 1 - (1 - tau_base) (cos(pi k / K) + 1) / 2 (section 3.2)."""
        return cosine(self.settings.momentum, 1.0, clock.progress)


def mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    """Projector or predictor (section 3.2): linear, batch norm, ReLU, linear without bias; nothing behind it."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out, bias=False)
    )


def regression(q: Tensor, z: Tensor) -> Tensor:
    """Mean squared error of the normalised vectors (equation 2), 2 - 2 cos, from 0 to 4, averaged over q and z (B, d)."""
    q, z = F.normalize(q.float(), dim=1), F.normalize(z.float(), dim=1)
    return (q - z).square().sum(dim=1).mean()


def spread(z: Tensor) -> Tensor:
    """How far the vectors (B, d), normalised, are from being all the same: root of their variance, 0 (collapsed) to 1."""
    mean = distributed.mean(F.normalize(z.float(), dim=1).mean(dim=0))
    return (1 - mean.square().sum()).clamp(min=0).sqrt()

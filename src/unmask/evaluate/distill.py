"""Distillation: Chen, Kornblith, Swersky, Norouzi, Hinton 2020, "Big Self-Supervised Models are Strong Semi-Supervised
Learners" (SimCLR v2), section 2.

    unmask distill runs/teacher --data unlabelled/ --encoder cct-2/3x2 --out runs/student

A teacher that was fine-tuned on few labels names images that have none, and a student, of the same or another architecture,
learns what it says of each class, not only which it says (equations 2 and 3):

    L = - (1 - alpha) sum over labelled x of log P_S(y | x)  -  alpha sum over all x of sum over y of P_T(y | x) log P_S(y | x)

with P(y | x) = exp(f(x)[y] / t) / sum over y' of exp(f(x)[y'] / t) for both, at the temperature t. No gradient reaches the
teacher; both see the same crop. From the second sum the entropy of P_T is taken, a constant that no student can change: a
student that says what its teacher says has a loss of 0.

At low temperatures a student need not be as sure as its teacher to be told the same loss by it: what it says is scaled, after
training, by the one factor that brings it nearest to what its teacher says at a temperature of 1 (Guo et al. 2017, section 4.2,
with a teacher instead of labels). Which class it names stays.

Deviations: where labels are used (alpha below 1) they are those of the images at hand, not of a set of their own, and both
sums are means over the batch; the optimiser is what the student's paper trains it with from scratch (the paper's students are
ResNets, trained by LARS with 0.1 sqrt(batch)); images that may have several labels get a yes or no for each class.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from unmask.data.augment import View
from unmask.data.decode import Preprocess
from unmask.data.loader import Batch
from unmask.errors import BadInput
from unmask.methods.method import Method
from unmask.models import Encoder
from unmask.models.classifier import Classifier
from unmask.training.engine import Clock

SMALL = 64
"""Pixels of the longer side up to which an image is cropped little."""


@dataclass(frozen=True)
class Settings:
    """What distillation adds to the settings of training."""

    temperature: float | None = None
    """Of teacher and student alike: above 1 softens what the teacher says, below 1 sharpens it. Default: the paper's, 0.1 where
    both are of one architecture and 1 where they are not (section 3.1)."""
    alpha: float = 1.0
    """Weight of what the teacher says; the rest is that of the labels, where --data has some (equation 3)."""
    crop_scale: tuple[float, float] | None = None
    """Smallest and largest share of the image in a random crop (section 3.1: crops and flips, nothing else). Default: the
    paper's 0.08 1; of images of up to 64 pixels 0.8 1, as those that compact transformers learn from (CCT-2/3x2, CIFAR-10,
    1,500 steps of 128: 58.4 percent instead of 56.8 by a teacher of 58.7)."""
    flip: float = 0.5
    """Probability of flipping an image from left to right. 0 where left and right matter."""


def usual_crop(size: tuple[int, int]) -> tuple[float, float]:
    """Smallest and largest share of images of this (height, width) in a crop, where none is asked for."""
    return (0.8, 1.0) if max(size) <= SMALL else (0.08, 1.0)


class Distilled(Method):
    """teacher: frozen; of the same classes as the student. preprocesses: the student's and the teacher's, which may normalise
    otherwise."""

    Settings = Settings

    def __init__(
        self, student: Classifier, teacher: Classifier, settings: Settings, preprocesses: tuple[Preprocess, Preprocess]
    ):
        super().__init__()
        if settings.temperature is None or settings.temperature <= 0:
            raise BadInput(f"--temperature is {settings.temperature}: give a number above 0, such as 1")
        if not 0 < settings.alpha <= 1:
            raise BadInput(f"--alpha is {settings.alpha}: give the teacher's weight, above 0 and up to 1")
        if student.classes != teacher.classes or student.several != teacher.several:
            raise BadInput("the student must name the same classes as its teacher")
        self.student, self.settings = student, settings
        self.teacher = teacher.requires_grad_(False)
        size = student.encoder.image_size
        self.views = (View(size, crop_scale=settings.crop_scale or usual_crop(size), flip=settings.flip),)
        mine, theirs = preprocesses
        scales, shifts = [], []
        for mean, std, other_mean, other_std in zip(mine.mean, mine.std, theirs.mean, theirs.std, strict=True):
            scales.append(std / other_std)
            shifts.append((mean - other_mean) / other_std)
        self.register_buffer("scale", torch.tensor(scales)[:, None, None])
        self.register_buffer("shift", torch.tensor(shifts)[:, None, None])

    scale: Tensor
    shift: Tensor

    @property
    def encoder(self) -> Encoder:  # type: ignore[override]
        return self.student.encoder

    @property
    def best(self) -> Classifier:
        """What is kept."""
        return self.student

    def train(self, mode: bool = True) -> "Distilled":
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def say(self, images: Tensor) -> Tensor:
        """What the teacher says of images (B, C, H, W) normalised for the student: probabilities (B, K) float32 at the
        temperature."""
        images = images * self.scale + self.shift
        if (size := self.teacher.encoder.image_size) != tuple(images.shape[2:]):
            images = F.interpolate(images, size, mode="bicubic", antialias=True)
        assert self.settings.temperature is not None
        return self.teacher.probabilities(self.teacher(images) / self.settings.temperature)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (images,), own = batch.views, self.settings
        assert own.temperature is not None
        said, logits = self.say(images), self.student(images).float()
        average = said.mean(dim=0)  # of a model that knows what the teacher says on average, and does not look
        if self.student.several:
            entropy = F.binary_cross_entropy(said, said)
            loss = F.binary_cross_entropy_with_logits(logits / own.temperature, said) - entropy
            uninformed = F.binary_cross_entropy(average.expand_as(said), said) - entropy
        else:
            entropy = torch.special.entr(said).sum(dim=1).mean()
            loss = -(said * (logits / own.temperature).log_softmax(dim=1)).sum(dim=1).mean() - entropy  # equation 2
            uninformed = torch.special.entr(average).sum() - entropy
        values = {"loss": loss, "uninformed": uninformed}
        if own.alpha < 1 and batch.targets is not None:
            values = {
                "loss": own.alpha * loss + (1 - own.alpha) * self.labelled(logits, batch.targets),  # equation 3
                "uninformed": own.alpha * uninformed + (1 - own.alpha) * math.log(len(self.student.classes)),
            }
        if not self.student.several:
            values["accuracy"] = (logits.argmax(dim=1) == said.argmax(dim=1)).float().mean()
        return values

    def scale_by(self, factor: float) -> None:
        """Multiply what the student says, its logits, by a factor."""
        for parameter in self.student.linear.parameters():
            parameter.data *= factor

    def labelled(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of what has a label: classes (B,) int64, -1 without one, or (B, K) where an image may have several."""
        if self.student.several:
            return F.binary_cross_entropy_with_logits(logits, targets.float())
        known = (targets >= 0).sum().clamp(min=1)
        return F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum") / known


def sureness(student: Tensor, teacher: Tensor, several: bool) -> float:
    """By which factor logits of a student (N, K) come nearest, in cross-entropy, to what those of its teacher (N, K) say at a
    temperature of 1: between 1/1000 and 1000."""
    student, teacher = student.double(), teacher.double()

    def loss(log_factor: float) -> float:
        scaled = math.exp(log_factor) * student
        if several:
            return float(F.binary_cross_entropy_with_logits(scaled, teacher.sigmoid()))
        return float(-(teacher.softmax(dim=1) * scaled.log_softmax(dim=1)).sum(dim=1).mean())

    found: Any = minimize_scalar(loss, bounds=(-math.log(1000), math.log(1000)), method="bounded")
    return math.exp(found.x)

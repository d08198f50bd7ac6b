"""The contract between a way to learn and the loop that trains it."""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from unmask.data.augment import View
from unmask.data.loader import Batch
from unmask.training.engine import Clock
from unmask.training.optim import Optimiser


@dataclass(frozen=True)
class Paper:
    """How a paper trains: its table of hyper-parameters for ImageNet. What a smaller collection takes instead, and why,
    is in unmask.verbs.choices."""

    encoder: str
    """What the paper trains first."""
    batch_size: int
    base_lr: float
    """Learning rate for a batch of 256; the paper's rate is this x batch_size / 256."""
    epochs: float
    warmup: float
    """Epochs over which the rate rises from 0."""
    weight_decay: float
    optimiser: Optimiser = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's."""
    momentum: float = 0.9
    """Of LARS and SGD."""
    scaling: Literal["root", "linear"] = "root"
    """How the rate goes with the batch where it is not the paper's: with its root, as for Adam, or in proportion."""
    updates: int | None = None
    """Steps that the paper's rate is meant for, where they are far more than a small collection is given: with fewer, the rate
    grows with the root of how many times fewer, as random steps add up."""
    most: float = 50.0
    """How many times it grows so at most."""
    weight_decay_end: float | None = None
    min_lr: float = 0.0
    milestones: tuple[float, ...] = ()
    """Shares of the run after which the rate falls to a tenth, instead of along a cosine."""
    clip: float | None = None
    """Largest norm of the gradient."""
    drop_path: float = 0.0
    small_batch: int = 64
    """What a CPU is given at most: more where the images of a batch are told from each other, or share a batch norm."""


class Method(nn.Module, ABC):
    """One way to train an encoder. Subclasses are final, and have a frozen dataclass `Settings` of what they add to the
    settings of every method, None for what `suit` fills in."""

    SUMMARY: ClassVar[str]
    """A line for --help."""
    PAPERS: ClassVar[dict[str, Paper]]
    """Recipes by kind of encoder, "vit" or "resnet"; the first is what is trained unless another encoder is named."""
    ENCODER: ClassVar[dict[str, Any]] = {}
    """Options that a ViT is built with."""
    NORMALISED: ClassVar[tuple[float, float] | None] = None
    """Mean and deviation, on the scale from 0 for black to 1 for white, that images are normalised by. None: the collection's."""
    SYNCHRONISED = True
    """Whether batch norms see the samples of all processes."""

    encoder: Any
    """What is kept, exported and judged: an nn.Module from images (B, C, H, W) to vectors (B, D)."""
    projection: Any
    """Where there is one: the head from the encoder's vectors (B, D) to those (B, d) that the loss sees. It is thrown away,
    and the report tests what it made beside what the encoder did."""
    views: tuple[View, ...]
    """How the method looks at an image."""

    @classmethod
    def suit(
        cls, settings: Any, images: int, batch_size: int, size: tuple[int, int], steps: int
    ) -> tuple[Any, dict[str, str]]:
        """`settings` with every None filled in for so many images of this size (height, width), and the reasons by name."""
        return settings, {}

    @classmethod
    def built_with(cls, settings: Any) -> dict[str, Any]:
        """Options that the encoder is built with, for settings that are filled in."""
        return cls.ENCODER

    @abstractmethod
    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """Scalars of one batch: "loss", "uninformed" (the loss, on this very batch, of a model that learnt nothing), and
        whatever else is to be logged."""

    def after_backward(self, clock: Clock) -> None:
        """Before the optimiser's step."""

    def after_step(self, clock: Clock) -> None:
        """After the optimiser's step."""


@torch.no_grad()
def length_of(encoder: Any, size: tuple[int, int] | None = None) -> int:
    """How long the vectors of an encoder are, found out on a blank image, of this size or its own."""
    training, weight = encoder.training, next(encoder.parameters())
    try:
        return encoder.eval()(weight.new_zeros(1, encoder.channels, *(size or encoder.image_size))).shape[1]
    finally:
        encoder.train(training)


def momentum_copy(module: nn.Module) -> nn.Module:
    """A copy that no gradient reaches: a teacher, a target, a key encoder."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum x teacher + (1 - momentum) x student, for all parameters; buffers are each one's own."""
    torch._foreach_lerp_(  # type: ignore[reportPrivateImportUsage]
        list(teacher.parameters()), list(student.parameters()), 1 - momentum
    )

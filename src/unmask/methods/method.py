"""The contract between a way to learn and the loop that trains it."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from unmask.data.augment import View
from unmask.data.loader import Batch
from unmask.training.engine import Clock


class Method(nn.Module, ABC):
    """One way to train an encoder. Subclasses are final."""

    encoder: Any
    """What is kept, exported and judged: an nn.Module from images (B, C, H, W) to vectors (B, D)."""
    views: tuple[View, ...]
    """How the method looks at an image."""

    @abstractmethod
    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """Scalars of one batch: "loss", "uninformed" (the loss, on this very batch, of a model that learnt nothing), and
        whatever else is to be logged."""

    def after_backward(self, clock: Clock) -> None:
        """Before the optimiser's step."""

    def after_step(self, clock: Clock) -> None:
        """After the optimiser's step."""

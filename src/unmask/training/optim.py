"""Optimisers and the schedule of their rates."""

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Recipe:
    """How a method is trained: what the paper's table of hyper-parameters says, in steps."""

    steps: int
    """Steps of the optimiser in the whole run."""
    lr: float
    """Highest learning rate, reached after the warm-up."""
    steps_per_epoch: int = 1
    """Steps in one pass over the data: what turns steps into epochs."""
    warmup: int = 0
    """Steps over which the rate rises linearly from 0."""
    min_lr: float = 0.0
    """The rate at the end of the cosine."""
    weight_decay: float = 0.05
    """Decoupled weight decay, on matrices only: not on biases, norms, tokens and positions."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's averaging of gradients and of their squares."""
    clip: float | None = None
    """Largest norm of the gradient; None leaves it alone."""
    accumulate: int = 1
    """Batches whose gradients make one step."""


def rate(recipe: Recipe, step: int) -> float:
    """Learning rate of step `step` (from 0): linear warm-up, then half a cosine down to min_lr (Loshchilov & Hutter 2017)."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def adamw(module: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), fused: one pass over memory for all parameters."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if p.ndim >= 2 and name.endswith("weight")]
    others = [p for name, p in named if not (p.ndim >= 2 and name.endswith("weight"))]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=recipe.lr, betas=recipe.betas, fused=True)

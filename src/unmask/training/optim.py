"""Optimisers and the schedule of their rates."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from unmask.errors import BadInput


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
    optimiser: Literal["adamw", "muon"] = "adamw"
    """AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest."""
    clip: float | None = None
    """Largest norm of the gradient; None leaves it alone."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    seed: int = 0
    """Of what a forward pass draws (stochastic depth): each step begins from (seed, step, rank)."""


def rate(recipe: Recipe, step: int) -> float:
    """Learning rate of step `step` (from 0): linear warm-up, then half a cosine down to min_lr (Loshchilov & Hutter 2017)."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def optimisers_for(module: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov & Hutter 2019) for everything; with optimiser="muon", Muon (Jordan et al. 2024) for the matrices
    of the transformer blocks, whose steps it makes orthogonal, and AdamW for the rest.

    Both take the same rate and decay: Muon's steps are scaled to the size of AdamW's (Liu et al. 2025, "Muon is
    Scalable for LLM Training", section 2.2). AdamW is fused: one pass over memory for all parameters. Raises BadInput
    for "muon" where there are no such matrices.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    matrices = [(name, p) for name, p in named if p.ndim >= 2 and name.endswith("weight")]
    inner = [p for name, p in matrices if recipe.optimiser == "muon" and "blocks." in name and p.ndim == 2]
    if recipe.optimiser == "muon" and not inner:
        raise BadInput("--optimiser muon is for the matrices of a transformer's blocks, and here are none: use adamw")
    taken = {id(p) for p in inner}
    outer = [p for _, p in matrices if id(p) not in taken]
    taken |= {id(p) for p in outer}
    groups = [
        {"params": outer, "weight_decay": recipe.weight_decay},
        {"params": [p for _, p in named if id(p) not in taken], "weight_decay": 0.0},
    ]
    built: list[torch.optim.Optimizer] = [
        torch.optim.AdamW([g for g in groups if g["params"]], lr=recipe.lr, betas=recipe.betas, fused=True)
    ]
    if inner:
        decay = recipe.weight_decay
        built.append(torch.optim.Muon(inner, lr=recipe.lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return built

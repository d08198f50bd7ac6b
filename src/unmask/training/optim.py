"""Optimisers and the schedule of their rates."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.optim.lars import Lars
from torch import nn

from unmask.errors import BadInput

Optimiser = Literal["adamw", "muon", "lars", "sgd"]


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
    milestones: tuple[float, ...] = ()
    """Shares of the run after which the rate falls to a tenth, instead of along a cosine."""
    weight_decay: float = 0.05
    """Weight decay, on matrices only: not on biases, norms, tokens and positions. Decoupled for AdamW and Muon."""
    weight_decay_end: float | None = None
    """Weight decay at the end of the run, reached along a cosine; None: the same throughout."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's averaging of gradients and of their squares."""
    momentum: float = 0.9
    """Of LARS and SGD."""
    optimiser: Optimiser = "adamw"
    """AdamW for everything; Muon for the matrices of the blocks and AdamW for the rest; LARS or SGD for everything."""
    clip: float | None = None
    """Largest norm of the gradient; None leaves it alone."""
    layer_decay: float = 1.0
    """Each layer of the encoder learns this many times as fast as the one after it (Clark et al. 2020, as BEiT and MAE
    fine-tune): the head with the whole rate, what cuts the patches with layer_decay ^ (depth + 1) of it."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    seed: int = 0
    """Of what a forward pass draws (stochastic depth): each step begins from (seed, step, rank)."""


def rate(recipe: Recipe, step: int) -> float:
    """Learning rate of step `step` (from 0): linear warm-up, then half a cosine down to min_lr (Loshchilov & Hutter 2017),
    or a tenth after each milestone."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    if recipe.milestones:
        return recipe.lr * 0.1 ** sum(step >= share * recipe.steps for share in recipe.milestones)
    return cosine(recipe.lr, recipe.min_lr, (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup))


def cosine(start: float, end: float, progress: float) -> float:
    """From `start` to `end` along half a cosine, `progress` from 0 to 1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def schedule(optimisers: list[torch.optim.Optimizer], recipe: Recipe, step: int) -> float:
    """Give every group its rate and decay of this step; return the rate, without any layer's scale."""
    lr = rate(recipe, step)
    for group in (group for optimiser in optimisers for group in optimiser.param_groups):
        group["lr"] = lr * group.get("scale", 1.0)
        if recipe.weight_decay_end is not None and group["weight_decay"] > 0:
            group["weight_decay"] = cosine(recipe.weight_decay, recipe.weight_decay_end, step / recipe.steps)
    return lr


def optimisers_for(module: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov & Hutter 2019) for everything; with optimiser="muon", Muon (Jordan et al. 2024) for the matrices
    of the transformer blocks, whose steps it makes orthogonal, and AdamW for the rest.

    Both take the same rate and decay: Muon's steps are scaled to the size of AdamW's (Liu et al. 2025, "Muon is
    Scalable for LLM Training", section 2.2). AdamW is fused: one pass over memory for all parameters.

    LARS (You et al. 2017, as SimCLR and BYOL use it) scales the step of each matrix by its own size, with trust
    coefficient 0.001; biases and norms are neither decayed nor scaled.

    Raises BadInput for "muon" where there are no such matrices.
    """
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    depth = max((layer_of(name, 0) for name in named), default=0)
    if recipe.layer_decay != 1 and depth == 0:
        raise BadInput(
            "--layer-decay is for transformers, whose blocks can be told apart: leave it out for this encoder"
        )

    def groups(matrices: bool, wanted: Callable[[str], bool]) -> list[dict[str, Any]]:
        """Either matrices, or biases and the like, a group for each layer that has a rate of its own."""
        layers: dict[int, list[nn.Parameter]] = {}
        for name, p in named.items():
            if (p.ndim >= 2 and name.endswith("weight")) == matrices and wanted(name):
                below = 0 if recipe.layer_decay == 1 else depth + 1 - layer_of(name, depth + 1)
                layers.setdefault(below, []).append(p)
        decay = recipe.weight_decay if matrices else 0.0
        return [
            {"params": some, "weight_decay": decay, "scale": recipe.layer_decay**below}
            for below, some in sorted(layers.items())
        ]

    def orthogonal(name: str) -> bool:
        return recipe.optimiser == "muon" and "blocks." in name and named[name].ndim == 2

    inner, outer, rest = groups(True, orthogonal), groups(True, lambda name: not orthogonal(name)), groups(False, bool)
    if recipe.optimiser == "muon" and not inner:
        raise BadInput("--optimiser muon is for the matrices of a transformer's blocks, and here are none: use adamw")
    if recipe.optimiser == "lars":
        for group in outer:  # timm's Lars takes a decay of 0 for a wish to leave the size of steps alone
            group["always_adapt"] = True
        return [Lars([*outer, *rest], lr=recipe.lr, momentum=recipe.momentum)]  # type: ignore[arg-type, list-item]
    if recipe.optimiser == "sgd":
        return [torch.optim.SGD([*outer, *rest], lr=recipe.lr, momentum=recipe.momentum)]
    adamw = torch.optim.AdamW([*outer, *rest], lr=recipe.lr, betas=recipe.betas, fused=True)
    if not inner:
        return [adamw]
    return [adamw, torch.optim.Muon(inner, lr=recipe.lr, adjust_lr_fn="match_rms_adamw")]


def layer_of(name: str, after: int) -> int:
    """The layer of a parameter of a method by its name: 0 for what makes tokens of the image, 1 for the first block, …, and
    `after` for what is neither in the encoder's blocks nor before them (norms, pooling, head), or not in an encoder."""
    block = re.search(r"encoder\.blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    return 0 if re.search(r"encoder\.(patch_embedding|tokenizer|class_token|positions|class_position)", name) else after

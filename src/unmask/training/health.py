"""Is it working? What is measured while a run trains, and the verdict in words."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class Diverged(Exception):
    """A loss, a gradient or a weight is NaN or infinite. The message says which, and at which step."""


def effective_rank(features: Tensor) -> float:
    """RankMe (Garrido et al. 2023, equation 1): exp of the entropy of the normalised singular values of (N, D) features.

    Between 1 (all features on one line: collapse) and min(N, D).
    """
    singular = torch.linalg.svdvals(features.double().cpu())
    p = singular / singular.sum().clamp(min=1e-12) + 1e-7
    return float((-(p * p.log()).sum()).exp())


def features(vectors: Tensor) -> dict[str, float]:
    """How spread out the vectors (N, D) of N images are: `feature_std`, the deviation of a dimension over the images
    relative to the size of a vector's entries (0 is collapse), and `rank`, RankMe of the centred vectors."""
    centred = vectors - vectors.mean(dim=0)
    size = vectors.square().mean().sqrt().clamp(min=1e-12)
    return {"feature_std": float(centred.square().mean().sqrt() / size), "rank": effective_rank(centred)}


def snapshot(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters() if p.requires_grad and p.ndim >= 2]


def update_ratio(module: nn.Module, before: list[Tensor]) -> float:
    """Norm of the last step over the norm of the weights, over all matrices: about 1e-3 is healthy."""
    after = [p.detach() for p in module.parameters() if p.requires_grad and p.ndim >= 2]
    if not after:
        return 0.0
    change = torch.stack(torch._foreach_norm(torch._foreach_sub(after, before))).norm()
    return float(change / torch.stack(torch._foreach_norm(before)).norm().clamp(min=1e-12))


def check(module: nn.Module, batch: Any, values: dict[str, Tensor], step: int) -> None:
    """Raise Diverged, naming the first place where a number is NaN or infinite: input, loss, gradient, then weight."""
    if math.isfinite(values["loss"].item()) and all(
        math.isfinite(n) for n in torch.stack(torch._foreach_norm(list(module.parameters()))).tolist()
    ):
        return
    places = [(f"view {i} of the input", view) for i, view in enumerate(getattr(batch, "views", ()))]
    places += [(f"the {name}", value) for name, value in values.items()]
    places += [(f"the gradient of {name}", p.grad) for name, p in module.named_parameters() if p.grad is not None]
    places += [(f"the weight {name}", p) for name, p in module.named_parameters()]
    where = next((place for place, tensor in places if not torch.isfinite(tensor).all()), "the sum of the weights")
    raise Diverged(f"{where} is NaN or infinite at step {step}")

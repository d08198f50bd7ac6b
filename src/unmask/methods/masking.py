"""Hiding patches: from which encoders, and which patches in blocks."""

import torch
from torch import Tensor

from unmask.data.augment import MASK_STREAM, uniform
from unmask.errors import BadInput
from unmask.models import Encoder
from unmask.models.compact import CCT
from unmask.models.vit import ViT


def seeing_patches(encoder: Encoder, method: str, what: str) -> ViT:
    """The encoder, if patches can be hidden from it. BadInput otherwise, saying that the method does `what` with it."""
    if not isinstance(encoder, ViT):
        name = encoder.config.get("backbone", type(encoder).__name__)
        if isinstance(encoder, CCT):
            name = "cct-{depth}/{kernel}x{convolutions}".format(**encoder.config)
        raise BadInput(f"--encoder {name}: {method} {what}: use a ViT of ours, such as vit-tiny/8 or cvt-7/4")
    if encoder.config["pool"] == "mean-then-norm":
        raise BadInput(
            f"{method} needs each token normalised, and this encoder norms their mean alone: build it with pool='mean'"
        )
    return encoder


def block_rank(seeds: Tensor, grid: tuple[int, int], hidden: int, tries: int = 32) -> Tensor:
    """How early a falling block covers each patch, (B, N) int64, for sample seeds (B,): `tries` for the first block down to 1
    for the last one tried, 0 for none.

    Blocks are BEiT's (Bao et al. 2021, algorithm 1): at least 16 patches, or a quarter of those to hide; aspect 0.3 to 1/0.3;
    of at most as many patches as are left to hide, and laid only where they cover no more new ones than that. So fewer than
    `hidden` patches may be covered. Hiding the `hidden` best-ranked gives every image the same number of hidden patches:
    those that no block fitted any more are single ones.
    """
    rows, columns = grid
    draws = uniform(seeds, 4 * tries, MASK_STREAM + rows * columns).unflatten(1, (tries, 4)).unbind(1)
    smallest = min(16, max(1, hidden // 4))
    patch = torch.arange(rows * columns, device=seeds.device)
    row, column = patch // columns, patch % columns
    rank = torch.zeros(len(seeds), rows * columns, dtype=torch.int64, device=seeds.device)
    left = torch.full_like(seeds, hidden)
    for i, drawn in enumerate(draws):
        area, shape, down, right = drawn.split(1, dim=1)  # (B, 1) each
        area = smallest + area * (left[:, None] - smallest)
        aspect = 0.3 * (1 / 0.3**2) ** shape  # uniform in the logarithm
        height, width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        top, start = (down * (rows - height + 1)).floor(), (right * (columns - width + 1)).floor()
        inside = (row >= top) & (row < top + height) & (column >= start) & (column < start + width)
        new = inside & (rank == 0)  # (B, N)
        count = new.sum(dim=1)
        fits = (height < rows) & (width < columns) & (count <= left)[:, None]
        rank = torch.where(new & fits, tries - i, rank)
        left = left - count * fits.squeeze(1)
    return rank

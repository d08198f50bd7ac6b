"""Where an encoder looks: the attention of its last block, the weights of a learnt pooling, and the object that follows."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from unmask.models.compact import CCT
from unmask.models.vit import ViT

MASS = 0.6
"""Share of the attention that the paper's masks keep (Caron et al. 2021, figure 4 and visualize_attention.py)."""


@torch.no_grad()
def attention(encoder: ViT | CCT, image: Tensor) -> Tensor:
    """Where each head of the last block looks in one image (1, C, H, W), normalised: (heads, T, N) float32, from each token, a
    class token first if there is one, to each of the N places of the image. A row sums to 1 less what goes to the class token."""
    blocks: Any = encoder.blocks
    *earlier, last = blocks
    offsets = encoder.offsets((image.shape[2], image.shape[3]))
    tokens = encoder.embed(image)
    for block in earlier:
        tokens = block(tokens, offsets=offsets)
    return last.attention.maps(last.norm1(tokens), offsets)[0, :, :, encoder.prefix :]


def last_attention(encoder: ViT | CCT, images: Tensor) -> Tensor:
    """Where each head of the last block looks in images (B, C, H, W), normalised: (B, heads, rows, columns) float32, with
    sum 1 over the image. From the class token; of an encoder without one, the mean over all tokens."""
    maps: list[Tensor] = []
    for image in images.split(1):  # a map is as large as the square of the tokens
        weights = attention(encoder, image)  # (heads, T, N)
        looks = weights[:, 0] if encoder.prefix else weights.mean(dim=1)  # (heads, N)
        maps.append(looks / looks.sum(dim=-1, keepdim=True))
    return torch.stack(maps).unflatten(-1, encoder.grid_for((images.shape[2], images.shape[3])))


@torch.no_grad()
def pooling_weights(encoder: ViT | CCT, images: Tensor) -> Tensor:
    """How much each place of images (B, C, H, W), normalised, counts in the vector that a learnt attention pools: (B, rows,
    columns) float32, with sum 1. Only of encoders with sequence pooling."""
    assert encoder.pool is not None
    size = (images.shape[2], images.shape[3])
    tokens = encoder.embed(images)
    offsets = encoder.offsets(size)
    tokens = encoder.encode(tokens, offsets) if isinstance(encoder, ViT) else encoder.encode(tokens)
    weights = encoder.pool.weights(tokens)[:, encoder.prefix :]  # (B, N)
    return (weights / weights.sum(dim=1, keepdim=True)).unflatten(1, encoder.grid_for(size))


def holding(maps: Tensor, mass: float) -> Tensor:
    """The fewest places of maps (..., rows, columns) that hold `mass` of each map's sum: bool, same shape."""
    values, order = maps.flatten(-2).sort(dim=-1, descending=True)
    before = values.cumsum(dim=-1) - values
    kept = torch.zeros_like(values, dtype=torch.bool)
    return kept.scatter(-1, order, before < mass * values.sum(dim=-1, keepdim=True)).view(maps.shape)


def main_object(looks: Tensor, size: tuple[int, int], mass: float) -> Tensor:
    """The main object of an image by where the heads look on average, (rows, columns): bool (H, W). The map is made smooth
    over the pixels, the fewest of them kept that hold `mass`, and of these the largest piece, its holes filled."""
    smooth = F.interpolate(looks[None, None], size=size, mode="bicubic", align_corners=False).clamp(min=0)[0, 0]
    pieces, count = ndimage.label(holding(smooth, mass).numpy())  # type: ignore[misc]
    largest = 1 + int(np.bincount(pieces.ravel(), minlength=count + 1)[1:].argmax())
    return torch.from_numpy(ndimage.binary_fill_holes(pieces == largest))

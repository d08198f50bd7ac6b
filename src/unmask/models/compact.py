"""Compact transformers, which learn from few images: Hassani, Walton, Shah, Abuduweili, Li, Shi 2021, "Escaping the Big Data
Paradigm with Compact Transformers".

    vit-lite-7/4      depth 7, patches of 4 pixels, a class token: a small ViT
    cvt-7/4           the same, its tokens pooled by a learnt attention instead of the class token
    cct-7/3x1         the same, its tokens made by 1 convolution of 3x3 pixels instead of patches

and any of them with -sine or -none, as in cct-7/3x1-sine, for positions that are fixed or none instead of learnt.

Published, CIFAR-10, 200 epochs (README of SHI-Labs/Compact-Transformers), with parameters and multiply-adds for 10 classes:
ViT-Lite-7/4 91.38 (3.717M, 0.239G), CVT-7/4 92.43 (3.717M, 0.236G), CCT-2/3x2 89.17 (0.284M, 0.033G), CCT-4/3x2 91.45 (0.482M,
0.046G), CCT-7/3x2 93.83 (3.853M, 0.275G), CCT-7/3x1 94.78 (3.760M, 0.947G).

As the reference code has it and the paper's figures do not show, the norm before the MLP stays in the residual stream (see
`Block`). Deviations: "sine" is what it says (the reference's CCTs and CVTs of that name learn their positions, and when their
weights are loaded get random ones); for images of another size positions are resampled, but "sine" ones of a CCT computed.
"""

import re
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unmask.layers import (
    Block,
    Offsets,
    SequencePool,
    initialise_compact,
    resample_positions,
    sine_positions,
    to_compute_dtype,
)
from unmask.models.vit import ViT

# depth: width, heads, MLP ratio (the reference's src/*.py)
SIZES = {2: (128, 2, 1.0), 4: (128, 2, 1.0), 6: (256, 4, 2.0), 7: (256, 4, 2.0), 14: (384, 6, 3.0)}
DROP_PATH = 0.1
"""Stochastic depth that they are trained with."""
BETWEEN = 64
"""Channels between the convolutions of a tokenizer."""
NAME = re.compile(r"(?:(vit-lite|cvt)-(\d+)/(\d+)|cct-(\d+)/(\d+)x(\d+))(?:-(sine|none))?")


def stride(kernel: int) -> int:
    """Of the convolutions of a tokenizer, in pixels (the reference's src/cct.py)."""
    return max(1, kernel // 2 - 1)


class CCT(nn.Module):
    """Images (B, C, H, W) of any size to one vector each, (B, D): convolutions make the tokens, blocks mix them, a learnt
    attention pools them.

    kernel, convolutions: side of each convolution in pixels, and how many there are, each followed by ReLU and a max-pooling
    that halves; kernels of 6 pixels and more halve, too. positions: "learned", "sine" or "none". drop_path: rate of the last
    block, rising linearly from 0 at the first.
    """

    def __init__(
        self,
        image_size: tuple[int, int] = (32, 32),
        channels: int = 3,
        kernel: int = 3,
        convolutions: int = 1,
        width: int = 256,
        depth: int = 7,
        heads: int = 4,
        mlp_ratio: float = 2.0,
        positions: Literal["learned", "sine", "none"] = "learned",
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.positions: Tensor | None
        image_size = (image_size[0], image_size[1])  # JSON and YAML give lists
        self.config: dict[str, Any] = {
            "image_size": list(image_size),
            "channels": channels,
            "kernel": kernel,
            "convolutions": convolutions,
            "width": width,
            "depth": depth,
            "heads": heads,
            "mlp_ratio": mlp_ratio,
            "positions": positions,
        }
        """The arguments that build this architecture again, as JSON values. Not drop_path, a matter of training."""
        self.image_size, self.channels, self.width = image_size, channels, width
        self.tokenizer = nn.Sequential()
        for i in range(convolutions):
            into = width if i == convolutions - 1 else BETWEEN
            conv = nn.Conv2d(BETWEEN if i else channels, into, kernel, stride(kernel), max(1, kernel // 2), bias=False)
            nn.init.kaiming_normal_(conv.weight)
            # the paper's ReLU, then max-pooling: in this order they give the same on a quarter of the values
            self.tokenizer.extend([conv, nn.MaxPool2d(3, 2, 1), nn.ReLU()])
        self.grid = rows, columns = self.grid_for(image_size)
        if positions == "learned":
            self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(rows * columns, width), std=0.2))
        else:
            self.register_buffer("positions", sine_positions(width, rows * columns) if positions == "sine" else None)
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, rate, norm_eps=1e-5, compact=True) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.pool = SequencePool(width)
        self.blocks.apply(initialise_compact)
        self.pool.apply(initialise_compact)

    prefix = 0
    """How many tokens stand before those of the image."""

    def grid_for(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the tokens of an image of this size in pixels: of the positions that the tokenizer ends with."""

        def along(length: int) -> int:
            for layer in self.tokenizer:
                if isinstance(layer, nn.Conv2d):
                    length = (length + 2 * int(layer.padding[0]) - layer.kernel_size[0]) // layer.stride[0] + 1
                elif isinstance(layer, nn.MaxPool2d):
                    length = (length - 1) // 2 + 1  # 3 of stride 2, padded by 1
            return length

        return along(image_size[0]), along(image_size[1])

    @property
    def filters(self) -> Tensor:
        """The first convolution's, (D, C, k, k)."""
        return next(self.tokenizer.parameters()).detach()

    def offsets(self, image_size: tuple[int, int]) -> Offsets | None:
        """As `ViT.offsets`: positions are not relative."""

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to tokens (B, N, D), with positions."""
        # with channels side by side a processor pools thrice as fast, and the tokens lie as the blocks want them
        maps = self.tokenizer(images.contiguous(memory_format=torch.channels_last))  # (B, D, rows, columns)
        tokens = maps.flatten(2).transpose(1, 2)  # (B, N, D)
        if self.positions is None:
            return tokens
        grid = (maps.shape[2], maps.shape[3])
        if self.config["positions"] == "sine" and grid != self.grid:
            return tokens + sine_positions(self.width, tokens.shape[1]).to(tokens)
        return tokens + resample_positions(self.positions, self.grid, grid)

    def encode(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) through the blocks and the final norm."""
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(to_compute_dtype(tokens))

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(self.encode(self.embed(images)))


def build(name: str, image_size: tuple[int, int], channels: int, drop_path: float, **options: Any) -> ViT | CCT | None:
    """The compact transformer of this name, None where it is none's.

    options: those of `ViT` that a method asks for. A CVT and a CCT have no class token: where that is asked for they give what
    their pooling makes, and a CVT the mean alone for "class+mean", which a method that trains no pooling asks for.
    """
    found = NAME.fullmatch(name)
    depth = int(found[2] or found[4]) if found else 0
    if found is None or depth not in SIZES:
        return None
    width, heads, mlp_ratio = SIZES[depth]
    positions: Any = found[7] or "learned"
    if found[1] is None:
        sizes = int(found[5]), int(found[6]), width, depth, heads, mlp_ratio
        return CCT(image_size, channels, *sizes, positions=positions, drop_path=drop_path)
    own: dict[str, Any] = {"positions": positions, "class_token": found[1] == "vit-lite"} | options
    if not own["class_token"]:
        pool = own.get("pool", "class")
        own["pool"] = {"class": "sequence", "class+mean": "mean"}.get(pool, pool)
    sizes = width, depth, heads, mlp_ratio
    return ViT(image_size, int(found[3]), channels, *sizes, drop_path=drop_path, norm_eps=1e-5, compact=True, **own)

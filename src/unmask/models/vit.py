"""Vision transformer (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"), on all patches or on any subset.

Patches are cut by a reshape and the kept ones are gathered before the patch embedding, so that a masked patch costs
nothing (He et al. 2021, section 3). Any channel count; any height and width that the patch size divides.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from unmask.layers import (
    Block,
    Offsets,
    RelativeBias,
    SequencePool,
    grid_of,
    initialise,
    initialise_compact,
    offset_index,
    patchify,
    resample_positions,
    sincos_positions,
    sine_positions,
    take,
    to_compute_dtype,
)

# name: width, depth, heads (Dosovitskiy et al. 2021, table 1; tiny and small: Touvron et al. 2021, table 1)
SIZES = {
    "vit-tiny": (192, 12, 3),
    "vit-small": (384, 12, 6),
    "vit-base": (768, 12, 12),
    "vit-large": (1024, 24, 16),
    "vit-huge": (1280, 32, 16),
}


@dataclass(frozen=True)
class Features:
    """All that a forward pass saw."""

    tokens: Tensor
    """Tokens after the final norm, (B, T, D): the class token first, if there is one, then the patches. Where pool is
    "mean-then-norm" they are not normalised."""
    blocks: tuple[Tensor, ...]
    """Tokens after each block, (B, T, D) each, before the final norm."""
    attention: tuple[Tensor, ...]
    """Attention weights of each block, (B, heads, T, T) each; empty unless asked for."""


class ViT(nn.Module):
    """Images (B, C, H, W) to one vector each, (B, D), or (B, 2 D) where pool is "class+mean".

    positions: "learned" (ViT), "sincos" (fixed, MAE), "sine" (fixed, along the row of all tokens), "none", or "relative" (BEiT:
    none are added to the tokens; each head of each block learns a bias for each offset between two patches). pool: "class"
    takes the class token, "mean" the mean of the patch tokens, both after the final norm, "class+mean" one after the other,
    "sequence" a weighted mean (Hassani et al. 2021), and "mean-then-norm" the final norm of the mean, which alone it norms
    (MAE's fine-tuning code; timm's default for global_pool="avg"). drop_path: rate of the last block, rising linearly from 0
    at the first. compact: blocks and first weights as in Hassani et al. 2021, see `unmask.models.compact`.
    """

    def __init__(
        self,
        image_size: tuple[int, int] = (224, 224),
        patch_size: int = 16,
        channels: int = 3,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        positions: Literal["learned", "sincos", "sine", "none", "relative"] = "learned",
        class_token: bool = True,
        pool: Literal["class", "mean", "class+mean", "sequence", "mean-then-norm"] = "class",
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        norm_eps: float = 1e-6,
        compact: bool = False,
    ):
        super().__init__()
        self.positions: Tensor | None
        self.class_position: Tensor | None
        self.offset_index: Tensor
        if pool.startswith("class") and not class_token:
            raise ValueError(f"pool='{pool}' needs class_token=True")
        image_size = (image_size[0], image_size[1])  # JSON and YAML give lists
        self.config: dict[str, Any] = {
            "image_size": list(image_size),
            "patch_size": patch_size,
            "channels": channels,
            "width": width,
            "depth": depth,
            "heads": heads,
            "mlp_ratio": mlp_ratio,
            "positions": positions,
            "class_token": class_token,
            "pool": pool,
            "layer_scale": layer_scale,
            "norm_eps": norm_eps,
            "compact": compact,
        }
        """The arguments that build this architecture again, as JSON values. Not drop_path, a matter of training."""
        self.image_size, self.patch_size, self.channels, self.width = image_size, patch_size, channels, width
        self.grid = self.grid_for(image_size)
        self.patch_embedding = nn.Linear(patch_size * patch_size * channels, width)
        self.class_token = nn.Parameter(torch.zeros(width)) if class_token else None
        count = self.grid[0] * self.grid[1]
        if positions in ("relative", "none"):
            self.positions = self.class_position = None
            if positions == "relative":
                everywhere = offset_index(torch.arange(count)[None], self.grid, class_token)
                self.register_buffer("offset_index", everywhere, persistent=False)
        elif positions == "sine":
            rows = sine_positions(width, self.prefix + count)
            self.register_buffer("positions", rows[self.prefix :])
            self.register_buffer("class_position", rows[0] if class_token else None)
        elif positions == "sincos":
            self.register_buffer("positions", sincos_positions(width, self.grid))
            class_position = torch.zeros(width) if class_token else None
            self.register_buffer("class_position", class_position)
        else:
            self.positions = nn.Parameter(torch.zeros(count, width))
            self.class_position = nn.Parameter(torch.zeros(width)) if class_token else None
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        biases = [RelativeBias(heads, self.grid, class_token) if positions == "relative" else None for _ in rates]
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, rate, layer_scale, norm_eps, bias, compact)
            for rate, bias in zip(rates, biases, strict=True)
        )
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.pool = SequencePool(width) if pool == "sequence" else None
        self.apply(initialise_compact if compact else initialise)
        if self.class_token is not None and not compact:
            nn.init.trunc_normal_(self.class_token, std=0.02)
        for learned in (self.positions, self.class_position):
            if isinstance(learned, nn.Parameter):
                nn.init.trunc_normal_(learned, std=0.2 if compact else 0.02)

    @property
    def prefix(self) -> int:
        """How many tokens stand before the patches."""
        return 0 if self.class_token is None else 1

    def grid_for(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the patches of an image of this size in pixels. BadInput where they do not tile it."""
        return grid_of(image_size, self.patch_size)

    def positions_for(self, image_size: tuple[int, int]) -> Tensor:
        """Positions (N, D) of the patches of an image of this size, resampled if it is not the size trained on. There are none
        where positions are relative."""
        assert self.positions is not None
        return resample_positions(self.positions, self.grid, self.grid_for(image_size))

    def offsets(self, image_size: tuple[int, int], keep: Tensor | None = None) -> Offsets | None:
        """What `encode` must know of the tokens that `embed` made of images of this size, of patches at `keep` (B, K) if
        given: None but where positions are relative."""
        if self.config["positions"] != "relative":
            return None
        grid = self.grid_for(image_size)
        if keep is None and grid == self.grid:
            return Offsets(grid, self.offset_index)
        if keep is None:
            keep = torch.arange(grid[0] * grid[1], device=self.offset_index.device)[None]
        return Offsets(grid, offset_index(keep, grid, self.class_token is not None))

    def embed(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) to tokens (B, prefix + K, D), with positions unless they are relative; only patches at `keep`
        (B, K) if given."""
        B, _, H, W = images.shape  # not len(images): that would fix the batch of an exported model
        patches = patchify(images, self.patch_size)  # (B, N, P*P*C)
        if keep is not None:
            patches = take(patches, keep)  # (B, K, P*P*C)
        tokens = self.patch_embedding(patches)
        if self.positions is not None:
            positions = self.positions_for((H, W)).expand(B, -1, -1)  # (B, N, D)
            tokens = tokens + (positions if keep is None else take(positions, keep))
        if self.class_token is not None:
            first = self.class_token if self.class_position is None else self.class_token + self.class_position
            tokens = torch.cat([first.to(tokens.dtype).expand(B, 1, -1), tokens], dim=1)
        return tokens

    def encode(self, tokens: Tensor, offsets: Offsets | None = None, queries: slice | None = None) -> Tensor:
        """Tokens (B, T, D) through the blocks and the final norm, which "mean-then-norm" keeps for `pooled`. offsets:
        what `offsets` says of these very tokens. queries: those that are wanted, all if not given; the last block computes
        nothing of the others."""
        if offsets is None and self.config["positions"] == "relative":
            raise ValueError("relative positions: say by offsets= which patches the tokens are of")
        *blocks, last = self.blocks
        for block in blocks:
            tokens = block(tokens, offsets=offsets)
        return self.normalised(last(tokens, queries, offsets))

    def normalised(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T, D) of the last block as `pooled` takes them."""
        return tokens if self.config["pool"] == "mean-then-norm" else self.norm(to_compute_dtype(tokens))

    def pooled(self, tokens: Tensor) -> Tensor:
        """One vector (B, D or 2 D) from what `encode` makes of all tokens, (B, T, D)."""
        if self.config["pool"] == "class":
            return tokens[:, 0]
        if self.pool is not None:
            return self.pool(tokens)
        mean = tokens[:, self.prefix :].mean(dim=1)
        if self.config["pool"] == "mean-then-norm":
            return self.norm(to_compute_dtype(mean))
        return mean if self.config["pool"] == "mean" else torch.cat([tokens[:, 0], mean], dim=1)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        offsets = self.offsets((images.shape[2], images.shape[3]), keep)
        wanted = slice(0, 1) if self.config["pool"] == "class" else None
        return self.pooled(self.encode(self.embed(images, keep), offsets, wanted))

    def forward_features(self, images: Tensor, keep: Tensor | None = None, attention: bool = False) -> Features:
        tokens, offsets = self.embed(images, keep), self.offsets((images.shape[2], images.shape[3]), keep)
        blocks, maps = [], []
        for block in cast("Iterable[Block]", self.blocks):
            if attention:
                maps.append(block.attention.maps(block.norm1(to_compute_dtype(tokens)), offsets))
            tokens = block(tokens, offsets=offsets)
            blocks.append(tokens)
        return Features(self.normalised(tokens), tuple(blocks), tuple(maps))

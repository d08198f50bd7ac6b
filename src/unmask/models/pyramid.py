"""An encoder as the backbone of a detector or a segmenter: images to maps of several strides.

Three ways to a pyramid:
- "simple": Li, Mao, Girshick, He 2022, "Exploring Plain Vision Transformer Backbones for Object Detection" (ViTDet): all maps
  from the last block's tokens, by transposed convolutions and pooling, with no path from coarse to fine;
- "subsets": Li, Xie, Chen, Dollár, He, Girshick 2021, "Benchmarking Detection Transfer Learning with Vision Transformers",
  section 3, which MAE's detection used: the blocks in four equal subsets, the last map of each resampled to one stride, then
  an FPN (Lin et al. 2017);
- "fpn": an FPN on the four stages of a convolutional network of timm, as with ResNets.

Windowed attention: every block but four, evenly spread, attends within windows (ViTDet, section 3). The class token, which has
no place in a window, is then left out; without windows it stays among the tokens.
"""

import math
from collections import OrderedDict
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from unmask.errors import BadInput
from unmask.layers import Block, Offsets, Windows, offset_index
from unmask.models import Encoder
from unmask.models.backbones import Backbone
from unmask.models.vit import ViT

Way = Literal["simple", "subsets", "fpn"]
STRIDES = 4, 8, 16, 32
"""Pixels of the image a side that one place of each map stands for."""
GLOBAL = 4
"""Blocks that attend everywhere where the others attend within windows (ViTDet, section 3: the last of each quarter)."""


class MapNorm(nn.LayerNorm):
    """Layer norm over the channels of each place of a map (B, C, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def resampled(width: int, factor: float, norm: Any) -> tuple[nn.Sequential, int]:
    """A module that makes a map `factor` times finer (a power of 2; below 1 coarser), and the channels of what comes out.

    Finer by transposed 2x2 convolutions of stride 2, with norm and GELU between two; coarser by 2x2 max-pooling.
    norm: channels to a norm's module. ViTDet halves the channels by each convolution, `norm` of kind MapNorm; the subsets keep
    them.
    """
    layers: list[nn.Module] = []
    halves = norm is MapNorm
    ups, downs = max(0, round(math.log2(factor))), max(0, -round(math.log2(factor)))
    for i in range(ups):
        after = width // 2 if halves else width
        layers.append(nn.ConvTranspose2d(width, after, 2, stride=2))
        width = after
        if i + 1 < ups:
            layers += [norm(width), nn.GELU()]
    return nn.Sequential(*layers, *(nn.MaxPool2d(2) for _ in range(downs))), width


def group_norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width)


class Pyramid(nn.Module):
    """Images (B, C, H, W) to a tuple of maps, one for each of `strides`, (B, channels, H / stride, W / stride) float.

    encoder: a ViT of ours for "simple" and "subsets", a model of timm with four stages for "fpn"; its parts that the maps do not
    depend on (final norm, pooling, …) are frozen. window: side in patches of the windows, None for attention everywhere.
    BadInput for an encoder that does not fit.
    """

    def __init__(self, encoder: Encoder, way: Way, channels: int = 256, window: int | None = None):
        super().__init__()
        self.encoder, self.way, self.channels, self.window = encoder, way, channels, window
        self.strides: tuple[int, ...] = STRIDES
        stages = self.stages(encoder) if way == "fpn" else self.quarters(encoder)
        if way == "simple":
            levels = [resampled(stages[-1], self.stride / stride, MapNorm) for stride in STRIDES]
            self.levels = nn.ModuleList(
                nn.Sequential(
                    resample,
                    nn.Conv2d(width, channels, 1, bias=False),
                    MapNorm(channels, eps=1e-6),
                    nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                    MapNorm(channels, eps=1e-6),
                )
                for resample, width in levels
            )
        elif way == "subsets":
            levels = [resampled(stages[0], self.stride / stride, group_norm) for stride in STRIDES]
            self.levels = nn.ModuleList(resample for resample, _ in levels)
        self.fpn = None if way == "simple" else FeaturePyramidNetwork(stages, channels)

    def stages(self, encoder: Encoder) -> list[int]:
        """Channels of the four stages of a model of timm."""
        name = encoder.config.get("backbone", type(encoder).__name__)
        wrong = f"--pyramid fpn is for networks of timm with four stages, such as resnet18 or resnet50, not for {name}"
        if not isinstance(encoder, Backbone):
            raise BadInput(f"{wrong}: leave --pyramid out")
        if not hasattr(encoder.model, "forward_intermediates") or not hasattr(encoder.model, "feature_info"):
            raise BadInput(wrong)
        size = encoder.image_size
        with torch.no_grad():
            maps = self.convolved(encoder.eval(), torch.zeros(1, encoder.channels, *size))
        encoder.train()
        # to a power of two: of an image that is no multiple of it, the last place of a map is a part
        self.strides = tuple(2 ** round(math.log2(size[0] / x.shape[2])) for x in maps)
        if len(maps) != 4 or any(b != 2 * a for a, b in zip(self.strides, self.strides[1:], strict=False)):
            raise BadInput(f"{wrong}: its maps are of strides {', '.join(map(str, self.strides))}")
        self.stride = self.strides[-1]
        return [x.shape[1] for x in maps]

    def quarters(self, encoder: Encoder) -> list[int]:
        """Channels of the maps after each quarter of the blocks of a ViT."""
        if not isinstance(encoder, ViT):
            name = encoder.config.get("backbone", type(encoder).__name__)
            raise BadInput(f"--pyramid {self.way} is for ViTs of ours, not for {name}: use --pyramid fpn")
        depth, patch = encoder.config["depth"], encoder.patch_size
        if depth % 4 or patch & (patch - 1):
            raise BadInput(
                f"an encoder of {depth} blocks and patches of {patch} pixels gives no pyramid: the blocks are to be four equal "
                "subsets, the patches 4, 8, 16 or 32 pixels wide"
            )
        self.stride, unused = patch, [encoder.norm, encoder.pool]
        if self.window is not None:
            unused += [encoder.class_token, encoder.class_position]
        for part in unused:
            if isinstance(part, nn.Module | nn.Parameter):
                part.requires_grad_(False)
        return [encoder.width] * 4

    def convolved(self, encoder: Backbone, images: Tensor) -> list[Tensor]:
        """The maps of the four stages of a network of timm."""
        model: Any = encoder.model
        return model.forward_intermediates(images, indices=4, intermediates_only=True)

    def transformed(self, images: Tensor) -> list[Tensor]:
        """The tokens of the patches as maps (B, D, H / patch, W / patch), after each quarter of the blocks."""
        encoder = cast(ViT, self.encoder)
        size = (images.shape[2], images.shape[3])
        grid, prefix = encoder.grid_for(size), encoder.prefix
        tokens, offsets = encoder.embed(images), encoder.offsets(size)
        windows = inner = None
        if self.window is not None and self.window < max(grid):
            windows, inner = Windows(grid, self.window), self.within(grid)
        if self.window is not None:
            tokens, prefix = tokens[:, prefix:], 0
            offsets = None if offsets is None else self.offsets_of(grid, grid)
        quarter, maps = len(encoder.blocks) // 4, []
        every = len(encoder.blocks) // GLOBAL
        for i, block in enumerate(cast("list[Block]", encoder.blocks)):
            local = windows is not None and (i + 1) % every
            tokens = block(tokens, None, inner if local else offsets, windows if local else None)
            if (i + 1) % quarter == 0:
                maps.append(tokens[:, prefix:].transpose(1, 2).unflatten(2, grid))
        return maps

    def within(self, grid: tuple[int, int]) -> Offsets | None:
        """How the patches of a window lie to each other, for attention with relative positions: as anywhere in the grid."""
        assert self.window is not None
        return self.offsets_of(grid, (self.window, self.window))

    def offsets_of(self, grid: tuple[int, int], part: tuple[int, int]) -> Offsets | None:
        """How the patches of a part of the grid, its first rows and columns, lie to each other."""
        encoder = cast(ViT, self.encoder)
        if encoder.config["positions"] != "relative":
            return None
        # a window may be larger than the grid, and its padding has offsets too: the grid is taken as that large
        grid = max(grid[0], part[0]), max(grid[1], part[1])
        device = next(encoder.parameters()).device
        rows, columns = (torch.arange(n, device=device) for n in part)
        patches = (rows[:, None] * grid[1] + columns).flatten()[None]
        return Offsets(grid, offset_index(patches, grid, class_token=False))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        encoder = self.encoder
        maps = self.convolved(encoder, images) if isinstance(encoder, Backbone) else self.transformed(images)
        if self.way == "simple":
            return tuple(level(maps[-1]) for level in self.levels)
        if self.way == "subsets":
            maps = [level(x) for level, x in zip(self.levels, maps, strict=True)]
        assert self.fpn is not None
        return tuple(self.fpn(OrderedDict((str(i), x) for i, x in enumerate(maps))).values())

"""UPerNet (Xiao, Liu, Zhou, Jiang, Sun 2018, "Unified Perceptual Parsing for Scene Understanding") on a pyramid of maps, as BEiT
and MAE segment with it; and one linear layer on the last block, which tests what an encoder knows.

The head is that of mmsegmentation, and of transformers' UperNetHead, with which a test compares it: pyramid pooling (Zhao et al.
2017) on the coarsest map, a way from coarse to fine, all maps fused on the finest. It is as wide as the pyramid (mmsegmentation:
512 channels on maps of 768).
"""

from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.errors import BadInput
from unmask.layers import to_compute_dtype
from unmask.models import Encoder, heads
from unmask.models.backbones import Backbone
from unmask.models.pyramid import Pyramid
from unmask.models.vit import ViT

POOLS = 1, 2, 3, 6
"""Places a side that pyramid pooling averages the coarsest map into."""
DROPOUT = 0.1
"""Share of the channels that are left out before the classes are named (mmsegmentation)."""


def convolved(before: int, after: int, kernel: int) -> nn.Sequential:
    """A convolution that keeps height and width, a batch norm, a ReLU."""
    conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU())


def named(channels: int, classes: int) -> nn.Conv2d:
    """The layer that gives each place a logit a class."""
    conv = nn.Conv2d(channels, classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(cast(Tensor, conv.bias))
    return conv


def resized(x: Tensor, size: Any) -> Tensor:
    return F.interpolate(x, (size[0], size[1]), mode="bilinear")


class UPerNet(nn.Module):
    """Maps (B, channels, H_i, W_i), from fine to coarse, to logits (B, K, H_0, W_0)."""

    def __init__(self, channels: int, classes: int, levels: int = 4):
        super().__init__()
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), *convolved(channels, channels, 1)) for side in POOLS
        )
        self.pooled = convolved((1 + len(POOLS)) * channels, channels, 3)
        self.laterals = nn.ModuleList(convolved(channels, channels, 1) for _ in range(levels - 1))
        self.smooth = nn.ModuleList(convolved(channels, channels, 3) for _ in range(levels - 1))
        self.fuse = convolved(levels * channels, channels, 3)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.name = named(channels, classes)

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        *finer, x = maps
        x = self.pooled(torch.cat([x, *(resized(pool(x), x.shape[2:]) for pool in self.pools)], dim=1))
        paths = [x]  # from coarse to fine
        for lateral, each in reversed(list(zip(self.laterals, finer, strict=True))):
            paths.append(lateral(each) + resized(paths[-1], each.shape[2:]))
        x, *finer = paths
        levels = [smooth(each) for smooth, each in zip(self.smooth, reversed(finer), strict=True)]
        size = maps[0].shape[2:]
        x = self.fuse(torch.cat([resized(each, size) for each in (*levels, x)], dim=1))
        return self.name(self.dropout(x))


class FCN(nn.Module):
    """The auxiliary head (Long et al. 2015, as mmsegmentation has it), which helps training and is thrown away: the third map
    (B, channels, H, W) to logits (B, K, H, W)."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.conv = convolved(channels, channels, 3)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.name = named(channels, classes)

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        return self.name(self.dropout(self.conv(maps[2])))


class LastMap(nn.Module):
    """Images (B, C, H, W) to a tuple of one map (B, channels, H / stride, W / stride): the normalised tokens of the patches after
    a ViT's last block, or the last stage of a network of timm. BadInput for other encoders."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder
        if not isinstance(encoder, ViT) and not (
            isinstance(encoder, Backbone) and hasattr(encoder.model, "forward_intermediates")
        ):
            name = encoder.config.get("backbone", type(encoder).__name__)
            raise BadInput(
                f"{name} makes no map of an image: use a ViT, or a model of timm with stages such as resnet18"
            )
        with torch.no_grad():
            training, encoder = encoder.training, encoder.eval()
            self.channels = self(torch.zeros(1, encoder.channels, *encoder.image_size))[0].shape[1]
        encoder.train(training)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        encoder = self.encoder
        if isinstance(encoder, Backbone):
            model: Any = encoder.model
            return tuple(model.forward_intermediates(images, indices=1, intermediates_only=True))
        vit = cast(ViT, encoder)
        size = (images.shape[2], images.shape[3])
        tokens = vit.encode(vit.embed(images), vit.offsets(size))
        if vit.config["pool"] == "mean-then-norm":  # which norms the mean alone
            tokens = vit.norm(to_compute_dtype(tokens))
        return (tokens[:, vit.prefix :].transpose(1, 2).unflatten(2, vit.grid_for(size)),)


class Linear(nn.Module):
    """A batch norm without affine and a linear layer at each place of one map, as MAE's linear probe (He et al. 2021, appendix
    A.1) at each place of the image."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False, eps=1e-6)
        self.name = named(channels, classes)

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        return self.name(self.norm(maps[-1]))


class Segmenter(nn.Module):
    """Images (B, C, H, W) to logits (B, K, H, W): UPerNet on a pyramid, or a linear layer on the last map.

    The height and width that it learns on are its encoder's `image_size`; other sizes that its patches tile are taken, too.
    """

    def __init__(self, maps: Pyramid | LastMap, classes: tuple[str, ...]):
        super().__init__()
        self.maps, self.classes = maps, classes
        self.head = (UPerNet if isinstance(maps, Pyramid) else Linear)(maps.channels, len(classes))

    @property
    def encoder(self) -> Encoder:
        return self.maps.encoder

    def forward(self, images: Tensor) -> Tensor:
        return resized(self.head(self.maps(images)), images.shape[2:])


def save(segmenter: Segmenter, run: Path, config: dict[str, Any]) -> None:
    """Write the encoder and all that stands on it into a run, see `unmask.models.heads`."""
    maps = segmenter.maps
    facts: dict[str, Any] = {"kind": "segmenter", "classes": list(segmenter.classes), "head": "linear"}
    if isinstance(maps, Pyramid):
        facts |= {"head": "upernet", "pyramid": maps.way, "map_channels": maps.channels, "window": maps.window}
    heads.save(segmenter, run, config, facts)


def load(run: str | Path) -> tuple[Segmenter, dict[str, Any]]:
    """The segmenter of a run, in evaluation mode, and its encoder's config. BadInput where there is none, or it is damaged."""

    def make(encoder: Encoder, facts: dict[str, Any]) -> Segmenter:
        if facts["head"] == "linear":
            return Segmenter(LastMap(encoder), tuple(facts["classes"]))
        pyramid = Pyramid(encoder, facts["pyramid"], facts["map_channels"], facts["window"])
        return Segmenter(pyramid, tuple(facts["classes"]))

    return heads.load(run, "segmenter", make)

"""The networks of a discrete VAE (Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation", section 2.1 and appendix A.1):
an encoder from pixels to a grid of tokens, the decoder back, and the tokenizer that an encoder becomes for other methods.

At its full size, TokenEncoder((112, 112), width=256, groups=4), the encoder is that of openai/DALL-E (encoder.py), with its
names: a convolutional ResNet whose bottlenecks have a quarter of the width. Pixels come in as map_pixels has them there:
from 0.1 for black to 0.9 for white.
"""

import math
from collections import OrderedDict
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.layers import grid_of

# name: width of the first group (DALL-E's is 256; the smaller ones are ours)
SIZES = {"dvae-tiny": 64, "dvae-small": 128, "dvae-base": 256}

EPSILON = 0.1
"""Black is mapped to this and white to one less it: the logit of neither is infinite (appendix A.3, equation 3)."""

MEAN, STD = -EPSILON / (1 - 2 * EPSILON), 1 / (1 - 2 * EPSILON)
"""What to subtract and to divide by for that, of pixels from 0 for black to 1 for white."""


def convolution(before: int, after: int, kernel: int) -> nn.Conv2d:
    """Weights of standard deviation 1 / sqrt(fan in) and zero biases, as dall_e/utils.py draws them."""
    layer = nn.Conv2d(before, after, kernel, padding=kernel // 2)
    nn.init.normal_(layer.weight, std=1 / math.sqrt(before * kernel**2))
    nn.init.zeros_(cast("Tensor", layer.bias))
    return layer


class ResidualBlock(nn.Module):
    """x + gain * bottleneck(x), gain = 1 / layers^2 of all residual blocks, which keeps training stable at first."""

    def __init__(self, before: int, after: int, kernels: tuple[int, int, int, int], layers: int):
        super().__init__()
        self.gain = 1 / layers**2
        self.id_path = nn.Identity() if before == after else convolution(before, after, 1)
        widths = before, after // 4, after // 4, after // 4, after
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        for i, kernel in enumerate(kernels):
            parts[f"relu_{i + 1}"] = nn.ReLU()
            parts[f"conv_{i + 1}"] = convolution(widths[i], widths[i + 1], kernel)
        self.res_path = nn.Sequential(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.gain * self.res_path(x)


class TokenEncoder(nn.Module):
    """Images (B, C, H, W), mapped as above, to the logits of a token for each stride x stride pixels, stride = 2^(groups - 1);
    called as an encoder like any other, to one vector (B, D) an image: the mean over the grid of what the logits are computed
    from, D = width * stride."""

    def __init__(
        self,
        image_size: tuple[int, int] = (112, 112),
        channels: int = 3,
        vocabulary: int = 8192,
        width: int = 256,
        groups: int = 4,
        blocks_per_group: int = 2,
    ):
        super().__init__()
        self.image_size, self.channels = (image_size[0], image_size[1]), channels  # JSON gives lists
        self.vocabulary, self.stride, self.width = vocabulary, 2 ** (groups - 1), width * 2 ** (groups - 1)
        self.grid = grid_of(self.image_size, self.stride)
        self.config: dict[str, Any] = {
            "image_size": list(self.image_size),
            "channels": channels,
            "vocabulary": vocabulary,
            "width": width,
            "groups": groups,
            "blocks_per_group": blocks_per_group,
        }
        """The arguments that build this architecture again, as JSON values."""
        parts: OrderedDict[str, nn.Module] = OrderedDict(input=convolution(channels, width, 7))
        before = width
        for group in range(groups):
            after, layers = width * 2**group, OrderedDict[str, nn.Module]()
            for i in range(blocks_per_group):
                block = ResidualBlock(before if i == 0 else after, after, (3, 3, 3, 1), groups * blocks_per_group)
                layers[f"block_{i + 1}"] = block
            if group < groups - 1:
                layers["pool"] = nn.MaxPool2d(2)
            parts[f"group_{group + 1}"], before = nn.Sequential(layers), after
        parts["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=convolution(before, vocabulary, 1)))
        self.blocks: Any = nn.Sequential(parts)

    def features(self, images: Tensor) -> Tensor:
        """(B, D, H / stride, W / stride): what the logits are a linear function of."""
        return self.blocks.output.relu(self.blocks[:-1](images))

    def logits(self, images: Tensor) -> Tensor:
        """(B, K, H / stride, W / stride) float32, whatever the autocast: K is large, and the greatest is looked for."""
        features = self.features(images)
        with torch.autocast(features.device.type, enabled=False):
            return self.blocks.output.conv(features.float())

    def tokens(self, images: Tensor) -> Tensor:
        """The likeliest token at each place, row by row, (B, N) int64."""
        return self.logits(images).argmax(dim=1).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images).mean(dim=(2, 3))

    @property
    def filters(self) -> Tensor:
        """The first convolution's filters (D, C, 7, 7)."""
        return self.blocks.input.weight.detach()


class TokenDecoder(nn.Module):
    """A grid of distributions over tokens (B, K, h, w) to two maps a channel, (B, 2 C, h * stride, w * stride): the encoder's
    mirror, with upsampling by repetition where that pools (dall_e/decoder.py)."""

    def __init__(self, channels: int, vocabulary: int, width: int = 256, groups: int = 4, blocks_per_group: int = 2):
        super().__init__()
        before = width // 2
        parts: OrderedDict[str, nn.Module] = OrderedDict(input=convolution(vocabulary, before, 1))
        for group in range(groups):
            after, layers = width * 2 ** (groups - 1 - group), OrderedDict[str, nn.Module]()
            for i in range(blocks_per_group):
                block = ResidualBlock(before if i == 0 else after, after, (1, 3, 3, 3), groups * blocks_per_group)
                layers[f"block_{i + 1}"] = block
            if group < groups - 1:
                layers["upsample"] = nn.Upsample(scale_factor=2, mode="nearest")
            parts[f"group_{group + 1}"], before = nn.Sequential(layers), after
        parts["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=convolution(before, 2 * channels, 1)))
        self.blocks: Any = nn.Sequential(parts)

    def forward(self, codes: Tensor) -> Tensor:
        with torch.autocast(codes.device.type, enabled=False):
            x = self.blocks.input(codes)
        return self.blocks[1:](x)


class Tokenizer(nn.Module):
    """A trained TokenEncoder, frozen, that reads the views of another method: images (B, C, H, W) and the grid of their patches
    (h, w) to a token for each patch, (B, h * w) int64.

    The image is resized so that a token stands for a patch (224 pixels in patches of 16 are 112 in strides of 8), and
    normalised as the encoder knows images.

    mean, std: of the images it is given. to_mean, to_std: of those that the encoder was trained on. A number a channel each.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        encoder: TokenEncoder,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        to_mean: tuple[float, ...],
        to_std: tuple[float, ...],
    ):
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.vocabulary = encoder.vocabulary
        was, wanted = torch.tensor([mean, std]).double(), torch.tensor([to_mean, to_std]).double()
        self.register_buffer("scale", (was[1] / wanted[1]).float()[:, None, None], persistent=False)
        self.register_buffer("shift", ((was[0] - wanted[0]) / wanted[1]).float()[:, None, None], persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        size = (grid[0] * self.encoder.stride, grid[1] * self.encoder.stride)
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True)
        return self.encoder.tokens(images * self.scale + self.shift)

"""How an image is looked at. The numbers of a view are drawn first, then the view is rendered.

Every draw is a function of (seed, epoch, sample) and nothing else, through a counter-based generator: neither the worker,
nor the batch, nor the number of processes changes a crop or a mask.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - 2**64
MASK_STREAM = 1 << 40
"""Where the draws for masks begin, far from those for views."""


def mix(z: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al. 2014): scrambles each int64 into another, one to one."""
    z = (z ^ shift(z, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ shift(z, 27)) * (0x94D049BB133111EB - 2**64)
    return z ^ shift(z, 31)


def shift(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: torch's own copies the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def sample_seeds(seed: int, epoch: int | Tensor, index: Tensor) -> Tensor:
    """The seed of each sample, (B,) int64, from the run's seed, the epoch and the sample's index (B,) int64."""
    start = mix(torch.as_tensor(seed, dtype=torch.int64, device=index.device) + GOLDEN)
    return mix(mix(start + GOLDEN * (torch.as_tensor(epoch, device=index.device) + 1)) + GOLDEN * (index + 1))


@torch.compiler.disable()  # its compiler for CPUs multiplies the constants out, beyond 64 bits
def uniform(seeds: Tensor, count: int, stream: int = 0) -> Tensor:
    """Uniform numbers in [0, 1), (B, count) float64, for sample seeds (B,): the draws number stream, stream + 1, …"""
    counters = torch.arange(stream + 1, stream + count + 1, device=seeds.device)
    return shift(mix(seeds[:, None] + GOLDEN * counters), 11) * 2.0**-53


@dataclass(frozen=True)
class View:
    """One way to look at an image."""

    size: tuple[int, int]
    """Height and width in pixels of what comes out."""
    crop_scale: tuple[float, float] | None = (0.2, 1.0)
    """Smallest and largest share of the image's area in a random crop (MAE: 0.2 to 1); None: the largest centred box."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Narrowest and widest aspect of a crop, relative to the aspect of `size`."""
    flip: float = 0.5
    """Probability of a flip from left to right."""

    DRAWS = 64
    """How many numbers one view of one sample may draw."""
    TRIES = 10

    def draw(self, seeds: Tensor, heights: Tensor, widths: Tensor, number: int = 0) -> Tensor:
        """Crop boxes and flips, (B, 5) int64: top, left, height, width, flipped.

        seeds, heights, widths: (B,) int64; number: which view of the sample. The crop is torchvision's
        RandomResizedCrop: the first of ten draws that fits, else the largest centred box of the nearest aspect.
        """
        aspect = self.size[1] / self.size[0]
        heights, widths = heights.double(), widths.double()
        low, high = (aspect * ratio for ratio in self.crop_ratio) if self.crop_scale else (aspect, aspect)
        ratio = (widths / heights).clamp(low, high)
        height = torch.minimum(heights, widths / ratio).round().clamp(min=1)
        width = torch.minimum(widths, heights * ratio).round().clamp(min=1)
        top, left = ((heights - height) / 2).round(), ((widths - width) / 2).round()
        if self.crop_scale is None:
            return torch.stack([top, left, height, width, torch.zeros_like(top)], dim=1).long()

        u = uniform(seeds, self.DRAWS, number * self.DRAWS)
        scale, shape, down, right = u[:, : 4 * self.TRIES].unflatten(1, (4, self.TRIES)).unbind(1)  # (B, tries) each
        area = (heights * widths)[:, None] * (self.crop_scale[0] + scale * (self.crop_scale[1] - self.crop_scale[0]))
        ratios = low * (high / low) ** shape  # uniform in the logarithm
        h, w = (area / ratios).sqrt().round(), (area * ratios).sqrt().round()
        fits = (h >= 1) & (w >= 1) & (h <= heights[:, None]) & (w <= widths[:, None])
        first = fits.int().argmax(dim=1, keepdim=True)
        h, w, down, right = (x.gather(1, first).squeeze(1) for x in (h, w, down, right))
        found = fits.any(dim=1)
        height, width = torch.where(found, h, height), torch.where(found, w, width)
        top = torch.where(found, (down * (heights - h + 1)).floor(), top)
        left = torch.where(found, (right * (widths - w + 1)).floor(), left)
        return torch.stack([top, left, height, width, u[:, -1] < self.flip], dim=1).long()

    def render(self, image: Tensor, drawn: Tensor) -> Tensor:
        """One image (C, H, W) through its row of `draw` (5,) into (C, *size), same dtype: bicubic, antialiased."""
        top, left, height, width, flipped = drawn.tolist()
        image = image[:, top : top + height, left : left + width]
        if (height, width) != self.size:
            batch = image[None]
            if image.dtype == torch.uint8:  # torch resizes bytes half again as fast where channels lie side by side
                batch = batch.contiguous(memory_format=torch.channels_last)
            image = F.interpolate(batch, self.size, mode="bicubic", antialias=True)[0]
        return image.flip(-1) if flipped else image

    def render_batch(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Images (B, C, H, W) through their rows of `draw` (B, 5) into (B, C, *size), same dtype, in one pass on their
        device: what `render` makes of each, within 2 of 255 levels (of uint8; torchvision rounds its weights)."""
        top, left, height, width, flipped = drawn.unbind(1)
        B, C, H, W = images.shape
        rows = resampling(top, height, H, self.size[0])  # (B, h, H)
        columns = resampling(left, width, W, self.size[1])  # (B, w, W)
        columns = torch.where(flipped.bool()[:, None, None], columns.flip(1), columns)
        pixels = images.to(rows.dtype).reshape(B, C * H, W) @ columns.mT  # (B, C * H, w)
        if images.dtype == torch.uint8:
            pixels = pixels.round_().clamp_(0, 255)  # between the two directions, as Pillow does
        pixels = rows @ pixels.view(B, C, H, -1).transpose(1, 2).reshape(B, H, -1)  # (B, h, C * w)
        pixels = pixels.view(B, self.size[0], C, -1).transpose(1, 2)
        return pixels.round_().clamp_(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else pixels.contiguous()


def resampling(start: Tensor, length: Tensor, before: int, after: int) -> Tensor:
    """Weights (B, after, before) float32 of antialiased bicubic resampling from the pixels start, …, start + length - 1,
    (B,) int64 each, to `after` pixels. The kernel is Pillow's (Keys 1981, a = -0.5), widened where pixels get fewer."""
    scale = (length.float() / after)[:, None, None]
    wide = scale.clamp(min=1.0)
    pixel = torch.arange(before, device=start.device) - start[:, None, None]  # (B, 1, before)
    centre = (torch.arange(after, device=start.device)[:, None] + 0.5) * scale  # (B, after, 1)
    x = ((pixel + 0.5 - centre) / wide).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    weights = weights * ((pixel >= 0) & (pixel < length[:, None, None]))
    return weights / weights.sum(dim=-1, keepdim=True)

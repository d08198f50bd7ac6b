"""How an image is looked at. The numbers of a view are drawn first, then the view is rendered, then altered and coloured.

Every draw is a function of (seed, epoch, sample) and nothing else, through a counter-based generator: neither the worker,
nor the batch, nor the number of processes changes a crop or a mask.
"""

import math
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Policy = Literal["rand", "auto"]
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
MASK_STREAM = 1 << 40
"""Where the draws for masks begin, far from those for views."""
OPERATIONS = ("brightness", "contrast", "saturation", "hue", "grey", "blur", "solarise")
UNCHANGED = 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0
"""How much of each operation changes nothing: factors, a shift of the hue in turns, yes or no, pixels, yes or no."""
LUMA = 0.2989, 0.587, 0.114
"""Shares of red, green and blue in grey, as torchvision rounds ITU-R 601."""
CACHED = 1 << 18
"""Values that a processor colours at once: they and what is computed from them stay in its cache."""


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
    """One way to look at an image: a random crop, resized and flipped, then a policy, a shift, and its colours. In the order of
    the papers' code the four operations of the jitter in random order, then grey, blur, solarise, each by a coin of its own.
    The recipes for CIFAR flip after the policy, which makes no difference to what comes out how often, but for the rotation
    of AutoAugment, which here goes one way only."""

    size: tuple[int, int]
    """Height and width in pixels of what comes out."""
    crop_scale: tuple[float, float] | None = (0.2, 1.0)
    """Smallest and largest share of the image's area in a random crop (MAE: 0.2 to 1); None: the largest centred box."""
    crop_side: float | None = None
    """With crop_scale None: side of a crop of fixed size at a random place, as a share of the largest box's (a photograph
    resized to 256 pixels and cropped to 224: 0.875); None: all of that box, centred."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Narrowest and widest aspect of a crop, relative to the aspect of `size`."""
    flip: float = 0.5
    """Probability of a flip from left to right."""
    policy: Policy | None = None
    """RandAugment or AutoAugment, as `unmask.data.policies` has them."""
    shift: int = 0
    """Most pixels of `size` by which what has been cropped is shifted in each direction, with black behind it: torchvision's
    RandomCrop of the same size with so much padding (CIFAR: 4)."""
    jitter: tuple[float, float, float, float] | None = None
    """Strengths of brightness, contrast, saturation and hue, as of torchvision's ColorJitter: three factors uniform in
    max(0, 1 - strength) to 1 + strength, and a shift uniform in -strength to strength of the circle of hues."""
    jitter_p: float = 0.8
    """Probability of the jitter."""
    grey: float = 0.0
    """Probability of the colours turning grey."""
    blur: float = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels of `size`."""
    solarise: float = 0.0
    """Probability of inverting what is brighter than the middle of the scale."""

    DRAWS = 64
    """How many numbers one view of one sample may draw."""
    TRIES = 10
    """How many boxes are tried; they take four draws each from the first on, and the flip takes the last draw."""

    def draw(self, seeds: Tensor, heights: Tensor, widths: Tensor, number: int = 0) -> Tensor:
        """Crop boxes and flips, (B, 5) int64: top, left, height, width, flipped.

        seeds, heights, widths: (B,) int64; number: which view of the sample. The crop is torchvision's
        RandomResizedCrop: the first of ten draws that fits, else the largest centred box of the nearest aspect; or that of
        its Resize and RandomCrop.
        """
        aspect = self.size[1] / self.size[0]
        heights, widths = heights.double(), widths.double()
        low, high = (aspect * ratio for ratio in self.crop_ratio) if self.crop_scale else (aspect, aspect)
        ratio = (widths / heights).clamp(low, high)
        height = torch.minimum(heights, widths / ratio).round().clamp(min=1)
        width = torch.minimum(widths, heights * ratio).round().clamp(min=1)
        top, left = ((heights - height) / 2).round(), ((widths - width) / 2).round()
        if self.crop_scale is None:
            if self.crop_side is not None:
                height, width = ((side * self.crop_side).round().clamp(min=1) for side in (height, width))
                down, right = uniform(seeds, 2, number * self.DRAWS).unbind(1)
                top = (down * (heights - height + 1)).floor()
                left = (right * (widths - width + 1)).floor()
            flipped = torch.zeros_like(top)
            if self.flip > 0:
                flipped = uniform(seeds, 1, (number + 1) * self.DRAWS - 1).squeeze(1) < self.flip
            return torch.stack([top, left, height, width, flipped], dim=1).long()

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

    def render_map(self, classes: Tensor, drawn: Tensor) -> Tensor:
        """The classes of an image's pixels (H, W) uint8 through its row of `draw` (5,) into (*size), from the nearest pixel."""
        top, left, height, width, flipped = drawn.tolist()
        classes = classes[top : top + height, left : left + width]
        if (height, width) != self.size:
            classes = F.interpolate(classes[None, None], self.size, mode="nearest-exact")[0, 0]
        return classes.flip(-1) if flipped else classes.contiguous()

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

    @property
    def altered(self) -> bool:
        """Whether what has been rendered may change further: by a policy, a shift or its colours."""
        return self.policy is not None or self.shift > 0 or self.colourful

    @property
    def colourful(self) -> bool:
        """Whether `colour` may change anything."""
        jitter = self.jitter is not None and any(self.jitter) and self.jitter_p > 0
        return jitter or max(self.grey, self.blur, self.solarise) > 0

    def draw_colour(self, seeds: Tensor, number: int = 0) -> Tensor:
        """What happens to the colours, (B, 11) float32, for sample seeds (B,) int64 of view `number` of the sample:
        factors of brightness, contrast and saturation (1: left alone), shift of the hue in turns (0: left alone), grey
        (0 or 1), sigma of the blur in pixels (0: none), solarised (0 or 1), and the turn, 0 to 3, of each of the first
        four."""
        u = uniform(seeds, 13, number * self.DRAWS + 4 * self.TRIES)
        strengths, centre = u.new_tensor(self.jitter or (0.0,) * 4), u.new_tensor(UNCHANGED[:4])
        low = torch.cat([(1 - strengths[:3]).clamp(min=0), -strengths[3:]])
        factors = torch.where(u[:, 4:5] < self.jitter_p, low + u[:, :4] * (centre + strengths - low), centre)
        grey, blurred, solarised = (u[:, 5:8] < u.new_tensor([self.grey, self.blur, self.solarise])).unbind(1)
        sigma = blurred * (self.blur_sigma[0] + u[:, 8] * (self.blur_sigma[1] - self.blur_sigma[0]))
        turns = u[:, 9:].argsort(dim=1)
        return torch.cat([factors, torch.stack([grey, sigma, solarised], dim=1), turns], dim=1).float()

    def colour(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Images (B, C, *size) through their rows of `draw_colour` (B, 11), same dtype, in one batch on their device.

        uint8, or float32 from 0 for black to 1 for white (values beyond are cut off in the images that change). The
        operations are those of torchvision's functional transforms, computed in float32; bytes are rounded once at the
        end, not cut off after each operation. Images of other than three channels have no hue, saturation or grey: that
        part of what was drawn is left out, and contrast turns about the mean of all channels. The blur is cut off at
        three times its largest sigma and reflects at the edges. It is fastest where planes lie one after another.
        """
        drawn = drawn.cpu()  # it says which samples to gather, and asking a GPU for that would wait for it
        amounts, turns = drawn[:, :7], drawn[:, 7:].long()
        wanted = amounts != drawn.new_tensor(UNCHANGED)
        if images.shape[1] != 3:
            wanted[:, 2:5] = False
        changed = wanted.any(dim=1)
        if not changed.any():
            return images
        # by the width of the blur: a narrow one costs less where no wide one is beside it
        order = torch.where(changed, amounts[:, 5], -1.0).argsort()
        still, rows = order.split([int((~changed).sum()), int(changed.sum())])
        # which operation each sample undergoes at each of seven turns, 7: none
        turns = torch.cat([turns, torch.arange(4, 7).expand(len(turns), 3)], dim=1)
        plan = torch.empty_like(turns).scatter_(1, turns, torch.where(wanted, torch.arange(7), 7))

        parts = [images.index_select(0, still.to(images.device))]
        at_once = CACHED // math.prod(images.shape[1:]) if images.device.type == "cpu" else len(rows)
        for some in rows.split(max(1, at_once)):
            x = images.index_select(0, some.to(images.device))
            if images.dtype == torch.uint8:
                x = self._coloured(x.float(), plan[some].tolist(), amounts[some].tolist(), 255.0).round_()
                parts.append(x.to(torch.int16).to(torch.uint8))  # thrice as fast as at once
            else:
                parts.append(self._coloured(x.clamp_(0, 1), plan[some].tolist(), amounts[some].tolist(), 1.0))
        return torch.cat(parts).index_select(0, order.argsort().to(images.device))

    def _coloured(self, x: Tensor, plan: list[list[int]], amounts: list[list[float]], white: float) -> Tensor:
        """`colour` of x (B, C, H, W) float32 from 0 to `white`, which may be overwritten: for each sample which operation
        has each of the seven turns, and how much there is of each operation. Lists, because torch takes longer over a
        handful of numbers than over an image."""
        widest = math.ceil(min(3 * self.blur_sigma[1], 4 * max(amount[5] for amount in amounts)))
        radius = min(widest, x.shape[2] - 1, x.shape[3] - 1)
        stayed = order = list(range(len(x)))
        for turn in range(7):
            # the samples of an operation are put side by side, and changed where they are
            moved = sorted(stayed, key=lambda place: plan[order[place]][turn])
            if moved != stayed:
                order = [order[place] for place in moved]
                x = x.index_select(0, torch.tensor(moved, device=x.device))
            first = 0
            for number, group in groupby(order, key=lambda sample: plan[sample][turn]):
                if number == len(OPERATIONS):
                    break
                each = [amounts[sample][number] for sample in group]
                part, first = x[first : first + len(each)], first + len(each)
                amount = torch.tensor(each, device=x.device)[:, None, None, None]
                match OPERATIONS[number]:
                    case "brightness":
                        part.mul_(amount).clamp_(max=white)
                    case "contrast":
                        contrast(part, amount, white)
                    case "saturation":
                        torch.lerp(luma(part), part, amount, out=part).clamp_(0, white)
                    case "hue":
                        shift_hue(part, amount)
                    case "grey":
                        part.copy_(luma(part).expand_as(part))
                    case "blur":
                        blur(part, amount, radius)
                    case "solarise":
                        torch.minimum(part, white - part, out=part)
        if order == stayed:
            return x
        return x.index_select(0, torch.tensor(order, device=x.device).argsort())


def luma(x: Tensor) -> Tensor:
    """RGB (B, 3, H, W) to grey (B, 1, H, W)."""
    red, green, blue = x.split(1, dim=1)
    return red.mul(LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def contrast(x: Tensor, factor: Tensor, white: float) -> None:
    """Images (B, C, H, W) away from the grey of their means by factor (B, 1, 1, 1), in place."""
    means = x.mean(dim=(2, 3), keepdim=True)
    grey = luma(means) if x.shape[1] == 3 else means.mean(dim=1, keepdim=True)
    x.mul_(factor).add_(grey * (1 - factor)).clamp_(0, white)


def shift_hue(x: Tensor, shift: Tensor) -> None:
    """RGB (B, 3, H, W) with hues shifted by (B, 1, 1, 1) turns, in place; value and chroma stay. The way to HSV and back,
    without a case for each sixth of the circle."""
    red, green, blue = x.split(1, dim=1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    # Sixths of a turn away from red, in [-3, 3]. With m the middle value, less the lowest and over the chroma, it is m
    # where red is the highest, 2 - m where red is the middle, 2 + m where it is the lowest: one formula for the three.
    hue = (green + blue).sub_(red).sub_(low).div_(chroma.clamp(min=1e-6)).add_(1).copysign_(green - blue)
    # A channel has the highest value within a sixth of its own hue and the lowest beyond two sixths. For a difference d
    # of hues in [-6, 6], ||d| - 3| is three less the distance around the circle.
    own = torch.tensor([0.0, 2.0, -2.0], device=x.device)[:, None, None]
    near = (hue + ((6 * shift - own + 3) % 6 - 3)).abs_().sub_(3).abs_().clamp_(1, 2)  # (B, 3, H, W)
    torch.addcmul(high - 2 * chroma, chroma, near, out=x)


def blur(x: Tensor, sigma: Tensor, radius: int) -> None:
    """Images (B, C, H, W) through Gaussians of standard deviations sigma (B, 1, 1, 1) in pixels, cut off beyond `radius`
    or four sigma and reflected at the edges, in place."""
    away = torch.arange(radius + 1, device=x.device) / sigma  # (B, 1, 1, radius + 1)
    weights = torch.exp(-0.5 * away.square()) * (away < 4)  # whatever the width of those beside it
    weights = (weights / (2 * weights.sum(dim=-1, keepdim=True) - 1)).split(1, dim=-1)
    pair = torch.empty_like(x)
    for axis, padding in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        padded, size = F.pad(x, padding, mode="reflect"), x.shape[axis]
        x.mul_(weights[0])
        for r in range(1, radius + 1):
            both = padded.narrow(axis, radius - r, size), padded.narrow(axis, radius + r, size)
            x.addcmul_(torch.add(*both, out=pair), weights[r])


def jittered(strengths: tuple[float, float, float, float], strength: float, probability: float = 0.8) -> dict[str, Any]:
    """The jitter of a View, all of its strengths times `strength`."""
    return {"jitter": tuple(strength * each for each in strengths) if strength else None, "jitter_p": probability}


def blur_sigma(size: tuple[int, int]) -> tuple[float, float]:
    """Smallest and largest deviation of the blur: of images smaller than 224 pixels, which the papers' 0.1 to 2 pixels are
    meant for, in proportion."""
    return 0.1, max(0.1, 2.0 * min(1.0, min(size) / 224))


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

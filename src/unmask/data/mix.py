"""What training from labels does to whole batches, once they are normalised: soft targets, mixup, CutMix, erasing.

The draws come from torch's random numbers, which the training loop seeds anew for each step.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Mix:
    """How each image of a batch is mixed with its counterpart counted from the batch's end, all alike (timm's Mixup in its
    mode "batch")."""

    share: float
    """Of the image itself in what comes out, of the counterpart the rest."""
    box: tuple[int, int, int, int] | None = None
    """Top, bottom, left, right in pixels of what is cut out of the counterpart (CutMix); None: pixels are averaged (mixup)."""

    def images(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), mixed; what was given may be overwritten."""
        if self.box is None:
            return torch.lerp(images.flip(0), images, self.share)
        top, bottom, left, right = self.box
        images[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
        return images

    def targets(self, targets: Tensor) -> Tensor:
        """Soft targets (B, K), mixed in the same shares."""
        return torch.lerp(targets.flip(0), targets, self.share)


def draw_mix(size: tuple[int, int], mixup: float, cutmix: float) -> Mix:
    """How to mix a batch of images of this size (height, width): by mixup (Zhang et al. 2018), the share from
    Beta(mixup, mixup), or by CutMix (Yun et al. 2019), from Beta(cutmix, cutmix), half of the time each where neither is 0.
    The box of CutMix is centred anywhere and cut off at the border, and the share is that of the pixels that stay."""
    boxed = cutmix > 0 and (mixup == 0 or float(torch.rand(())) < 0.5)
    strength = torch.tensor(cutmix if boxed else mixup)
    if strength == 0:
        return Mix(1.0)
    share = float(torch.distributions.Beta(strength, strength).sample())
    if not boxed:
        return Mix(share)
    edges = []
    for side, where in zip(size, torch.rand(2).tolist(), strict=True):
        cut, centre = int(side * math.sqrt(1 - share)), int(where * side)
        edges += [max(0, centre - cut // 2), min(side, centre + (cut + 1) // 2)]
    top, bottom, left, right = edges
    return Mix(1 - (bottom - top) * (right - left) / (size[0] * size[1]), (top, bottom, left, right))


def soft(targets: Tensor, classes: int, smoothing: float) -> Tensor:
    """Targets (B, K) float32 from classes (B,) int64, a share `smoothing` of each spread evenly over all (Szegedy et al.
    2016, section 7), or from several labels at once (B, K), drawn towards one half."""
    if targets.ndim == 2:
        return torch.lerp(targets.float(), torch.full_like(targets, 0.5, dtype=torch.float32), smoothing)
    return F.one_hot(targets, classes).float() * (1 - smoothing) + smoothing / classes


def erase(images: Tensor, probability: float, tries: int = 10) -> Tensor:
    """Images (B, C, H, W), normalised, in each of which with this probability a rectangle is noise of deviation 1 (Zhong et
    al. 2020, as timm's RandomErasing in its mode "pixel"): 2% to a third of the area, 0.3 to 1 / 0.3 times as high as wide;
    none if not one of ten draws fits. In place."""
    B, _, H, W = images.shape
    u = torch.rand(B, 4 * tries + 1, dtype=torch.float64)
    size, shape, down, right = u[:, 1:].unflatten(1, (4, tries)).unbind(1)  # (B, tries) each
    area, aspect = (0.02 + size * (1 / 3 - 0.02)) * H * W, 0.3 ** (1 - 2 * shape)
    heights, widths = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (heights < H) & (widths < W)
    first = fits.int().argmax(dim=1, keepdim=True)
    height, width, down, right = (x.gather(1, first).squeeze(1) for x in (heights, widths, down, right))
    chosen = fits.any(dim=1) & (u[:, 0] < probability)
    for i in chosen.nonzero().flatten().tolist():
        h, w = int(height[i]), int(width[i])
        top, left = int(down[i] * (H - h + 1)), int(right[i] * (W - w + 1))
        images[i, :, top : top + h, left : left + w].normal_()
    return images

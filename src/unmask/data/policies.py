"""Policies: sequences of operations on whole images, drawn for each sample. RandAugment (Cubuk et al. 2020) as timm has it in
`rand-m9-mstd0.5-inc1`, AutoAugment's policy for CIFAR-10 (Cubuk et al. 2019) as DeepVoltaire's code has it, and a shift.

The samples that undergo the same kind of operation are put side by side and changed at once. What the operations make of
bytes is what Pillow makes of them, but where `apply` says otherwise.
"""

import math
from functools import cache, partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.data.augment import CACHED, MASK_STREAM, Policy, uniform

POLICY_STREAM = 3 * MASK_STREAM
"""Where the draws for policies and shifts begin, beyond those of every method."""
DRAWS = 16
"""How many numbers one view of one sample may draw there: two for the shift, the others for the policy."""

OPERATIONS = (
    *("autocontrast", "equalise", "invert", "posterise", "solarise", "solarise_add", "brightness", "contrast"),
    *("saturation", "sharpness"),
    *("shear_x", "shear_y", "rotate", "translate_x", "translate_y"),
)
"""RandAugment's fifteen. All that the first eight do to a channel is a table of 256 bytes; the last five move pixels."""
SATURATION, SHARPNESS, SHEAR, ROTATE, TRANSLATE, NOTHING = 8, 9, 10, 12, 13, len(OPERATIONS)

LAYERS, P, MAGNITUDE, DEVIATION = 2, 0.5, 9.0, 0.5
"""RandAugment: operations an image, the probability of each, mean and deviation of their magnitude on a scale of 10."""
GREY = 128.0
"""What AutoAugment shows where an image has been moved away."""
LARGE = 1 << 13
"""Pixels from which on a processor counts the values of one channel at a time."""
CIFAR10 = """
invert 0.1 7, contrast 0.2 6
rotate 0.7 2, translate_x 0.3 9
sharpness 0.8 1, sharpness 0.9 3
shear_y 0.5 8, translate_y 0.7 9
autocontrast 0.5 8, equalise 0.9 2
shear_y 0.2 7, posterise 0.3 7
saturation 0.4 3, brightness 0.6 7
sharpness 0.3 9, brightness 0.7 9
equalise 0.6 5, equalise 0.5 1
contrast 0.6 7, sharpness 0.6 5
saturation 0.7 7, translate_x 0.5 8
equalise 0.3 7, autocontrast 0.4 8
translate_y 0.4 3, sharpness 0.2 6
brightness 0.9 6, saturation 0.2 8
solarise 0.5 2, invert 0.0 3
equalise 0.2 0, autocontrast 0.6 0
equalise 0.2 8, equalise 0.6 4
saturation 0.9 9, equalise 0.6 6
autocontrast 0.8 4, solarise 0.2 8
brightness 0.1 3, saturation 0.7 0
solarise 0.4 5, autocontrast 0.9 3
translate_y 0.9 9, translate_y 0.7 9
autocontrast 0.9 2, solarise 0.8 3
equalise 0.8 8, invert 0.1 3
translate_y 0.7 9, autocontrast 0.9 1
"""
"""Sub-policies of AutoAugment (Cubuk et al. 2019, table 7): an operation, its probability, its magnitude from 0 to 9; then
a second one."""


def draw(policy: Policy, seeds: Tensor, number: int = 0) -> Tensor:
    """What a policy does to view `number` of the samples of seeds (B,) int64: (B, 2, 2) float32, for each of two operations
    which it is, as its place in `OPERATIONS` or NOTHING, and how much of it there is, as `apply` takes it."""
    u = uniform(seeds, DRAWS - 2, POLICY_STREAM + number * DRAWS + 2)
    if policy == "auto":
        chosen = _cifar10()[(u[:, 0] * 25).long().cpu()].to(u)  # (B, 2, 4)
        which, chance, centre, swing = chosen.unbind(2)
        coin, side = u[:, 1:5].unflatten(1, (2, 2)).unbind(2)
        amount = centre + torch.where(side < 0.5, -swing, swing)
    else:
        choice, coin, level, side = u[:, : 4 * LAYERS].unflatten(1, (LAYERS, 4)).unbind(2)
        which, chance = (choice * len(OPERATIONS)).floor(), P
        level = ((MAGNITUDE + DEVIATION * torch.special.ndtri(level)) / 10).clamp(0, 1)
        signed = torch.where(side < 0.5, -level, level)
        none, factor = torch.zeros_like(level), (1 + 0.9 * signed).clamp(min=0.1)
        bits, below, more = 4 - (4 * level).floor(), 256 - (256 * level).floor(), (110 * level).floor()
        moved = [0.3 * signed, 0.3 * signed, 30 * signed, 0.45 * signed, 0.45 * signed]
        amounts = torch.stack([none, none, none, bits, below, more, *[factor] * 4, *moved], dim=2)
        amount = amounts.gather(2, which.long()[:, :, None]).squeeze(2)
    return torch.stack([torch.where(coin < chance, which, NOTHING), amount], dim=2).float()


@cache
def _cifar10() -> Tensor:
    """(25, 2, 4) float64: operation, probability, and its amount, of which the last is added or taken away."""
    rows = []
    for line in CIFAR10.split("\n")[1:-1]:
        for part in line.split(", "):
            name, chance, magnitude = part.split()
            m = int(magnitude) / 9
            amounts = {
                "posterise": (round(8 - 4 * m), 0.0),
                "solarise": (256 * (1 - m), 0.0),
                "rotate": (30 * m, 0.0),  # one way only
                **dict.fromkeys(("brightness", "contrast", "saturation", "sharpness"), (1.0, 0.9 * m)),
                **dict.fromkeys(("shear_x", "shear_y"), (0.0, 0.3 * m)),
                **dict.fromkeys(("translate_x", "translate_y"), (0.0, 150 / 331 * m)),
            }
            rows.append((OPERATIONS.index(name), float(chance), *amounts.get(name, (0.0, 0.0))))
    return torch.tensor(rows, dtype=torch.float64).view(25, 2, 4)


def apply(images: Tensor, policy: Policy, drawn: Tensor, mean: Tensor) -> Tensor:
    """Images (B, C, H, W) through their rows of `draw` (B, 2, 2), same dtype, in one batch on their device.

    uint8, or float32 from 0 for black to 1 for white, of which those that change are rounded to bytes (and cut off) and the
    others stay as they are. mean: (C,) on the scale of 1, what RandAugment shows where an image has been moved away. The
    amounts are bits that are kept (posterise; 0: black), the level from which on values are inverted (solarise), what is
    added to values below 128 (solarise_add), factors (brightness to sharpness), degrees against the clock (rotate), pixels
    a pixel (shear), shares of width or height (translate).

    Operations on values are Pillow's to the byte. Those that move pixels interpolate bilinearly, within a level of Pillow's,
    where timm draws bilinear or bicubic anew each time. For AutoAugment rotate and translate take the nearest pixel as the
    reference does; shear is bilinear, there it is bicubic. Images of other than three channels have no saturation; the
    contrast of several turns about the mean of all.
    """
    which, amount = drawn[..., 0].long().cpu(), drawn[..., 1].cpu()  # a GPU would be waited for
    if images.shape[1] != 3:
        which = which.where(which != SATURATION, NOTHING)
    changed = (which != NOTHING).any(dim=1)
    if not changed.any():
        return images
    if images.dtype != torch.uint8:
        altered = apply(_bytes(images * 255 + 0.5), policy, drawn, mean) / 255
        return torch.where(changed.to(images.device)[:, None, None, None], altered, images)

    ends = [0, SATURATION, SHARPNESS, SHEAR, *((ROTATE, TRANSLATE) if policy == "auto" else ()), NOTHING]
    fill = (255 * mean).round().clamp(0, 255) if policy == "rand" else torch.full_like(mean, GREY)
    fill = fill.to(images.device)[:, None, None]
    order, x = torch.arange(len(images)), images.contiguous()
    spare = torch.empty_like(x), torch.empty_like(x)  # new memory costs more than the copy into it
    for layer in range(which.shape[1]):
        moved = which[:, layer].argsort()  # samples of one operation side by side
        order, which, amount = order[moved], which[moved], amount[moved]
        x = torch.index_select(x, 0, moved.to(x.device), out=spare[layer % 2])
        places = torch.searchsorted(which[:, layer].contiguous(), torch.tensor(ends)).tolist()
        for kind, (first, last) in enumerate(pairwise(places)):
            if first == last:
                continue
            part, amounts = x[first:last], amount[first:last, layer]
            operations, factors = which[first:last, layer].contiguous(), amounts.to(x.device)[:, None, None, None]
            match kind:
                case 0:
                    change, numbers = look_up, (tables(part, operations, amounts),)
                case 1:
                    change, numbers = saturate, (factors,)
                case 2:
                    change, numbers = sharpen, (factors,)
                case 5:
                    change, numbers = partial(slide, fill=fill), (operations, amounts)
                case _:
                    mode = "bilinear" if kind == 3 else "nearest"
                    change, numbers = partial(move, fill=fill, mode=mode), origins(part, operations, amounts)
            for begin in range(0, last - first, at_once(x)):
                some = slice(begin, begin + at_once(x))
                part[some] = change(part[some], *(each[some] for each in numbers))
    return torch.index_select(x, 0, order.argsort().to(x.device), out=spare[which.shape[1] % 2])


def at_once(x: Tensor) -> int:
    """How many images like those of x (b, C, H, W) are changed at a time."""
    return max(1, CACHED // math.prod(x.shape[1:])) if x.device.type == "cpu" else len(x)


def tables(x: Tensor, operations: Tensor, amounts: Tensor) -> Tensor:
    """What becomes of each value in each channel of bytes (b, C, H, W), (b, C, 256) uint8, for operations (b,) int64 in
    ascending order and how much there is of each, (b,) float32, both on the CPU."""
    ends = torch.searchsorted(operations, torch.arange(SATURATION + 1)).tolist()
    stretch, equalise, invert, posterise, solarise, add, brighten, turn = (slice(*each) for each in pairwise(ends))
    amounts = amounts.to(x.device)[:, None, None]
    values = torch.arange(256, dtype=torch.int16, device=x.device)
    table = torch.empty(*x.shape[:2], 256, dtype=torch.uint8, device=x.device)
    if stretch.start < stretch.stop:
        planes = x[stretch].flatten(2)
        low, high = (extreme.double() for extreme in (planes.amin(2, keepdim=True), planes.amax(2, keepdim=True)))
        steeper = torch.full_like(low, 255) / (high - low)  # 255 / (…) would be rounded twice
        table[stretch] = torch.where(high > low, _bytes(values * steeper - low * steeper), values)
    if equalise.start < equalise.stop:
        table[equalise] = equalising(x[equalise])
    table[invert] = 255 - values
    table[posterise] = values & (256 - 2 ** (8 - amounts[posterise])).to(torch.int16)
    table[solarise] = torch.where(values < amounts[solarise], values, 255 - values)
    table[add] = values + (values < 128) * amounts[add].to(torch.int16)
    table[brighten] = _bytes(values * amounts[brighten])
    if turn.start < turn.stop:
        greys = (luma(each) if x.shape[1] == 3 else each.float() for each in x[turn].split(at_once(x)))
        means = torch.cat([grey.mean(dim=(1, 2, 3), dtype=torch.float64) for grey in greys])
        mean = (means + 0.5).floor().float()[:, None, None]
        table[turn] = _bytes(amounts[turn] * (values - mean) + mean)
    return table


def look_up(x: Tensor, table: Tensor) -> Tensor:
    """Bytes (b, C, H, W) through tables (b, C, 256)."""
    return table.gather(2, x.flatten(2).long()).view(x.shape)


def saturate(x: Tensor, factor: Tensor) -> Tensor:
    """RGB bytes (b, 3, H, W) away from grey by factors (b, 1, 1, 1)."""
    return blend(luma(x), x.float(), factor)


def equalising(x: Tensor) -> Tensor:
    """Tables (b, C, 256) that make the values of bytes (b, C, H, W) about equally frequent, as Pillow's: the pixels darker
    than a value, counted in steps of a 255th of those darker than the brightest."""
    if x.device.type == "cpu" and x[0, 0].numel() > LARGE:
        count = torch.stack([torch.bincount(plane, minlength=256) for plane in x.flatten(2).flatten(0, 1)])
        count = count.view(*x.shape[:2], 256)
    else:
        count = torch.zeros(*x.shape[:2], 256, dtype=torch.int64, device=x.device)
        count.scatter_add_(2, x.flatten(2).long(), count.new_ones(()).expand(*x.shape[:2], x[0, 0].numel()))
    darker = count.cumsum(dim=2) - count
    brightest = x.flatten(2).amax(dim=2, keepdim=True).long()
    step = darker.gather(2, brightest) // 255
    table = ((darker + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table, torch.arange(256, device=x.device))


def luma(x: Tensor) -> Tensor:
    """RGB bytes (b, 3, H, W) to grey (b, 1, H, W) float32 of whole values, by Pillow's weights in 65536ths."""
    red, green, blue = x.float().split(1, dim=1)
    return red.mul_(19595).add_(green, alpha=38470).add_(blue, alpha=7471).add_(32768).mul_(2.0**-16).floor_()


def sharpen(x: Tensor, factor: Tensor) -> Tensor:
    """Bytes (b, C, H, W) away from their blur by factors (b, 1, 1, 1). The blur is of three by three pixels, the one in the
    middle counted five times; the outermost pixels stay."""
    if min(x.shape[2:]) < 3:
        return x
    values, out = x.float(), x.clone()
    rows = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    inner = values[:, :, 1:-1, 1:-1]
    smooth = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:])
    smooth.add_(inner, alpha=4).mul_(1 / 13).add_(0.5).floor_()
    out[:, :, 1:-1, 1:-1] = blend(smooth, inner, factor)
    return out


def origins(x: Tensor, operations: Tensor, amounts: Tensor) -> tuple[Tensor, Tensor]:
    """Where in images (b, C, H, W) each pixel comes from when they are sheared, rotated about the centre, or translated by
    amounts (b,) on the CPU: the share of its column (b, 1, W) and that of its row (b, H, 1). They add up to complex64
    numbers, the column and 1j times the row, of which -1 and 1 are the edges of the image."""
    H, W = x.shape[2:]
    weights = []
    for operation, amount in zip(operations.tolist(), amounts.tolist(), strict=True):
        a, b, c, d, e, f = (
            1.0,
            0.0,
            0.0,
            0.0,
            1.0,
            0.0,
        )  # column = a * column + b * row + c, row = d * column + e * row + f
        match OPERATIONS[operation]:
            case "shear_x":
                b = amount
            case "shear_y":
                d = amount
            case "rotate":
                a = e = math.cos(math.radians(amount))
                d = math.sin(math.radians(amount))
                b, c, f = -d, (W - a * W + d * H) / 2, (H - d * W - e * H) / 2
            case "translate_x":
                c = W * amount
            case _:
                f = H * amount
        weights.append((2 * a / W, 2 * c / W - 1, 2 * d / H, 2 * f / H - 1, 2 * b / W, 2 * e / H))
    a, c, d, f, b, e = torch.tensor(weights).to(x.device).T[:, :, None]
    across, along = (torch.arange(side, device=x.device) + 0.5 for side in (W, H))
    return torch.complex(a * across + c, d * across + f)[:, None], torch.complex(b * along, e * along)[:, :, None]


def move(x: Tensor, columns: Tensor, rows: Tensor, fill: Tensor, mode: str) -> Tensor:
    """Bytes (b, C, H, W) taken from their `origins` (b, 1, W) and (b, H, 1), `fill` (C, 1, 1) where those lie outside."""
    grid = torch.view_as_real(columns + rows)
    out = F.grid_sample(x.float(), grid, mode, padding_mode="border", align_corners=False)
    # Pillow cuts off what is behind the point; a hundredth of a level is what the weights may be off
    inside = torch.maximum(*grid.abs_().unbind(3)).sub_(1).mul_(-1e9).clamp_(0, 1)  # 0 or 1; a comparison is slower
    return _bytes(torch.lerp(fill, out.add_(0.01), inside[:, None]))


def slide(x: Tensor, operations: Tensor, amounts: Tensor, fill: Tensor) -> Tensor:
    """Bytes (b, C, H, W) translated to the nearest pixel by amounts (b,) on the CPU, with `fill` (C, 1, 1) behind them."""
    H, W = x.shape[2:]
    out = fill.to(torch.uint8).expand_as(x).contiguous()
    for old, new, operation, amount in zip(x, out, operations.tolist(), amounts.tolist(), strict=True):
        down = OPERATIONS[operation] == "translate_y"
        side = H if down else W
        step = math.floor(side * amount + 0.5)
        kept = max(0, side - abs(step))
        new.narrow(1 + (not down), max(0, -step), kept).copy_(old.narrow(1 + (not down), max(0, step), kept))
    return out


def blend(dull: Tensor, vivid: Tensor, factor: Tensor) -> Tensor:
    """Bytes: from what is dull (b, 1 or C, H, W) float32 by factors (b, 1, 1, 1) towards what is vivid (b, C, H, W) float32
    and beyond, cut off behind the point."""
    return _bytes((vivid - dull).mul_(factor).add_(dull))


def _bytes(x: Tensor) -> Tensor:
    return x.clamp_(0, 255).to(torch.int16).to(torch.uint8)  # thrice as fast as at once


def draw_shift(most: int, seeds: Tensor, number: int = 0) -> Tensor:
    """How far view `number` of samples of seeds (B,) int64 is shifted up and to the left, (B, 2) int64 in -most to most."""
    u = uniform(seeds, 2, POLICY_STREAM + number * DRAWS)
    return (u * (2 * most + 1)).long() - most


def shifted(images: Tensor, drawn: Tensor, most: int) -> Tensor:
    """Images (B, C, H, W) by their rows of `draw_shift` (B, 2) in black, same dtype: torchvision's RandomCrop with a padding
    of `most` pixels."""
    height, width = images.shape[2:]
    windows = (
        F.pad(images, (most,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    )  # (B, C, 2 most + 1, 2 most + 1, H, W)
    top, left = (drawn + most).to(images.device, non_blocking=True).unbind(1)
    return windows[torch.arange(len(images), device=images.device), :, top, left]

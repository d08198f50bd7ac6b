"""The common corruptions of Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (section 4.1 and figure 1), at five severities each: 14 of the 15.

Frost is left out: the paper lays photographs of frost over the image, which do not come along, and what is painted in their
stead would be another corruption under its name.

The strengths are those of the paper's code: its table for ImageNet-C where the shorter side has 112 pixels or more, and that of
CIFAR-10-C below. Lengths are pixels, as there, whatever the size; only the elastic transform goes with the side. Deviations:
- results are rounded to whole levels, where the paper's code cuts them off, and not saved as JPEG in between;
- images that are not square are padded, cropped and zoomed by their own height and width;
- the kernel of the defocus has the sum 1, where the paper's smoothing of its rim adds up to 1.3%;
- the heights of fog between two corners take these two corners, where the paper's code takes one of them from next door;
- images of other than three channels: the value of a pixel is its mean, where RGB has HSV's maximum or a weighted grey, and
  JPEG compresses each channel as a grey picture.
"""

import math
import zlib
from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, signal

from unmask.errors import BadInput

LARGE = 112
"""Pixels of the shorter side from which on the strengths are those of ImageNet-C."""
SEVERITIES = (1, 2, 3, 4, 5)

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
T = TypeVar("T")


def corrupt(image: Bytes, name: str, severity: int, *, seed: int, index: int) -> Bytes:
    """Image number `index` under the corruption called `name`: (H, W, C) uint8 to the same. The same numbers give the same
    image again, whatever else is corrupted. Raises BadInput for a name or a severity that there is not."""
    if name not in CORRUPTIONS:
        raise BadInput(f"no corruption is called {name!r}: use any of {', '.join(CORRUPTIONS)}")
    rng = np.random.default_rng((seed, index, zlib.crc32(name.encode()), severity))
    return CORRUPTIONS[name](image, severity, rng)


def strength(image: Bytes, severity: int, large: tuple[T, ...], small: tuple[T, ...]) -> T:
    """What a severity from 1 to 5 means for images of this size."""
    if severity not in SEVERITIES:
        raise BadInput(f"severity {severity}: give whole numbers from 1 to 5")
    return (large if min(image.shape[:2]) >= LARGE else small)[severity - 1]


def unit(image: Bytes) -> Floats:
    """Bytes to float32 in [0, 1]."""
    return image.astype(np.float32) / np.float32(255)


def to_bytes(x: NDArray[np.floating]) -> Bytes:
    """The inverse of `unit`, rounded; what lies beyond is cut off."""
    return np.rint(x.clip(0, 1) * 255).astype(np.uint8)


# Noise


def gaussian_noise(image: Bytes, severity: int, rng: Generator) -> Bytes:
    """Normal noise, as of a sensor in poor light."""
    sigma = strength(image, severity, (0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.06, 0.08, 0.09, 0.10))
    return to_bytes(unit(image) + sigma * rng.standard_normal(image.shape, dtype=np.float32))


def shot_noise(image: Bytes, severity: int, rng: Generator) -> Bytes:
    """Poisson noise: so many photons make white."""
    photons = strength(image, severity, (60, 25, 12, 5, 3), (500, 250, 100, 75, 50))
    return to_bytes(rng.poisson(unit(image) * photons) / photons)


def impulse_noise(image: Bytes, severity: int, rng: Generator) -> Bytes:
    """Salt and pepper: this share of all values turns black or white."""
    share = strength(image, severity, (0.03, 0.06, 0.09, 0.17, 0.27), (0.01, 0.02, 0.03, 0.05, 0.07))
    drawn = rng.random(image.shape, dtype=np.float32)
    return np.where(drawn < share, np.where(drawn < share / 2, 0, 255), image).astype(np.uint8)


# Blur


def defocus_blur(image: Bytes, severity: int, rng: Generator) -> Bytes:
    """Out of focus: a disk, its rim smoothed. (Radius, sigma of the rim.)"""
    large = (3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)
    small = (0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)
    kernel = disk(*strength(image, severity, large, small))
    reach = len(kernel) // 2
    padded = np.pad(unit(image), ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    return to_bytes(signal.oaconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1)))


def disk(radius: float, sigma: float) -> Floats:
    """A kernel, square with odd sides and sum 1, of a disk smoothed by a Gaussian of 3 pixels, or of 5 beyond radius 8."""
    reach = max(8, math.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = (x**2 + y**2 <= radius**2).astype(np.float32)
    kernel = ndimage.gaussian_filter(kernel, sigma, mode="mirror", radius=1 if radius <= 8 else 2)
    return kernel / kernel.sum()


def glass_blur(image: Bytes, severity: int, rng: Generator) -> Bytes:
    """Frosted glass: blurred, each pixel taken from one nearby, blurred again. (Sigma, reach, rounds.)

    The paper's code would exchange two pixels, but its assignment overwrites the one before it is read, so that the published
    images have the other twice. So it is here.
    """
    large = (0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)
    small = (0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)
    sigma, reach, rounds = strength(image, severity, large, small)
    x = gaussian(unit(image), sigma)
    for _ in range(rounds):
        x = x.reshape(-1, x.shape[2])[taken_from((image.shape[0], image.shape[1]), reach, rng)]
    return to_bytes(gaussian(x, sigma))


def taken_from(size: tuple[int, int], reach: int, rng: Generator) -> NDArray[np.int64]:
    """Which pixel of an image (H, W), counted row by row, each one shows when all of them, from the last to the first, take
    the value of one up to `reach` rows and columns away: (H, W) int64. A margin stays as it is."""
    H, W = size
    source = np.arange(H * W).reshape(H, W)
    inner = source[reach + 1 : H - reach + 1, reach + 1 : W - reach + 1]
    down, right = rng.integers(-reach, reach, size=(2, *inner.shape))
    source[reach + 1 : H - reach + 1, reach + 1 : W - reach + 1] += down * W + right
    source = source.ravel()
    # One that comes later in the image has been given its value before, and that came from elsewhere: follow the chain
    # to its end, in steps of double length. Numbers from H * W on are the pixels before anything was taken.
    before = np.arange(H * W, 2 * H * W)
    follow = np.concatenate([np.where(source > before - H * W, source, source + H * W), before])
    while (further := follow[follow]).tobytes() != follow.tobytes():
        follow = further
    return (follow[: H * W] - H * W).reshape(H, W)


def motion_blur(image: Bytes, severity: int, rng: Generator) -> Bytes:
    """The camera moved, at most 45 degrees from level. (Radius, sigma.)"""
    large = (10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0)
    small = (6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)
    return to_bytes(smear(unit(image), *strength(image, severity, large, small), rng.uniform(-45, 45)))


def smear(x: Floats, radius: int, sigma: float, degrees: float) -> Floats:
    """(H, W, C) along a line of 2 * radius + 1 pixels, half a Gaussian, as ImageMagick's -motion-blur does."""
    H, W = x.shape[:2]
    far = 2 * radius
    taps = np.arange(far + 1)
    weights = np.exp(-0.5 * (taps / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    angle = math.radians(degrees)
    right, down = (np.ceil(taps * slope - 0.5).astype(int) + far for slope in (math.cos(angle), math.sin(angle)))
    padded = np.pad(x, ((far, far), (far, far), (0, 0)), mode="edge")
    out = np.zeros_like(x)
    for weight, top, left in zip(weights, down, right, strict=True):
        out += weight * padded[top : top + H, left : left + W]
    return out


def zoom_blur(image: Bytes, severity: int, rng: Generator) -> Bytes:
    """The camera came nearer: the mean over zooms from 1 up. (Where they end, step.)"""
    large = (1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)
    small = (1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)
    x = unit(image)
    zooms = np.arange(1, *strength(image, severity, large, small)).tolist()  # rounding decides whether the end is one
    # the image itself counts once more, as in the paper's code
    return to_bytes((x + sum(zoomed(x, zoom) for zoom in zooms)) / (len(zooms) + 1))


def zoomed(x: Floats, zoom: float) -> Floats:
    """The middle of (H, W, C), bilinear, so much larger, at the same size."""
    H, W = x.shape[:2]
    h, w = math.ceil(H / zoom), math.ceil(W / zoom)
    top, left = (H - h) // 2, (W - w) // 2
    middle = torch.from_numpy(x[top : top + h, left : left + w]).permute(2, 0, 1)[None]
    size = (round(h * zoom), round(w * zoom))
    grown = F.interpolate(middle, size, mode="bilinear", align_corners=True)[0].permute(1, 2, 0).numpy()
    top, left = (size[0] - H) // 2, (size[1] - W) // 2
    return grown[top : top + H, left : left + W]


def gaussian(x: Floats, sigma: float) -> Floats:
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), output=np.float32, mode="nearest")  # type: ignore[return-value]


# Weather


def snow(image: Bytes, severity: int, rng: Generator) -> Bytes:
    """Flakes that fall, and everything paler. (Mean and deviation of the noise that makes flakes, its zoom, the least that is
    one, radius and sigma of their fall, share of the image's own colours.)"""
    large = (
        (0.1, 0.3, 3.0, 0.5, 10, 4.0, 0.8),
        (0.2, 0.3, 2.0, 0.5, 12, 4.0, 0.7),
        (0.55, 0.3, 4.0, 0.9, 12, 8.0, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8.0, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12.0, 0.55),
    )
    small = (
        (0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.95),
        (0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4.0, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.8),
    )
    mean, deviation, zoom, least, radius, sigma, share = strength(image, severity, large, small)
    x = unit(image)
    noise = mean + deviation * rng.standard_normal((*x.shape[:2], 1), dtype=np.float32)
    flakes = zoomed(noise, zoom)
    flakes = smear(np.where(flakes < least, 0, flakes).clip(0, 1), radius, sigma, rng.uniform(-135, -45))
    grey = x @ np.array([0.299, 0.587, 0.114], dtype=np.float32) if x.shape[2] == 3 else x.mean(axis=2)
    pale = np.maximum(x, 1.5 * grey[..., None] + 0.5)
    return to_bytes(share * x + (1 - share) * pale + flakes + np.rot90(flakes, 2))


def fog(image: Bytes, severity: int, rng: Generator) -> Bytes:
    """Swaths of white, drawn as heights of a plasma. (How thick, how much smoother each finer step is.)"""
    large = (1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)
    small = (0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)
    thickness, decay = strength(image, severity, large, small)
    x = unit(image)
    H, W = x.shape[:2]
    brightest = x.max()
    heights = plasma(2 ** max(1, math.ceil(math.log2(max(H, W)))), decay, rng)[:H, :W, None]
    return to_bytes((x + thickness * heights) * brightest / (brightest + thickness))


def plasma(side: int, decay: float, rng: Generator) -> NDArray[np.float64]:
    """Random heights from 0 to 1, (side, side), that go on at the opposite edge, by the diamond-square algorithm (Fournier et
    al. 1982): in between those that are known stands their mean and noise that gets less with each halving of the step."""
    heights, step, noise = np.zeros((side, side)), side, 100.0
    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]

        def wavered(total: NDArray[np.float64], noise: float = noise) -> NDArray[np.float64]:
            return total / 4 + noise * rng.uniform(-noise, noise, total.shape)

        below = corners + np.roll(corners, -1, axis=0)
        beside = corners + np.roll(corners, -1, axis=1)
        centres = wavered(below + np.roll(below, -1, axis=1))
        heights[half::step, half::step] = centres
        heights[::step, half::step] = wavered(beside + centres + np.roll(centres, 1, axis=0))
        heights[half::step, ::step] = wavered(below + centres + np.roll(centres, 1, axis=1))
        step, noise = half, noise / decay
    heights -= heights.min()
    return heights / heights.max()


def brightness(image: Bytes, severity: int, rng: Generator) -> Bytes:
    """Lighter by this much, hue and saturation the same: HSV's value is raised."""
    more = strength(image, severity, (0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3))
    x = unit(image)
    value = x.max(axis=2, keepdims=True) if x.shape[2] == 3 else x.mean(axis=2, keepdims=True)
    raised = (value + more).clip(max=1)
    return to_bytes(np.where(value > 0, x * (raised / np.maximum(value, 1e-6)), raised))


# Digital


def contrast(image: Bytes, severity: int, rng: Generator) -> Bytes:
    """This share of the distance from each channel's mean."""
    share = strength(image, severity, (0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15))
    x = unit(image)
    return to_bytes(x.mean(axis=(0, 1)) * (1 - share) + share * x)


def elastic_transform(image: Bytes, severity: int, rng: Generator) -> Bytes:
    """Stretched as a whole, then pulled about pixel by pixel (Simard et al. 2003). (Shares of the side: amplitude and sigma of
    the pull, reach of the stretch.)"""
    # the paper's code has 244 for 224
    large = (2.0, 0.7, 0.1), (2.0, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)
    small = (0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)
    side = min(image.shape[:2]) * (244 / 224 if min(image.shape[:2]) >= LARGE else 1)
    amplitude, sigma, reach = (side * part for part in strength(image, severity, large, small))
    x = unit(image)
    H, W = x.shape[:2]
    middle, third = np.array([H // 2, W // 2]), max(1, min(H, W) // 3)
    corners = middle + third * np.array([[1, 1], [1, -1], [-1, -1]])  # rows and columns of three of a square
    moved = corners + rng.uniform(-reach, reach, corners.shape)
    # where each pixel comes from: the affine map from `moved` to `corners`, (2, 3)
    affine = np.linalg.lstsq(np.column_stack([moved, np.ones(3)]), corners, rcond=None)[0].T
    at = np.mgrid[:H, :W]
    pull = [amplitude * smoothed(rng.uniform(-1, 1, (H, W)), sigma) for _ in range(2)]
    stretched = np.einsum("ij,jhw->ihw", affine[:, :2], at) + affine[:, 2, None, None]
    x = remapped(x, stretched, "mirror")
    return to_bytes(remapped(x, at + np.stack(pull), "reflect"))


def remapped(x: Floats, at: NDArray[np.float64], mode: str) -> Floats:
    """(H, W, C), bilinear, from the places `at`, (2, H, W) rows and columns."""
    planes = [ndimage.map_coordinates(plane, at, order=1, mode=mode) for plane in np.moveaxis(x, 2, 0)]
    return np.stack(planes, axis=2).astype(np.float32, copy=False)


def smoothed(noise: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """(H, W) through a Gaussian cut off at three sigma. It may be wider than the image, and is then cheapest as a matrix."""
    H, W = noise.shape
    return smoothing(H, sigma) @ noise @ smoothing(W, sigma).T


@lru_cache(maxsize=16)
def smoothing(n: int, sigma: float) -> NDArray[np.float64]:
    return ndimage.gaussian_filter1d(np.eye(n), sigma, axis=0, mode="reflect", truncate=3.0) if sigma else np.eye(n)


def pixelate(image: Bytes, severity: int, rng: Generator) -> Bytes:
    """This share of the pixels a side, enlarged again without smoothing."""
    share = strength(image, severity, (0.6, 0.5, 0.4, 0.3, 0.25), (0.95, 0.9, 0.85, 0.75, 0.65))
    H, W = image.shape[:2]
    fewer = max(1, int(W * share)), max(1, int(H * share))

    def coarse(plane: Bytes) -> Bytes:
        return np.asarray(
            Image.fromarray(plane).resize(fewer, Image.Resampling.BOX).resize((W, H), Image.Resampling.BOX)
        )

    return np.stack([coarse(plane) for plane in np.moveaxis(image, 2, 0)], axis=2)


def jpeg_compression(image: Bytes, severity: int, rng: Generator) -> Bytes:
    """Saved as JPEG of this quality."""
    quality = strength(image, severity, (25, 18, 15, 10, 7), (80, 65, 58, 50, 40))

    def saved(pixels: Bytes) -> Bytes:
        file = BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    if image.shape[2] == 3:
        return saved(image)
    return np.stack([saved(plane) for plane in np.moveaxis(image, 2, 0)], axis=2)


def called(name: str) -> str:
    """A corruption in words: "Gaussian noise"."""
    return name.replace("_", " ").replace("gaussian", "Gaussian").replace("jpeg", "JPEG")


CORRUPTIONS: dict[str, Callable[[Bytes, int, Generator], Bytes]] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
}
"""Image (H, W, C) uint8, severity from 1 to 5 and a generator to the corrupted image, same shape and dtype."""

KINDS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
"""The four kinds of the paper's figure 1."""

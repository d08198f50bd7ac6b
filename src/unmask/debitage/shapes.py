"""Particles in pictures, and the measures of their outlines.

`segment` finds particles on their background, `outline` draws the line around one, `measures_of` measures that line by
definitions that are exact for polygons, and `aggregate` puts the pictures of one tracked particle together as the analyser
does (inferred from its own table: extent = area / (length x thickness), sieve = (width + thickness) / 2 and volume = π/6 x
length x width x thickness hold there to the last digit).

The outline is the line at one half of the mask after a Gaussian of one pixel (marching squares; Maple 2003), drawn out by the
little that the Gaussian took, so that it encloses as much as there are pixels. The staircase of pixels makes a perimeter up to
27% too long, marching squares alone one 5% too long. Bias of this line, measured on discs and squares at any place and angle
(tests/test_debitage_shapes.py): perimeter 1.0% too long on discs 8 pixels wide, 0.5% from 30 pixels on; on squares, whose
corners it rounds, 4.8% too short at 15 pixels, 2.3% at 30, 0.3% at 100. Largest diameter half a pixel too long on discs, one
pixel too short across a square's corners. A rim narrower than a pixel is lost.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from skimage.draw import polygon2mask
from skimage.filters import threshold_otsu
from skimage.measure import find_contours

from unmask.data.decode import UnreadableImage, decode
from unmask.debitage.measures import MEASURES
from unmask.errors import BadInput
from unmask.screen import track
from unmask.training.run import whole

Array = NDArray[Any]
LEAST = 12
"""Pixels of the smallest thing that is taken for a particle."""
CORNERS = 40
"""Points of the outline at which angles are taken (Sukumaran & Ashmawy 2001)."""
MARGIN = 0.06
"""Of background around a particle's own picture, as a share of its longer side."""


# Finding particles


@dataclass(frozen=True)
class Particle:
    """A particle in a picture."""

    mask: Array
    """(h, w) bool, its holes filled."""
    box: tuple[int, int, int, int]
    """Top, left, bottom, right: rows and columns of the picture."""
    clear: Array | None
    """(h, w) float32, how bright each pixel is beside the background: 1 as bright, 0 black. None for bare silhouettes."""
    touches_border: bool


def planes_of(image: Array) -> Array:
    """A picture (H, W), (H, W, C) or (C, H, W) as (H, W, 1) or (H, W, 3) float32 from 0 to 1; floats that go beyond are
    stretched to that. BadInput for what is no picture."""
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[0] in (1, 3, 4) and image.shape[2] not in (1, 3, 4):
        image = np.moveaxis(image, 0, 2)
    if image.ndim not in (2, 3) or image.size == 0 or image.dtype.kind not in "buif":
        raise BadInput(f"a picture of shape {image.shape} and {image.dtype}: (H, W) or (H, W, C) numbers are needed")
    planes = image.reshape(*image.shape[:2], -1)
    planes = planes[..., : 1 if planes.shape[2] < 3 else 3]
    if image.dtype.kind in "ui":
        return planes.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
    planes = np.nan_to_num(planes.astype(np.float32), posinf=0, neginf=0)
    low, high = float(planes.min()), float(planes.max())
    return planes if low >= 0 and high <= 1 else (planes - low) / max(high - low, 1e-30)


def grey_of(image: Array) -> Array:
    """A picture as (H, W) float32 from 0 to 1, see `planes_of`."""
    return planes_of(image).mean(axis=2)


def rim_of(grey: Array) -> Array:
    """The values at the border."""
    return np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])


def background_of(grey: Array) -> Array:
    """The background (H, W) float32 that the border shows: a plane through its brightness, so that light may come from one
    side; fitted again without what lies far off it, which may be a particle at the border."""
    H, W = grey.shape
    y, x = np.mgrid[0:H, 0:W]
    rim = np.zeros((H, W), dtype=bool)
    wide = max(1, min(H, W) // 50)
    rim[:wide] = rim[-wide:] = rim[:, :wide] = rim[:, -wide:] = True
    design = np.stack([np.ones(rim.sum()), y[rim] / H, x[rim] / W], axis=1)
    values = grey[rim].astype(np.float64)
    kept = np.abs(values - np.median(values)) <= 0.25
    plane = np.array([np.median(values), 0, 0])
    for _ in range(3):
        if kept.sum() < 8:
            break
        plane, *_ = np.linalg.lstsq(design[kept], values[kept], rcond=None)
        off = np.abs(values - design @ plane)
        kept = off <= max(3 * 1.4826 * float(np.median(off[kept])), 0.02)
    return (plane[0] + plane[1] * y / H + plane[2] * x / W).astype(np.float32)


def segment(image: Array, *, least: int = LEAST) -> list[Particle]:
    """The particles of a picture (H, W) or (H, W, C), largest first: darker or brighter than the background that the border
    shows, or of another colour. Holes are filled, and what has fewer than `least` pixels is left out. Silhouettes are taken as
    they are; in photographs a particle is what differs from the background by more than Otsu's (1979) threshold, or, where
    that would cut through its inside, than half of what its palest part does, and by five times the noise at the border.
    BadInput for what is no picture."""
    planes = planes_of(image)
    grey = planes.mean(axis=2)
    if min(grey.shape) < 3 or planes.min() == planes.max():
        return []
    low, high = grey.min(), grey.max()
    silhouette = bool(low < high and ((grey == low) | (grey == high)).all())
    if silhouette:
        solid, ground = grey != np.median(rim_of(grey)), grey
    else:
        grounds = [background_of(plane) for plane in np.moveaxis(planes, 2, 0)]
        ground = np.mean(grounds, axis=0)
        far = np.abs(planes - np.stack(grounds, axis=2)).max(axis=2)
        smooth = ndimage.gaussian_filter(far, 0.7)
        noise = 1.4826 * float(np.median(rim_of(smooth)))
        floor, level = max(5 * noise, 0.03), float(threshold_otsu(smooth))
        inner = smooth[np.asarray(ndimage.binary_erosion(smooth > floor, iterations=3), dtype=bool)]
        if len(inner) and (pale := float(np.quantile(inner, 0.02))) < level:
            level = pale / 2  # a pale facet beside a dark one is not background, which is what Otsu takes it for
        solid = smooth > max(level, floor)
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    if len(rows) == 0:
        return []
    y, x = int(rows[0]), int(columns[0])
    solid = ndimage.binary_fill_holes(solid[y : rows[-1] + 1, x : columns[-1] + 1])
    labels, _ = ndimage.label(solid, structure=np.ones((3, 3)))  # type: ignore[misc]
    found = []
    for number, place in enumerate(ndimage.find_objects(labels), 1):
        mask = labels[place] == number
        if mask.sum() < least:
            continue
        rows, columns = (slice(each.start + off, each.stop + off) for each, off in zip(place, (y, x), strict=True))
        edge = rows.start == 0 or columns.start == 0 or rows.stop == grey.shape[0] or columns.stop == grey.shape[1]
        clear = None if silhouette else grey[rows, columns] / np.maximum(ground[rows, columns], 1e-3)
        found.append(Particle(mask, (rows.start, columns.start, rows.stop, columns.stop), clear, edge))
    return sorted(found, key=lambda one: -int(one.mask.sum()))


def outline(mask: Array) -> Array:
    """The line around the largest part of a mask (H, W), its holes filled: (N, 2) float64, x to the right and y upwards in
    pixels, the middle of the top left pixel at (0, 0), the first point not repeated, counter-clockwise. The area inside is the
    number of pixels. BadInput for an empty mask."""
    mask = np.asarray(mask, dtype=bool)
    if mask.ndim != 2 or not mask.any():
        raise BadInput(f"a mask of shape {mask.shape} with {int(mask.sum())} pixels: (H, W) and one pixel are needed")
    labels, parts = ndimage.label(mask, structure=np.ones((3, 3)))  # type: ignore[misc]
    if parts > 1:
        mask = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    padded = np.pad(ndimage.binary_fill_holes(mask).astype(np.float64), 5)  # type: ignore[union-attr]
    count = padded.sum()
    for smooth in (ndimage.gaussian_filter(padded, 1.0), padded):
        lines = find_contours(smooth, 0.5, fully_connected="high")
        points = max((line[:-1] for line in lines), key=lambda line: abs(_area(line)), default=np.zeros((1, 2)))
        if abs(_area(points)) > 0.8 * count:  # or too thin to survive the smoothing
            break
    points = np.stack([points[:, 1] - 5, 5 - points[:, 0]], axis=1)
    middle = points.mean(axis=0)
    points = middle + (points - middle) * math.sqrt(count / abs(_area(points)))
    return points if _area(points) > 0 else points[::-1]


# Measuring an outline


def _area(points: Array) -> float:
    """Signed, positive counter-clockwise."""
    x, y = points[:, 0], points[:, 1]
    return 0.5 * float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))


def _perimeter(points: Array) -> float:
    return float(np.linalg.norm(np.roll(points, -1, axis=0) - points, axis=1).sum())


def _ellipse(points: Array) -> tuple[float, float]:
    """Length and thickness of the Legendre ellipse: the ellipse with the same second moments (Medalia 1970), those of the
    polygon in closed form."""
    p = points - points.mean(axis=0)
    q = np.roll(p, -1, axis=0)
    cross = p[:, 0] * q[:, 1] - q[:, 0] * p[:, 1]
    area = cross.sum() / 2
    if abs(area) < 1e-300:
        return math.nan, math.nan
    middle = ((p + q) * cross[:, None]).sum(axis=0) / (6 * area)
    xx = ((p[:, 0] ** 2 + p[:, 0] * q[:, 0] + q[:, 0] ** 2) * cross).sum() / (12 * area) - middle[0] ** 2
    yy = ((p[:, 1] ** 2 + p[:, 1] * q[:, 1] + q[:, 1] ** 2) * cross).sum() / (12 * area) - middle[1] ** 2
    xy = ((p[:, 0] * (2 * p[:, 1] + q[:, 1]) + q[:, 0] * (p[:, 1] + 2 * q[:, 1])) * cross).sum() / (24 * area)
    xy -= middle[0] * middle[1]
    half, turn = (xx + yy) / 2, math.hypot((xx - yy) / 2, xy)
    return 4 * math.sqrt(half + turn), 4 * math.sqrt(max(half - turn, 0.0))


def measures_of(points: Array, *, slow: bool = True) -> dict[str, float]:
    """The measures of one outline, a polygon (N, 2) in mm that does not cross itself, named as in `tables.MEASURES`.

    Seen once, a particle's width and thickness are the same: its least Feret diameter. Length is the largest. angularity is
    that of Sukumaran & Ashmawy (2001), equation 4, in percent of a rod's, and krumbein_roundness the corners' radii over that
    of the largest circle inside (see `roundness`); the analyser's own formulas of these two are not published, so that only
    figures of one source may be compared. curvature is not measured. slow: also these two.

    Raises BadInput for fewer than three points, points that are not finite, or that enclose nothing.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
        raise BadInput(f"an outline of shape {points.shape}: (N, 2) finite numbers and N of 3 or more are needed")
    area, perimeter = abs(_area(points)), _perimeter(points)
    try:
        hull = points[ConvexHull(points).vertices]
    except QhullError:
        raise BadInput("an outline on a line encloses nothing") from None
    edges = np.roll(hull, -1, axis=0) - hull
    lengths = np.linalg.norm(edges, axis=1)
    normals = np.stack([-edges[:, 1], edges[:, 0]], axis=1)[lengths > 0] / lengths[lengths > 0, None]
    across = hull @ normals.T  # (h, e)
    least = float(np.ptp(across, axis=0).min())  # the least width has an edge of the hull on one side
    most = math.sqrt(float(((hull[:, None] - hull[None]) ** 2).sum(axis=2).max()))
    long, thick = _ellipse(points)
    found = {"feret_length": most, "feret_width": least, "feret_thickness": least}
    found |= {"ellipse_length": long, "ellipse_width": thick, "ellipse_thickness": thick}
    found |= {
        "area": area,
        "perimeter": perimeter,
        "hull_area": abs(_area(hull)),
        "hull_perimeter": float(lengths.sum()),
    }
    if slow:
        found |= {"angularity": angularity(points), "krumbein_roundness": roundness(points)}
    return derived(found)


def derived(found: dict[str, float]) -> dict[str, float]:
    """What follows from diameters, area and perimeter, by the analyser's formulas, see `tables.MEASURES`."""
    A, P, HA, HP = (found[name] for name in ("area", "perimeter", "hull_area", "hull_perimeter"))
    L, W, T = (found[name] for name in ("feret_length", "feret_width", "feret_thickness"))
    da, dp = math.sqrt(4 * A / math.pi), P / math.pi
    ratio = found["ellipse_thickness"] / found["ellipse_length"]
    fibre = P * P - 16 * A
    fiber_length = (P + math.sqrt(fibre)) / 4 if fibre > 0 else 0.0
    return {
        **found,
        "da": da,
        "dp": dp,
        "volume": math.pi / 6 * L * W * T,
        "sphericity": da / dp,
        "length_thickness": L / T,
        "thickness_length": T / L,
        "compactness": da / L,
        "roundness": 4 * A / (math.pi * L * L),
        "ellipse_ratio": ratio,
        "circularity": 4 * math.pi * A / P**2,
        "solidity": A / HA,
        "concavity": (HA - A) / HA,
        "convexity": HP / P,
        "extent": A / (L * T),
        "surface_area": 4 * A,
        "length_width": L / W,
        "width_length": W / L,
        "width_thickness": W / T,
        "thickness_width": T / W,
        "hull_surface_area": 4 * HA,
        "sieve": (W + T) / 2,
        "ellipticity": 1 / ratio if ratio > 0 else math.nan,
        "fiber_length": fiber_length,
        "fiber_width": A / fiber_length if fiber_length else 0.0,
    }


def resampled(points: Array, count: int) -> Array:
    """So many points at equal distances along a closed outline: (count, 2)."""
    closed = np.concatenate([points, points[:1]])
    along = np.concatenate([[0.0], np.linalg.norm(np.diff(closed, axis=0), axis=1).cumsum()])
    at = np.linspace(0, along[-1], count, endpoint=False)
    return np.stack([np.interp(at, along, closed[:, k]) for k in (0, 1)], axis=1)


def angularity(points: Array) -> float:
    """100 x [Σ(βᵢ − 180°)² − 360²/N] / [3 x 180² − 360²/N] over the N inner angles βᵢ of the outline at N equal distances
    (Sukumaran & Ashmawy 2001, equation 4): 0 for a circle."""
    p = resampled(points, CORNERS)
    steps = np.roll(p, -1, axis=0) - p
    heading = np.arctan2(steps[:, 1], steps[:, 0])
    turns = np.degrees((np.roll(heading, -1) - heading + math.pi) % (2 * math.pi) - math.pi)
    even = 360**2 / CORNERS
    return float(100 * ((turns**2).sum() - even) / (3 * 180**2 - even))


def roundness(points: Array, count: int = 240) -> float:
    """Krumbein's (1941) roundness, after Wadell: the mean radius of the corners over that of the largest circle inside, at
    most 1. A corner is where the outline, smoothed over a fiftieth of its length, turns more sharply than that circle, and
    more than its neighbours (as in Zheng & Hryciw 2015, who fit circles there)."""
    p = resampled(points, count)
    p = ndimage.gaussian_filter1d(p, count / 100, axis=0, mode="wrap")
    first = (np.roll(p, -1, axis=0) - np.roll(p, 1, axis=0)) / 2
    second = np.roll(p, -1, axis=0) - 2 * p + np.roll(p, 1, axis=0)
    speed = np.maximum((first**2).sum(axis=1), 1e-300) ** 1.5
    bend = (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]) / speed * math.copysign(1, _area(p))
    low, size = p.min(axis=0), float(np.ptp(p, axis=0).max())
    grid = polygon2mask((88, 88), (p - low) / size * 80 + 4)
    inside = float(ndimage.distance_transform_edt(grid).max()) * size / 80  # type: ignore[union-attr]
    corner = (bend > 1 / inside) & (bend >= ndimage.maximum_filter1d(bend, max(3, count // 60), mode="wrap"))
    return float(min(1.0, (1 / bend[corner]).mean() / inside)) if corner.any() else 1.0


def measure(particle: Particle | Array, scale: float = 1.0, *, slow: bool = True) -> dict[str, float]:
    """The measures of a particle, or of a mask (h, w), at `scale` mm a pixel; of a photograph also transparency, the mean
    brightness inside beside that of the background, at most 1."""
    if not isinstance(particle, Particle):
        return measures_of(outline(particle) * scale, slow=slow)
    found = measures_of(outline(particle.mask) * scale, slow=slow)
    if particle.clear is not None:
        inner = np.asarray(ndimage.binary_erosion(particle.mask, iterations=2), dtype=bool)
        light = particle.clear[inner if inner.any() else particle.mask]
        found["transparency"] = float(np.clip(light.mean(), 0, 1))
    return found


def aggregate(frames: Sequence[dict[str, float]]) -> dict[str, float]:
    """The measures of one particle from those of its frames: lengths are the largest, width the largest and thickness the
    smallest of the least diameters, all else the mean; what follows from these is computed anew, see `derived`."""
    if not frames:
        raise BadInput("no frame of the particle was measured")
    how: dict[str, Any] = dict.fromkeys(("feret_length", "feret_width", "ellipse_length", "ellipse_width"), max)
    how |= dict.fromkeys(("feret_thickness", "ellipse_thickness"), min)
    own = ("area", "perimeter", "hull_area", "hull_perimeter", "angularity", "krumbein_roundness", "transparency")
    found = {
        name: float(how.get(name, np.mean)([frame[name] for frame in frames]))
        for name in (*how, *own)
        if all(name in frame for frame in frames)
    }
    return derived(found)


# Elliptic Fourier outlines (Kuhl & Giardina 1982)


def fourier(points: Array, harmonics: int = 10) -> Array:
    """Elliptic Fourier coefficients (harmonics, 4) of a closed outline: aₙ, bₙ, cₙ, dₙ of equations 3 to 6, normalised as
    in their section 5: for size (the first ellipse's half axis is 1), its direction, and the point to start from. Of the two
    starts that an ellipse allows, the one at which the outline reaches further out, counter-clockwise from there."""
    points = points if _area(points) > 0 else points[::-1]
    closed = np.concatenate([points, points[:1]])
    steps = np.diff(closed, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    steps, lengths = steps[lengths > 0], lengths[lengths > 0]
    ends = np.concatenate([[0.0], lengths.cumsum()])
    T, n = ends[-1], np.arange(1, harmonics + 1)[:, None]
    angle = 2 * math.pi * n * ends[None] / T
    cos, sin = np.diff(np.cos(angle), axis=1), np.diff(np.sin(angle), axis=1)
    slope = steps / lengths[:, None]
    scale = T / (2 * math.pi**2 * n**2)
    found = np.stack([(scale * (w @ slope[:, k])[:, None])[:, 0] for k in (0, 1) for w in (cos, sin)], axis=1)
    a, b, c, d = found[0]
    start = 0.5 * math.atan2(2 * (a * b + c * d), a * a + c * c - b * b - d * d)
    turned = np.empty_like(found)
    for k, row in enumerate(found, 1):
        rotation = np.array([[math.cos(k * start), -math.sin(k * start)], [math.sin(k * start), math.cos(k * start)]])
        turned[k - 1] = (row.reshape(2, 2) @ rotation).ravel()
    direction = math.atan2(turned[0, 2], turned[0, 0])
    back = np.array([[math.cos(direction), math.sin(direction)], [-math.sin(direction), math.cos(direction)]])
    size = math.hypot(turned[0, 0], turned[0, 2])
    found = np.stack([(back @ row.reshape(2, 2)).ravel() for row in turned]) / size
    if found[1::2, 0].sum() < 0:  # x at the start less that at the other end is twice the even ones' sum
        found[1::2] *= -1
    return found


def rebuilt(coefficients: Array, count: int = 200) -> Array:
    """The outline (count, 2) that elliptic Fourier coefficients (H, 4) stand for, around 0."""
    t = np.linspace(0, 2 * math.pi, count, endpoint=False)
    n = np.arange(1, len(coefficients) + 1)[:, None]
    a, b, c, d = coefficients.T[..., None]
    return np.stack([(a * np.cos(n * t) + b * np.sin(n * t)).sum(0), (c * np.cos(n * t) + d * np.sin(n * t)).sum(0)], 1)


# Whole collections


def _seen(path: str) -> tuple[Array, list[Particle]]:
    image = np.moveaxis(decode(Path(path)).numpy(), 0, 2)
    return image, segment(image)


def _measured(frames: tuple[str, ...], scale: float) -> tuple[dict[str, float] | None, str]:
    """The measures of those of a particle's pictures that show it, or None and why there are none."""
    found, why = [], "" if frames else "no picture"
    for path in frames:
        try:
            _, particles = _seen(path)
            if particles:
                found.append(measure(particles[0], scale if math.isfinite(scale) else 1.0))
            else:
                why = why or f"{Path(path).name}: no particle is seen"
        except (UnreadableImage, BadInput) as error:
            why = why or f"{Path(path).name}: {error}"
    return (aggregate(found), "") if found else (None, why)


def _cut(task: tuple[tuple[str, ...], str], size: int) -> str:
    """Cut the largest particle out of the first picture that shows one, into a square of its own. Returns why not, or ""."""
    frames, out = task
    why = ""
    for path in frames:
        try:
            image, particles = _seen(path)
        except (UnreadableImage, BadInput) as error:
            why = why or f"{Path(path).name}: {error}"
            continue
        if particles:
            break
        why = why or f"{Path(path).name}: no particle is seen"
    else:
        return why
    picture = Image.fromarray(crop(image, particles[0]))
    picture = picture.resize((size, size), Image.Resampling.LANCZOS if picture.width < size else Image.Resampling.BOX)
    with whole(Path(out)) as beside:
        picture.save(beside)
    return ""


def crop(image: Array, particle: Particle, margin: float = MARGIN) -> Array:
    """A particle's own picture, square, uint8 (S, S): the particle in the middle, as large as it is, and around it, from two
    pixels off its edge on, one grey, the median of the picture's border: neither neighbours nor uneven light are left to learn
    from."""
    grey = grey_of(image)
    ground = float(np.median(rim_of(grey)))
    top, left, bottom, right = particle.box
    h, w = bottom - top, right - left
    margin = max(2, math.ceil(margin * max(h, w)))
    side = max(h, w) + 2 * margin
    y, x = (side - h) // 2 - 2, (side - w) // 2 - 2
    near = np.asarray(
        ndimage.binary_dilation(np.pad(particle.mask, 2), iterations=2), dtype=bool
    )  # with its blurred rim
    own = np.pad(grey, 2, constant_values=ground)[top : bottom + 4, left : right + 4]
    canvas = np.full((side, side), ground, dtype=np.float32)
    canvas[y : y + h + 4, x : x + w + 4][near] = own[near]
    return np.round(np.clip(canvas, 0, 1) * 255).astype(np.uint8)


def _all(work: Any, tasks: Sequence[Any], title: str | None) -> list[Any]:
    """`work` of each task, in order, on all cores, with a bar."""
    cores = min(os.cpu_count() or 1, 16)
    if len(tasks) < 400 or cores == 1:  # not worth starting Python again
        return list(track(map(work, tasks), title, len(tasks)))
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        return list(track(pool.map(work, tasks, chunksize=32), title, len(tasks)))


def _of(task: tuple[tuple[str, ...], float]) -> tuple[dict[str, float] | None, str]:
    return _measured(*task)


def measure_images(particles: pd.DataFrame, *, title: str | None = None) -> tuple[pd.DataFrame, list[str]]:
    """The measures of particles, a row each, from their "frames" (paths) and "scale" (mm a pixel): of each picture the
    largest particle, several pictures put together by `aggregate`. And sentences on what could not be measured.

    Where a particle has no scale, only what has no dimension is given (NaN for lengths, areas and volumes).
    """
    tasks = list(zip(particles["frames"], particles["scale"].astype(float), strict=True))
    found = _all(_of, tasks, title)
    table = pd.DataFrame([values or {} for values, _ in found], index=particles.index)
    names = [name for name in MEASURES if name in table]
    sized = [name for name in names if MEASURES[name].dimension in ("length", "area", "volume")]
    table = table.reindex(columns=names)
    unknown = ~np.isfinite(particles["scale"].astype(float).to_numpy())
    table.loc[unknown, sized] = np.nan
    notes = _missed([why for values, why in found if values is None], "could not be measured")
    if unknown.any():
        notes.append(f"{unknown.sum():,} particles have no scale: of them only what has no dimension is measured.")
    return table, notes


def cut(particles: pd.DataFrame, out: Path, *, size: int) -> tuple[list[str | None], list[str]]:
    """A picture of each particle, of the first frame that shows it: OUT/PARTICLE.png, size x size, grey. Paths, None where there
    is none, and sentences on those. Pictures that are there are kept.

    Each particle fills its picture, its aspect kept, enlarged if need be, whatever its size: networks are to see form, and size
    is left to the measures. How blurred a small particle becomes by it still tells of its size.
    """
    names = ["".join(c if c.isalnum() or c in "-_." else "_" for c in str(each)) for each in particles["particle"]]
    if len(set(names)) < len(names):
        names = [f"{i}-{name}" for i, name in enumerate(names)]
    paths = [out / f"{name}.png" for name in names]
    tasks = [
        (frames, str(path))
        for frames, path in zip(particles["frames"], paths, strict=True)
        if frames and not path.is_file()
    ]
    missed = [why for why in _all(partial(_cut, size=size), tasks, "cutting out") if why]
    return [str(path) if path.is_file() else None for path in paths], _missed(missed, "could not be cut out")


def _missed(reasons: Sequence[str], what: str) -> list[str]:
    if not reasons:
        return []
    more = f" and {len(reasons) - 3:,} more" if len(reasons) > 3 else ""
    return [f"{len(reasons):,} particles {what}: {'; '.join(reasons[:3])}{more}."]

"""Photographs of simulated flakes, as an analyser takes them: a lit flake before a bright screen, grey, 8 bit.

The dorsal face is the lowest of some planes, the scars of earlier flakes, so that they meet in ridges; each is a little hollow.
The ventral face is a low dome with the bulb of percussion near the platform and ripples about the point of the blow. Shading
is Lambert's with a soft gloss, grain the stone's; light that passes through thin places is added and the edge, which
refracts it away, is dark. The mean brightness within the outline, relative to the screen's, is the flake's transparency.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float64]

FINER = 4
"""Lines a pixel on which its coverage is found."""


@dataclass(frozen=True)
class Light:
    """How the instrument's camera sees."""

    screen: float = 0.87
    """Brightness of the background, 1 for white."""
    uneven: float = 0.03
    """How much darker it is in a corner."""
    direction: tuple[float, float, float] = (-0.55, 0.6, 0.58)
    """Where the lamp stands: right, up, towards the camera."""
    blur: float = 0.6
    """Standard deviation of the lens' blur, pixels."""
    noise: float = 0.008
    """Standard deviation of a pixel, relative to white."""


@dataclass(frozen=True)
class Body:
    """What of a flake is seen beside its outline."""

    width: float
    """mm."""
    length: float
    """mm."""
    thickness: float
    """mm."""
    ridges: int
    """1 to 3."""
    transparency: float
    """0 to 1."""
    grain: float
    """Contrast of the stone's texture, about 0.01 (glassy) to 0.06 (coarse)."""


def photograph(
    outline: Array,
    body: Body,
    angle: float,
    spin: float,
    *,
    scale: float,
    pixels: int,
    light: Light,
    form: np.random.Generator,
    chance: np.random.Generator,
) -> NDArray[np.uint8]:
    """A picture (pixels, pixels) of the outline (N, 2), mm about its middle. angle: radians turned about the length, spin: in
    the picture, counter-clockwise. scale: mm a pixel. form: draws what is the flake's own; chance: what is the picture's."""
    shift = chance.uniform(-0.02, 0.02, 2) * pixels
    cover = covered(outline / scale + shift, pixels)
    at = (np.arange(pixels) + 0.5 - pixels / 2) * scale
    screen = light.screen * (1 - light.uneven * ((at / at[-1]) ** 2 + (at[:, None] / at[-1]) ** 2) / 2)
    if len(rows := np.flatnonzero(cover.any(1))):
        columns = np.flatnonzero(cover.any(0))
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        x, y = at[None, box[1]] - shift[0] * scale, -at[box[0], None] - shift[1] * scale  # right, up
        look = appearance(x, y, cover[box], body, angle, spin, light, form)
        screen[box] *= 1 - cover[box] + cover[box] * look
    picture = gaussian_filter(screen, light.blur) + light.noise * chance.standard_normal(screen.shape)
    return np.clip(np.rint(255 * picture), 0, 255).astype(np.uint8)


def appearance(
    x: Array, y: Array, cover: Array, body: Body, angle: float, spin: float, light: Light, form: np.random.Generator
) -> Array:
    """Brightness relative to the screen's (h, w) where the flake is. x (1, w) and y (h, 1): mm right and up of its middle."""
    c, s = np.cos(spin), np.sin(spin)
    across, along = c * x + s * y, c * y - s * x  # (h, w) mm in the flake's own axes
    narrow = np.hypot(np.cos(angle), body.thickness / body.width * np.sin(angle))
    u, v = 2 * across / (narrow * body.width), 2 * along / body.length  # −1 to 1
    scars, phase = dorsal(body.ridges, form), form.uniform(0, 2 * np.pi, 4)
    if np.cos(angle) > 0:
        u, v = (
            u + 0.035 * np.sin(5 * v + phase[0]) + 0.015 * np.sin(13 * v + phase[1]),
            v + 0.03 * np.sin(6 * u + phase[2]),
        )
        height, slope_u, slope_v, crest = faceted(u, v, scars)
    else:
        height, slope_u, slope_v, crest = bulbed(u, v, body.length / body.width)
    run, rise = -3 * body.thickness * slope_u / body.width, -3 * body.thickness * slope_v / body.length
    steep = np.sqrt(1 + run**2 + rise**2)
    right, up, near = run / steep, rise / steep, 1 / steep  # the normal, in the flake's axes
    lean = (angle + np.pi / 2) % np.pi - np.pi / 2  # of the face that is seen
    right, near = right * np.cos(lean) + near * np.sin(lean), near * np.cos(lean) - right * np.sin(lean)
    right, up = c * right - s * up, s * right + c * up
    lamp = np.array(light.direction) / np.linalg.norm(light.direction)
    half = lamp + np.array([0, 0, 1])
    half /= np.linalg.norm(half)
    lit = np.maximum(lamp[0] * right + lamp[1] * up + lamp[2] * near + 0.25, 0) / 1.25  # the screen lights it, too
    gloss = np.maximum(half[0] * right + half[1] * up + half[2] * near, 0) ** 24
    fine, coarse = form.standard_normal((2, *cover.shape))
    texture = 1.3 * gaussian_filter(fine, 0.6) + 5.5 * gaussian_filter(coarse, 2.0)
    passed = body.transparency * np.exp(-3 * np.clip(height, 0, None))
    rim = np.clip(1 - gaussian_filter(np.pad(cover, 3), 1.2)[3:-3, 3:-3], 0, 0.5)
    look = 0.42 * lit + 0.10 * gloss + 0.08 * crest + 0.4 * passed - 0.2 * rim + body.grain * texture
    mean = (look * cover).sum() / cover.sum()
    return np.clip(body.transparency + look - mean, 0.03, 0.72)


def covered(points: Array, pixels: int) -> Array:
    """The share of each pixel (pixels, pixels) that a polygon covers, in FINER lines a pixel, exact along each; points (N, 2)
    are pixels right and up of the middle."""
    x, y = pixels / 2 + points[:, 0], pixels / 2 - points[:, 1]
    x2, y2 = np.roll(x, -1), np.roll(y, -1)
    line = ((np.arange(FINER * pixels) + 0.5) / FINER)[:, None]  # (L, 1)
    crossed, side = np.nonzero((y <= line) != (y2 <= line))
    across = x[side] + (line[crossed, 0] - y[side]) / (y2 - y)[side] * (x2 - x)[side]
    way = np.sign(y2 - y)[side] / FINER
    beyond = np.clip(np.arange(1, pixels + 1) - across[:, None], 0, 1)  # share of each pixel right of the crossing
    cover = np.zeros((pixels, pixels))
    np.add.at(cover, crossed // FINER, way[:, None] * beyond)
    return np.clip(np.abs(cover), 0, 1)


def dorsal(ridges: int, form: np.random.Generator) -> Array:
    """Scars (F, 4): direction (radians, 0 to the right, a right angle to the end), rise, place of its foot, hollowness."""
    turn, rise, foot, hollow = form.uniform(-1, 1, (4, 5))
    sides = 1.0 if ridges == 1 else 1.9
    scars = [
        (0.22 * turn[0], sides * (1 + 0.35 * rise[0]), 1 + 0.1 * foot[0], 0.5 * hollow[0]),
        (np.pi + 0.22 * turn[1], sides * (1 + 0.35 * rise[1]), 1 + 0.1 * foot[1], 0.5 * hollow[1]),
        (-np.pi / 2 + 0.3 * turn[2], 7.0, 0.97, 0.0),  # the platform's edge
    ]
    if ridges > 1:
        scars.append((np.pi / 2 + 0.8 * turn[3], 0.22 + 0.1 * rise[3], 4.0 + 0.6 * foot[3], 0.15))
    if ridges > 2:
        scars.append((np.pi / 2 + 0.9 * np.sign(turn[4]) * (0.4 + 0.6 * abs(turn[4])), 1.3 + 0.4 * rise[4], 0.85, 0.3))
    return np.array(scars)


def faceted(u: Array, v: Array, scars: Array) -> tuple[Array, Array, Array, Array]:
    """Height in thicknesses, its slopes along u and v, and how near a ridge is, each (H, W), of the lowest of planes."""
    turn, rise, foot, hollow = scars.T[..., None, None]  # (F, 1, 1) each
    inward = foot - u * np.cos(turn) - v * np.sin(turn)  # (F, H, W) from the foot of each
    heights = rise * inward * (1 + hollow * (inward - 1) / 2)
    order = np.argsort(heights, axis=0)
    lowest, second = (np.take_along_axis(heights, order[k : k + 1], 0)[0] for k in (0, 1))
    which = order[0]
    steep = -np.take_along_axis(rise * (1 + hollow * (inward - 0.5)), order[:1], 0)[0]
    waves = 1 + 0.12 * np.sin(9 * np.take_along_axis(inward, order[:1], 0)[0] + 2 * which)
    direction = turn[:, 0, 0][which]
    crest = np.exp(-(((second - lowest) / 0.09) ** 2))
    return lowest, steep * waves * np.cos(direction), steep * waves * np.sin(direction), crest


def bulbed(u: Array, v: Array, slenderness: float) -> tuple[Array, Array, Array, Array]:
    """As `faceted`, of the ventral face."""
    x, y = u / 0.55, (v + 0.68) / 0.34
    bulb = 0.55 * np.exp(-(x**2) - y**2)
    reach = np.hypot(u / slenderness, v + 1) + 1e-9  # from the point of the blow
    ripple = 0.20 * np.exp(-0.7 * reach) * np.cos(15 * reach)
    slope_u = -0.5 * u - 2 * x / 0.55 * bulb + ripple * u / slenderness / reach
    slope_v = -0.15 * v - 2 * y / 0.34 * bulb + ripple * (v + 1) / reach
    return 0.25 * (1 - u**2) + bulb, slope_u, slope_v, np.zeros_like(u)

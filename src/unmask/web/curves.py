"""Curves of several runs in one figure a quantity: inline SVG, as sharp on a phone as on a screen, in the page's colours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from unmask.report import text

WIDTH, HEIGHT = 420, 220
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 8, 40
"""Margins of the paper, in its own units."""
MOST = 400
"""Points of a curve that are drawn; of more, the least and the largest in each of half as many stretches."""


@dataclass(frozen=True)
class Curve:
    """One run's line."""

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    colour: str
    dashed: bool = False


def panel(
    title: str,
    hint: str,
    curves: Sequence[Curve],
    unit: str,
    log_x: bool = False,
    log_y: bool = False,
    floor: float | None = None,
) -> str:
    """HTML of one quantity: its title, how to read it, where each solid curve ends, and the curves. unit: of x. floor: a value
    that must be in sight. Empty where no curve has a point."""
    drawn = [thinned(curve, log_x, log_y) for curve in curves]
    drawn = [curve for curve in drawn if len(curve.x)]
    if not drawn:
        return ""
    x, y = (np.concatenate([getattr(curve, axis) for curve in drawn]) for axis in "xy")
    low, high = float(y.min()), float(y.max())
    if not log_y:
        low, high = (low, high) if floor is None else (min(low, floor), max(high, floor))
        span = max(high - low, 0.02 * max(abs(low), abs(high)), 1e-9)
        low, high = low if low == floor else low - 0.06 * span, high + 0.08 * span
    across = Axis(float(x.min()) if log_x else min(0.0, float(x.min())), float(x.max()), LEFT, WIDTH - RIGHT, log_x)
    down = Axis(low, high, HEIGHT - BOTTOM, TOP, log_y)
    lines = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(v):.1f}" y2="{down(v):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{down(v) + 4:.1f}" text-anchor="end">{brief(v)}</text>'
        for v in down.ticks(4)
    ]
    lines += [
        f'<text x="{min(across(v), WIDTH - 16):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{brief(v)}</text>'
        for v in across.ticks(5)
    ]
    lines.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{text(unit)}</text>')
    for curve in sorted(drawn, key=lambda curve: not curve.dashed):
        style = ' stroke-dasharray="6 4" stroke-width="1.5" opacity="0.8"' if curve.dashed else ' stroke-width="2.2"'
        points = [(across(a), down(b)) for a, b in zip(curve.x, curve.y, strict=True)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        lines.append(
            f'<polyline points="{path}" stroke="{curve.colour}"{style}><title>{text(curve.name)}</title></polyline>'
        )
        if len(points) < 25 and not curve.dashed:
            lines += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{curve.colour}"/>' for a, b in points]
    ends = " ".join(
        f'<b style="--chip:{curve.colour}" title="{text(curve.name)}">{curve.y[-1]:.3g}</b>'
        for curve in drawn
        if not curve.dashed
    )
    said = f"{title}: " + ", ".join(f"{curve.name} {curve.y[-1]:.3g}" for curve in drawn if not curve.dashed)
    return (
        f'<figure class="curve"><figcaption><b>{text(title)}</b><small>{text(hint)}</small>'
        f'<span class="ends">{ends}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(said)}">{"".join(lines)}</svg></figure>'
    )


def thinned(curve: Curve, log_x: bool, log_y: bool) -> Curve:
    """What of a curve can be drawn."""
    shown = np.isfinite(curve.x) & np.isfinite(curve.y)
    shown &= (curve.x > 0) | (not log_x)
    shown &= (curve.y > 0) | (not log_y)
    x, y = curve.x[shown], curve.y[shown]
    if len(x) > MOST:
        parts = np.array_split(np.arange(len(x)), MOST // 2)
        kept = np.unique([[part[y[part].argmin()], part[y[part].argmax()]] for part in parts])
        kept = np.union1d(kept, [0, len(x) - 1])
        x, y = x[kept], y[kept]
    return Curve(curve.name, x, y, curve.colour, curve.dashed)


@dataclass(frozen=True)
class Axis:
    """From values to places."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (
            (math.log10(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        share = (value - low) / (high - low) if high > low else 0.5
        return self.begin + share * (self.end - self.begin)

    def ticks(self, most: int) -> list[float]:
        """About so many round values in sight."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1,), (1, 3), (1, 2, 5)):
                found = [n * 10.0**k for k in powers for n in steps if self.low <= n * 10.0**k <= self.high]
                if len(found) >= 3:
                    return found[:: -(-len(found) // (most + 1))]
        if not self.high > self.low:
            return [self.low]
        found = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        return [float(v) for v in found if self.low <= v <= self.high]


def brief(value: float) -> str:
    """A number beside an axis."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    if 1e-12 <= abs(value) < 1e-3:
        mantissa, _, power = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(power)}"
    return "0" if abs(value) < 1e-12 else f"{value:.3g}" if abs(value) < 1 else f"{value:.4g}"

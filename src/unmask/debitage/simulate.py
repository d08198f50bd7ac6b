"""Simulated assemblages: flakes from a stated model, to calibrate a study with, since here the truth is known.

A flake is drawn in three steps.

1. **Traits.** Each of the nine `Traits` of a flake is, in standard deviations among the flakes of one sitting,

       z = effect · skill · s + knapper · b_K + material · b_M + session · b_S + sitting · b_A + e,    all b, e ~ N(0, 1)

   with s from −½ (1 year, or novice) to ½ (20 years, or expert), linear in ln(1 + years) as practice makes perfect (the power
   law of practice; Newell & Rosenbloom 1981). A b is one number a trait for each knapper, material, session (a day and the
   state of the instrument on it) and sitting (one assemblage). At effect 0 the hands still differ, and skill does not.
2. **Form.** Size, its longest dimension: by number a Weibull law between two sieves, as Stahle & Dunn (1982, American Antiquity
   47: 84–97) found for flakes; it is Rosin & Rammler's (1933) form. Outline: from a straight platform the sides part to the full
   width, converge, and close in a feathered end, or, in a hinge or step, shorter and blunt; the axis bends; on it lies
   Fourier noise of harmonics 3 to 16 with amplitudes ~ 1/f^p (Kuhl & Giardina 1982 for the description). Cross-section: an
   ellipse with the thickness a share of the width. The dorsal face: planes that meet in one to three ridges; the ventral:
   a bulb with ripples.
3. **The instrument** sees it fall, turning about its length, in a few frames: the apparent width lies between width and
   thickness. It measures each frame's outline, aggregates, and rounds to 0.001. Photographs: `photographs.py`.

Which way skill works follows experiments: novices' flakes end in more hinges and steps (Shelley 1990, Journal of Field
Archaeology 17: 187–193), are shorter for their width and thicker, and less regular, from larger platforms (Eren, Bradley &
Sampson 2011, American Antiquity 76: 229–251; Nonaka, Bril & Rein 2010, Journal of Human Evolution 59: 155–167; Stout &
Khreisheh 2015, Cambridge Archaeological Journal 25: 867–875); and knappers of equal skill differ (Williams & Andrefsky 2011,
Journal of Archaeological Science 38: 865–872). The sizes of effects and deviations are assumptions, each a setting of `Model`;
none was estimated from an assemblage.

Every draw is a function of (seed, assemblage, particle): more particles leave the first as they were.
"""

import dataclasses
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from PIL import Image
from scipy.special import ndtr, ndtri

from unmask.debitage import shapes, tables
from unmask.debitage.photographs import Body, Light, photograph
from unmask.debitage.study import KNOWN, Question, Study
from unmask.errors import BadInput
from unmask.screen import bar

Array = NDArray[np.float64]

# The model


@dataclass(frozen=True)
class Traits:
    """A number for each trait of a flake, such as what skill does to it, in standard deviations."""

    size: float = 0.0
    """Longest dimension."""
    elongation: float = 0.0
    """Length over width."""
    platform: float = 0.0
    """Width of the striking platform, a share of the flake's."""
    convergence: float = 0.0
    """How much the sides near each other towards the end."""
    irregularity: float = 0.0
    """How far the outline strays from its course."""
    hinge: float = 0.0
    """Proneness to end in a hinge or step rather than a feathered edge."""
    thickness: float = 0.0
    """Thickness over width."""
    ridges: float = 0.0
    """Earlier scars on the dorsal face: one, two or three ridges."""
    clarity: float = 0.0
    """Light that passes."""

    @property
    def array(self) -> Array:
        """(9,) float64, in the order of the fields."""
        return np.array(dataclasses.astuple(self), dtype=float)


TRAITS = tuple(f.name for f in dataclasses.fields(Traits))


@dataclass(frozen=True)
class Model:
    """What is assumed of flakes, hands, stones and days."""

    effect: float = 1.0
    """Multiplies `skill`: 0 for hands that differ in everything but skill."""
    skill: Traits = Traits(
        elongation=0.5, platform=-0.6, convergence=0.3, irregularity=-0.7, hinge=-0.7, thickness=-0.6, ridges=0.4
    )
    """What 20 years of practice rather than 1 (or an expert rather than a novice) do to each trait, in standard deviations
    among the flakes of one sitting."""
    by: Literal["years", "skill"] = "years"
    """What s grows with: ln(1 + years), or the level: novice, intermediate, expert in equal steps."""
    knapper: float = 0.25
    """Standard deviation between hands of equal skill, in those of flakes of one sitting; so the next three."""
    material: float = 0.4
    """Between stones; three times this for `clarity`, which is the stone's."""
    session: float = 0.15
    """Between days: hammer, cores, the instrument's state."""
    sitting: float = 0.1
    """Between assemblages of one hand, stone and day."""

    least: float = 2.0
    """mm; the finer sieve: no flake is smaller."""
    most: float = 8.0
    """mm; the coarser sieve."""
    characteristic: float = 3.0
    """mm; scale of the Weibull law of sizes."""
    modulus: float = 1.3
    """Its shape: the smaller, the more fine debris."""
    elongation: float = 1.35
    """Median of length over width."""
    elongation_spread: float = 0.25
    """Standard deviation of its logarithm."""
    platform: float = 0.42
    """Median of platform width over flake width."""
    platform_spread: float = 0.3
    """Standard deviation of its logarithm."""
    convergence: float = 0.35
    """Median share of the width that is lost towards the end; 0 parallel sides, 1 a point."""
    convergence_spread: float = 0.8
    """Standard deviation of its logit."""
    bend: float = 0.06
    """Standard deviation of the axis' sagitta over the length, left or right; no one's skill."""
    irregularity: float = 0.045
    """Median root mean square of the outline's noise, a share of its distance from the middle."""
    irregularity_spread: float = 0.35
    """Standard deviation of its logarithm."""
    power: float = 1.3
    """p: the noise's amplitudes fall as 1/f^p."""
    hinge: float = 0.18
    """Share of flakes that end in a hinge or step."""
    thickness: float = 0.27
    """Median of thickness over width."""
    thickness_spread: float = 0.28
    """Standard deviation of its logarithm."""
    ridges: tuple[float, float] = (0.35, 0.82)
    """Shares of flakes with one ridge, and with one or two."""
    clarity: float = 0.4
    """Median transparency: brightness of the flake relative to the background's."""
    clarity_spread: float = 0.3
    """Standard deviation of its logit."""
    opacity: float = 0.25
    """What a mm of thickness takes from that logit."""

    gain: float = 0.003
    """Standard deviation of the instrument's scale from session to session, relative."""
    frames: int = 3
    """Pictures that are taken of each flake as it falls."""
    turn: float = 0.9
    """Radians about its length from frame to frame, on average."""


@dataclass(frozen=True)
class Knapper:
    name: str
    years: float
    skill: str


@dataclass(frozen=True)
class Assemblage:
    """Who worked which stone on which day."""

    knapper: Knapper
    material: str
    session: str
    share: float = 1.0
    """Of the particles, relative to the other assemblages'."""
    off: tuple[str, ...] = ()
    """Measures that were switched off: columns missing from its table."""
    technique: str = "hard hammer"
    instrument: str = "PartAn 3D"

    @property
    def name(self) -> str:
        """Unique in a design; also the name of its folder and table."""
        return "-".join((self.knapper.name, self.material, self.session)).replace(" ", "")


@dataclass(frozen=True)
class Design:
    """Who did what."""

    title: str
    assemblages: tuple[Assemblage, ...]
    effect: float = 1.0
    """Multiplies the model's: 0 for a design in which skill does nothing."""

    @property
    def knappers(self) -> tuple[Knapper, ...]:
        return tuple(dict.fromkeys(each.knapper for each in self.assemblages))


YEARS = {"novice": (1.0, 2.0), "intermediate": (6.0, 8.0), "expert": (15.0, 20.0)}
"""Least and most years of experience at each level."""


def design(
    knappers: int = 6,
    *,
    skills: Sequence[str] = tuple(YEARS),
    materials: Sequence[str] = ("flint", "quartzite"),
    sessions: Sequence[str] = ("day 1", "day 2"),
    effect: float = 1.0,
    title: str | None = None,
) -> Design:
    """A balanced design: knappers in equal parts of each level, each works every material, on days that change places from
    hand to hand, so that neither stone nor day goes with skill. BadInput for fewer knappers than levels."""
    if not skills or knappers < len(skills) or any(skill not in YEARS for skill in skills):
        raise BadInput(
            f"{knappers} knappers of {len(skills)} levels ({', '.join(skills)}): give at least one a level, of {', '.join(YEARS)}"
        )
    if not materials or not sessions:
        raise BadInput("a design needs at least one material and one session")
    assemblages = []
    levels = [number * len(skills) // knappers for number in range(knappers)]
    for number, level in enumerate(levels):
        place, peers = number - levels.index(level), levels.count(level)
        low, high = YEARS[skills[level]]
        years = low + (high - low) * place / max(peers - 1, 1)
        hand = Knapper(f"K{number + 1:0{len(str(knappers))}d}", round(years, 2), skills[level])
        assemblages += [
            Assemblage(hand, material, sessions[(place + turn) % len(sessions)])
            for turn, material in enumerate(materials)
        ]
    return Design(title or f"{knappers} knappers, {len(materials)} materials", tuple(assemblages), effect)


NOVICE, *EXPERTS = Knapper("K1", 1, "novice"), Knapper("K2", 15, "expert"), Knapper("K3", 20, "expert")
OFF = ("transparency", "angularity", "krumbein_roundness")

DESIGNS: dict[str, Design] = {
    "balanced": design(title="Six knappers of three levels, two materials each"),
    "three-knappers": Design(
        "Three knappers, each with a stone of their own",
        (
            Assemblage(NOVICE, "chert A", "run 1", share=0.1875),
            Assemblage(NOVICE, "chert A", "run 2", share=0.1875, off=OFF),
            Assemblage(EXPERTS[0], "chert B", "run 1", share=0.3125),
            Assemblage(EXPERTS[1], "chert C", "run 1", share=0.3125),
        ),
    ),
    "null": design(title="Six knappers whose skill does nothing", effect=0.0),
}
"""balanced: what the question needs. three-knappers: as published: one novice among three, stone goes with the hand, part of
the novice's went through the instrument with three channels off, experts' are 62.5% of the particles. null: as balanced, at
no effect of skill."""


# Traits


def generator(seed: int, *key: int | str) -> np.random.Generator:
    """The stream of what is named; four parts, always, since fewer would be filled up with zeros."""
    parts = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
    return np.random.default_rng([seed, *parts, *[0] * (4 - len(parts))])


def practice(knapper: Knapper, model: Model) -> float:
    """s: −½ for 1 year or a novice, ½ for 20 years or an expert."""
    if model.by == "skill":
        return list(YEARS).index(knapper.skill) / (len(YEARS) - 1) - 0.5
    return float(np.log((1 + knapper.years) / 2) / np.log(21 / 2) - 0.5)


def means(design: Design, model: Model, seed: int) -> Array:
    """The mean of each trait in each assemblage, (A, 9) float64, in standard deviations among its flakes."""

    def deviation(kind: str, name: str) -> Array:
        return generator(seed, kind, name).standard_normal(len(TRAITS))

    stone = model.material * np.where(np.array(TRAITS) == "clarity", 3.0, 1.0)
    return np.array(
        [
            design.effect * model.effect * practice(each.knapper, model) * model.skill.array
            + model.knapper * deviation("knapper", each.knapper.name)
            + stone * deviation("material", each.material)
            + model.session * deviation("session", each.session)
            + model.sitting * deviation("sitting", each.name)
            for each in design.assemblages
        ]
    )


def shares(design: Design, n: int) -> list[int]:
    """How many of n particles each assemblage has, by largest remainders. BadInput where one would have none."""
    wanted = np.array([each.share for each in design.assemblages])
    wanted = wanted / wanted.sum() * n
    counts = np.floor(wanted).astype(int)
    counts[np.argsort(counts - wanted, kind="stable")[: n - counts.sum()]] += 1
    if counts.min() < 1:
        raise BadInput(f"{n} particles for {len(counts)} assemblages: one has none; ask for more")
    return counts.tolist()


def size_law(sizes: Array, model: Model) -> Array:
    """Share of flakes no longer than each size in mm: Weibull's law between the sieves."""

    def weibull(x: Array | float) -> Array:
        return -np.expm1(-((np.asarray(x, dtype=float) / model.characteristic) ** model.modulus))

    low, high = weibull(model.least), weibull(model.most)
    return np.clip((weibull(sizes) - low) / (high - low), 0, 1)


def sizes_of(shares: Array, model: Model) -> Array:
    """The inverse of `size_law`, mm."""
    low, high = (np.exp(-((x / model.characteristic) ** model.modulus)) for x in (model.least, model.most))
    return model.characteristic * (-np.log(low * (1 - shares) + high * shares)) ** (1 / model.modulus)


# Form

POINTS = 128
"""Of an outline."""
HARMONICS = np.arange(3, 17)
"""Of its noise; the first two are place and elongation."""


@dataclass(frozen=True)
class Flakes:
    """Flakes of one assemblage, in the order in which they were made. All float64 unless said."""

    traits: Array
    """(n, 9) z, as in TRAITS."""
    outline: Array
    """(n, POINTS, 2) mm; face on, counter-clockwise, middle at the origin, platform below."""
    width: Array
    """(n,) mm."""
    length: Array
    """(n,) mm, along the axis of flaking."""
    thickness: Array
    """(n,) mm."""
    ridges: NDArray[np.int64]
    """(n,) 1 to 3."""
    transparency: Array
    """(n,) 0 to 1."""
    angles: Array
    """(n, frames) radians turned about its length: 0 shows the dorsal face, π the ventral."""
    spin: Array
    """(n, frames) radians turned in the picture."""


def flakes_of(where: str, mean: Array, n: int, model: Model, seed: int, gain: float = 1.0) -> Flakes:
    """The first n flakes of the assemblage `where`, whose traits have this mean, (9,)."""
    draws = [generator(seed, "flake", where, number) for number in range(n)]
    normal = np.array([each.standard_normal(len(TRAITS) + 3 + 2 * len(HARMONICS)) for each in draws])
    even = np.array([each.random(2 * model.frames) for each in draws])
    z = normal[:, : len(TRAITS)] + mean
    trait = dict(zip(TRAITS, z.T, strict=True))
    bend, skew, end = normal[:, len(TRAITS) : len(TRAITS) + 3].T
    size = sizes_of(ndtr(trait["size"]), model) * gain
    hinged = trait["hinge"] > -ndtri(model.hinge)
    elongation = model.elongation * np.exp(model.elongation_spread * trait["elongation"]) * np.where(hinged, 0.85, 1)
    outline = course(
        elongation=elongation,
        platform=np.minimum(model.platform * np.exp(model.platform_spread * trait["platform"]), 1.2),
        convergence=logistic(model.convergence, model.convergence_spread * trait["convergence"]),
        bend=model.bend * bend,
        skew=0.12 * np.tanh(skew),
        end=np.where(hinged, 12.0, 2 + np.exp(0.5 * end)),
    )
    rms = model.irregularity * np.exp(model.irregularity_spread * trait["irregularity"])
    outline = roughened(outline, np.minimum(rms, 0.09), normal[:, len(TRAITS) + 3 :], model.power)
    outline = outline * (size / longest(outline))[:, None, None]
    width, length = (np.ptp(outline[..., axis], axis=1) for axis in (0, 1))
    ratio = np.minimum(model.thickness * np.exp(model.thickness_spread * trait["thickness"]), 1.0)
    thickness = ratio * width
    steps = model.turn * (0.5 + even[:, : model.frames])
    steps[:, 0] = 2 * np.pi * even[:, 0]
    return Flakes(
        traits=z,
        outline=outline,
        width=width,
        length=length,
        thickness=thickness,
        ridges=1 + np.searchsorted(ndtri(model.ridges), trait["ridges"]),
        transparency=0.08
        + 0.5
        * logistic(
            (model.clarity - 0.08) / 0.5, model.clarity_spread * trait["clarity"] - model.opacity * (thickness - 0.6)
        ),
        angles=np.cumsum(steps, axis=1),
        spin=2 * np.pi * even[:, model.frames :],
    )


def logistic(median: float, shift: Array) -> Array:
    """A share whose logit is shifted from the median's."""
    return 1 / (1 + (1 - median) / median * np.exp(-shift))


def course(elongation: Array, platform: Array, convergence: Array, bend: Array, skew: Array, end: Array) -> Array:
    """Smooth outlines (n, POINTS, 2) of width about 1: all arguments (n,). `end`: exponent of the curve that closes them."""
    along = (1 - np.cos(np.pi * np.linspace(0, 1, 64))) / 2  # (M,) from platform to end, dense at both
    column = {"platform": platform, "convergence": convergence, "bend": bend, "skew": skew, "end": end}
    p, c, b, s, q = (each[:, None] for each in column.values())
    half = (p + (1 - p) * -np.expm1(-along / 0.18)) * (1 - c * along) * np.sqrt(1 - along**q)  # (n, M)
    half /= 2 * half.max(1, keepdims=True)
    axis = 4 * b * elongation[:, None] * along * (1 - along)
    right, left = axis + half * (1 + s * along), axis - half * (1 - s * along)
    y = np.broadcast_to(along * elongation[:, None], right.shape)
    closed = np.stack([np.hstack([right, left[:, ::-1], right[:, :1]]), np.hstack([y, y[:, ::-1], y[:, :1]])], axis=2)
    return evenly(closed)


def evenly(closed: Array) -> Array:
    """POINTS at equal distances along closed outlines (n, M, 2) whose last point is the first again; middle at the origin."""
    walked = np.cumsum(np.linalg.norm(np.diff(closed, axis=1), axis=2), axis=1)
    walked = np.pad(walked, ((0, 0), (1, 0)))
    at = np.linspace(0, 1, POINTS, endpoint=False)
    points = np.array(
        [
            np.stack([np.interp(at * way[-1], way, each[:, axis]) for axis in (0, 1)], axis=1)
            for way, each in zip(walked, closed, strict=True)
        ]
    )
    return points - points.mean(1, keepdims=True)


def roughened(outline: Array, rms: Array, normal: Array, power: float) -> Array:
    """Outlines with noise of this root mean square, relative to the distance from the middle: it cannot cross itself. Less on
    the platform. normal: (n, 2·H) standard normal numbers."""
    s = 2 * np.pi * np.arange(POINTS) / POINTS
    waves = np.concatenate([f(HARMONICS[:, None] * s) for f in (np.cos, np.sin)])  # (2·H, POINTS)
    fall = np.tile(HARMONICS ** -float(power), 2)
    noise = (normal * fall / np.sqrt((fall**2).sum() / 2)) @ waves
    above = outline[..., 1] - outline[..., 1].min(1, keepdims=True)
    calm = 0.35 + 0.65 * np.minimum(above / (0.1 * np.ptp(outline[..., 1], axis=1)[:, None]), 1)
    return outline * (1 + np.clip(rms[:, None] * noise * calm, -0.4, 0.4))[..., None]


def longest(outlines: Array) -> Array:
    """Largest extent over 180 directions (n,), within 0.004%."""
    extents = [np.ptp(outlines @ [np.cos(angle), np.sin(angle)], axis=1) for angle in np.pi * np.arange(180) / 180]
    return np.max(extents, axis=0)


def seen(flakes: Flakes, frame: int, which: Any = slice(None)) -> Array:
    """The outlines (n, POINTS, 2), mm, in a frame: turned about the length, and in the picture. which: of the n."""
    angle, spin = flakes.angles[which, frame, None], flakes.spin[which, frame, None]
    flat = (flakes.thickness / flakes.width)[which, None]
    x = flakes.outline[which, :, 0] * np.hypot(np.cos(angle), flat * np.sin(angle))  # an ellipse's shadow
    y = flakes.outline[which, :, 1]
    return np.stack([np.cos(spin) * x - np.sin(spin) * y, np.sin(spin) * x + np.cos(spin) * y], axis=2)


# Particles and studies


def drawn(design: Design, model: Model, n: int, seed: int) -> list[Flakes]:
    """n flakes in all, by assemblage. BadInput for settings that draw none."""
    if seed < 0 or model.frames < 1 or not 0 < model.least < model.most or not 0 < model.hinge < 1:
        raise BadInput("the model of flakes: seed >= 0, frames >= 1, 0 < least < most and 0 < hinge < 1 are needed")
    return [
        flakes_of(
            each.name,
            mean,
            count,
            model,
            seed,
            1 + model.gain * generator(seed, "gain", each.session).standard_normal(),
        )
        for each, mean, count in zip(design.assemblages, means(design, model, seed), shares(design, n), strict=True)
    ]


def traits(design: Design, model: Model, n: int, seed: int) -> pd.DataFrame:
    """The truth behind `particles`: a row a flake: "assemblage", "id", z of each of TRAITS, and "longest", mm, face on."""
    parts = []
    for each, flakes in zip(design.assemblages, drawn(design, model, n, seed), strict=True):
        frame = pd.DataFrame(flakes.traits, columns=list(TRAITS))
        frame.insert(0, "id", [str(number + 1) for number in range(len(frame))])
        frame.insert(0, "assemblage", each.name)
        parts.append(frame.assign(longest=longest(flakes.outline)))
    return pd.concat(parts, ignore_index=True)


def measured(flakes: Flakes, off: Sequence[str] = (), slow: bool = True) -> pd.DataFrame:
    """As the instrument exports them, the largest first: "id", "image_id" and the measures, rounded to 0.001."""
    outlines = [seen(flakes, frame) for frame in range(flakes.angles.shape[1])]
    rows = []
    for number in range(len(flakes.traits)):
        frames = [shapes.measures_of(each[number], slow=slow) for each in outlines]
        row = shapes.aggregate(frames)
        row["transparency"] = flakes.transparency[number]
        rows.append({name: value for name, value in row.items() if name not in off})
    frame = pd.DataFrame(rows)
    frame = frame[[name for name in tables.MEASURES if name in frame]].round(3)
    frame.insert(0, "image_id", np.cumsum(np.arange(len(frame)) % 5 != 3).astype(str))
    frame.insert(0, "id", np.arange(1, len(frame) + 1).astype(str))
    return frame.iloc[np.argsort(-np.asarray(frame["da"]), kind="stable")].reset_index(drop=True)


def particles(
    design: Design,
    model: Model | None = None,
    n: int = 480,
    seed: int = 0,
    *,
    pictures: bool = False,
    slow: bool = False,
) -> pd.DataFrame:
    """n particles in all, as `Study.particles` has them; with `pictures` the column "picture", a tuple of (H, W) uint8
    photographs a row. slow: also the measures that take long (shapes.measures_of)."""
    model = model or Model()
    parts = []
    for each, flakes in zip(design.assemblages, drawn(design, model, n, seed), strict=True):
        rows = measured(flakes, each.off, slow)
        rows = rows.assign(order=np.arange(len(rows)), scale=np.nan, image=None, frames=[()] * len(rows), **about(each))
        rows.insert(0, "particle", [f"{each.name}/{identity}" for identity in rows["id"]])
        if pictures:
            rows["picture"] = [
                tuple(photographs(each, flakes, int(identity) - 1, model, seed)) for identity in rows["id"]
            ]
        parts.append(rows)
    return pd.concat(parts, ignore_index=True)


def about(each: Assemblage) -> dict[str, Any]:
    """What a study knows of an assemblage."""
    told: dict[str, Any] = {"assemblage": each.name, "knapper": each.knapper.name, "years": float(each.knapper.years)}
    return told | {"skill": each.knapper.skill} | {name: getattr(each, name) for name in KNOWN}


def study_of(frame: pd.DataFrame, title: str = "simulated", question: Question | None = None) -> Study:
    """A study in memory, of `particles`."""
    measures = tuple(name for name in tables.MEASURES if name in frame)
    return Study(title, Path("study.yaml"), question or Question(), frame, measures)


# Photographs, and a study on disk

FILLED = 0.88
"""Share of a picture's side that the longest flake takes."""

FLAGS = {"hash": "0"} | {f"filter{number}": "Reject" for number in range(7)}
"""Columns that the analyser writes and that say nothing."""


def photographs(
    each: Assemblage, flakes: Flakes, number: int, model: Model, seed: int, pixels: int = 96
) -> list[NDArray[np.uint8]]:
    """The pictures (pixels, pixels) of a flake, frame by frame, at `scale_of` mm a pixel."""
    state = generator(seed, "light", each.session).standard_normal(3)
    lit = Light()
    light = dataclasses.replace(
        lit,
        screen=lit.screen + 0.012 * state[0],
        blur=lit.blur * np.exp(0.1 * state[1]),
        noise=lit.noise * np.exp(0.15 * state[2]),
    )
    body = Body(
        width=flakes.width[number],
        length=flakes.length[number],
        thickness=flakes.thickness[number],
        ridges=int(flakes.ridges[number]),
        transparency=flakes.transparency[number],
        grain=0.018 * float(np.exp(0.4 * generator(seed, "grain", each.material).standard_normal())),
    )
    return [
        photograph(
            seen(flakes, frame, [number])[0],
            body,
            flakes.angles[number, frame],
            flakes.spin[number, frame],
            scale=scale_of(model, pixels),
            pixels=pixels,
            light=light,
            form=generator(seed, "form", each.name, number),
            chance=generator(seed, "chance", each.name, number * 64 + frame),
        )
        for frame in range(model.frames)
    ]


def scale_of(model: Model, pixels: int) -> float:
    """mm a pixel: the same for all pictures, so that the longest flake fits."""
    return float(f"{model.most / (FILLED * pixels):.5g}")


def simulate(
    design_name: str,
    out: Path,
    particles: int,
    *,
    seed: int = 0,
    effect: float | None = None,
    image_pixels: int = 96,
    model: Model | None = None,
    title: str | None = "photographs",
) -> Path:
    """Write a study of `particles` flakes in all: OUT/study.yaml, with the truth under `design`; OUT/images/ASSEMBLAGE/ID.png, or
    ID_1.png, ID_2.png … frame by frame; OUT/tables/ASSEMBLAGE.csv, as the analyser writes them. Whole or not at all; gives the
    path of study.yaml. The same settings write the same bytes.

    effect: of `Model.effect`, in its place. title: what the progress bar says; None for no bar.
    Raises BadInput for a design that is not known, too few particles, or a folder that is not empty or cannot be written."""
    if design_name not in DESIGNS:
        raise BadInput(f"{design_name!r} is no design: use {', '.join(DESIGNS)}")
    if image_pixels < 24:
        raise BadInput(f"pictures of {image_pixels} pixels show no flake: give 24 or more")
    plan, model = DESIGNS[design_name], model or Model()
    if effect is not None:
        if plan.effect == 0 and effect != 0:
            raise BadInput(
                f"the design {design_name} has no effect of skill: choose another design, or leave effect out"
            )
        if not np.isfinite(effect):
            raise BadInput(f"effect is {effect}: give a number, such as 1")
        model = dataclasses.replace(model, effect=float(effect))
    lots = drawn(plan, model, particles, seed)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} is there and not empty: choose another --out")
    beside = out.with_name(f".{out.name}.part")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        (beside / "tables").mkdir(parents=True)
        with bar(title, particles, unit="particles") as show:
            done = 0
            for each, flakes in zip(plan.assemblages, lots, strict=True):
                tables.write(beside / "tables" / f"{each.name}.csv", measured(flakes, each.off).assign(**FLAGS))
                folder = beside / "images" / each.name
                folder.mkdir(parents=True)
                for number in range(len(flakes.traits)):
                    pictures = photographs(each, flakes, number, model, seed, image_pixels)
                    for frame, picture in enumerate(pictures, 1):
                        suffix = f"_{frame}" if len(pictures) > 1 else ""
                        Image.fromarray(picture).save(folder / f"{number + 1}{suffix}.png")
                    done += 1
                    show(done)
        told = written(design_name, plan, model, particles, seed, image_pixels)
        text = yaml.safe_dump(told, sort_keys=False, allow_unicode=True, width=120)
        (beside / "study.yaml").write_text(text, encoding="utf-8")
        if out.exists():
            out.rmdir()
        beside.replace(out)
    except OSError as error:
        raise BadInput(f"{out} cannot be written ({error.strerror}): choose another --out") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return out / "study.yaml"


def written(name: str, plan: Design, model: Model, n: int, seed: int, pixels: int) -> dict[str, Any]:
    """study.yaml: what `study.load` reads, and under "design" the truth."""
    skill = {
        trait: float(plan.effect * model.effect * value) for trait, value in dataclasses.asdict(model.skill).items()
    }
    truth = {
        "name": name,
        "seed": seed,
        "particles": n,
        "effect": float(plan.effect * model.effect),
        "effects": skill,
        "practice": {each.name: round(practice(each, model), 4) for each in plan.knappers},
        "model": {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(model).items()
        },
    }
    assemblages = []
    for each in plan.assemblages:
        told = about(each)
        told["name"] = told.pop("assemblage")
        places = {"images": f"images/{each.name}", "table": f"tables/{each.name}.csv", "scale": scale_of(model, pixels)}
        assemblages.append({"name": told.pop("name"), **told, **places})
    return {"title": f"{plan.title} (simulated)", "assemblages": assemblages, "design": truth}

"""What each column of a particle analyser means: the 46 measures of Microtrac's PartAn 3D, the headers and units they go by."""

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Measure:
    """One column of the analyser."""

    column: str
    """The analyser's header."""
    dimension: str
    """"length", "area", "volume", "angle", "ratio", "count" or "flag"."""
    definition: str
    formula: Callable[..., Any] | None = None
    """From other measures, its parameters, in mm, mm², mm³. Each input drives it one way only, up or down, so that its bounds
    lie at the bounds of the inputs. None where the picture itself is needed."""

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Measures that the formula takes."""
        return tuple(inspect.signature(self.formula).parameters) if self.formula else ()


MEASURES: dict[str, Measure] = {
    "da": Measure(
        "Da",
        "length",
        "Diameter of the circle that has the particle's projected area: √(4·area/π).",
        lambda area: np.sqrt(4 * area / np.pi),
    ),
    "dp": Measure(
        "Dp",
        "length",
        "Diameter of the circle that has the particle's perimeter: perimeter/π.",
        lambda perimeter: perimeter / np.pi,
    ),
    "feret_width": Measure(
        "FWidth",
        "length",
        "The larger of the least Feret (caliper) diameters that the particle shows over the frames it is tracked on.",
    ),
    "feret_length": Measure(
        "FLength",
        "length",
        "The largest Feret (caliper) diameter, between two parallel tangents of the outline, over the frames.",
    ),
    "feret_thickness": Measure(
        "FThickness",
        "length",
        "The smaller of the least Feret (caliper) diameters over the frames; equals the width where there is one frame.",
    ),
    "ellipse_length": Measure(
        "ELength",
        "length",
        "Major axis of the Legendre ellipse, which has the outline's centre and second moments of area; largest of the frames.",
    ),
    "ellipse_thickness": Measure(
        "EThickness", "length", "Minor axis of the Legendre ellipse, the smallest of the frames."
    ),
    "ellipse_width": Measure("EWidth", "length", "Minor axis of the Legendre ellipse, the largest of the frames."),
    "volume": Measure(
        "Volume",
        "volume",
        "Volume of the ellipsoid whose axes are the three Feret diameters: π/6·length·width·thickness.",
        lambda feret_length, feret_width, feret_thickness: np.pi / 6 * feret_length * feret_width * feret_thickness,
    ),
    "area": Measure("Area", "area", "Projected area of the particle's silhouette."),
    "perimeter": Measure("Perimeter", "length", "Length of the silhouette's outline."),
    "hull_area": Measure(
        "CHull  Area", "area", "Area of the convex hull, the outline that a rubber band around the particle has."
    ),
    "hull_perimeter": Measure("CHull Perimeter", "length", "Length of the convex hull's outline."),
    "sphericity": Measure(
        "Sphericity",
        "ratio",
        "Da over Dp, the root of circularity: 1 for a circle, less for any other form.",
        lambda da, dp: da / dp,
    ),
    "length_thickness": Measure(
        "L/T Ratio",
        "ratio",
        "Feret length over Feret thickness.",
        lambda feret_length, feret_thickness: feret_length / feret_thickness,
    ),
    "thickness_length": Measure(
        "T/L Aspect Ratio",
        "ratio",
        "Feret thickness over Feret length.",
        lambda feret_thickness, feret_length: feret_thickness / feret_length,
    ),
    "compactness": Measure("Compactness", "ratio", "Da over Feret length.", lambda da, feret_length: da / feret_length),
    "roundness": Measure(
        "Roundness",
        "ratio",
        "Area over that of the circle around the Feret length: 4·area/(π·length²).",
        lambda area, feret_length: 4 * area / (np.pi * feret_length**2),
    ),
    "ellipse_ratio": Measure(
        "Ellipse Ratio",
        "ratio",
        "Thickness over length of the Legendre ellipse.",
        lambda ellipse_thickness, ellipse_length: ellipse_thickness / ellipse_length,
    ),
    "circularity": Measure(
        "Circularity",
        "ratio",
        "Area over that of the circle of the same perimeter: 4π·area/perimeter².",
        lambda area, perimeter: 4 * np.pi * area / perimeter**2,
    ),
    "solidity": Measure("Solidity", "ratio", "Area over hull area.", lambda area, hull_area: area / hull_area),
    "concavity": Measure(
        "Concavity",
        "ratio",
        "Share of the hull that the particle leaves empty: 1 − solidity.",
        lambda area, hull_area: 1 - area / hull_area,
    ),
    "convexity": Measure(
        "Convexity",
        "ratio",
        "Hull perimeter over perimeter.",
        lambda hull_perimeter, perimeter: hull_perimeter / perimeter,
    ),
    "extent": Measure(
        "Extent",
        "ratio",
        "Area over Feret length times Feret thickness; above 1 where the frames show it broad and thin in turn.",
        lambda area, feret_length, feret_thickness: area / (feret_length * feret_thickness),
    ),
    "hash": Measure("hash", "flag", "A mark that the analyser's program keeps; no measure."),
    "transparency": Measure(
        "Transparency", "ratio", "How much light comes through the silhouette: 0 opaque, 1 as bright as the background."
    ),
    "curvature": Measure(
        "Curvature", "ratio", "How far the particle is bent along its length; 0 for most. The maker gives no formula."
    ),
    "surface_area": Measure(
        "Surface Area",
        "area",
        "Four times the area: exact for a sphere, and on average for any convex body seen from all sides.",
        lambda area: 4 * area,
    ),
    "filter0": Measure("Filter0", "flag", "Whether the analyser's filter 0 keeps the particle."),
    "filter1": Measure("Filter1", "flag", "Whether the analyser's filter 1 keeps the particle."),
    "filter2": Measure("Filter2", "flag", "Whether the analyser's filter 2 keeps the particle."),
    "filter3": Measure("Filter3", "flag", "Whether the analyser's filter 3 keeps the particle."),
    "filter4": Measure("Filter4", "flag", "Whether the analyser's filter 4 keeps the particle."),
    "filter5": Measure("Filter5", "flag", "Whether the analyser's filter 5 keeps the particle."),
    "filter6": Measure("Filter6", "flag", "Whether the analyser's filter 6 keeps the particle."),
    "length_width": Measure(
        "L/W Ratio",
        "ratio",
        "Feret length over Feret width.",
        lambda feret_length, feret_width: feret_length / feret_width,
    ),
    "width_length": Measure(
        "W/L Ratio",
        "ratio",
        "Feret width over Feret length.",
        lambda feret_width, feret_length: feret_width / feret_length,
    ),
    "width_thickness": Measure(
        "W/T Ratio",
        "ratio",
        "Feret width over Feret thickness; 1 where the particle was seen on one frame.",
        lambda feret_width, feret_thickness: feret_width / feret_thickness,
    ),
    "thickness_width": Measure(
        "T/W Ratio",
        "ratio",
        "Feret thickness over Feret width; 1 where the particle was seen on one frame.",
        lambda feret_thickness, feret_width: feret_thickness / feret_width,
    ),
    "hull_surface_area": Measure(
        "CHull Surface Area", "area", "Four times the hull area.", lambda hull_area: 4 * hull_area
    ),
    "sieve": Measure(
        "Sieve",
        "length",
        "Mean of Feret width and thickness: about the mesh that the particle falls through.",
        lambda feret_width, feret_thickness: (feret_width + feret_thickness) / 2,
    ),
    "angularity": Measure(
        "Angularity", "angle", "How sharp the corners of the outline are, in degrees. The maker gives no formula."
    ),
    "ellipticity": Measure(
        "Ellipticity",
        "ratio",
        "Length over thickness of the Legendre ellipse.",
        lambda ellipse_length, ellipse_thickness: ellipse_length / ellipse_thickness,
    ),
    "fiber_length": Measure(
        "Fiber Length",
        "length",
        "Longer side of the rectangle with the particle's area and (about) its perimeter; 0 for round ones, which have none.",
    ),
    "fiber_width": Measure(
        "Fiber Width",
        "length",
        "Shorter side of that rectangle, area over fibre length; not so where length and width come from different frames.",
        lambda area, fiber_length: area / fiber_length,
    ),
    "krumbein_roundness": Measure(
        "Krumbein Rnd",
        "ratio",
        "Krumbein's (1941) roundness: mean radius of the outline's corners over that of the largest circle inside; 1 is round.",
    ),
}
"""The 46 measures, in the order of the analyser's columns."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "id": ("ID", "Particle", "Particle ID", "Particle No", "Particle Number", "No"),
    "image_id": ("Img Id", "Image ID", "Image", "Image No", "Image Number", "Frame", "Frame ID"),
    "da": (
        "EQPC",
        "ECD",
        "x area",
        "Area Equivalent Diameter",
        "Equivalent Circle Diameter",
        "Equivalent Area Diameter",
    ),
    "dp": ("PED", "Perimeter Equivalent Diameter", "Equivalent Perimeter Diameter"),
    "feret_width": ("Feret Width", "F Width"),
    "feret_length": (
        "Feret Length",
        "F Length",
        "x Fe max",
        "Feret Max",
        "Max Feret",
        "Maximum Feret Diameter",
        "Feret",
    ),
    "feret_thickness": (
        "Feret Thickness",
        "F Thickness",
        "x Fe min",
        "Feret Min",
        "Min Feret",
        "Minimum Feret Diameter",
    ),
    "ellipse_length": ("Ellipse Length", "Legendre Ellipse Length"),
    "ellipse_thickness": ("Ellipse Thickness", "Legendre Ellipse Thickness"),
    "ellipse_width": ("Ellipse Width", "Legendre Ellipse Width"),
    "volume": ("Vol",),
    "area": ("Projected Area", "Projection Area"),
    "perimeter": ("Perim", "Circumference"),
    "hull_area": ("Convex Hull Area", "Convex Area", "Hull Area"),
    "hull_perimeter": ("Convex Hull Perimeter", "Convex Perimeter", "Hull Perimeter"),
    "length_thickness": ("L/T", "Length/Thickness", "Length Thickness Ratio"),
    "thickness_length": ("T/L", "T/L Ratio", "Thickness/Length", "Thickness Length Ratio"),
    "length_width": ("L/W", "Length/Width", "Length Width Ratio"),
    "width_length": ("W/L", "W/L Aspect Ratio", "Width/Length", "Width Length Ratio"),
    "width_thickness": ("W/T", "Width/Thickness", "Width Thickness Ratio"),
    "thickness_width": ("T/W", "Thickness/Width", "Thickness Width Ratio"),
    "circularity": ("Circ", "SPHT", "Form Factor"),
    "surface_area": ("Surface",),
    "hull_surface_area": ("Convex Hull Surface Area", "Hull Surface Area"),
    "sieve": ("Sieve Size", "Sieve Diameter"),
    "fiber_length": ("Fibre Length",),
    "fiber_width": ("Fibre Width",),
    "krumbein_roundness": ("Krumbein Roundness", "Krumbein"),
}
"""Other headers of the same thing: x area, x Fe max, x Fe min and SPHT (4π·area/perimeter²) as CAMSIZER writes them (ISO
9276-6), EQPC and PED as QICPIC, Perim., Circ., Feret and MinFeret as ImageJ. Not taken, because they differ: ImageJ's Round
and AR (of a fitted ellipse), CAMSIZER's Conv (a root) and b/l (of the least chord)."""


def plain(header: str) -> str:
    """A header without case, spaces and punctuation."""
    return re.sub(r"[\W_]+", "", header).casefold()


KNOWN: dict[str, str] = {
    plain(header): name
    for name in ("id", "image_id", *MEASURES)
    for header in (name, *((MEASURES[name].column,) if name in MEASURES else ()), *SYNONYMS.get(name, ()))
}
IDENTITY = {"id": "Id", "image_id": "Img Id"}


def headed(cell: object) -> tuple[str | None, str]:
    """The measure or identity that a header names, or None, and the unit that stands in it in brackets."""
    if not isinstance(cell, str) or len(cell) > 200:
        return None, ""
    if (name := KNOWN.get(plain(cell))) is not None:
        return name, ""
    match = re.fullmatch(r"(.*?)\s*[\[(]([^\[\]()]*)[\])]\s*", cell, re.DOTALL) or re.fullmatch(
        r"(.*),\s*(\S+)\s*", cell
    )
    return (KNOWN.get(plain(match[1])), match[2]) if match else (None, "")


# Units

LENGTHS = {"mm": 1.0, "um": 1e-3, "nm": 1e-6, "cm": 10.0, "m": 1000.0, "in": 25.4, '"': 25.4}
LENGTHS |= dict.fromkeys(("millimeter", "millimetre"), 1.0) | dict.fromkeys(("inch", "inches"), 25.4)
LENGTHS |= dict.fromkeys(("micron", "microns", "micrometer", "micrometre"), 1e-3)
POWERS = {"length": 1, "area": 2, "volume": 3}
DIMENSIONS = {1: "length", 2: "area", 3: "volume"}
SUPERSCRIPTS = {"²": 2, "≤": 2, "▓": 2, "2": 2, "³": 3, "≥": 3, "│": 3, "3": 3}
"""≤ and ≥ are what a Macintosh made of the bytes of ² and ³, ▓ and │ what DOS made of them."""
WRITTEN = {"length": "mm", "area": "mm²", "volume": "mm³"}


def factor(unit: str, dimension: str) -> float:
    """What turns a number in this unit into mm, mm², mm³, degrees or a ratio. ValueError, with the reason, for a unit that
    is not known or not one of this dimension. No unit is the one that is wanted."""
    text = re.sub(r"[\s\[\]()]|Â|¬", "", unit).replace("Î¼", "u").replace("µ", "u").replace("μ", "u").casefold()
    if text in ("", "-", "1"):
        return 1.0
    if dimension == "ratio" and text == "%":
        return 0.01
    if dimension == "angle":
        angles = {"°": 1.0, "deg": 1.0, "degree": 1.0, "degrees": 1.0, "rad": 180 / math.pi}
        if text in angles:
            return angles[text]
    match = re.fullmatch(r"(sq\.?|cu\.?)?([a-z]+|\")(?:\^|\*\*)?([²≤▓2³≥│3?\ufffd])?", text)
    if not match or match[2] not in LENGTHS:
        raise ValueError(f"the unit {unit.strip()[:20]!r} is not known")
    power = {"sq": 2, "cu": 3}.get((match[1] or "").rstrip("."), 1)
    if match[3]:
        power = SUPERSCRIPTS.get(match[3], POWERS.get(dimension, 0))  # an unreadable mark is what it should be
    if power != POWERS.get(dimension):
        of = DIMENSIONS.get(power, "nothing")
        raise ValueError(f"{unit.strip()[:20]!r} is a unit of {of}, and this is {an(dimension)}")
    return LENGTHS[match[2]] ** power


def is_unit(text: str) -> bool:
    """Whether this is a unit, of whatever dimension."""
    for dimension in (*POWERS, "angle", "ratio"):
        try:
            factor(text, dimension)
            return bool(re.search(r"[^\W\d_]|[%°\"]", text))
        except ValueError:
            continue
    return False


def an(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"

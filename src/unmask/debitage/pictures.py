"""The study's figures. Arrays, tables and particles in, PNG bytes out, in the style of `unmask.figures`; None where there is
nothing to draw, as of an empty table or one of NaN alone, so that a page can leave the figure out.

Two colours mean the same throughout: blue what is honest (a unit is never on both sides), vermilion what is naive
(particles are taken for independent). A label has one colour in all figures, see `colours`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray
from scipy.cluster import hierarchy
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from unmask.data.decode import border_colour, content
from unmask.debitage.look import standardised
from unmask.figures import (
    BLUE,
    DPI,
    FAINT,
    GREY,
    INK,
    SERIES,
    VERMILION,
    displayable,
    frame,
    png,
    shortened,
    tidy,
    write,
)

COLOURED = 7
"""Labels that have a colour of their own; of more, all but the most frequent are grey."""
OTHERS, PALE = "#AAAAAA", "#F1F1F1"
NAMED = 15
"""Units whose middles are marked and named on a map, at most."""
RIDGES = 24
"""Units that get a ridge each; of more, each label gets one."""
ROWS = 40
"""Measures in the forest plot, at most."""
LEAVES = 50
"""Units in a tree, at most."""
LOOKED = 216
"""Side of the pictures of what was looked at, in pixels."""
SHEET = 10
"""Rows of a sheet of particles, at most."""
LEVEL = 0.05


# Names and colours


def named(name: Any, most: int = 28) -> str:
    """A name as it stands in a figure: one line of at most so many letters, no sign of it taken for mathematics."""
    return shortened(" ".join(str(name).split()), most).replace("$", r"\$")


def texts(values: Any) -> NDArray[Any]:
    """Labels or names (n,) as text; what is missing is "unknown"."""
    return np.array(["unknown" if pd.isna(value) else str(value) for value in values], dtype=object)


def colours(labels: Any, order: Sequence[str] = ()) -> dict[str, str]:
    """A colour for each label, in the order given (as from novice to expert), then by name. Of more than seven only the most
    frequent have their own; the rest are grey."""
    counts = pd.Series(texts(labels), dtype=object).value_counts()
    names = [name for name in order if name in counts.index]
    names += sorted(set(counts.index) - set(names))
    most = sorted(names, key=lambda name: (-counts[name], name))[:COLOURED]
    chosen = iter((*SERIES, "#333333"))
    return {name: next(chosen) if name in most and name != "unknown" else OTHERS for name in names}


def plain(axes: Axes, along: str = "x") -> None:
    """No box, faint lines across."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.grid(axis=along, color=FAINT, linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=11, labelcolor=INK)


def key(figure: Figure, of: dict[str, str], columns: int = 6) -> None:
    """The labels' colours, below the figure; those in grey together."""
    shown = {name: colour for name, colour in of.items() if colour != OTHERS}
    grey = [name for name in of if of[name] == OTHERS]
    if grey:
        shown[grey[0] if len(grey) == 1 else f"{len(grey)} others"] = OTHERS
    dots = [Line2D([], [], marker="o", linestyle="", color=colour, markersize=8) for colour in shown.values()]
    figure.legend(
        dots,
        [named(name) for name in shown],
        loc="outside lower center",
        ncols=min(columns, len(dots)),
        frameon=False,
        fontsize=11.5,
        handletextpad=0.3,
        labelcolor=INK,
    )


def records(table: pd.DataFrame, *known: str) -> list[dict[str, Any]]:
    """The rows of a table, those left out that know none of these columns."""
    rows: list[dict[str, Any]] = table.to_dict(orient="records")  # type: ignore[assignment]
    return [row for row in rows if any(finite(row.get(name)) for name in known)]


def finite(value: Any) -> bool:
    return value is not None and bool(np.isfinite(value))


def commonest(names: NDArray[Any]) -> str:
    """The most frequent, of equals the first by name."""
    return str(min(set(names), key=lambda one: (-(names == one).sum(), one)))


def broken(name: Any) -> str:
    """A name in two lines, where it can be broken."""
    words = re.split(r"(?<=[-/ ])", named(name, 26))
    half = min(range(1, len(words) + 1), key=lambda i: max(len("".join(words[:i])), len("".join(words[i:]))))
    return "\n".join(part.strip() for part in ("".join(words[:half]), "".join(words[half:])) if part)


def p_words(p: float) -> str:
    if not np.isfinite(p):
        return "–"
    return "<0.0001" if p < 1e-4 else f"{p:.4f}" if p < 1e-3 else f"{p:.3f}"


# Assemblages in two dimensions


def maps(flat: dict[str, Any], labels: Any, units: Any, *, order: Sequence[str] = ()) -> bytes | None:
    """Particles by principal components and by UMAP, side by side, in the colours of their labels; of at most 15 units the
    middles are marked and named, in the colour of the unit's commonest label.

    flat: as `look.flat` gives it, (n, 2) each. labels, units: (n,). order: of the labels.
    """
    label, unit = texts(labels), texts(units)
    panels = []
    for name, title in (("pca", "principal components"), ("umap", "UMAP")):
        place = np.asarray(flat[name], dtype=np.float64).reshape(len(label), 2)
        there = np.isfinite(place).all(axis=1)
        if there.sum() > 1 and np.ptp(place[there], axis=0).any():
            panels.append((name, title, place, there))
    if not panels:
        return None
    of = colours(label, order)
    units_shown = sorted(set(unit)) if len(set(unit)) <= NAMED else []
    figure = Figure(figsize=(5.6 * max(len(panels), 1.4), 5.9), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15)  # type: ignore[union-attr]
    drawn = np.random.default_rng(0).permutation(len(label))  # so that no label lies above another
    marks: list[tuple[Axes, list[tuple[float, float, str, str]]]] = []
    for axes, (name, title, place, there) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        low, high = np.nanpercentile(place[there], (0.5, 99.5), axis=0)
        room = 0.12 * np.maximum(high - low, 1e-9)
        low, high = (
            np.maximum(low - room, place[there].min(0) - room / 3),
            np.minimum(high + room, place[there].max(0) + room / 3),
        )
        mine = drawn[there[drawn]]
        inside = ((place[mine] >= low) & (place[mine] <= high)).all(axis=1)
        size = float(np.clip(9000 / max(len(mine), 1), 5, 36))
        axes.scatter(
            *place[mine][inside].T,
            s=size,
            c=[of[one] for one in label[mine][inside]],
            alpha=0.25 if len(mine) > 3000 else 0.35 if len(mine) > 600 else 0.5,
            linewidths=0,
        )
        axes.set_xlim(low[0], high[0])
        axes.set_ylim(low[1], high[1])
        axes.set_title(title, loc="left", fontsize=13, color=INK, pad=24)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        if name == "pca":
            first, second = flat["shares"]
            axes.set_xlabel(f"first: {first:.0%} of the variance", fontsize=11, color=GREY)
            axes.set_ylabel(f"second: {second:.0%}", fontsize=11, color=GREY)
            words = "distances are kept as far as a plane can"
        else:
            axes.set_xlabel("directions and sizes mean nothing", fontsize=11, color=GREY)
            words = "who is next to whom is kept, distances are not"
        out = int((~inside).sum())
        hint = f"{words}; {out:,} {'lies' if out == 1 else 'lie'} outside" if out else words
        axes.text(0, 1.025, hint, transform=axes.transAxes, fontsize=10.5, color=GREY)
        middles = []
        for one in units_shown:
            rows = there & (unit == one)
            if rows.any():
                x, y = place[rows].mean(0)
                whose = commonest(label[rows])
                middles.append((float(x), float(y), named(one, 18), of[whose]))
                axes.plot(
                    x, y, "o", color=of[whose], markersize=11, markeredgecolor="white", markeredgewidth=1.8, zorder=5
                )
        marks.append((axes, middles))
    key(figure, of)
    figure.draw_without_rendering()
    for axes, middles in marks:
        beside(axes, middles)
    return png(figure)


def beside(axes: Axes, points: Sequence[tuple[float, float, str, str]], size: float = 11.5) -> None:
    """Names around points (x, y, name, colour), each as near as it can be without lying on another name or point, with a line
    to its point where it had to move away."""
    if not points:
        return
    high, wide, dot = 1.25 * size, 0.6 * size, 6.0  # in points, as all below
    to_points = 72 / axes.figure.dpi
    places = axes.transData.transform(np.array([point[:2] for point in points])) * to_points
    (left, bottom), (right, top) = axes.transAxes.transform([(0, 0), (1, 1)]) * to_points
    taken = [(x - dot, x + dot, y - dot, y + dot) for x, y in places]
    middle = places.mean(axis=0)
    # from the outermost inwards, so that names find their room outside
    for i in np.argsort(-np.linalg.norm(places - middle, axis=1), kind="stable"):
        (x, y), (*_, name, colour) = places[i], points[i]
        length = wide * len(name.replace("\\", ""))
        best = None
        for far in (0, 8, 16, 26, 38, 52, 68, 86):
            for turn in np.arange(0, 360, 22.5):
                dx, dy = np.cos(np.radians(turn)), np.sin(np.radians(turn))
                ha = "left" if dx > 0.3 else "right" if dx < -0.3 else "center"
                ox, oy = (dot + 3 + far) * dx, (dot + 3 + far + (high / 2 - 3) * abs(dy)) * dy
                start = x + ox - {"left": 0, "right": length, "center": length / 2}[ha]
                box = (start, start + length, y + oy - high / 2, y + oy + high / 2)
                out = max(0, left - box[0], box[1] - right) + max(0, bottom - box[2], box[3] - top)
                hit = sum(box[0] < d and c < box[1] and box[2] < f and e < box[3] for c, d, e, f in taken)
                inwards = dx * (middle - places[i])[0] + dy * (middle - places[i])[1] > 0
                cost = 1000 * hit + 20 * out + far + 0.5 * abs(dy) + 0.4 * (dx < 0) + 4 * inwards * (far > 0)
                if best is None or cost < best[0]:
                    best = (cost, box, ox, oy, ha, far)
        assert best is not None
        _, box, ox, oy, ha, far = best
        taken.append(box)
        axes.annotate(
            name,
            points[i][:2],
            (ox, oy),
            textcoords="offset points",
            ha=ha,
            va="center",
            fontsize=size,
            color=INK,
            zorder=6,
            annotation_clip=False,
            path_effects=[withStroke(linewidth=3, foreground="white", alpha=0.85)],
        )
        if far > 8:
            ends = places[i] + np.array([[0, 0], [0.93 * ox, 0.93 * oy]])
            axes.plot(*axes.transData.inverted().transform(ends / to_points).T, color=colour, linewidth=1, zorder=4)


def tree(vectors: Any, units: Any, labels: Any, *, order: Sequence[str] = ()) -> bytes | None:
    """Which units are alike: their mean vectors, of standardised columns, joined by average linkage of the Euclidean
    distances. vectors: (n, D); units, labels: (n,). Of more than 50 units those with the most particles."""
    label, unit = texts(labels), texts(units)
    X = standardised(vectors) if len(unit) else np.zeros((0, 0))
    counts = pd.Series(unit, dtype=object).value_counts()
    shown = sorted(counts.index, key=lambda one: (-counts[one], one))[:LEAVES]
    if len(shown) < 3 or X.shape[1] == 0:
        return None
    shown = sorted(shown)
    of = colours(label, order)
    middles = np.stack([X[unit == one].mean(0) for one in shown])
    joined = hierarchy.linkage(middles, "average", optimal_ordering=True)
    laid = hierarchy.dendrogram(joined, no_plot=True)
    step = 0.36 if len(shown) <= 15 else 0.24
    figure = Figure(figsize=(8.6, 1.5 + step * len(shown)), layout="constrained")
    axes = figure.subplots()
    for across, along in zip(laid["dcoord"], laid["icoord"], strict=True):
        axes.plot(across, along, color=GREY, linewidth=1.4, solid_joinstyle="round")
    names = [shown[i] for i in laid["leaves"]]
    whose = [commonest(label[unit == one]) for one in names]
    y = 5 + 10 * np.arange(len(names))
    axes.scatter(
        np.zeros(len(names)), y, s=70 if len(names) <= 15 else 36, c=[of[one] for one in whose], zorder=4, clip_on=False
    )
    axes.yaxis.tick_right()
    axes.set_yticks(y, [f"{named(one)} ({counts[one]:,})" for one in names])
    axes.set_ylim(0, 10 * len(names))
    axes.set_xlim(1.03 * joined[-1, 2], -0.015 * joined[-1, 2])
    plain(axes)
    axes.tick_params(axis="y", labelsize=11 if len(names) <= 15 else 10, pad=8)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    more = "" if len(shown) == len(counts) else f"\nthe {len(shown)} of {len(counts)} units with the most particles"
    axes.set_xlabel(f"distance between the units’ means, standardised{more}", fontsize=11, color=GREY)
    key(figure, of)
    return png(figure)


def sizes(
    logs: Any, labels: Any, units: Any, *, order: Sequence[str] = (), what: str = "diameter of equal area, mm"
) -> bytes | None:
    """How sizes are distributed: a ridge a unit, or of more than 24 units a ridge a label, with a dot below at
    the median of each of its units of at least five particles. A line stands at the median, its number at the right.

    A unit with particles of several labels has the colour of the commonest.

    logs: (n,) logarithms to base 10 of sizes in `what`. All ridges have the same area and are smoothed alike.
    """
    values = np.asarray(logs, dtype=np.float64)
    there = np.isfinite(values)
    values, label, unit = values[there], texts(labels)[there], texts(units)[there]
    if len(values) == 0:
        return None
    of = colours(label, order)
    by_unit = len(set(unit)) <= RIDGES
    if by_unit:
        whose = {one: commonest(label[unit == one]) for one in set(unit)}
        rank = {name: i for i, name in enumerate(of)}
        names = sorted(whose, key=lambda one: (rank[whose[one]], one))
        groups = [(f"{named(one, 22)} ({(unit == one).sum():,})", of[whose[one]], unit == one) for one in names]
    else:
        groups = [(f"{named(one, 22)} ({(label == one).sum():,})", of[one], label == one) for one in of]
    spread = max(float(values.std()), 1e-3)
    width = max(1.06 * spread * np.median([rows.sum() for *_, rows in groups]) ** -0.2, 0.01)
    edges = np.linspace(values.min() - 3 * width, values.max() + 3 * width, 401)
    middles = (edges[1:] + edges[:-1]) / 2

    def density(rows: NDArray[Any]) -> NDArray[np.float64]:
        counts = np.histogram(values[rows], edges)[0].astype(np.float64)
        return gaussian_filter1d(counts, width / (edges[1] - edges[0]), mode="constant") / max(counts.sum(), 1)

    curves = [density(rows) for *_, rows in groups]
    tallest = max(curve.max() for curve in curves)
    step = (0.62 if by_unit else 1.0) if len(groups) <= 12 else 0.42 if len(groups) <= 24 else 0.3
    overlap = 1.5 if by_unit else 0.8  # of labels, so that the dots below stay free
    figure = Figure(figsize=(8.8, 1.5 + step * (len(groups) + overlap - 1)), layout="constrained")
    axes = figure.subplots()
    for i, ((_, colour, rows), curve) in enumerate(zip(groups, curves, strict=True)):
        base, scale = len(groups) - 1 - i, overlap / tallest
        tint = 1 - 0.38 * (1 - np.array(to_rgb(colour)))
        axes.fill_between(middles, base, base + scale * curve, color=tint, alpha=0.92, linewidth=0, zorder=2 + 3 * i)
        axes.plot(middles, base + scale * curve, color=colour, linewidth=1.8, zorder=3 + 3 * i)
        middle = float(np.median(values[rows]))
        height = base + scale * float(np.interp(middle, middles, curve))
        axes.plot([middle, middle], [base, height], color=colour, linewidth=1.6, zorder=4 + 3 * i)
        words = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "fontsize": 11, "color": INK}
        axes.annotate(
            f"{10**middle:.0f}" if middle >= 2 else f"{10**middle:#.3g}", (1, base), (8, 0), va="bottom", **words
        )
        if not by_unit:
            of_units = pd.Series(values[rows]).groupby(unit[rows]).agg(["median", "size"])
            dots = of_units.loc[of_units["size"] >= 5, "median"].to_numpy()
            axes.plot(
                dots, np.full(len(dots), base - 0.1), "o", color=colour, alpha=0.55, markersize=4.5, markeredgewidth=0,
                zorder=5 + 3 * i,
            )  # fmt: skip
    axes.set_yticks(np.arange(len(groups))[::-1], [name for name, *_ in groups], va="bottom")
    plain(axes)
    axes.tick_params(axis="y", labelsize=11 if len(groups) <= 24 else 10)
    ends = np.percentile(values, (0.1, 99.9)) + np.array([-2, 2]) * width
    axes.set_xlim(*ends)
    axes.set_ylim(-0.25, len(groups) - 1 + overlap * 1.05)
    marks = [m * 10.0**e for e in range(-4, 5) for m in (1, 2, 5) if ends[0] <= np.log10(m * 10.0**e) <= ends[1]]
    if len(marks) < 3:
        marks = list(MaxNLocator(5).tick_values(*(10**ends)))
        marks = [mark for mark in marks if mark > 0 and ends[0] <= np.log10(mark) <= ends[1]]
    axes.xaxis.set_major_locator(FixedLocator([float(np.log10(mark)) for mark in marks]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{10**value:.3g}"))
    dots = "; dots: medians of its units" if not by_unit else ""
    axes.set_xlabel(f"{what}, on a logarithmic scale; line: the median{dots}", fontsize=11, color=GREY)
    if by_unit and len(of) > 1:
        key(figure, of)
    return png(figure)


# What was tested


def tests(table: pd.DataFrame) -> bytes | None:
    """P of each test as it should be made and as it is often made, side by side, on a logarithmic scale.

    table: a row a test, columns "test", "honest", "naive" and "smallest", p each: "smallest" is the least that so few units
    can give; of it and of "naive" any may be NaN.
    """
    rows = records(table, "honest", "naive")
    if not rows:
        return None
    least = 1e-4
    figure = Figure(figsize=(10, 1.75 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    columns = (("honest", BLUE, 34), ("naive", VERMILION, 98))
    for y, row in enumerate(rows):
        if finite(row.get("smallest")) and (smallest := row["smallest"]) > least:
            axes.add_patch(
                Rectangle((least, y - 0.3), smallest - least, 0.6, facecolor="#E4E4E4", linewidth=0, zorder=1)
            )
        ends = [max(least, row[name]) for name, *_ in columns if np.isfinite(row[name])]
        axes.plot(ends, [y] * len(ends), color="#BBBBBB", linewidth=1.5, zorder=2)
        for name, colour, place in columns:
            if not np.isfinite(row[name]):
                words = "–"
            else:
                mark = "<" if row[name] < least else "o" if name == "honest" else "D"
                face = colour if name == "honest" else "white"
                axes.plot(
                    max(least, row[name]), y, mark, color=colour, markerfacecolor=face, markeredgewidth=2, clip_on=False,
                    markersize=9 if mark != "D" else 7.5, zorder=4,
                )  # fmt: skip
                words = p_words(row[name])
            at_right(axes, words, y, place, 11, colour)
    for name, colour, place in columns:
        at_right(axes, name, -0.85, place, 12, colour)
    axes.axvline(LEVEL, color=GREY, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
    axes.set_xscale("log")
    axes.set_xlim(least, 1)
    axes.set_ylim(len(rows) - 0.4, -0.7)
    axes.set_yticks(range(len(rows)), [named(row["test"], 52) for row in rows])
    plain(axes)
    marks = (1e-4, 1e-3, 0.01, LEVEL, 0.2, 1)
    axes.set_xticks(marks, ["0.0001", "0.001", "0.01", "0.05", "0.2", "1"])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", labelcolor=GREY, pad=6)
    axes.tick_params(axis="y", pad=12)
    grey = (
        "; grey: out of reach with so few units"
        if any(finite(row.get("smallest")) and row["smallest"] > least for row in rows)
        else ""
    )
    axes.set_xlabel(f"p; dashed: 0.05{grey}", fontsize=11, color=GREY)
    return png(figure)


def at_right(axes: Axes, words: str, y: float, away: float, size: float, colour: str) -> None:
    """Words beside the axes at a height, their middle so many points away."""
    place: dict[str, Any] = {
        "xycoords": ("axes fraction", "data"),
        "textcoords": "offset points",
        "annotation_clip": False,
    }
    axes.annotate(words, (1, y), (away, 0), ha="center", va="center_baseline", fontsize=size, color=colour, **place)


def effects(table: pd.DataFrame) -> bytes | None:
    """How measures go with experience or with the label: estimates with 95% intervals, the largest on top; filled where the
    false discovery rate q is below 0.05, hollow where it is not.

    table: as `mixed` gives it: "measure", "estimate", "low", "high", "q", and where there is one "effect", the estimate in
    standard deviations, to which all three are then brought. At most 40 rows, of the least q; NaN is left out.
    """
    rows = []
    for row in records(table, "estimate"):
        scale = row["effect"] / row["estimate"] if finite(row.get("effect")) and row["estimate"] else 1.0
        ends = [scale * (row[name] if finite(row[name]) else row["estimate"]) for name in ("low", "high")]
        told = {"estimate": scale * row["estimate"], "low": min(ends), "high": max(ends)}
        rows.append({"measure": str(row["measure"]), "q": row["q"] if finite(row["q"]) else 1.0} | told)
    if not rows:
        return None
    absent = len(table) - len(rows)
    kept = sorted(rows, key=lambda row: (row["q"], row["measure"]))[:ROWS]
    kept = sorted(kept, key=lambda row: (-row["estimate"], row["measure"]))
    step = 0.36 if len(kept) <= 15 else 0.28
    figure = Figure(figsize=(9.4, 1.7 + step * len(kept)), layout="constrained")
    axes = figure.subplots()
    ends = np.abs([[row["low"], row["high"]] for row in kept])
    reach = 1.06 * min(
        ends.max(), max(4 * float(np.median(ends)), 1.5 * max(abs(row["estimate"]) for row in kept), 1e-6)
    )
    for y, row in enumerate(kept):
        sure = row["q"] < LEVEL
        colour = BLUE if sure else GREY
        low, high = max(row["low"], -reach), min(row["high"], reach)
        axes.plot([low, high], [y, y], color=colour, linewidth=2.4 if sure else 1.6, solid_capstyle="butt")
        for end, cut, mark in ((low, row["low"] < -reach, "<"), (high, row["high"] > reach, ">")):
            if cut:
                axes.plot(end, y, mark, color=colour, markersize=6, clip_on=False)
        face = colour if sure else "white"
        axes.plot(
            row["estimate"], y, "o", color=colour, markerfacecolor=face, markeredgewidth=1.8, markersize=7.5, zorder=4
        )
        words = "<0.001" if row["q"] < 0.001 else f"{row['q']:.3f}"
        axes.text(
            1.05, y, words, transform=axes.get_yaxis_transform(), ha="center", va="center", fontsize=10.5, color=colour
        )
    at_right(axes, "q", -1.0, 30, 12, GREY)
    axes.axvline(0, color=INK, linewidth=1.1, zorder=1)
    axes.set_yticks(range(len(kept)), [named(row["measure"], 30).replace("_", " ") for row in kept])
    axes.set_ylim(len(kept) - 0.4, -0.7)
    axes.set_xlim(-reach, reach)
    plain(axes)
    axes.tick_params(axis="y", labelsize=11 if len(kept) <= 15 else 10)
    axes.tick_params(axis="x", labelcolor=GREY)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    found = sum(row["q"] < LEVEL for row in rows)
    words = f"filled: q below 0.05, {found} of {len(rows)} measures"
    notes = [f"effect in standard deviations, with 95% interval; {words}"]
    if len(rows) > ROWS:
        notes.append(f"and {len(rows) - ROWS} more, of larger q")
    if absent:
        notes.append(f"{absent} could not be fitted")
    axes.set_xlabel("\n".join([notes[0], *(["; ".join(notes[1:])] if notes[1:] else [])]), fontsize=11, color=GREY)
    return png(figure)


def classification(table: pd.DataFrame, classes: int) -> bytes | None:
    """What each model got right, with 95% intervals: accuracy beside always naming the commonest label, and balanced accuracy
    beside chance, a row of panels a protocol.

    table: a row a protocol and model, columns "protocol", "model", "accuracy", "low", "high", "balanced", "balanced_low",
    "balanced_high", "majority"; protocols and models in the order they first come in, the honest one first. A column
    "honest", bool, says which protocols are; without it the first is. Honest ones are blue, the others vermilion.
    """
    rows = records(table, "accuracy", "balanced")
    if not rows:
        return None
    protocols, models = list(dict.fromkeys(row["protocol"] for row in rows)), list(dict.fromkeys(table["model"]))
    figure = Figure(figsize=(10.6, 0.7 + len(protocols) * (1.0 + 0.46 * len(models))), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.12)  # type: ignore[union-attr]
    grid = figure.subplots(len(protocols), 2, squeeze=False, sharex=True)
    kinds = (
        ("accuracy", "low", "high", "accuracy"),
        ("balanced", "balanced_low", "balanced_high", "balanced accuracy"),
    )
    for line, protocol in zip(grid, protocols, strict=True):
        mine = [row for row in rows if row["protocol"] == protocol]
        honest = bool(mine[0].get("honest", protocol == protocols[0]))
        colour = BLUE if honest else VERMILION
        for axes, (name, low, high, title) in zip(line, kinds, strict=True):
            beat = float(np.median([row["majority"] for row in mine])) if name == "accuracy" else 1 / classes
            for model in models:
                if not any(row["model"] == model and finite(row[name]) for row in mine):
                    axes.text(0.01, models.index(model), "not tested", fontsize=10.5, color=GREY, va="center")
            for row in mine:
                y = models.index(row["model"])
                if not finite(row[name]):
                    continue
                if finite(row[low]) and finite(row[high]):
                    axes.plot(
                        [row[low], row[high]],
                        [y, y],
                        color=colour,
                        linewidth=2.6,
                        solid_capstyle="round",
                        clip_on=False,
                    )
                face = colour if honest else "white"
                axes.plot(
                    row[name],
                    y,
                    "o",
                    color=colour,
                    markerfacecolor=face,
                    markeredgewidth=2,
                    markersize=7.5,
                    zorder=4,
                    clip_on=False,
                )
                axes.annotate(
                    f"{row[name]:.0%}", (row[name], y), (0, 7), textcoords="offset points", ha="center", fontsize=10.5,
                    color=colour,
                    path_effects=[withStroke(linewidth=3, foreground="white")],
                )  # fmt: skip
            if np.isfinite(beat):
                axes.axvline(beat, color=INK, linewidth=1.3, linestyle=(0, (5, 3)), zorder=1)
                words = f"commonest label {100 * beat:.3g}%" if name == "accuracy" else f"chance {100 * beat:.3g}%"
                axes.annotate(
                    words, (beat, 0), (0, -4), xycoords=("data", "axes fraction"), textcoords="offset points",
                    ha="center" if 0.15 < beat < 0.85 else "left" if beat <= 0.15 else "right", va="top", fontsize=10, color=INK,
                )  # fmt: skip
            axes.set_ylim(len(models) - 0.5, -0.75)
            axes.set_yticks(
                range(len(models)), [named(one, 36) for one in models] if axes is line[0] else [""] * len(models)
            )
            axes.set_xlim(0, 1)
            plain(axes)
            axes.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.tick_params(axis="x", labelcolor=GREY, pad=18, labelbottom=True)
            axes.set_title(
                f"{named(protocol, 40)}" if axes is line[0] else "", loc="left", fontsize=12.5, color=colour, pad=10
            )
            axes.set_title(title, loc="right", fontsize=11, color=GREY, pad=10)
    return png(figure)


def confounding(matrix: pd.DataFrame) -> bytes | None:
    """How far one thing gives another away, 0 to 1, as a table with its numbers; the darker, the more. NaN is a dash.

    matrix: rows what is to be told (the label, the unit, nuisances), columns what may tell it. Where a row and a column have
    the same name, nothing is written.
    """
    if matrix.size == 0 or not np.isfinite(matrix.to_numpy(dtype=np.float64)).any():
        return None
    values = matrix.to_numpy(dtype=np.float64)
    many, wide = values.shape
    cell = 1.0 if wide <= 6 else 0.72 if wide <= 12 else 0.5
    names = [named(one, 22).replace("_", " ") for one in matrix.columns]
    turned = max(map(len, names)) * 0.088 > cell
    figure = Figure(
        figsize=(max(5.0, 2.6 + cell * wide), 1.5 + 0.5 * many + (0.09 * max(map(len, names)) if turned else 0))
    )
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    blues = colormaps["Blues"]
    for (i, j), value in np.ndenumerate(values):
        same = matrix.index[i] == matrix.columns[j]
        known = np.isfinite(value) and not same
        colour = blues(0.85 * float(np.clip(value, 0, 1))) if known else PALE
        axes.add_patch(Rectangle((j + 0.02, i + 0.04), 0.96, 0.92, facecolor=colour, linewidth=0))
        words = "" if same else f"{value:.2f}" if known else "–"
        strong = known and value > 0.68
        axes.text(
            j + 0.5, i + 0.52, words, ha="center", va="center", fontsize=11.5 if cell > 0.6 else 9.5,
            color="white" if strong else INK, weight="bold" if known and value > 0.9 else "normal",
        )  # fmt: skip
    axes.set_xlim(0, wide)
    axes.set_ylim(many, 0)
    axes.set_xticks(np.arange(wide) + 0.5, names, rotation=90 if turned else 0)
    axes.set_yticks(np.arange(many) + 0.52, [named(one, 28).replace("_", " ") for one in matrix.index])
    axes.xaxis.tick_top()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=11.5, labelcolor=INK)
    axes.text(0, many + 0.25, "1: the one above settles the one at the left", fontsize=10.5, color=GREY, va="top")
    axes.set_ylim(many + 0.6, 0)
    return png(figure)


def power(table: pd.DataFrame, units: str = "knappers") -> bytes | None:
    """How often an effect would be found by how many knappers, a line an effect, a panel a number of particles each has (at
    most four, evenly chosen); dashed: 80%.

    table: columns "knappers", "particles" (of each knapper), "effect" (in standard deviations), "power" (0 to 1).
    units: what they are called.
    """
    rows = records(table, "power")
    if not rows:
        return None
    counts, strengths = (sorted({row[name] for row in rows}) for name in ("particles", "effect"))
    counts = [counts[i] for i in np.unique(np.linspace(0, len(counts) - 1, 4).round().astype(int))]
    shades = dict(zip(strengths, colormaps["viridis_r"](np.linspace(0.25, 0.95, len(strengths))), strict=True))
    if len(strengths) == 1:
        shades = {strengths[0]: to_rgb(BLUE)}
    figure = Figure(figsize=(max(5.2, 3.1 * len(counts) + 1.0), 4.3), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)  # type: ignore[union-attr]
    panels = figure.subplots(1, len(counts), squeeze=False, sharey=True)[0]
    every = sorted({row["knappers"] for row in rows})
    for axes, count in zip(panels, counts, strict=True):
        axes.axhline(0.8, color=GREY, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
        for strength in strengths:
            line = [row for row in rows if row["particles"] == count and row["effect"] == strength]
            x, y = np.array(sorted((row["knappers"], row["power"]) for row in line)).reshape(-1, 2).T
            axes.plot(
                x,
                y,
                "o-",
                color=shades[strength],
                linewidth=2.2,
                markersize=5,
                clip_on=False,
            )
        tidy(axes, units, np.empty(0))
        if every[0] > 0 and every[-1] / every[0] > 4:
            axes.set_xscale("log")
        few = spaced(every, np.log if axes.get_xscale() == "log" else np.asarray)
        axes.set_xticks(few, [f"{one:g}" for one in few])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_title(f"{count:,} particles each", loc="left", fontsize=12, color=INK, pad=10)
    panels[0].set_ylabel("how often it is found", fontsize=12, color=GREY)
    lines = [Line2D([], [], color=shades[one], linewidth=2.6, marker="o", markersize=5) for one in strengths]
    figure.legend(
        lines, [f"{one:g}" for one in strengths], title="difference in standard deviations", loc="outside lower center",
        ncols=min(8, len(lines)), frameon=False, fontsize=11.5, title_fontsize=11.5, labelcolor=INK,
    )  # fmt: skip
    return png(figure)


def spaced(values: Sequence[float], scale: Any) -> list[float]:
    """Of ascending values those that stand far enough apart, on an axis of this scale, to be written below it."""
    places = np.asarray(scale(np.array(values, dtype=np.float64)))
    chosen = [0]
    for i in range(1, len(values)):
        if places[i] - places[chosen[-1]] >= (places[-1] - places[0]) / 12:
            chosen.append(i)
    return [values[i] for i in chosen]


def calibration(table: pd.DataFrame) -> bytes | None:
    """How often each test says that there is a difference, by how large it is, as it should be made and as it is often made;
    dashed: the 5% it may say so where there is none.

    table: a row a rate: "test", "effect" (a number; without one "design", in the order they come in), "kind" ("honest" or
    "naive"), "rate", "low", "high".
    """
    rows = records(table, "rate")
    if not rows:
        return None
    numeric = all(finite(row.get("effect")) for row in rows)
    by = "effect" if numeric else "design"
    places = list(dict.fromkeys(row[by] for row in rows))
    places = sorted(places) if numeric else places
    at_places = np.array(places, dtype=np.float64) if numeric else np.arange(len(places), dtype=np.float64)
    span = max(float(np.ptp(at_places)), 1.0)
    names = list(dict.fromkeys(row["test"] for row in rows))
    columns = 2 if len(names) == 4 else min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(
        figsize=((5.6, 9.2, 10.5)[columns - 1], 3.0 * lines + (0.7 if columns > 1 else 1.2)), layout="constrained"
    )
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.1)  # type: ignore[union-attr]
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes, name in zip(grid.flat, names, strict=False):
        axes.axhline(LEVEL, color=INK, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
        for kind, colour, style, shift in (("naive", VERMILION, "D", 0.008), ("honest", BLUE, "o", -0.008)):
            mine = [row for row in rows if row["test"] == name and row["kind"] == kind]
            if not mine:
                continue
            mine = sorted(mine, key=lambda row: places.index(row[by]))
            at = np.array([at_places[places.index(row[by])] for row in mine]) + shift * span
            middle, low, high = (
                np.array([row[end] for row in mine], dtype=np.float64) for end in ("rate", "low", "high")
            )
            axes.vlines(at, low, high, color=colour, linewidth=2.2, alpha=0.5)
            face = colour if kind == "honest" else "white"
            axes.plot(
                at, middle, f"{style}-" if numeric else style, color=colour, markerfacecolor=face, markeredgewidth=1.8,
                linewidth=1.8, markersize=6.5, zorder=3 if kind == "honest" else 2, clip_on=False,
            )  # fmt: skip
        tidy(axes, "true effect, standard deviations" if numeric else "", np.empty(0))
        axes.set_xticks(at_places, [f"{one:g}" if numeric else broken(one) for one in places])
        axes.set_xlim(at_places[0] - 0.1 * span, at_places[-1] + 0.1 * span)
        axes.set_ylim(0, 1)
        axes.set_yticks([LEVEL, 0.25, 0.5, 0.75, 1])
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_title(named(name, 30 if columns == 3 else 42), loc="left", fontsize=12, color=INK, pad=10)
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    for line in grid:
        line[0].set_ylabel("says “different”", fontsize=11.5, color=GREY)
    keys = [
        Line2D([], [], color=BLUE, marker="o", markersize=7, linewidth=1.8),
        Line2D(
            [],
            [],
            color=VERMILION,
            marker="D",
            markerfacecolor="white",
            markeredgewidth=1.8,
            markersize=7,
            linewidth=1.8,
        ),
        Line2D([], [], color=INK, linestyle=(0, (5, 3)), linewidth=1.2),
    ]
    words = ["honest: labels are dealt among units", "naive: among particles", "5%"]
    figure.legend(
        keys,
        words,
        loc="outside lower center",
        ncols=3 if columns > 1 else 1,
        frameon=False,
        fontsize=11.5,
        labelcolor=INK,
    )
    return png(figure)


# Particles


@dataclass(frozen=True)
class Shown:
    """A particle on a sheet."""

    image: Tensor
    """(C, H, W) in [0, 1]."""
    words: tuple[str, ...] = ()
    """Below it, a line each."""
    right: bool | None = None
    """Framed in blue where it is, in vermilion where it is not."""


@dataclass(frozen=True)
class Seen:
    """A particle, and what a model looked at in it."""

    image: Tensor
    """(C, H, W) in [0, 1]."""
    attention: Tensor | None = None
    """(rows, columns), or (heads, rows, columns), of which the mean is drawn."""
    occlusion: Tensor | None = None
    """(rows, columns), as `look.occlusion` gives it."""
    words: tuple[str, ...] = ()
    """Beside it: its unit, what it is, what it was taken for."""


Row = tuple[str, str, Sequence[Shown], Sequence[Shown]]


def particles(rows: Sequence[Row]) -> bytes | None:
    """A sheet with a row a unit: those judged right most surely, and those judged wrong most surely, at most four each.

    rows: (unit, a word on it such as its label, the right ones, the wrong ones); of more than ten the first ten are
    drawn, and the sheet says so.
    """
    lines = [((name, word), (right[:4], wrong[:4])) for name, word, right, wrong in rows]
    lines = [line for line in lines if any(line[1])]
    note = f"the first {SHEET} of {len(lines)}" if len(lines) > SHEET else ""
    return sheet(
        ("judged right, most surely", "judged wrong, most surely: taken for"), lines[:SHEET], (4, 4), note=note,
        none=("none was judged right", "none was judged wrong"),
    )  # fmt: skip


def neighbours(rows: Sequence[tuple[Shown, Sequence[Shown]]]) -> bytes | None:
    """A sheet with a row a particle, and beside it those most like it, the nearest first. Framed in blue those of the same
    label, in vermilion those of another, as `Shown.right` says; at most eight beside each, and ten rows."""
    lines = [((), ([query], near[:8])) for query, near in rows]
    wide = max((len(near) for _, (_, near) in lines), default=0)
    note = "blue: of the same label; vermilion: of another"
    return sheet(("particle", "most like it"), lines[:SHEET], (1, wide), note=note, none=("", "none"))


def looked(rows: Sequence[Seen]) -> bytes | None:
    """What a model looked at, a particle a row: its image, where attention lies, and where covering it makes the model less
    sure of the class (red) or surer (blue), in one scale for all; white is no change. At most eight rows."""
    rows = rows[:8]
    if not rows:
        return None
    changes = [row.occlusion for row in rows if row.occlusion is not None]
    most = max((float(change.abs().nan_to_num().max()) for change in changes), default=0.0)
    most = max(most, 0.01)
    attentive = any(row.attention is not None for row in rows)
    headings = [
        "particle",
        *(["where attention lies"] if attentive else []),
        *(["where hiding it matters"] if changes else []),
    ]
    lines = []
    for row in rows:
        groups = [[Shown(row.image)]]
        if attentive:
            groups.append([])
            if row.attention is not None:
                looks = row.attention.float().cpu()
                looks = looks.mean(dim=0) if looks.ndim == 3 else looks
                groups[-1].append(Shown(overlaid(row.image, looks / looks.max().clamp(min=1e-12), ATTENTION)))
        if changes:
            groups.append([])
            if row.occlusion is not None:
                groups[-1].append(Shown(overlaid(row.image, 0.5 + row.occlusion.float().cpu() / (2 * most), CHANGE)))
        lines.append((row.words, groups))
    scale = (
        (CHANGE, f"{100 * most:.0f}% surer", "hidden, nothing changes", f"{100 * most:.0f}% less sure")
        if changes
        else None
    )
    return sheet(headings, lines, [1] * len(headings), side=LOOKED, none=[""] * len(headings), scale=scale)


ATTENTION = colormaps["Purples"]
CHANGE = colormaps["RdBu_r"]


def overlaid(image: Tensor, strength: Tensor, shades: Any) -> Tensor:
    """An image (C, H, W), faint and with a line around what is not background, in the colours of how strong, 0 to 1, each cell
    of a map (rows, columns) is: (3, h, w), enlarged."""
    wide = max(image.shape[1:])
    size = [max(1, round(side * LOOKED / wide)) for side in image.shape[1:]]
    image = F.interpolate(
        image[None].detach().float().cpu().nan_to_num(), size=size, mode="bilinear", align_corners=False
    )[0]
    grey = torch.from_numpy(displayable(image)).mean(dim=-1)  # (h, w)
    spread = F.interpolate(strength[None, None].nan_to_num(), size=size, mode="bilinear", align_corners=False)[0, 0]
    colour = torch.from_numpy(shades(spread.clamp(0, 1).numpy())[..., :3]).float()
    shown = colour * (0.85 + 0.15 * grey[..., None])
    inside = torch.from_numpy(content(image))
    grown = F.max_pool2d(inside[None, None].float(), 3, stride=1, padding=1)[0, 0].bool()
    shown[grown & ~inside] = torch.tensor(to_rgb(INK))
    return shown.permute(2, 0, 1)


Line = tuple[Sequence[str], Sequence[Sequence[Shown]]]


def sheet(
    headings: Sequence[str],
    lines: Sequence[Line],
    wide: Sequence[int],
    *,
    side: int = 128,
    note: str = "",
    none: Sequence[str] = (),
    scale: tuple[Any, str, str, str] | None = None,
) -> bytes | None:
    """Rows of pictures: words at the left, then groups of particles, each under its heading, `wide` of them; None without rows.

    side: of a picture in pixels. none: what stands in place of a group without any. scale: colours, and words for their
    lower end, middle and upper end, drawn below.
    """
    if not lines or not any(len(group) for _, groups in lines for group in groups):
        return None
    gap, between, size, line_height = 10, 34, 20, 24
    beside = 0 if not any(words for words, _ in lines) else 250
    captions = max((len(shown.words) for _, groups in lines for group in groups for shown in group), default=0)
    tall = side + gap + captions * line_height + (8 if captions else 0)
    groups_wide = [
        max(count * (side + gap) - gap, round(0.53 * size * len(head)))
        for count, head in zip(wide, headings, strict=True)
    ]
    starts = [gap + beside + sum(groups_wide[:i]) + i * between for i in range(len(wide))]
    across = starts[-1] + groups_wide[-1] + gap
    top, below = 46, 44 * bool(note) + 64 * bool(scale)
    canvas = np.ones((top + len(lines) * tall + below, across, 3), dtype=np.float32)
    figure = Figure(figsize=(canvas.shape[1] / DPI, canvas.shape[0] / DPI), dpi=DPI)
    for head, start in zip(headings, starts, strict=True):
        write(figure, head, start, top / 2, size, color=INK)
    for row, (words, groups) in enumerate(lines):
        y = top + row * tall
        for i, word in enumerate(words):
            place = y + side / 2 + (i - (len(words) - 1) / 2) * 28
            write(figure, named(word, 20 if i else 18), gap, place, size if i else size + 1, color=GREY if i else INK)
        for group, start, empty in zip(groups, starts, none or [""] * len(groups), strict=True):
            if not group:
                write(figure, empty, start, y + side / 2, size - 2, color=GREY)
            for i, shown in enumerate(group):
                x = start + i * (side + gap)
                if shown.right is not None:
                    canvas[y - 4 : y + side + 4, x - 4 : x + side + 4] = to_rgb(BLUE if shown.right else VERMILION)
                frame(canvas, tile(shown.image, side), y, x)
                for j, word in enumerate(shown.words):
                    middle = y + side + 8 + (j + 0.5) * line_height
                    letters = max(6, int((side + gap) / (0.6 * (size - 2))))
                    write(
                        figure,
                        named(word, letters),
                        x + side / 2,
                        middle,
                        size - 2,
                        color=INK if j == 0 else GREY,
                        align="center",
                    )
    if scale:
        shades, low, middle, high = scale
        y, x, width = canvas.shape[0] - below + 6, starts[0], across - gap - starts[0]
        canvas[y : y + 14, x : x + width] = shades(np.linspace(0, 1, width))[None, :, :3]
        for words, place, align in ((low, x, "left"), (middle, x + width / 2, "center"), (high, x + width, "right")):
            write(figure, words, place, y + 32, size - 2, color=GREY, align=align)
    if note:
        write(figure, note, starts[0], canvas.shape[0] - 24, size - 1, color=GREY)
    figure.figimage(canvas, origin="upper", zorder=-1)
    return png(figure)


def tile(image: Tensor, side: int) -> NDArray[np.float32]:
    """An image (C, H, W) as RGB (side, side, 3), as large as fits, on its own border colour."""
    C, H, W = image.shape
    scale = side / max(H, W)
    size = (max(1, round(H * scale)), max(1, round(W * scale)))
    image = image.detach().float().cpu().nan_to_num()
    shown = F.interpolate(image[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]
    square = border_colour(image).expand(C, side, side).clone()
    y, x = (side - size[0]) // 2, (side - size[1]) // 2
    square[:, y : y + size[0], x : x + size[1]] = shown
    return displayable(square)

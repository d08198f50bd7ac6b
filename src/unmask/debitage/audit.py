"""What the data cannot answer, found before any model, in words.

`audit` looks at who made what, of which stone, when and by which instrument (`identifiability`); at what was measured of
whom; at sizes, copies, order, background and files (`controls`). It says what each finding is, why it matters and what to do.
Nothing here looks at whether labels differ: it looks at what else would make them seem to.
"""

# To pandas' own types a column may always be a table, and a sum anything
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false

import hashlib
import itertools
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp, spearmanr
from sklearn.neighbors import NearestNeighbors

from unmask.debitage.controls import controls, size_of
from unmask.debitage.findings import NOT_GIVEN, SEVERITIES, Finding, begun, listed, many, plural
from unmask.debitage.identifiability import confounding, covariate, labels
from unmask.debitage.study import Study

LEAST = 10
"""Particles of an assemblage from which on a measure that is constant in it says something."""
BINS = 20
"""Of equal numbers of particles, in which sizes are matched."""


def audit(study: Study, *, seed: int = 0) -> list[Finding]:
    """All checks, worst first, each reported also where all is well. The table of `controls` is that of the finding so called."""
    tried = controls(study, seed=seed)
    found = [
        *labels(study),
        *covariate(study),
        *confounding(study),
        channels(study),
        size(study, tried, seed=seed),
        *duplicates(study),
        *order(study),
        negative(study, tried),
        balance(study),
        missing(study),
    ]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


# What was measured of whom


def channels(study: Study) -> Finding:
    """Measures that are missing, constant or zero in some assemblages only: their absence can be learnt in place of the hand."""
    q, names = study.question, list(study.measures)
    if not names:
        return Finding("channels", "note", "No measures", "There are no measures, so none can be missing.")
    values, of = study.particles[names], study.particles["assemblage"]
    n = of.value_counts().sort_index()
    absent = values.isna().groupby(of).mean()
    spread = values.groupby(of).nunique()
    zero = (values == 0).groupby(of).mean()
    rows, off = [], {}
    for name in names:
        gone = absent[name] >= 0.99
        enough = (n >= LEAST) & ~gone
        still = enough & (spread[name] <= 1)
        for what, where, there in (("missing", gone, ~gone), ("constant", still, enough & ~still)):
            if where.any() and there.any():
                how = "all zero" if what == "constant" and (zero[name][where] == 1).all() else what
                rows.append(
                    {
                        "measure": name,
                        "how": how,
                        "assemblages": int(where.sum()),
                        "where": listed(list(n.index[where]), 3),
                    }
                )
                off[name] = where | off.get(name, False)
    nothing = [name for name in names if values[name].nunique() <= 1]
    dull = (
        f" {listed(nothing)} {'is' if len(nothing) == 1 else 'are'} the same for all particles and "
        f"{'tells' if len(nothing) == 1 else 'tell'} nothing."
        if nothing
        else ""
    )
    if not rows:
        return Finding(
            "channels",
            "fine",
            "Each measure was taken of every assemblage",
            f"None is missing or constant in some assemblages only.{dull}",
        )
    shown = pd.DataFrame(rows)
    pattern = study.particles["assemblage"].map(pd.DataFrame(off).astype(int).astype(str).agg("".join, axis=1))
    known = study.particles[q.label].notna()
    label, pattern = study.particles.loc[known, q.label], pattern[known]
    majority = label.value_counts(normalize=True).max() if len(label) else 1.0
    guessed = pd.crosstab(pattern, label).max(axis=1).sum() / max(len(label), 1)
    varied = [
        name for name in (q.label, *q.nuisances) if study.particles.groupby(name)["assemblage"].nunique().max() > 1
    ]
    goes = [name for name in varied if partly(study.particles.loc[known, name], pattern)]
    told = listed(shown["measure"].unique(), 8)
    text = f"{told}: missing, constant or zero in some assemblages and not in others ({shown['where'][0]}). "
    if goes:
        text += f"Whether they are there goes with {listed(goes)}. "
    text += (
        f"Who looks at nothing but which are there names the {q.label} of {guessed:.0%} of the particles, against "
        f"{majority:.0%} by always naming the commonest. (In a published attempt a classifier fell from 80% to 37% "
        "once such columns were left out.) Leave these measures out of every analysis, or have them taken of all "
        f"assemblages.{dull}"
    )
    severity = "warning" if goes or guessed > majority + 0.01 else "note"
    return Finding(
        "channels",
        severity,
        f"{many(shown['measure'].nunique(), 'measure')} switched off in some assemblages",
        text,
        shown,
    )


def partly(values: pd.Series, pattern: pd.Series) -> bool:
    """Whether a value of a column is always, and another never, found with one pattern of absence."""
    table = pd.crosstab(values.fillna(NOT_GIVEN), pattern, normalize="index")
    return bool(table.shape[0] > 1 and ((table == 1).any() & (table == 0).any()).any())


def size(study: Study, tried: pd.DataFrame, *, seed: int = 0) -> Finding:
    """Whether labels differ in size alone."""
    q, name = study.question, size_of(study)
    if name is None:
        text = "There is no measure of size (diameter, length or area), so whether size alone gives the answer away is not known."
        return Finding("size", "note", "Size is not known", text)
    rows = study.particles[[q.label, name]].dropna()
    by = rows.groupby(q.label)[name]
    if by.ngroups < 2:
        return Finding(
            "size", "note", "Sizes have nothing to be compared with", f"There is one {q.label} only, or none has sizes."
        )
    shown = by.describe(percentiles=[0.1, 0.5, 0.9])[["count", "10%", "50%", "90%"]].reset_index()
    shown["count"] = shown["count"].astype(int)
    pairs = list(itertools.combinations([group.to_numpy() for _, group in by], 2))
    apart = np.array([ks_2samp(a, b, method="asymp").statistic for a, b in pairs])
    counts = np.array([len(a) * len(b) / (len(a) + len(b)) for a, b in pairs])
    chance = np.sqrt(
        math.log(200 * len(pairs)) / 2 / counts
    )  # exceeded by any pair in one of a hundred studies of like sizes
    farthest, sure = float(apart.max()), apart[apart > chance]
    left = size_matched(study, seed)
    medians = by.median()
    told = (
        f"Median {name} is {medians.min():.3g} ({medians.idxmin()}) to {medians.max():.3g} ({medians.idxmax()}); the "
        f"distributions of two {plural(q.label)} are at most {farthest:.2f} apart (Kolmogorov-Smirnov; 0 the same, 1 "
        f"no overlap). "
    )
    for row in tried[tried["control"].str.startswith("size alone")].itertuples():
        got = "cannot be tested" if np.isnan(row.balanced) else f"{row.balanced:.0%} (chance {row.chance:.0%})"
        told += f"Balanced accuracy of size alone {row.protocol}: {got}. "
    told += f"Matched for size, {len(left):,} of {len(rows):,} particles are left."
    if not (sure > 0.15).any():
        return Finding("size", "fine", f"Sizes are much alike between {plural(q.label)}", told, shown)
    text = (
        f"{told} Size follows sieve, stone and stage of work as well as the hand. Where size should not count, repeat "
        "the analysis on the size-matched particles: what remains there is form."
    )
    severity = "warning" if sure.max() > 0.3 else "note"
    return Finding("size", severity, f"Sizes differ between {plural(q.label)}", text, shown)


def size_matched(study: Study, seed: int = 0) -> np.ndarray:
    """Places in `particles` (n,) int64, ascending, of a resample without replacement in which labels are of like sizes: the
    sizes of all are sorted into 20 bins of equal numbers, and of each bin as many are drawn of each label as the rarest there
    has. Empty where sizes do not overlap, or none is known."""
    q, name = study.question, size_of(study)
    if name is None:
        return np.zeros(0, np.int64)
    rows = study.particles[[q.label, name]].dropna()
    if rows[q.label].nunique() < 2:
        return np.zeros(0, np.int64)
    rank = rows[name].rank(method="average", pct=True)
    bins = np.minimum((rank * BINS).astype(int), BINS - 1)
    least = pd.crosstab(bins, rows[q.label]).min(axis=1)
    ends = rows.groupby([bins, q.label])[name].agg(["min", "max"]).groupby(level=0).agg({"min": "max", "max": "min"})
    least[ends["min"] > ends["max"]] = 0  # a bin in which one label ends where another begins
    rng = np.random.default_rng(seed)
    shuffled = rows.iloc[rng.permutation(len(rows))]
    where = bins.loc[shuffled.index]
    place = shuffled.groupby([where, shuffled[q.label]]).cumcount()
    return np.sort(shuffled.index[(place < where.map(least)).to_numpy()].to_numpy(np.int64))


# Copies


def duplicates(study: Study) -> list[Finding]:
    """Rows and pictures that are there twice, and particles of one picture."""
    return [rows_twice(study), pictures_twice(study), same_frame(study)]


def rows_twice(study: Study) -> Finding:
    """Particles equal, or all but equal, in every measure."""
    q, names = study.question, [name for name in study.measures if study.particles[name].nunique() > 10]
    if len(names) < 4:
        text = "With fewer than four measures, particles that are equal in all of them may well be different particles."
        return Finding("copies", "note", "Too few measures to find copies by", text)
    rows = study.particles[names].dropna(how="all")
    code = rows.groupby(names, dropna=False, sort=False).ngroup()
    again = code[code.duplicated(keep=False)]
    about = study.particles.loc[again.index, ["particle", "assemblage", q.unit]].assign(code=again)
    if (measure := size_of(study)) is not None:
        about[measure] = study.particles.loc[about.index, measure]
    across = about.groupby("code")["assemblage"].transform("nunique") > 1
    near = near_copies(study, rows[~code.duplicated()])
    also = (
        f" {len(near):,} more pairs are equal in every measure to a thousandth of its spread ({near[0][0]} and "
        f"{near[0][1]})."
        if near
        else ""
    )
    if not len(about):
        if near:
            text = f"No two rows are equal.{also} They may be one particle recorded twice: look at their pictures."
            table = pd.DataFrame(near, columns=["particle", "nearly equal to"])
            return Finding("copies", "note", "Particles that are almost equal", text, table)
        return Finding(
            "copies", "fine", "No particle is there twice", "No two particles are equal in all their measures."
        )
    shown = about.sort_values("code").drop(columns="code")
    large = about[measure] >= study.particles[measure].median() if measure else pd.Series(True, index=about.index)
    smallest = int(study.particles["assemblage"].value_counts().loc[about["assemblage"].unique()].min())
    if across.any():
        sure = int((across & large).sum())
        pair = about[across & large] if sure else about[across]
        pair = pair[pair["code"] == pair["code"].iloc[0]]["particle"].tolist()
        if sure or across.sum() > max(5, 0.25 * smallest):
            text = (
                f"{int(across.sum()):,} particles of one assemblage are equal in all {len(names)} measures to "
                f"particles of another ({listed(pair, 3)}). A particle can have one maker only: files were copied or "
                "mixed up, and what is learnt of one assemblage is known of the other. Find out whose they are "
                f"before anything else.{also}"
            )
            return Finding("copies", "cannot answer", "The same particles in two assemblages", text, shown)
        text = (
            f"{int(across.sum()):,} particles are equal in all {len(names)} measures to one of another assemblage, "
            "but only such as are smaller than the median particle, of so few pixels that different ones measure the "
            f"same ({measure} {about[measure].max():.3g} at most). Leave out the smallest, whose form the instrument "
            f"cannot see.{also}"
        )
        return Finding("copies", "note", "Some of the smallest particles measure the same", text, shown)
    tiny = bool(measure) and not large.any()
    text = f"{len(about):,} particles are equal to another of the same assemblage in all {len(names)} measures. " + (
        f"They are all smaller than the median particle ({measure} {about[measure].max():.3g} at most): of so few "
        "pixels that different ones measure the same. Leave out the smallest, whose form the instrument cannot "
        f"see.{also}"
        if tiny
        else f"They were likely recorded or copied twice: count each once, and never split two of them.{also}"
    )
    return Finding("copies", "note" if tiny else "warning", "Particles that are there twice", text, shown)


def near_copies(study: Study, rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Pairs of particles, of rows (n, M), whose measures all differ by less than a thousandth of their spread."""
    rows = rows.loc[:, rows.notna().all()].iloc[:5000]
    values = rows.to_numpy()
    if len(values) < 3 or values.shape[1] < 4:
        return []
    ranged = np.quantile(values, 0.75, axis=0) - np.quantile(values, 0.25, axis=0)
    values = values / np.where(ranged > 0, ranged, 1)
    distance, place = NearestNeighbors(n_neighbors=2, metric="chebyshev").fit(values).kneighbors(values)
    name = study.particles.loc[rows.index, "particle"].to_numpy()
    pairs = {
        tuple(sorted((int(i), int(place[i, 1])))) for i in np.flatnonzero(distance[:, 1] < 1e-3) if place[i, 1] != i
    }
    return [(name[a], name[b]) for a, b in sorted(pairs)]


def pictures_twice(study: Study) -> Finding:
    """Picture files that are byte for byte the same."""
    particles = study.particles
    by_size: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for row, frames in zip(particles.index, particles["frames"], strict=True):
        for path in frames:
            try:
                by_size[Path(path).stat().st_size].append((row, path))
            except OSError:  # named under "missing"
                continue
    if not by_size:
        return Finding(
            "pictures", "note", "No pictures", "There are no pictures to compare: the measures alone are looked at."
        )
    by_hash: dict[bytes, dict[str, int]] = defaultdict(dict)  # hash to the paths, and of which row each is
    for alike in by_size.values():
        for row, path in alike if len(alike) > 1 else ():
            by_hash[hashlib.blake2b(Path(path).read_bytes(), digest_size=16).digest()][path] = row
    same = [list(paths.values()) for paths in by_hash.values() if len(paths) > 1]
    copies = [sorted(set(rows)) for rows in same if len(set(rows)) > 1]
    if not copies:
        return Finding("pictures", "fine", "No picture is there twice", "No two particles have the same picture file.")
    of = particles["assemblage"]
    shown = pd.DataFrame(
        {
            "particles": [listed(particles.loc[rows, "particle"].tolist(), 5) for rows in copies],
            "assemblages": [listed(sorted(of.loc[rows].unique()), 5) for rows in copies],
        }
    )
    across = [rows for rows in copies if of.loc[rows].nunique() > 1]
    n = sum(map(len, across or copies))
    if across:
        text = (
            f"{n:,} particles have the very picture of a particle of another assemblage "
            f"({shown['particles'][copies.index(across[0])]}). A particle has one maker only: files were copied or "
            "mixed up. Find out whose they are before anything else."
        )
        owners = particles[study.question.unit]
        severity = "cannot answer" if any(owners.loc[rows].nunique() > 1 for rows in across) else "warning"
        return Finding("pictures", severity, "The same picture in two assemblages", text, shown)
    text = f"{n:,} particles have the same picture as another of their assemblage. Count each once, on one side of a split."
    return Finding("pictures", "warning", "Pictures that are there twice", text, shown)


def same_frame(study: Study) -> Finding:
    """Particles of one frame of the analyser."""
    particles = study.particles
    key, title = "frames", "Particles of one frame"
    if "image_id" not in particles or particles["image_id"].isna().all():
        shared = particles["image"].dropna()
        of = particles.loc[shared.index].groupby("image").size()
    else:
        of = particles[particles["image_id"].notna()].groupby(["assemblage", "image_id"]).size()
    together = of[of > 1]
    if not len(together):
        return Finding(
            key, "fine", "Each particle has a frame of its own", "No frame is known to show several particles."
        )
    text = (
        f"{int(together.sum()):,} of {len(particles):,} particles share a frame with another ({len(together):,} "
        f"frames, up to {int(together.max())} particles each): they share light, focus and background, and are not "
        "independent. Never put two of them on both sides of a split; leaving out whole "
        f"{plural(study.question.unit)} sees to that."
    )
    return Finding(key, "note", title, text)


# Order


def order(study: Study) -> list[Finding]:
    """Tables sorted by size, and measures that drift while an assemblage is recorded."""
    particles, names = study.particles, [name for name in study.measures if study.particles[name].nunique() > 1]
    measure, sorted_by = size_of(study), []
    by = [(str(name), rows) for name, rows in particles.groupby("assemblage", sort=True) if len(rows) >= 20]
    if measure is not None:
        sorted_by = [name for name, rows in by if abs(rank_correlation(rows["order"], rows[measure])) > 0.95]
    if sorted_by:
        text = (
            f"The tables of {listed(sorted_by)} are sorted by {measure}: their order is no order of time. The first "
            "rows are not a sample of the whole; never split by position, and draw samples at random."
        )
        found = [Finding("sorted", "note", "Tables are sorted by size", text)]
    else:
        found = [Finding("sorted", "fine", "Tables are not sorted by size", "Their order tells nothing of the size.")]
    when, rows_found = "image_id", []
    if "image_id" not in particles or particles["image_id"].isna().all():
        when = "order"
    for name, rows in by:
        if when == "order" and name in sorted_by:
            continue
        at = pd.to_numeric(rows[when], errors="coerce").rank()
        values = rows[names].rank()
        n = (values.notna() & at.notna().to_numpy()[:, None]).sum()
        for each, rho in values.corrwith(at).dropna().items():
            limit = 4 / math.sqrt(max(n[each] - 1, 1))  # some four deviations of a rank correlation of chance
            rows_found.append(
                {
                    "assemblage": name,
                    "measure": each,
                    "n": int(n[each]),
                    "rank correlation": rho,
                    "drifts": abs(rho) > max(0.1, limit),
                }
            )
    shown = pd.DataFrame(rows_found, columns=["assemblage", "measure", "n", "rank correlation", "drifts"])
    if shown.empty:
        what = (
            "the tables are sorted by size and frames are not numbered"
            if sorted_by
            else "no assemblage has 20 particles with measures"
        )
        return [
            *found,
            Finding(
                "drift", "note", "Drift cannot be looked for", f"Whether the instrument drifted is not known: {what}."
            ),
        ]
    drifting = shown[shown["drifts"]].sort_values("rank correlation", key=np.abs, ascending=False)
    number = "number of the frame" if when == "image_id" else "place in the table"
    if drifting.empty:
        text = f"No measure rises or falls with the {number} within an assemblage."
        return [*found, Finding("drift", "fine", "No drift within assemblages", text, shown.drop(columns="drifts"))]
    worst = drifting.iloc[0]
    text = (
        f"The {number} goes with "
        f"{many(drifting['measure'].nunique(), 'measure')} in {many(drifting['assemblage'].nunique(), 'assemblage')}, "
        f"most of all with {worst['measure']} in {worst['assemblage']} (rank correlation "
        f"{worst['rank correlation']:+.2f}). The instrument drifted, or particles were fed in an order, large ones "
        "first: assemblages recorded for different lengths of time then differ by that alone. Mix particles before "
        "they are fed, and record assemblages in turns."
    )
    severity = "warning" if abs(worst["rank correlation"]) > 0.3 else "note"
    return [
        *found,
        Finding(
            "drift", severity, "Measures drift while an assemblage is recorded", text, drifting.drop(columns="drifts")
        ),
    ]


def rank_correlation(a: pd.Series, b: pd.Series) -> float:
    kept = a.notna() & b.notna()
    if a[kept].nunique() < 2 or b[kept].nunique() < 2:
        return 0.0
    return float(spearmanr(a[kept], b[kept]).statistic)


# Controls


def negative(study: Study, table: pd.DataFrame) -> Finding:
    """The label told from what holds nothing of the hand."""
    q = study.question
    if table.empty:
        return Finding(
            "controls",
            "note",
            "Nothing to try",
            f"With one {q.label}, or nothing but it known, no negative control can be tried.",
        )
    nonsense = table["control"].str.contains(" shuffled ")
    real, made_up = table[~nonsense], table[nonsense]
    unit = f"by {q.unit}"
    told = list(dict.fromkeys(real.loc[real["better"], "control"]))
    by_unit = set(real.loc[real["better"] & (real["protocol"] == unit), "control"])
    untested = set(real.loc[real["accuracy"].isna() & (real["protocol"] == unit), "control"])
    lines, severity = [], "fine"
    if told:
        size_only = all(name.startswith("size alone") for name in told) and not by_unit and not untested & set(told)
        severity = "note" if size_only else "warning"
        each = [
            f"{name} (balanced accuracy {got['balanced']:.0%} {got['protocol']}, chance {got['chance']:.0%})"
            for name in told
            for got in [real[(real["control"] == name) & real["better"]].iloc[-1]]
        ]
        lines.append(f"These tell the {q.label}, and hold nothing of a particle's form: {listed(each)}.")
        if "properties of the picture files alone" in told:
            lines.append("A file that is cut to its particle tells the particle's size by its own.")
        background = "background of the pictures alone"
        if background in told:
            lines.append(
                f"The background tells the {q.label} of a {q.unit} not seen before, too: a network may learn the "
                "background; cut the particles out."
                if background in by_unit
                else f"The background tells the {q.label} by particle, but not of a {q.unit} not seen before: the pictures carry "
                "the session, not the hand. Believe no test split by particle, and cut the particles out."
                if background not in untested
                else f"The pictures carry the session, and with these {plural(q.unit)} nobody can say whether the hand, too: "
                "cut the particles out, and believe no test split by particle."
            )
        else:
            lines.append(
                f"A result must be well above these to mean the hand, and be tested on {plural(q.unit)} not seen "
                "before."
            )
    leaks = made_up[made_up["better"] & made_up["verdict"].str.contains("leaks")]
    names = made_up[made_up["better"] & (made_up["protocol"] == "by particle")]
    if len(leaks):
        severity = "warning"
        lines.append(
            "Labels dealt out at random are told better than by chance: the test itself leaks, as copies on both "
            "sides of a split do."
        )
    elif len(names):
        severity = "note" if severity == "fine" else severity
        got = names.iloc[0]
        lines.append(
            f"Made-up labels are 'recognised' (balanced accuracy {got['balanced']:.0%}, chance {got['chance']:.0%}) "
            f"when split by particle: such a split recognises the {q.unit}, whatever the label. Only tests on "
            f"{plural(q.unit)} not seen before count."
        )
    elif len(made_up):
        lines.append("Labels dealt out at random are told no better than by chance, as it must be.")
    if len(untested) == real["control"].nunique():
        why = real.loc[real["protocol"] == unit, "verdict"].iloc[0].removeprefix("cannot be tested: ")
        lines.append(f"None of them can be tried on a {q.unit} not seen before ({why}).")
    if severity == "fine":
        lines.insert(0, f"Nothing but the particles tells the {q.label}.")
    title = {
        "fine": f"What should not tell the {q.label} does not",
        "note": f"A split by particle recognises the {q.unit}",
        "warning": f"The {q.label} can be told without looking at any form" if told else "The test itself leaks",
    }
    return Finding("controls", severity, title[severity], " ".join(lines), table)


# What there is


def balance(study: Study) -> Finding:
    """How many particles of each label and unit, and what always naming the commonest label gets right."""
    q, counts = study.question, study.particles[study.question.label].value_counts()
    units = study.units["particles"]
    shown = study.units.reset_index()
    if not len(counts):
        return Finding(
            "balance",
            "cannot answer",
            f"No {q.label} is given",
            f"Give the {q.label} of each assemblage in the study's file.",
        )
    majority = counts.iloc[0] / counts.sum()
    text = (
        f"Always naming {counts.index[0]} is right for {majority:.1%} of {counts.sum():,} particles; that is the "
        f"accuracy to beat{'' if majority < 1.02 / len(counts) else f', not {1 / len(counts):.0%}'}. "
        f"{begun(plural(q.unit))} have {units.min():,} to {units.max():,} particles (median {units.median():,.0f})."
    )
    few = units[units < 30]
    fair = majority <= 1.2 / len(counts) and units.max() <= 3 * units.min()
    if len(counts) > 1 and not fair:
        text += " Report balanced accuracy beside accuracy, and weigh units alike."
    if len(few) and study.units["particles"].median() >= 30:
        text += f" {listed(list(few.index))}: fewer than 30 particles, too few to know a {q.unit} by."
    severity = "fine" if fair else "warning" if majority > 0.9 and len(counts) > 1 else "note"
    return Finding("balance", severity, f"The majority to beat is {majority:.1%}", text, shown)


def missing(study: Study) -> Finding:
    """Values, labels and pictures that are not there, and particles that touch the border."""
    q, particles = study.question, study.particles
    lines, severity = [], "fine"
    rows = []

    def say(text: str, how: str) -> None:
        nonlocal severity
        lines.append(text)
        severity = min(severity, how, key=SEVERITIES.index)

    for name in dict.fromkeys((q.label, q.covariate, *q.nuisances)):
        if name is not None and (gone := int(particles[name].isna().sum())):
            rows.append({"what": name, "particles without": gone})
            say(f"{gone:,} particles have no {name}.", "warning" if name == q.label else "note")
    if study.measures:
        gaps = particles[list(study.measures)].isna().sum()
        gaps = gaps[gaps > 0].sort_values(ascending=False)
        rows += [{"what": name, "particles without": int(gone)} for name, gone in gaps.items()]
        if len(gaps):
            say(f"{many(len(gaps), 'measure')} have gaps, most {gaps.index[0]} ({gaps.iloc[0]:,} particles).", "note")
    pictured = particles["image"].notna()
    if pictured.any() and not pictured.all():
        by = pictured.groupby(particles[q.unit]).mean()
        rows.append({"what": "picture", "particles without": int((~pictured).sum())})
        if (by == 0).any():
            without = list(by[by == 0].index)
            say(
                f"{listed(without)} {'has' if len(without) == 1 else 'have'} no pictures: what networks say is of the "
                f"other {plural(q.unit)} only.",
                "warning",
            )
        else:
            say(f"{int((~pictured).sum()):,} particles have no picture.", "note")
    elif not pictured.any():
        say("There are no pictures.", "note")
    if pictured.any():
        paths = {path for path in particles.loc[pictured, "image"] if not Path(path).is_file()}
        if paths:
            rows.append({"what": "picture file", "particles without": len(paths)})
            say(f"{many(len(paths), 'picture file')} cannot be found ({Path(min(paths)).name}).", "warning")
        if particles.loc[pictured, "scale"].isna().any():
            unscaled = int(particles.loc[pictured, "scale"].isna().sum())
            rows.append({"what": "scale", "particles without": unscaled})
            say(f"Of {unscaled:,} pictures the scale is not known, so their sizes cannot be measured.", "note")
    if "touches_border" in particles and (cut := particles["touches_border"].fillna(False).astype(bool)).any():
        rows.append({"what": "whole outline (touches the border)", "particles without": int(cut.sum())})
        say(
            f"{int(cut.sum()):,} particles touch the border of their picture and are not whole: leave them out.",
            "warning",
        )
    shown = pd.DataFrame(rows, columns=["what", "particles without"]) if rows else None
    title = "Nothing is missing" if severity == "fine" else "What is missing"
    return Finding("missing", severity, title, " ".join(lines) or "All labels, values and pictures are there.", shown)

"""What the data cannot answer, found before any model, in words.

`audit` looks at who made what, of which stone, when and by which instrument; at what was measured of whom; at sizes, copies,
order, background and files. It says what each finding is, why it matters and what to do. Nothing here looks at whether
labels differ: it looks at what else would make them seem to.
"""

import hashlib
import itertools
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp, spearmanr
from sklearn.metrics.cluster import expected_mutual_information, mutual_info_score
from sklearn.neighbors import NearestNeighbors

from unmask.debitage.controls import controls, listed, plural, size_of
from unmask.debitage.study import Study
from unmask.evaluate.splits import FOLDS, SETTLED

SEVERITIES = ("cannot answer", "warning", "note", "fine")
"""Worst first."""
LEVEL = 0.05
"""The p below which a difference is commonly called one."""
LEAST = 10
"""Particles of an assemblage from which on a measure that is constant in it says something."""
BINS = 20
"""Of equal numbers of particles, in which sizes are matched."""
NOT_GIVEN = "(not given)"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and what was found."""

    key: str
    """Of the check, such as "label", "label-material", "channels", "size", "controls"; each is there once."""
    severity: str
    """One of SEVERITIES."""
    title: str
    """A line."""
    sentence: str
    """What it is, why it matters and what to do: one to four sentences."""
    table: pd.DataFrame | None = None
    """The figures behind it."""


def audit(study: Study, *, seed: int = 0) -> list[Finding]:
    """All checks, worst first, each reported also where all is well. The table of `controls` is that of the finding so called."""
    found = [
        *labels(study),
        *covariate(study),
        *confounding(study),
        channels(study),
        size(study, seed=seed),
        *duplicates(study),
        *order(study),
        negative(study, seed=seed),
        balance(study),
        missing(study),
    ]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def many(n: int, noun: str) -> str:
    return f"1 {noun}" if n == 1 else f"{n:,} {plural(noun)}"


def begun(text: str) -> str:
    """With a capital at the beginning of a sentence."""
    return text[:1].upper() + text[1:]


# Whether the question can be asked


def labels(study: Study) -> list[Finding]:
    """Whether labels can be told from units, and how small a p their number allows."""
    q, units = study.question, study.units
    pairs = study.particles[[q.label, q.unit]].dropna().drop_duplicates()
    counts = pairs[q.label].value_counts().sort_index()
    each = pairs.groupby(q.unit)[q.label].nunique()
    several = each[each > 1]
    by = study.particles.groupby(q.label)
    table = pd.DataFrame(
        {
            q.label: counts.index,
            plural(q.unit): counts.to_numpy(),
            "assemblages": by["assemblage"].nunique().loc[counts.index].to_numpy(),
            "particles": by.size().loc[counts.index].to_numpy(),
        }
    )
    told = ", ".join(f"{name} {count}" for name, count in counts.items())
    alone = [name for name, count in counts.items() if count == 1]
    what = f"{q.label} cannot be told from the {'person' if q.unit == 'knapper' else q.unit}"
    if len(counts) < 2:
        found = Finding(
            "label",
            "cannot answer",
            f"Only one {q.label}: there is nothing to compare",
            f"All particles are of the same {q.label} ({told or 'none is given'}). Whether {plural(q.label)} differ cannot be asked of them.",
            table,
        )
        return [found]
    if alone:
        one = f"one {alone[0]}" if len(alone) == 1 else "one each of " + listed(alone)
        most = len(counts) - len(alone) < 2
        found = Finding(
            "label",
            "cannot answer" if most else "warning",
            f"{begun(one)}: {what}",
            f"There is {one} ({plural(q.unit)} of each {q.label}: {told}). Whatever is peculiar to that "
            f"{q.unit} (hand, stone, day, instrument) passes for {q.label}, however many particles there are. "
            + (
                f"Two {plural(q.unit)} of each {q.label} are the least with which the question can be asked, five are better."
                if most
                else f"Leave {listed(alone)} out of what is said of {plural(q.label)}, or add {plural(q.unit)}."
            ),
            table,
        )
    elif counts.min() < 3 and not len(several):
        few = listed([name for name, count in counts.items() if count < 3])
        found = Finding(
            "label",
            "note",
            f"Few {plural(q.unit)} of each {q.label}",
            f"Each {q.label} has {many(int(counts.min()), q.unit)} at least ({told}), so the question can be asked, but "
            f"two {plural(q.unit)} say little of how much {plural(q.unit)} of one {q.label} differ ({few}). "
            f"More {plural(q.unit)}, not more particles, would make the answer surer.",
            table,
        )
    else:
        found = Finding(
            "label",
            "fine",
            f"Each {q.label} has several {plural(q.unit)}",
            f"{begun(plural(q.unit))} of each {q.label}: {told}.",
            table,
        )
    return [found, mixed(study, several), permutations(study, units, len(several) > 0)]


def mixed(study: Study, several: pd.Series) -> Finding:
    """Units of more than one label."""
    q, K = study.question, study.particles[study.question.unit].nunique()
    if len(several) == 0:
        return Finding("several-labels", "fine", f"Each {q.unit} has one {q.label}", "As it should be.")
    table = (
        study.particles[study.particles[q.unit].isin(several.index)]
        .groupby([q.unit, q.label])
        .size()
        .unstack(fill_value=0)
        .reset_index()
    )
    if q.unit == "knapper" or len(several) < K / 10:
        return Finding(
            "several-labels",
            "warning",
            f"{many(len(several), q.unit)} of {K:,} with more than one {q.label}",
            f"{listed(list(several.index))}: the {q.label} differs within the {q.unit}. If that is a slip, mend it in the study's "
            f"file; if it is so (a {q.unit} who learnt between two sessions), their particles are compared within the {q.unit}, "
            f"and the others' are not.",
            table,
        )
    return Finding(
        "several-labels",
        "fine",
        f"{begun(plural(q.label))} are found together in one {q.unit}",
        f"{len(several):,} of {K:,} {plural(q.unit)} have particles of more than one {q.label}: they can be compared within the {q.unit}, "
        f"where all else is alike.",
        table,
    )


def assignments(counts: pd.DataFrame) -> int:
    """In how many ways labels can be given to units that differ in who is with whom. counts: units by stratum and label."""
    ways = 1
    for row in counts.to_numpy(int):
        ways *= math.factorial(row.sum()) // math.prod(math.factorial(n) for n in row)
    for _, alike in counts.T.value_counts().items():  # labels that come as often may swap their names
        ways //= math.factorial(int(alike))
    return ways


def permutations(study: Study, units: pd.DataFrame, crossed: bool) -> Finding:
    """The least p that a permutation of labels among units can give."""
    q = study.question
    if crossed:
        return Finding(
            "permutations",
            "fine",
            f"{begun(plural(q.label))} can be permuted within {plural(q.unit)}",
            f"{begun(plural(q.label))} differ within {plural(q.unit)}, so there is no want of ways to permute them.",
        )
    known = units[units[q.label].notna()]
    stratum = known[q.strata].fillna(NOT_GIVEN) if q.strata else pd.Series("all", index=known.index)
    ways = assignments(pd.crosstab(stratum, known[q.label]))
    least, also = 1 / ways, ""
    best = least
    if q.covariate is not None:
        given = known[q.covariate].dropna()
        tied = math.prod(math.factorial(int(n)) for n in given.value_counts())
        orders = math.factorial(min(len(given), 20)) // tied if q.strata is None and len(given) <= 20 else 10**9
        best = min(best, 1 / max(orders, 1))
        also = f" Its {q.covariate}, a number each {q.unit} has, can be dealt out in {orders:,} ways (least p {1 / max(orders, 1):.2g})."
        also = also if orders < 10**9 else ""
    within = f" within each {q.strata}" if q.strata else ""
    count = "one way only" if ways == 1 else f"{ways:,} different ways"
    told = (
        f"The {q.label} of {len(known):,} {plural(q.unit)} can be dealt out among them{within} in {count}, so that no p below "
        f"{least:.2g} is possible for it.{also}"
    )
    if best > LEVEL:
        return Finding(
            "permutations",
            "cannot answer",
            f"Too few {plural(q.unit)} for any difference to be significant",
            f"{told} Nothing can be shown below {LEVEL} with these {plural(q.unit)}, however large the difference and however many the "
            f"particles: more {plural(q.unit)} are needed. A p that counts particles as if each were a {q.unit} is not to be believed.",
        )
    if least > LEVEL:
        return Finding(
            "permutations",
            "warning",
            f"By {q.label} alone no p below {least:.2g} is possible",
            f"{told} Groups of {q.label} alone cannot come out below {LEVEL}; the trend over {q.covariate} can, and is what to test.",
        )
    told = (
        told
        if ways < 10**6
        else f"{ways:.1e} ways to deal out the {q.label} among {len(known):,} {plural(q.unit)}{within}."
    )
    return Finding("permutations", "fine", f"Enough {plural(q.unit)} for a small p", told)


def covariate(study: Study) -> list[Finding]:
    """Whether a number such as years of experience can be told from the label, and has values enough."""
    q = study.question
    if q.covariate is None:
        return []
    name = q.covariate
    within = study.particles.groupby(q.unit)[name].nunique()
    units = study.units.dropna(subset=[q.label])
    values = units[name].astype(float)
    by = values.groupby(units[q.label]).agg(["count", "min", "mean", "max"]).sort_values("mean")
    table = by.reset_index()
    if (within > 1).any():
        return [
            Finding(
                "covariate",
                "warning",
                f"{begun(name)} differ within a {q.unit}",
                f"{listed(list(within[within > 1].index))}: more than one value of {name} for one {q.unit}. Mend it in the study's "
                f"file, or ask of assemblages what changes within a {q.unit}.",
                table,
            )
        ]
    given, distinct = int(values.notna().sum()), values.nunique()
    if distinct < 3:
        severity, title = "warning", f"Too few different {name} for a trend"
        text = (
            f"The {plural(q.unit)} have {distinct} different values of {name}: a line through two points always fits. "
            f"Compare {plural(q.label)}, or add {plural(q.unit)} with other {name}."
        )
    else:
        severity, title = "fine", f"{begun(name)} have {distinct} different values"
        text = f"{given} of {len(units)} {plural(q.unit)} have {name} given, from {values.min():g} to {values.max():g}."
    if given < len(units):
        severity = "warning" if severity == "fine" else severity
        text += f" {many(len(units) - given, q.unit)} without {name} {'is' if len(units) - given == 1 else 'are'} left out of any trend."
    apart = all(a <= b for a, b in itertools.pairwise(x for row in by[["min", "max"]].dropna().to_numpy() for x in row))
    if apart and len(by) > 1:
        severity = "note" if severity == "fine" else severity
        text += (
            f" {begun(q.label)} follows from {name} here (their ranges do not overlap), so that the two are one and the same "
            f"question: a result on both is one result, not two."
        )
    return [Finding("covariate", severity, title, text, table)]


# What is confounded with what


def cells(study: Study) -> pd.DataFrame:
    """Each combination of assemblage, unit, label and nuisances that there is, with its number of "particles"."""
    q = study.question
    names = list(dict.fromkeys(("assemblage", q.unit, q.label, *q.nuisances)))
    rows = study.particles[study.particles[q.label].notna()]
    frame = rows[names].astype(object).where(rows[names].notna(), NOT_GIVEN).astype(str)
    return frame.groupby(names, sort=False).size().rename("particles").reset_index()


def association(a: pd.Series, b: pd.Series, weights: pd.Series | None = None) -> tuple[float, float]:
    """How far b goes with a: Cramér's V with the bias correction of Bergsma (2013), and the share of what there is to know of
    a that b settles, less what it would by chance (Vinh et al. 2010, equation 8). 0 to 1; 0 where either is the same for all."""
    table = pd.crosstab(a, b, values=weights, aggfunc="sum" if weights is not None else None).fillna(0).to_numpy()
    n, (r, c) = table.sum(), table.shape
    if min(r, c) < 2:
        return 0.0, 0.0
    expected = np.outer(table.sum(1), table.sum(0)) / n
    phi = max(0.0, float((np.square(table - expected) / expected).sum()) / n - (r - 1) * (c - 1) / (n - 1))
    rows, columns = r - (r - 1) ** 2 / (n - 1), c - (c - 1) ** 2 / (n - 1)
    least = min(rows, columns) - 1
    v = min(1.0, math.sqrt(phi / least)) if least > 1e-9 else 0.0
    share = table.sum(1) / n
    known, told = -float((share * np.log(share)).sum()), mutual_info_score(None, None, contingency=table)
    chance = expected_mutual_information(table.astype(np.int64), int(n))
    return v, float(np.clip((told - chance) / (known - chance), 0, 1)) if known - chance > 1e-9 else 0.0


def nested(a: pd.Series, b: pd.Series) -> bool:
    """Whether each b is found with one a only."""
    return bool((a.groupby(b).nunique() == 1).all())


def who(table: pd.DataFrame, name: str, of: str, most: int = 6) -> str:
    """novice: flint; expert: chert, flint."""
    told = [f"{key}: {', '.join(sorted(set(rest))[:5])}" for key, rest in table.groupby(name)[of]]
    return "; ".join(told[:most]) + ("; …" if len(told) > most else "")


def confounding(study: Study) -> list[Finding]:
    """Of the label and the unit with each nuisance, of nuisances among themselves, and what of the label remains estimable."""
    q, found = study.question, []
    if not q.nuisances:
        text = (
            f"Neither material nor technique, session or instrument is given. Whether one of them passes for {q.label} cannot be "
            f"said: give them in the study's file, also where they are all the same."
        )
        return [Finding("nuisances", "warning", "Nothing is known that could pass for the label", text)]
    table = cells(study)
    if table[q.label].nunique() > 1:
        found += [against_label(study, table, name) for name in q.nuisances]
    if table[q.unit].nunique() > 1:
        found += [against_unit(study, table, name) for name in q.nuisances if name != q.strata]
    blamed = {
        f.key.removeprefix("label-") for f in found if f.key.startswith("label-") and f.severity == "cannot answer"
    }
    if table[q.label].nunique() > 1:
        found.append(estimable(study, table, blamed))
    if len(q.nuisances) > 1:
        found.append(among(study, table))
    return found


def against_label(study: Study, table: pd.DataFrame, name: str) -> Finding:
    """Whether a nuisance passes for the label."""
    q = study.question
    label, other, unit = table[q.label], table[name], table[q.unit]
    key, many_of = f"label-{name}", plural(name)
    counts = pd.crosstab(label, other)
    shown = counts.reset_index() if counts.shape[1] <= 30 else None
    if counts.shape[1] < 2:
        only = counts.columns[0]
        if only == NOT_GIVEN:
            return Finding(
                key, "warning", f"{begun(name)} is not given", f"Whether {name} passes for {q.label} cannot be said."
            )
        text = f"All is of one {name} ({only}), so it cannot pass for {q.label}; what is found is known of that {name} only."
        return Finding(key, "fine", f"One {name} only", text)
    within = not nested(label, table["assemblage"])  # labels of particles, not of assemblages
    v, settled = association(label, other, table["particles"] if within else None)
    levels = (counts > 0).sum(1)
    own = plural(name) if name != "material" else "stones"
    lead = f"{q.label} by {name}: {who(table, q.label, name)}."
    by_unit = nested(other, unit) and nested(unit, other)
    if nested(label, other):
        single = levels.min() == 1
        if single or (levels.min() < FOLDS and not nested(unit, other)):
            title = f"{begun(q.label)} cannot be told from {name}"
            text = (
                f"Each {q.unit} worked another {name}" if by_unit and q.unit == "knapper" and name == "material"
                else f"Each {q.unit} has another {name}" if by_unit
                else f"No two {plural(q.label)} share a {name}"
            )  # fmt: skip
            text += (
                f" ({who(table, q.unit, name) if by_unit else who(table, q.label, name)}): what tells the {own} apart passes for "
                f"{q.label}, and no analysis can take the two apart. Needed: assemblages of one and the same "
                f"{name} from {listed(list(counts.index))}."
            )
            return Finding(key, "cannot answer", title, text, shown)
        if by_unit:
            text = (
                f"Each {q.unit} has a {name} of their own ({who(table, q.unit, name)}), so that the two count as one: "
                f"{plural(q.label)} are compared over {plural(q.unit)} with their {many_of}. That is fair only if it was chance which "
                f"{q.unit} had which {name}."
            )
            return Finding(key, "warning", f"Each {q.unit} has a {name} of their own", text, shown)
        text = (
            f"Each {name} belongs to one {q.unit}, and each {q.unit} has several: they are kept on one side of a split "
            f"together with their {q.unit}, and are part of how {plural(q.unit)} differ."
        )
        if nested(unit, other):
            return Finding(key, "fine", f"{begun(many_of)} within {plural(q.unit)}", text, shown)
        text = (
            f"Each {name} has one {q.label} only, but each {q.label} has {int(levels.min())} {many_of} at least: what holds in all of "
            f"them is hardly the {name}. Keep each {name} on one side of a split."
        )
        return Finding(key, "note", f"Each {name} has one {q.label}", text, shown)
    shared = [a for a in counts.index if ((counts > 0).sum(0)[counts.loc[a] > 0] > 1).any()]
    apart = [a for a in counts.index if a not in shared]
    if apart:
        text = (
            f"{listed(apart)} shares no {name} with any other {q.label}. {lead} What is found of {listed(apart)} may be of the {name}; "
            f"only {listed(shared)} can be compared."
        )
        return Finding(key, "warning", f"Part of {q.label} cannot be told from {name}", text, shown)
    if settled > SETTLED and levels.min() < FOLDS or not within and v > 0.5:
        text = (
            f"{begun(name)} and {q.label} go together (Cramér's V {v:.2f}, 0 would be none and 1 always). {lead} A model that "
            f"recognises the {name} is often right. Compare {plural(q.label)} within one {name}, and give each {name} its term in "
            f"the mixed models."
        )
        return Finding(key, "warning", f"{begun(name)} gives much of {q.label} away", text, shown)
    if v > 0.25:
        text = (
            f"{lead} They are not evenly spread (Cramér's V {v:.2f}): let {name} stand in the models beside {q.label}."
        )
        return Finding(key, "note", f"{begun(name)} is unevenly spread over {q.label}", text, shown)
    text = f"Every {q.label} shares its {many_of} with others (Cramér's V {v:.2f}), so that {name} does not pass for {q.label}."
    return Finding(key, "fine", f"{begun(name)} is spread over {q.label}", text, shown)


def against_unit(study: Study, table: pd.DataFrame, name: str) -> Finding:
    """Whether a nuisance passes for the unit: whose hand it was, rather than what skill."""
    q = study.question
    unit, other = table[q.unit], table[name]
    key, levels = f"unit-{name}", other.nunique()
    counts = pd.crosstab(unit, other)
    shown = counts.reset_index() if counts.shape[1] <= 30 else None
    if levels < 2:
        return Finding(
            key,
            "fine",
            f"One {name} for every {q.unit}",
            f"There is one {name} only, so it cannot pass for a {q.unit}.",
        )
    if nested(unit, other):
        his = "a stone" if name == "material" else f"a {name}"
        if nested(other, unit):
            text = (
                f"Each {q.unit} has {his} of their own ({who(table, q.unit, name)}). Which {q.unit} made a particle cannot be "
                f"asked: it would be answered by the {name}."
            )
            return Finding(key, "warning", f"{begun(q.unit)} and {name} are one", text, shown)
        text = (
            f"No {name} is shared by two {plural(q.unit)}. To recognise a {q.unit} is asked of a {name} not seen before, else the "
            f"{name} is recognised; that is what folds by {name} do."
        )
        return Finding(key, "note", f"No two {plural(q.unit)} share a {name}", text, shown)
    v, _ = association(unit, other)
    if nested(other, unit):
        text = f"Each {q.unit} has one {name}, and some have the same: {plural(q.unit)} can be told apart within a {name} only."
        return Finding(key, "note", f"One {name} for each {q.unit}", text, shown)
    if (counts > 0).all(axis=None):
        text = f"Every {q.unit} has every {name} (Cramér's V {v:.2f}): neither passes for the other."
        return Finding(key, "fine", f"{begun(q.unit)} and {name} are crossed", text, shown)
    text = f"Some {plural(name)} are shared by {plural(q.unit)} and some are not (Cramér's V {v:.2f}); compare within those that are."
    return Finding(key, "note", f"{begun(q.unit)} and {name} are partly crossed", text, shown)


def estimable(study: Study, table: pd.DataFrame, blamed: set[str]) -> Finding:
    """Which differences between labels remain once each nuisance, and all of them, has a term of its own."""
    q = study.question
    names = sorted(table[q.label].unique())
    pairs = list(itertools.combinations(range(len(names)), 2))
    contrasts = np.zeros((len(pairs), len(names)))
    for row, (a, b) in enumerate(pairs):
        contrasts[row, a], contrasts[row, b] = 1, -1
    varied = [name for name in q.nuisances if table[name].nunique() > 1]
    shared = [name for name in varied if not nested(table[q.unit], table[name])]
    lost: dict[int, list[str]] = defaultdict(list)
    for name in varied:
        for row in np.flatnonzero(~can_be_told(table, q.label, [name], contrasts)):
            lost[row].append(name)
    together = can_be_told(table, q.label, shared, contrasts) if len(shared) > 1 else np.ones(len(pairs), bool)
    shown = pd.DataFrame(
        {
            "difference": [f"{names[a]} against {names[b]}" for a, b in pairs],
            "not apart from": [", ".join(lost[row]) for row in range(len(pairs))],
            "apart from all together": together & [not set(lost[row]) & set(shared) for row in range(len(pairs))],
        }
    )
    own = [row for row in lost if set(lost[row]) & (blamed | set(shared))]
    if own:
        told = listed([f"{shown['difference'][row]} (not apart from {listed(lost[row])})" for row in own], 4)
        rest = len(pairs) - len(own)
        text = f"No model, however it is built, can estimate {told}. "
        text += (
            f"{many(rest, 'other difference')} between {plural(q.label)} can be."
            if rest
            else "Nothing else is left to compare."
        )
        severity = "cannot answer" if blamed and len(own) == len(pairs) else "warning"
        return Finding("estimable", severity, "Differences that no model can estimate", text, shown)
    if not together.all():
        told = listed([shown["difference"][row] for row in np.flatnonzero(~together)], 4)
        text = (
            f"Each of {listed(shared)} alone leaves them, but with a term for every one of them these differences between "
            f"{plural(q.label)} can no longer be estimated: {told}. Give terms to those that matter most, and say which."
        )
        return Finding("estimable", "warning", "Differences lost if all is allowed for", text, shown)
    text = "The difference" if len(pairs) == 1 else f"All {len(pairs):,} differences"
    text += f" between {plural(q.label)} can be estimated" + (
        f" with a term for {listed(shared)} beside." if shared else "."
    )
    if inside := [name for name in varied if name not in shared]:
        text += f" {begun(listed(inside))} lies within {plural(q.unit)} and counts as part of how these differ."
    return Finding("estimable", "fine", f"Every difference of {q.label} can be estimated", text, shown)


def can_be_told(table: pd.DataFrame, label: str, nuisances: list[str], contrasts: np.ndarray) -> np.ndarray:
    """Which contrasts of labels (C, K) an additive model with the nuisances can estimate: (C,) bool.

    A contrast is estimable if it lies in the row space of the design matrix (Searle 1971, section 5.4)."""
    rows = table[[label, *nuisances]].drop_duplicates()
    design = pd.get_dummies(rows, dtype=float)
    wanted = np.zeros((len(contrasts), design.shape[1]))
    wanted[:, : contrasts.shape[1]] = contrasts  # the columns of the label come first, sorted
    _, s, space = np.linalg.svd(design.to_numpy(), full_matrices=False)
    space = space[s > s[0] * 1e-9]
    return np.linalg.norm(wanted - wanted @ space.T @ space, axis=1) < 1e-6


def among(study: Study, table: pd.DataFrame) -> Finding:
    """Nuisances that cannot be told from each other."""
    q, rows = study.question, []
    varied = [name for name in q.nuisances if table[name].nunique() > 1]
    for a, b in itertools.combinations(varied, 2):
        v, _ = association(table[a], table[b])
        one, other = nested(table[a], table[b]), nested(table[b], table[a])
        how = (
            "the same"
            if one and other
            else f"{b} within {a}"
            if one
            else f"{a} within {b}"
            if other
            else "crossed, wholly or in part"
        )
        rows.append({"of": a, "with": b, "Cramér's V": v, "how": how})
    shown = pd.DataFrame(rows, columns=["of", "with", "Cramér's V", "how"])
    same = shown[shown["how"] == "the same"]
    if len(same):
        told = listed([f"{a} and {b}" for a, b in zip(same["of"], same["with"], strict=True)])
        text = f"{told} change together everywhere: an effect of one cannot be told from one of the other. It is enough to allow for one."
        return Finding("nuisances", "note", "Nuisances that are one and the same", text, shown)
    return Finding(
        "nuisances", "fine", "Nuisances can be told from each other", "No two of them always change together.", shown
    )


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
        f" {listed(nothing)} {'is' if len(nothing) == 1 else 'are'} the same for all particles and {'tells' if len(nothing) == 1 else 'tell'} nothing."
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
        f"Who looks at nothing but which are there names the {q.label} of {guessed:.0%} of the particles, against {majority:.0%} by always "
        f"naming the commonest. (In a published attempt a classifier fell from 80% to 37% once such columns were left out.) Leave "
        f"these measures out of every analysis, or have them taken of all assemblages.{dull}"
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


def size(study: Study, *, seed: int = 0) -> Finding:
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
    groups = [group.to_numpy() for _, group in by]
    farthest = max(float(ks_2samp(a, b).statistic) for a, b in itertools.combinations(groups[:12], 2))
    left = size_matched(study, seed)
    medians = by.median()
    told = (
        f"Median {name} is {medians.min():.3g} ({medians.idxmin()}) to {medians.max():.3g} ({medians.idxmax()}); the distributions of two "
        f"{plural(q.label)} are at most {farthest:.2f} apart (Kolmogorov-Smirnov; 0 the same, 1 no overlap). Matched for size, "
        f"{len(left):,} of {len(rows):,} particles are left."
    )
    least = min(map(len, groups))
    if farthest < max(0.15, 1.63 * math.sqrt(2 / least)):  # what chance alone would give in one of a hundred
        return Finding("size", "fine", f"Sizes are much alike between {plural(q.label)}", told, shown)
    text = (
        f"{told} Size follows sieve, stone and stage of work as well as the hand. Where size should not count, repeat the analysis on the "
        f"size-matched particles: what remains there is form."
    )
    severity = "warning" if farthest > 0.3 else "note"
    return Finding("size", severity, f"Sizes differ between {plural(q.label)}", text, shown)


def size_matched(study: Study, seed: int = 0) -> np.ndarray:
    """Places in `particles` (n,) int64, ascending, of a resample without replacement in which all labels have as many particles of
    each size: the sizes of all are sorted into 20 bins of equal numbers, and of each bin as many are drawn of each label as
    the rarest there has. Empty where sizes do not overlap, or none is known."""
    q, name = study.question, size_of(study)
    if name is None:
        return np.zeros(0, np.int64)
    rows = study.particles[[q.label, name]].dropna()
    if rows[q.label].nunique() < 2:
        return np.zeros(0, np.int64)
    rank = rows[name].rank(method="average", pct=True)
    bins = np.minimum((rank * BINS).astype(int), BINS - 1)
    least = pd.crosstab(bins, rows[q.label]).min(axis=1)
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
        f" {len(near):,} more pairs are equal in every measure to a thousandth of its spread ({near[0][0]} and {near[0][1]})."
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
        if sure or across.sum() > 0.05 * smallest:
            text = (
                f"{int(across.sum()):,} particles of one assemblage are equal in all {len(names)} measures to particles of another "
                f"({listed(pair, 3)}). A particle can have one maker only: files were copied or mixed up, and what is learnt of one assemblage "
                f"is known of the other. Find out whose they are before anything else.{also}"
            )
            return Finding("copies", "cannot answer", "The same particles in two assemblages", text, shown)
        text = (
            f"{int(across.sum()):,} particles are equal in all {len(names)} measures to one of another assemblage, but only such as are "
            f"smaller than the median particle, of so few pixels that different ones measure the same ({measure} "
            f"{about[measure].max():.3g} at most). Leave out the smallest, whose form the instrument cannot see.{also}"
        )
        return Finding("copies", "note", "Some of the smallest particles measure the same", text, shown)
    tiny = bool(measure) and not large.any()
    text = f"{len(about):,} particles are equal to another of the same assemblage in all {len(names)} measures. " + (
        f"They are all smaller than the median particle ({measure} {about[measure].max():.3g} at most): of so few pixels that different "
        f"ones measure the same. Leave out the smallest, whose form the instrument cannot see.{also}"
        if tiny
        else f"They were likely recorded or copied twice; count each once, and never put two of them on both sides of a split.{also}"
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
            f"{n:,} particles have the very picture of a particle of another assemblage ({shown['particles'][copies.index(across[0])]}). A particle has "
            f"one maker only: files were copied or mixed up. Find out whose they are before anything else."
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
        f"{int(together.sum()):,} of {len(particles):,} particles share a frame with another ({len(together):,} frames, up to "
        f"{int(together.max())} particles each): they share light, focus and background, and are not independent. Never put two of them on both "
        f"sides of a split; leaving out whole {plural(study.question.unit)} sees to that."
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
            f"The tables of {listed(sorted_by)} are sorted by {measure}: their order is no order of time. The first rows are not a sample of "
            f"the whole; never split by position, and draw samples at random."
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
            else f"no assemblage has 20 particles with measures"
        )
        return [
            *found,
            Finding(
                "drift", "note", "Drift cannot be looked for", f"Whether the instrument drifted is not known: {what}."
            ),
        ]
    drifting = shown[shown["drifts"]].sort_values("rank correlation", key=np.abs, ascending=False)
    if drifting.empty:
        text = f"No measure rises or falls with the {'number of the frame' if when == 'image_id' else 'place in the table'} within an assemblage."
        return [*found, Finding("drift", "fine", "No drift within assemblages", text, shown.drop(columns="drifts"))]
    worst = drifting.iloc[0]
    text = (
        f"The {'number of the frame' if when == 'image_id' else 'place in the table'} goes with {many(drifting['measure'].nunique(), 'measure')} "
        f"in {many(drifting['assemblage'].nunique(), 'assemblage')}, most of all with {worst['measure']} in {worst['assemblage']} (rank "
        f"correlation {worst['rank correlation']:+.2f}). The instrument drifted, or particles were fed in an order, large ones "
        f"first: assemblages recorded for different lengths of time then differ by that alone. Mix particles before they are fed, and record "
        f"assemblages in turns."
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


def negative(study: Study, *, seed: int = 0) -> Finding:
    """The label told from what holds nothing of the hand."""
    q, table = study.question, controls(study, seed=seed)
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
        severity = "warning"
        each = [
            f"{name} (balanced accuracy {got['balanced']:.0%} {got['protocol']}, chance {got['chance']:.0%})"
            for name in told
            for got in [real[(real["control"] == name) & real["better"]].iloc[-1]]
        ]
        lines.append(f"These tell the {q.label} without looking at the hand: {listed(each)}.")
        background = "background of the pictures alone"
        if background in told:
            lines.append(
                f"The background tells the {q.label} of a {q.unit} not seen before, too: a network may learn the background; cut the particles out."
                if background in by_unit
                else f"If the background tells the {q.label} by particle but not of a {q.unit} not seen before, the pictures carry the session, not "
                "the hand: believe no test split by particle, and cut the particles out."
                if background not in untested
                else "The pictures carry the session, and with these units nobody can say that they carry the hand: cut the particles out, and "
                "believe no test split by particle."
            )
        else:
            lines.append(
                f"A result must be well above these to mean the hand, and be tested on {plural(q.unit)} not seen before."
            )
    leaks = made_up[
        made_up["better"] & (made_up["control"].str.contains("among particles") | (made_up["protocol"] == unit))
    ]
    names = made_up[made_up["better"] & ~made_up.index.isin(leaks.index)]
    if len(leaks):
        severity = "warning"
        lines.append(
            "Labels dealt out at random are told better than by chance: the test itself leaks, as copies on both sides of a split do."
        )
    elif len(names):
        severity = "note" if severity == "fine" else severity
        got = names.iloc[0]
        lines.append(
            f"Made-up labels are 'recognised' (balanced accuracy {got['balanced']:.0%}, chance {got['chance']:.0%}) when split by particle: such a "
            f"split recognises the {q.unit}, whatever the label. Only tests on {plural(q.unit)} not seen before count."
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
        "warning": f"The {q.label} can be told without looking at the particles" if told else "The test itself leaks",
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
        f"Always naming {counts.index[0]} is right for {majority:.1%} of {counts.sum():,} particles; that is the accuracy to beat"
        f"{'' if majority < 1.02 / len(counts) else f', not {1 / len(counts):.0%}'}. {begun(plural(q.unit))} have {units.min():,} to {units.max():,} particles (median {units.median():,.0f})."
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
                f"{listed(without)} {'has' if len(without) == 1 else 'have'} no pictures: what networks say is of the other {plural(q.unit)} only.",
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

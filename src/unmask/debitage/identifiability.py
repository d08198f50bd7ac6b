"""Whether the question can be asked at all: who made what, of which stone, when and by which instrument.

Labels must be told from units (one novice: is it skill or the person?), labels and units from what else differs (each knapper
another stone: is it the hand or the stone?), and there must be units enough for a difference to be more than chance. No
measure is looked at here, only the design of the study.
"""

# To pandas' own types a column may always be a table, and a sum anything
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false

import itertools
import math
from collections import defaultdict

import numpy as np
import pandas as pd
from sklearn.metrics.cluster import expected_mutual_information, mutual_info_score

from unmask.debitage.findings import NOT_GIVEN, Finding, begun, listed, many, plural, whole_labels
from unmask.debitage.study import Study
from unmask.evaluate.splits import FOLDS, SETTLED

LEVEL = 0.05
"""The p below which a difference is commonly called one."""


# Labels, and how many have them


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
            f"All particles are of the same {q.label} ({told or 'none is given'}). Whether {plural(q.label)} differ "
            "cannot be asked of them.",
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
                f"Two {plural(q.unit)} of each {q.label} are the least with which the question can be asked, five are "
                "better."
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
            f"Each {q.label} has {many(int(counts.min()), q.unit)} at least ({told}), so the question can be asked, "
            f"but two {plural(q.unit)} say little of how much {plural(q.unit)} of one {q.label} differ ({few}). More "
            f"{plural(q.unit)}, not more particles, would make the answer surer.",
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
    return [found, mixed(study, several), permutations(study, units, not whole_labels(study))]


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
    if whole_labels(study):
        return Finding(
            "several-labels",
            "warning",
            f"{many(len(several), q.unit)} of {K:,} with more than one {q.label}",
            f"{listed(list(several.index))}: the {q.label} differs within the {q.unit}. If that is a slip, mend it in "
            f"the study's file; if it is so (as of one who learnt between two sessions), they are compared "
            f"within the {q.unit}, and the others as wholes.",
            table,
        )
    return Finding(
        "several-labels",
        "fine",
        f"{begun(plural(q.label))} are found together in one {q.unit}",
        f"{len(several):,} of {K:,} {plural(q.unit)} have particles of more than one {q.label}: they can be compared "
        f"within the {q.unit}, where all else is alike.",
        table,
    )


def assignments(counts: pd.DataFrame) -> int:
    """In how many ways labels can be given to units that differ in who is with whom. counts: units by stratum and label."""
    ways = 1
    for row in counts.to_numpy(int):
        ways *= math.factorial(row.sum()) // math.prod(math.factorial(n) for n in row)
    for alike in counts.T.value_counts().tolist():  # labels that come as often may swap their names
        ways //= math.factorial(alike)
    return ways


def counted(ways: int) -> str:
    return "one way only" if ways == 1 else f"{ways:,} ways" if ways <= 10**6 else "more than a million ways"


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
    best = least = 1 / ways
    also = ""
    if q.covariate is not None:
        orders = 1
        for _, values in known[q.covariate].dropna().groupby(stratum):
            orders *= math.factorial(len(values)) // math.prod(map(math.factorial, values.value_counts().tolist()))
        best = min(best, 1 / orders)
        also = f" Its {q.covariate} can be dealt out in {counted(orders)} (least p {max(1 / orders, 1e-6):.2g})."
    within = f" within each {q.strata}" if q.strata else ""
    told = (
        f"The {q.label} of {len(known):,} {plural(q.unit)} can be dealt out among them{within} in {counted(ways)}, so "
        f"that no p below {max(least, 1e-6):.2g} is possible for it.{also}"
    )
    if best > LEVEL:
        return Finding(
            "permutations",
            "cannot answer",
            f"Too few {plural(q.unit)} for any difference to be significant",
            f"{told} Nothing can be shown below {LEVEL} with these {plural(q.unit)}, however large the difference and "
            f"however many the particles: more {plural(q.unit)} are needed. A p that counts particles as if each were "
            f"a {q.unit} is not to be believed.",
        )
    if least > LEVEL:
        return Finding(
            "permutations",
            "warning",
            f"By {q.label} alone no p below {least:.2g} is possible",
            f"{told} Groups of {q.label} alone cannot come out below {LEVEL}; the trend over {q.covariate} can, and "
            "is what to test.",
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
                f"{listed(list(within[within > 1].index))}: more than one value of {name} for one {q.unit}. Mend it "
                f"in the study's file, or ask of assemblages what changes within a {q.unit}.",
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
        text += f" A trend must leave out {many(len(units) - given, q.unit)} without {name}."
    ranges = by[["min", "max"]].dropna().to_numpy().tolist()
    if len(ranges) > 1 and all(below[1] < above[0] for below, above in itertools.pairwise(ranges)):
        severity = "note" if severity == "fine" else severity
        text += (
            f" {begun(q.label)} follows from {name} here (their ranges do not overlap), so that the two are one and "
            "the same question: a result on both is one result, not two."
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
    """novice: flint; expert: chert and flint."""
    told = [f"{key}: {listed(sorted(set(rest)), 3)}" for key, rest in table.groupby(name)[of]]
    return "; ".join(told[:most]) + ("; …" if len(told) > most else "")


def confounding(study: Study) -> list[Finding]:
    """Of the label and the unit with each nuisance, of nuisances among themselves, and what of the label remains estimable."""
    q, found = study.question, []
    if not q.nuisances:
        text = (
            "Neither material nor technique, session or instrument is given. Whether one of them passes for "
            f"{q.label} cannot be said: give them in the study's file, also where they are all the same."
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
        inside = nested(unit, other)  # each of them is of one unit, and so part of what is peculiar to it
        if (levels >= (2 if inside else FOLDS)).sum() < 2:
            title = f"{begun(q.label)} cannot be told from {name}"
            text = (
                f"Each {q.unit} worked another {name}" if by_unit and q.unit == "knapper" and name == "material"
                else f"Each {q.unit} has another {name}" if by_unit
                else f"No two {plural(q.label)} share a {name}"
            )  # fmt: skip
            text += (
                f" ({who(table, q.unit, name) if by_unit else who(table, q.label, name)}): what tells the {own} apart "
                f"passes for {q.label}, and no analysis can take the two apart. Needed: assemblages of one and the "
                f"same {name} from {listed(list(counts.index))}."
            )
            return Finding(key, "cannot answer", title, text, shown)
        if by_unit:
            text = (
                f"Each {q.unit} has a {name} of their own ({who(table, q.unit, name)}), so that the two count as one: "
                f"{plural(q.label)} are compared over {plural(q.unit)} with their {many_of}. That is fair only if it "
                f"was chance which {q.unit} had which {name}."
            )
            return Finding(key, "warning", f"Each {q.unit} has a {name} of their own", text, shown)
        text = (
            f"Each {name} belongs to one {q.unit}, and each {q.unit} has several: they are kept on one side of a split "
            f"together with their {q.unit}, and are part of how {plural(q.unit)} differ."
        )
        if inside:
            return Finding(key, "fine", f"{begun(many_of)} within {plural(q.unit)}", text, shown)
        text = (
            f"Each {name} has one {q.label} only, but each {q.label} has {int(levels.min())} {many_of} at least: what "
            f"holds in all of them is hardly the {name}. Keep each {name} on one side of a split."
        )
        return Finding(key, "note", f"Each {name} has one {q.label}", text, shown)
    shared = [a for a in counts.index if ((counts > 0).sum(0)[counts.loc[a] > 0] > 1).any()]
    apart = [a for a in counts.index if a not in shared]
    if apart:
        text = (
            f"{listed(apart)}: no {name} shared with any other {q.label}. {begun(lead)} What is found of {listed(apart)} may "
            f"be of the {name}; only {listed(shared)} can be compared."
        )
        return Finding(key, "warning", f"Part of {q.label} cannot be told from {name}", text, shown)
    if (settled > SETTLED and levels.min() < FOLDS) or (not within and v > 0.5):
        text = (
            f"{begun(name)} and {q.label} go together (Cramér's V {v:.2f}, 0 would be none and 1 always). {begun(lead)} A "
            f"model that recognises the {name} is often right. Compare {plural(q.label)} within one {name}, and give "
            f"each {name} its term in the mixed models."
        )
        return Finding(key, "warning", f"{begun(name)} gives much of {q.label} away", text, shown)
    if v > 0.25:
        text = f"{begun(lead)} They are not evenly spread (Cramér's V {v:.2f}): let {name} stand in the models beside {q.label}."
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
                f"Each {q.unit} has {his} of their own ({who(table, q.unit, name)}). Which {q.unit} made a particle "
                f"cannot be asked: it would be answered by the {name}."
            )
            return Finding(key, "warning", f"{begun(q.unit)} and {name} are one", text, shown)
        text = (
            f"No {name} is shared by two {plural(q.unit)}. To recognise a {q.unit} is asked of a {name} not seen "
            f"before, else the {name} is recognised; that is what folds by {name} do."
        )
        return Finding(key, "note", f"No two {plural(q.unit)} share a {name}", text, shown)
    v, _ = association(unit, other)
    if nested(other, unit):
        text = f"Each {q.unit} has one {name}, and some have the same: {plural(q.unit)} can be told apart within a {name} only."
        return Finding(key, "note", f"One {name} for each {q.unit}", text, shown)
    if (counts > 0).all(axis=None):
        text = f"Every {q.unit} has every {name} (Cramér's V {v:.2f}): neither passes for the other."
        return Finding(key, "fine", f"{begun(q.unit)} and {name} are crossed", text, shown)
    text = f"Some {plural(name)} are shared by {plural(q.unit)} and some not (Cramér's V {v:.2f}): compare within those that are."
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
    lost = {row: [name for name in names if name in blamed or name in shared] for row, names in lost.items()}
    own = [row for row in lost if lost[row]]
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
            f"Each of {listed(shared)} alone leaves them, but with a term for every one of them these differences "
            f"between {plural(q.label)} can no longer be estimated: {told}. Give terms to those that matter most, and "
            "say which."
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
        text = f"{told} always change together: an effect of one cannot be told from one of the other; allow for one."
        return Finding("nuisances", "note", "Nuisances that are one and the same", text, shown)
    return Finding(
        "nuisances", "fine", "Nuisances can be told from each other", "No two of them always change together.", shown
    )

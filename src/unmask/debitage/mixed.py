"""Mixed models, a measure at a time: how much of it goes with experience, and how much is the knapper, the day, the flake.

    measure = intercept + label or covariate + material … + knapper + assemblage of the knapper + particle

with normal deviations of knapper, assemblage and particle, fitted by restricted maximum likelihood (Patterson & Thompson
1971; Laird & Ware 1982). statsmodels' MixedLM fits the same and takes seconds a measure; here the likelihood is written out
for deviations that are nested, so that sums over assemblages and knappers are all it needs, and a measure takes
milliseconds. Both agree (tests).

The estimate is judged by t on the degrees of freedom of the stratum that it varies in (containment: Littell et al. 2006, SAS
for Mixed Models, appendix 1; Schluchter & Elashoff 1990): K knappers leave K - 2. A z, as MixedLM prints, takes the variance
between knappers for known, when it is estimated from six: at |z| = 1.96 it says p = 0.05, t on 4 degrees says 0.12.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import minimize, minimize_scalar

from unmask.debitage.findings import many, plural
from unmask.debitage.statistics import centroids, clusters, coded, features, logged, owned
from unmask.debitage.study import Study
from unmask.errors import BadInput

LEAST, MOST = -14.0, 8.0
"""Logarithms of the ratio of a variance to that of particles between which one is looked for; below is 0."""


@dataclass(frozen=True)
class Fit:
    """A mixed model."""

    beta: np.ndarray
    """(p,) fixed effects."""
    covariance: np.ndarray
    """(p, p), of beta."""
    variances: tuple[float, float, float]
    """Of units, of cells within them, and of particles."""
    likelihood: float
    """Restricted log-likelihood, as statsmodels gives it."""


def reml(y: np.ndarray, X: np.ndarray, units: np.ndarray, cells: np.ndarray | None) -> Fit:
    """Fit y (n,) on X (n, p), of full rank, with deviations of units (n,) and of cells (n,) nested in them, codes from 0; no
    deviation of cells where they are None.

    With ratios a, k of the variances of cells and units to that of particles, W = I + a ZaZa' + k ZkZk' is inverted cell by
    cell, then unit by unit (Woodbury).
    """
    n, p = X.shape
    deepest = units if cells is None else cells
    first = np.unique(deepest, return_index=True)[1]
    parent = units[first]
    M = np.column_stack([X, y])
    size = np.bincount(deepest).astype(float)  # (A,)
    sums = np.stack([np.bincount(deepest, m) for m in M.T], 1)  # (A, p + 1)
    whole = M.T @ M

    def pieces(a: float, k: float) -> tuple[np.ndarray, float]:
        """[X y]' W⁻¹ [X y] and log |W|."""
        damp = 1 + a * size
        cross = whole - (sums.T * (a / damp)) @ sums
        t = np.stack([np.bincount(parent, m) for m in (sums / damp[:, None]).T], 1)
        held = 1 + k * np.bincount(parent, size / damp)
        return cross - (t.T * (k / held)) @ t, float(np.log(damp).sum() + np.log(held).sum())

    def loss(a: float, k: float) -> float:
        cross, logdet = pieces(a, k)
        XX, Xy = cross[:p, :p], cross[:p, p]
        rest = cross[p, p] - Xy @ np.linalg.solve(XX, Xy)
        if not rest > 0:
            return np.inf
        return float((n - p) * math.log(rest / (n - p)) + logdet + np.linalg.slogdet(XX)[1])

    none = cells is None
    candidates = [(0.0, 0.0)]
    bounds: dict[str, Any] = {"bounds": (LEAST, MOST), "method": "bounded", "options": {"xatol": 1e-7}}
    line: Any = minimize_scalar(lambda v: loss(0.0, math.exp(v)), **bounds)
    candidates.append((0.0, math.exp(line.x)))
    if not none:
        line = minimize_scalar(lambda v: loss(math.exp(v), 0.0), **bounds)
        candidates.append((math.exp(line.x), 0.0))
        for start in ((line.x, math.log(candidates[1][1])), (-3.0, -3.0)):
            found = minimize(
                lambda v: loss(*np.exp(np.clip(v, LEAST, MOST))),
                np.clip(start, LEAST + 1, MOST - 1),
                method="Nelder-Mead",
                options={"xatol": 1e-6, "fatol": 1e-9, "maxiter": 600},
            )
            a, k = np.exp(np.clip(found.x, LEAST, MOST)).tolist()
            candidates.append((a, k))
    a, k = min(candidates, key=lambda each: loss(*each))
    cross, _ = pieces(a, k)
    XX, Xy = cross[:p, :p], cross[:p, p]
    beta = np.linalg.solve(XX, Xy)
    residual = float(cross[p, p] - Xy @ beta) / (n - p)
    likelihood = -0.5 * (loss(a, k) + (n - p) * (1 + math.log(2 * math.pi)))
    return Fit(beta, residual * np.linalg.inv(XX), (k * residual, a * residual, residual), likelihood)


@dataclass(frozen=True)
class _Design:
    """What all measures are explained by. A row of the arrays is a particle that has a label and a unit."""

    X: np.ndarray
    """(n, p), the columns of interest last."""
    classes: tuple[str, ...]
    """Of the label; none where a covariate is of interest."""
    units: np.ndarray
    cells: np.ndarray | None
    rows: np.ndarray
    """Which particles these are."""
    df: int
    spread: float
    """Standard deviation of the covariate among units."""
    of: str
    fixed: str
    notes: tuple[str, ...]


def mixed(study: Study, measures: Sequence[str] | None = None, *, label: bool = False) -> pd.DataFrame:
    """A row a measure: how it goes with the covariate of the question, or without one, or with `label`, with the label.

    - "measure"; "log", whether its logarithm is meant; "n" particles, "units", and what was left in "fixed" beside it;
    - "contrast": what the "estimate" is of: one unit more of the covariate, or the widest difference between two labels; its
      standard "error", "low" and "high" (95%, by t), and "effect", the estimate in standard deviations of particles, for a
      covariate of one standard deviation of it among units;
    - "statistic": t, or F where there are more than two labels, on "df" degrees of freedom; "p"; "q", the false discovery
      rate at which it would be named (Benjamini & Hochberg 1995, over all measures here);
    - "share_unit", "share_assemblage", "share_particle": of the variance that is left;
    - "stands": the measure that stands for it: those with rank correlations above 0.95 are functions of each other, and
      tell one thing several times;
    - "note": what stood in the way, "" where nothing did. Figures that are not to be had are NaN.

    Where units have one label but for a few, these are left out. Materials and other nuisances are fixed effects where the
    label can be told from them at all, the note says which could not. Without several assemblages a unit, the day cannot be
    told from the hand: share_assemblage is 0 and noted.
    """
    X, names, _ = features(study, measures)
    design, stands = _design(study, label), clusters(X, names)
    rows = []
    for name, values in zip(names, X.T, strict=True):
        row = {"measure": name, "log": logged(name, study.particles[name].to_numpy(np.float64, na_value=np.nan))}
        row |= {"stands": stands[name]}
        try:
            if isinstance(design, str):
                raise BadInput(design)
            row |= _fitted(values, design)
        except (BadInput, np.linalg.LinAlgError, FloatingPointError) as error:
            row |= {"note": f"not fitted: {' '.join(str(error).split())}"}
        rows.append(row)
    order = [
        "measure",
        "log",
        "n",
        "units",
        "contrast",
        "estimate",
        "error",
        "low",
        "high",
        "effect",
        "statistic",
        "df",
        "p",
    ]
    order += ["q", "share_unit", "share_assemblage", "share_particle", "stands", "fixed", "note"]
    frame = pd.DataFrame(rows, columns=order)
    frame["note"] = frame["note"].fillna("")
    frame["q"] = discovery(frame["p"].to_numpy(dtype=np.float64))
    return frame


def discovery(p: np.ndarray) -> np.ndarray:
    """q-values of p-values (m,), NaN staying NaN: Benjamini & Hochberg 1995."""
    q, known = np.full(len(p), np.nan), np.isfinite(p)
    if known.any():
        q[known] = stats.false_discovery_control(p[known])
    return q


def _rank(*blocks: np.ndarray) -> int:
    X = np.hstack(blocks)
    return int(np.linalg.matrix_rank(X)) if X.size else 0


def _dummies(values: pd.Series) -> np.ndarray:
    codes, names = coded(values)
    return np.eye(len(names))[codes][:, 1:]


def _design(study: Study, label: bool) -> _Design | str:
    """The design, or why there is none."""
    q = study.question
    frame: Any = study.particles
    by_covariate = q.covariate is not None and not label and bool(frame[q.covariate].notna().any())
    of = q.covariate if by_covariate and q.covariate is not None else q.label
    never = {of, q.unit, None} | ({q.label} if by_covariate else {q.covariate})
    nuisances = [name for name in dict.fromkeys((q.strata, *q.nuisances)) if name not in never]
    there = (frame[of].notna() & frame[q.unit].notna()).to_numpy()
    own = owned(study)
    left = frame[q.unit][there & ~own].nunique() if own.any() else 0
    rows = np.flatnonzero(there & own if left else there)
    kept = frame.iloc[rows]
    if kept[of].nunique() < 2:
        return f"all particles have the same {of}"
    keys = list(dict.fromkeys((q.unit, "assemblage", of, *map(str, nuisances))))
    alike = kept.groupby(keys, sort=False, dropna=False).ngroup().to_numpy()
    seen = kept.iloc[np.unique(alike, return_index=True)[1]]  # a row of each kind that there is

    units, names = coded(seen[q.unit])
    K, notes = len(names), [f"{many(left, q.unit)} of several {plural(q.label)} left out"] if left else []
    within = bool((seen.groupby(q.unit)[of].nunique() > 1).any())
    cells, cell_names = coded(seen[q.unit].astype(str) + "\0" + seen[of if within else "assemblage"].astype(str))
    if within:  # what a unit makes of a label is its own: its labels are the cells
        notes.append(f"{of} varies within a {q.unit}: the share of the assemblage is that of a {q.unit}'s {of}")
    interest = seen[[of]].to_numpy(dtype=np.float64) if by_covariate else _dummies(seen[of])
    interest = interest - interest.mean(0)
    ones, Zu, Zc = np.ones((len(seen), 1)), np.eye(K)[units], np.eye(len(cell_names))[cells]

    def freedom(fixed: np.ndarray) -> int:
        if _rank(ones, fixed, interest) < _rank(ones, fixed) + interest.shape[1]:
            return 0
        if within:
            return _rank(fixed, interest, Zu, Zc) - _rank(fixed, interest, Zu)
        return _rank(fixed, interest, Zu) - _rank(ones, fixed, interest)

    fixed, told = np.zeros((len(seen), 0)), []
    for name in map(str, nuisances):
        if seen[name].isna().any() or seen[name].nunique() < 2:
            continue
        if (
            2 * seen[name].nunique() > K and seen.groupby(name)[q.unit].nunique().max() == 1
        ):  # its days, or its own stone
            if seen.groupby(q.unit)[name].nunique().max() == 1:
                notes.append(f"each {q.unit} has another {name}: what is due to it passes for the {q.unit}")
            continue
        columns = fixed
        for dummy in _dummies(seen[name]).T[:, :, None]:
            if _rank(ones, columns, dummy) > _rank(ones, columns):
                columns = np.hstack([columns, dummy])
        if freedom(columns) < 1:
            notes.append(f"{name} cannot be told from {of} with {K} {q.unit}s and is not accounted for")
        elif columns.shape[1] > fixed.shape[1]:
            fixed = columns
            told.append(name)
    df = freedom(fixed)
    if df < 1:
        return f"{K} {q.unit}s are too few to tell {of} from the {q.unit}"
    if single := len(cell_names) == K:
        notes.append(f"each {q.unit} has one assemblage: the day cannot be told from the hand")
    return _Design(
        X=np.hstack([ones, fixed, interest])[alike],
        classes=() if by_covariate else tuple(map(str, sorted(seen[of].unique()))),
        units=units[alike],
        cells=None if single else cells[alike],
        rows=rows,
        df=df,
        spread=float(centroids(interest, units)[:, 0].std(ddof=1)) if by_covariate else 1.0,
        of=of,
        fixed=", ".join(told),
        notes=tuple(notes),
    )


def _fitted(values: np.ndarray, design: _Design) -> dict[str, Any]:
    """The figures of one measure (n,) of all particles."""
    values = values[design.rows]
    known = np.isfinite(values)
    y, X = values[known], design.X[known]
    notes = list(design.notes)
    if lacking := int(np.sum(~known)):
        notes.append(f"{lacking:,} particles lack it")
    units = coded(design.units[known])[0]
    cells = None if design.cells is None else coded(design.cells[known])[0]
    if _rank(X) < X.shape[1] or len(y) <= X.shape[1] + 1:
        raise BadInput("too few particles have it")
    df = design.df - (len(np.unique(design.units)) - int(units.max()) - 1)
    if df < 1:
        raise BadInput("too few units have it")
    sd = float(y.std())
    if not sd > 0:
        raise BadInput("it is the same for all")
    fit = reml((y - y.mean()) / sd, X, units, cells)
    shares = np.array(fit.variances) / sum(fit.variances)
    if shares[0] < 1e-6:
        notes.append("no variance between units was found beyond that of assemblages and particles")
    c = 1 if not design.classes else len(design.classes) - 1
    beta, covariance = fit.beta[-c:], fit.covariance[-c:, -c:]
    if not design.classes:
        contrasts, called = [np.ones(1)], [f"the change with {design.of}, by one"]
    else:
        ends = np.vstack([np.zeros(c), np.eye(c)])  # the first label is what the others are compared with
        pairs = list(itertools.combinations(range(c + 1), 2))
        contrasts = [ends[j] - ends[i] for i, j in pairs]
        called = [f"{design.classes[j]} − {design.classes[i]}" for i, j in pairs]
    each = [(float(v @ beta), math.sqrt(max(float(v @ covariance @ v), 1e-300))) for v in contrasts]
    widest = max(range(len(each)), key=lambda i: abs(each[i][0] / each[i][1]))
    estimate, error = each[widest]
    if c == 1:
        statistic = estimate / error
        p = 2 * float(stats.t.sf(abs(statistic), df))
    else:
        statistic = float(beta @ np.linalg.solve(covariance, beta)) / c
        p = float(stats.f.sf(statistic, c, df))
    reach = float(stats.t.ppf(0.975, df)) * error
    return {
        **{"n": len(y), "units": int(units.max()) + 1, "contrast": called[widest]},
        **{"estimate": estimate * sd, "error": error * sd},
        **{"low": (estimate - reach) * sd, "high": (estimate + reach) * sd, "effect": estimate * design.spread},
        **{"statistic": statistic, "df": df, "p": max(p, 1e-300)},
        **{"share_unit": shares[0], "share_assemblage": shares[1], "share_particle": shares[2]},
        **{"fixed": design.fixed, "note": "; ".join(notes)},
    }

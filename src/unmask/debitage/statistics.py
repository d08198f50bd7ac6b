"""Do assemblages differ, and is it the label, the hand or the day that makes them?

The unit of replication is the knapper (`question.unit`), never the particle: a thousand flakes of one novice show one
novice. Labels belong to units, so a test of the label deals labels out among whole units again, within strata where given:

- the label, or a covariate, among units: `permanova(X, labels, units)`, on the units' centroids;
- unit against unit: `permanova(X, unit, assemblage, strata=label)`, which deals assemblages out among the units of a label;
- assemblage against assemblage: `permanova(X, assemblage, particle, strata=unit)`, particles among those of a unit.

Where there are no more ways to deal than were asked for, all are looked at and p is exact. Six knappers in three levels of
two have 15 ways, so that no p below 1/15 is possible: a `Test` says so.

Papers: Anderson 2001, "A new method for non-parametric multivariate analysis of variance"; McArdle & Anderson 2001, "Fitting
multivariate models to community data"; Anderson 2006, "Distance-based tests for homogeneity of multivariate dispersions";
Phipson & Smyth 2010, "Permutation p-values should never be zero"; Benjamini & Hochberg 1995. Deviations:

- Strata are a term of the model, too: what they take away is not counted for or against the label (a partial pseudo-F).
- Dispersion deals out the distances to the observed centres, not the samples, so that a difference in place is not taken for
  one in spread; and distances in small groups are made longer by √(n / (n - 1)), for their centre is drawn to them.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from unmask.debitage import tables
from unmask.debitage.findings import plural, whole_labels
from unmask.debitage.study import Study
from unmask.errors import BadInput

NEAR = 1e-9
"""Statistics that differ by less, relatively, are equal: of arrangements that are the same but for rounding."""
ALIKE = 0.95
"""Measures of a higher rank correlation are taken for functions of each other."""


@dataclass(frozen=True)
class Test:
    """What a permutation test found. NaN where it could not be made; the sentence says why."""

    __test__ = False  # none of pytest's

    name: str
    statistic: float
    """Pseudo-F: variation the label accounts for over what it leaves, by degrees of freedom."""
    r2: float
    """Share of the variation (within strata) that the label accounts for."""
    p: float
    permutations: int
    """Arrangements looked at."""
    distinct: int
    """Arrangements there are that can differ in the statistic."""
    smallest_p: float
    """No p below is possible with these units."""
    exact: bool
    """All arrangements were looked at."""
    units: int
    """How many were dealt labels."""
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }


# Dealing labels out again


@dataclass(frozen=True)
class Arrangements:
    """Ways to deal the labels of units out among them."""

    rows: np.ndarray
    """(R, K) int64: codes of labels. If exact, all there are, but for those that differ by a name; else drawn at random."""
    distinct: int
    exact: bool

    def p(self, observed: float, found: np.ndarray) -> float:
        """Share of the arrangements with as large a statistic; the observed is always one of them, so p is never 0."""
        as_large = int(np.sum(found >= observed - NEAR * max(1.0, abs(observed))))
        return as_large / len(found) if self.exact else (1 + as_large) / (1 + len(found))

    @property
    def smallest_p(self) -> float:
        return 1 / self.distinct if self.exact else max(1 / self.distinct, 1 / (1 + len(self.rows)))


def arrange(
    codes: np.ndarray,
    strata: np.ndarray | None = None,
    permutations: int = 999,
    seed: int = 0,
    *,
    interchangeable: bool = True,
) -> Arrangements:
    """Deal the labels (K,), whole numbers from 0, out among units of the same stratum (K,).

    interchangeable: calling novices experts and experts novices changes nothing, as in an F or a refitted classifier; then
    two classes that have as many units in every stratum as each other may swap names.
    """
    K, C = len(codes), int(codes.max()) + 1
    strata = np.zeros(K, dtype=np.int64) if strata is None else strata
    counts = np.zeros((int(strata.max()) + 1, C), dtype=np.int64)
    np.add.at(counts, (strata, codes), 1)
    distinct = math.prod(
        math.factorial(int(row.sum())) // math.prod(math.factorial(int(n)) for n in row) for row in counts
    )
    before: list[int | None] = [None] * C  # the class of the same counts that must be named first
    if interchangeable:
        last: dict[tuple[int, ...], int] = {}
        for c in range(C):
            key = tuple(counts[:, c].tolist())
            before[c] = last.get(key)
            last[key] = c
        distinct //= math.prod(map(math.factorial, Counter(tuple(column) for column in counts.T.tolist()).values()))
    if distinct <= permutations:
        rows = np.array(list(_all(strata.tolist(), counts.tolist(), before)), dtype=np.int64)
        return Arrangements(rows, distinct, True)
    rows = np.empty((permutations, K), dtype=np.int64)
    rng = np.random.default_rng(seed)
    for stratum in range(len(counts)):
        inside = np.flatnonzero(strata == stratum)
        rows[:, inside] = codes[inside][rng.random((permutations, len(inside))).argsort(1)]
    return Arrangements(rows, distinct, False)


def _all(strata: list[int], left: list[list[int]], before: list[int | None]) -> Iterator[list[int]]:
    """Every arrangement, unit by unit, that names the first of interchangeable classes first."""
    row: list[int] = []

    def deal() -> Iterator[list[int]]:
        if len(row) == len(strata):
            yield row.copy()
            return
        mine = left[strata[len(row)]]
        for c, first in enumerate(before):
            if mine[c] and (first is None or first in row):
                mine[c] -= 1
                row.append(c)
                yield from deal()
                row.pop()
                mine[c] += 1

    yield from deal()


def belonging(values: Any, units: np.ndarray, what: str = "label") -> np.ndarray:
    """The one value (K,) of each unit, units (n,) being whole numbers from 0. BadInput where a unit has several."""
    values = np.asarray(values)
    of_unit = values[np.unique(units, return_index=True)[1]]
    if (bad := np.flatnonzero(of_unit[units] != values)).size:
        raise BadInput(
            f"unit {units[bad[0]]} has more than one {what} ({of_unit[units[bad[0]]]}, {values[bad[0]]}): test such a {what} "
            "among particles, with strata=units"
        )
    return of_unit


def coded(values: Any, what: str = "units") -> tuple[np.ndarray, list[Any]]:
    """Whole numbers from 0 (n,), and the values they stand for, sorted. BadInput where one is missing."""
    values = np.asarray(values, dtype=object)
    if (missing := pd.isna(values)).any():
        raise BadInput(f"{missing.sum()} of {len(values)} {what} are missing: leave those particles out")
    codes, names = pd.factorize(values, sort=True)
    return codes.astype(np.int64), list(names)


# The tests


def permanova(
    X: Any,
    labels: Any,
    units: Any,
    *,
    strata: Any = None,
    covariate: Any = None,
    distances: bool = False,
    permutations: int = 999,
    seed: int = 0,
    words: tuple[str, str] = ("label", "unit"),
) -> Test:
    """Do the centroids of units differ by label (Anderson 2001), or with a covariate (McArdle & Anderson 2001)?

    X: (n, p) coordinates, a row a particle, distances between them Euclidean, see `scaled`; or with `distances` any (n, n).
    labels, units, strata: (n,) names; labels may be None where a covariate (n,), numbers, is given in their place.
    words: what labels and units are called in the sentence.

    Centroids are compared as equals, however many particles they rest on. That is exact where labels have no part in how
    many those are. BadInput where a unit has several labels or strata, or something is missing.
    """
    X, (codes, names) = np.asarray(X, dtype=np.float64), coded(units)
    if len(codes) != len(X) or X.ndim != 2 or not np.isfinite(X).all():
        raise BadInput(
            f"{X.shape} measures for {len(codes)} units: give a row of finite numbers a particle, see scaled"
        )
    K = len(names)
    if distances:
        inner = -np.square(X) / 2
        inner = inner - inner.mean(0) - inner.mean(1)[:, None] + inner.mean()
        mean = np.zeros((K, len(X)))
        mean[codes, np.arange(len(X))] = 1 / np.bincount(codes)[codes]
        space = mean @ inner @ mean.T
    else:
        space = centroids(X, codes)
    name = f"PERMANOVA, {words[0]} among {plural(words[1])}"
    return _test(name, space, distances, labels, covariate, codes, strata, permutations, seed, words)


def dispersion(
    X: Any,
    labels: Any,
    units: Any,
    *,
    within: Any = None,
    strata: Any = None,
    covariate: Any = None,
    centre: str = "median",
    permutations: int = 999,
    seed: int = 0,
    words: tuple[str, str] = ("label", "unit"),
) -> Test:
    """Are the particles of some labels more alike than those of others (Anderson 2006, PERMDISP)?

    Of each unit the mean distance of its particles to its own centre, the spatial "median" or the "centroid"; with `within`
    (n,), its assemblages, to the centre of each. Where every unit is one sample, it is the test as published: distances to
    the centre of the label. Otherwise as `permanova`.
    """
    X, (codes, names) = np.asarray(X, dtype=np.float64), coded(units)
    if len(codes) != len(X) or X.ndim != 2 or not np.isfinite(X).all():
        raise BadInput(
            f"{X.shape} measures for {len(codes)} units: give a row of finite numbers a particle, see scaled"
        )
    if centre not in ("median", "centroid"):
        raise BadInput(f"centre is {centre!r}: use median or centroid")
    if within is not None:
        cells = codes * len(X) + coded(within, "assemblages")[0]
    elif len(names) == len(X) and labels is not None:
        cells = coded(labels, "labels")[0]
    else:
        cells = codes
    far = np.zeros(len(X))
    for cell in np.unique(cells):
        inside = np.flatnonzero(cells == cell)
        middle = X[inside].mean(0) if centre == "centroid" else spatial_median(X[inside])
        far[inside] = np.linalg.norm(X[inside] - middle, axis=1) * math.sqrt(len(inside) / max(1, len(inside) - 1))
    name = f"PERMDISP, {words[0]} among {plural(words[1])}"
    space = centroids(far[:, None], codes)
    return _test(name, space, False, labels, covariate, codes, strata, permutations, seed, words)


def _test(
    name: str,
    space: np.ndarray,
    inner: bool,
    labels: Any,
    covariate: Any,
    units: np.ndarray,
    strata: Any,
    permutations: int,
    seed: int,
    words: tuple[str, str],
) -> Test:
    """The partial pseudo-F of labels, or a covariate, of units in space: coordinates (K, p) or inner products (K, K).

    With the strata's means taken away, X = R space, the variation due to a design L is tr(A⁺ (L'X)(L'X)'), A = L'RL. A is
    the same for all arrangements within strata.
    """
    K = len(space)
    stratum = np.zeros(K, dtype=np.int64)
    if strata is not None:
        stratum = belonging(coded(strata, "strata")[0], units, "stratum")
    if covariate is None:
        codes, classes = coded(labels, "labels")
        codes = belonging(codes, units)
        design = np.eye(len(classes))
    else:
        values = belonging(np.asarray(covariate, dtype=np.float64), units, "covariate")
        if not np.isfinite(values).all():
            raise BadInput("the covariate of some units is missing: leave those units out")
        classes, codes = np.unique(values, return_inverse=True)
        design = (classes - values.mean())[:, None]
        classes = list(classes)
    ways = arrange(codes, stratum, permutations, seed, interchangeable=covariate is None)
    distinct, smallest = ways.distinct, ways.smallest_p
    if covariate is not None and distinct > 1 and _mirrored(classes, codes, stratum):
        distinct, smallest = distinct // 2, min(1.0, 2 * smallest) if ways.exact else smallest

    L = design[codes]
    free = K - len(np.unique(stratum))
    A = L.T @ (L - centroids(L, stratum)[stratum])
    roots = np.linalg.eigvalsh(A)
    df = int(np.sum(roots > 1e-9 * max(1.0, roots[-1])))
    R = space - centroids(space, stratum)[stratum]
    if inner:
        R = R - centroids(R.T, stratum)[stratum].T
    total = float(np.trace(R) if inner else np.square(R).sum())
    left = free - df
    told, whom = words[0], plural(words[1])

    def cannot(why: str) -> Test:
        line = f"Whether {told} tells {whom} apart cannot be tested: {why}."
        return Test(name, math.nan, math.nan, math.nan, 0, distinct, 1.0, True, K, line)

    if df < 1 or distinct < 2:
        where = " within strata" if strata is not None else ""
        return cannot(f"{len(classes)} of {told} among {K} {whom} can be dealt out in one way only{where}")
    if left < 1:
        return cannot(
            f"{K} {whom} leave nothing to compare {len(classes)} of {told} with; more {whom} of each are needed"
        )
    if total <= 1e-12 * max(1.0, float(np.abs(space).max())):
        return cannot(f"all {whom} are the same")
    inverse = np.linalg.pinv(A, hermitian=True, rcond=1e-9)

    def accounted(rows: np.ndarray) -> np.ndarray:
        """Variation due to each arrangement (R, K): (R,)."""
        sums = design[rows].transpose(0, 2, 1) @ R  # (R, C, p)
        if inner:
            return np.einsum("cd,rcd->r", inverse, sums @ design[rows])
        return np.einsum("rcp,cd,rdp->r", sums, inverse, sums, optimize=True)

    step = max(1, (1 << 22) // (K * design.shape[1]))
    found = np.concatenate([accounted(ways.rows[i : i + step]) for i in range(0, len(ways.rows), step)])
    observed = float(accounted(codes[None])[0])
    rest = total - observed
    if rest <= 1e-12 * total:
        return cannot(f"{K} {whom} leave no variation to compare with; three {whom} of each {told} are needed")
    # Totals and degrees of freedom are the same for all, so the pseudo-F rises with the share accounted for.
    p = ways.p(observed / total, found / total)
    F, r2 = observed / df / (rest / left), observed / total
    looked = f"all {len(ways.rows):,} ways" if ways.exact else f"{permutations:,} ways drawn at random"
    sentence = (
        f"{name}: pseudo-F = {F:.2f}, R² = {r2:.2f}, p = {p:.3g} over {looked} to deal {told} out among {K} {whom}"
    )
    if smallest > 0.05:
        sentence += f"; with these {whom} no p below {smallest:.2g} is possible"
    return Test(name, F, r2, p, len(ways.rows), distinct, smallest, ways.exact, K, sentence + ".")


def _mirrored(classes: Sequence[float], codes: np.ndarray, strata: np.ndarray) -> bool:
    """Whether turning a covariate over is an arrangement of it, too, which then fits as well."""
    values = np.asarray(classes)[codes]
    middles = [np.sort(v) + np.sort(v)[::-1] for v in (values[strata == s] for s in np.unique(strata))]
    ends = np.concatenate(middles)
    return bool(np.allclose(ends, ends[0]))


def centroids(X: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Means (K, p) of the rows (n, p) of each code."""
    counts = np.bincount(codes)
    sums = np.zeros((len(counts), X.shape[1]))
    np.add.at(sums, codes, X)
    return sums / np.maximum(counts, 1)[:, None]


def spatial_median(X: np.ndarray, steps: int = 500) -> np.ndarray:
    """The point (p,) of the smallest sum of distances to X (n, p): Weiszfeld's steps, as in Vardi & Zhang 2000."""
    middle = X.mean(0)
    for _ in range(steps):
        far = np.linalg.norm(X - middle, axis=1)
        away = far > 1e-12
        if not away.any():
            break
        weights = 1 / far[away]
        toward = weights @ X[away] / weights.sum()
        pull = np.linalg.norm(weights @ (X[away] - middle))
        stay = min(1.0, (~away).sum() / pull) if pull > 0 else 1.0
        new = (1 - stay) * toward + stay * middle
        moved, middle = np.linalg.norm(new - middle), new
        if moved < 1e-10 * (1 + np.linalg.norm(middle)):
            break
    return middle


# Measures


def logged(name: str, values: np.ndarray) -> bool:
    """Whether a measure is judged by its logarithm: lengths, areas and volumes, and of measures that are not the analyser's
    those which are all positive and skewed."""
    values = values[np.isfinite(values)]
    if len(values) == 0 or values.min() < 0:
        return False
    if name in tables.MEASURES:
        return tables.MEASURES[name].dimension in ("length", "area", "volume")
    return bool(values.min() > 0 and values.std() > 0 and stats.skew(values) > 1)


def column(study: Study, name: str) -> np.ndarray:
    """A measure (n,), its logarithm where `logged`; NaN where not measured. An exported 0 is a half of the smallest."""
    values = study.particles[name].to_numpy(dtype=np.float64, na_value=np.nan)
    values = np.where(np.isfinite(values), values, np.nan)
    if not logged(name, values):
        return values
    least = values[values > 0].min(initial=np.inf)
    return (
        np.log(np.where(values > 0, values, np.where(np.isnan(values), np.nan, least / 2)))
        if least < np.inf
        else values
    )


def features(study: Study, measures: Sequence[str] | None = None) -> tuple[np.ndarray, list[str], list[str]]:
    """What particles are told apart by: X (n, p) float64, with logarithms but not standardised, which belongs inside folds;
    its columns' names; and notes on what was left out.

    A measure that some assemblages lack is left out, because its absence gives the assemblage away; so is one that does not
    vary. Single particles may lack one: NaN.
    """
    wanted = list(study.measures if measures is None else measures)
    if absent := [name for name in wanted if name not in study.particles]:
        raise BadInput(f"no measure {absent[0]!r} in this study; there are {', '.join(study.measures)[:200]}")
    assemblage = study.particles["assemblage"].to_numpy()
    columns, names, notes = [], [], []
    for name in wanted:
        if not pd.api.types.is_numeric_dtype(study.particles[name]):
            continue  # a flag
        values = column(study, name)
        there = pd.Series(np.isfinite(values)).groupby(assemblage).any()
        lacking = [str(name) for name, found in there.items() if not found]
        if len(lacking) == len(there):
            notes.append(f"{name} was never measured and is left out.")
        elif lacking:
            notes.append(f"{name} is left out: {', '.join(lacking)} lack it, and its absence would give them away.")
        elif np.nanmax(values) - np.nanmin(values) <= 1e-12 * max(1.0, float(np.nanmax(np.abs(values)))):
            notes.append(f"{name} is the same for all particles and is left out.")
        else:
            columns.append(values)
            names.append(name)
    X = np.stack(columns, 1) if columns else np.zeros((len(study.particles), 0))
    return X, names, notes


def scaled(X: np.ndarray) -> np.ndarray:
    """Columns (n, p) less their median, over 0.741 of their interquartile range (a normal's standard deviation), or their
    standard deviation where half of them are equal; NaN becomes the median, 0."""
    X = np.asarray(X, dtype=np.float64)
    low, middle, high = np.nanquantile(X, [0.25, 0.5, 0.75], axis=0) if X.size else np.zeros((3, X.shape[1]))
    spread = (high - low) * 0.7413
    sd = np.nanstd(X, axis=0) if X.size else spread
    spread = np.where(spread > 1e-3 * sd, spread, sd)
    return np.nan_to_num((X - middle) / np.where(spread > 0, spread, 1.0))


def principal(X: np.ndarray, most: int = 50) -> np.ndarray:
    """Principal components (n, at most `most`) of embeddings (n, D), in their own scale, for Euclidean distances."""
    X = np.asarray(X, dtype=np.float64)
    U, S, _ = np.linalg.svd(X - X.mean(0), full_matrices=False)
    return U[:, :most] * S[:most]


def clusters(X: np.ndarray, names: Sequence[str]) -> dict[str, str]:
    """Of each measure the one that stands for it: the first before it, standing for itself, with a rank correlation above
    0.95, up or down; else itself."""
    ranks = np.apply_along_axis(stats.rankdata, 0, scaled(X)) if len(names) else np.zeros((2, 0))
    with np.errstate(invalid="ignore"):
        alike = np.atleast_2d(np.abs(np.corrcoef(ranks.T))) > ALIKE if len(names) > 1 else np.eye(len(names)) > 0
    stands: dict[str, str] = {}
    chosen: list[int] = []
    for i, name in enumerate(names):
        leader = next((j for j in chosen if alike[i, j]), i)
        if leader == i:
            chosen.append(i)
        stands[name] = names[leader]
    return stands


def owned(study: Study) -> np.ndarray:
    """Which particles (n,) bool are of a unit of one label, where that is the rule: the label is then the unit's own."""
    q = study.question
    one = (study.particles.groupby(q.unit)[q.label].transform("nunique") == 1).to_numpy()
    return one & whole_labels(study)


def between(study: Study, X: Any = None, *, permutations: int = 999, seed: int = 0) -> list[Test]:
    """Every test between the assemblages of a study: of the label, of the covariate, of unit against unit, of assemblage
    against assemblage, and of dispersion by label.

    Where units have several labels, these are dealt out among the assemblages of each, or, where an assemblage has several,
    among its particles. Where few units have, the others are also compared as wholes, see `owned`.

    X: (n, p) coordinates of all its particles, such as `principal` embeddings; without it, the measures that stand for the
    others, `scaled`.
    """
    q, options = study.question, {"permutations": permutations, "seed": seed}
    frame: Any = study.particles
    if X is None:
        values, names, _ = features(study)
        if not names:
            raise BadInput(f"{study.title}: there are no measures to compare: give a table of them, or images")
        stands = clusters(values, names)
        X = scaled(values[:, [stands[name] == name for name in names]])
    X, found = np.asarray(X, dtype=np.float64), []
    unit, label, assemblage = (frame[name].to_numpy(dtype=object) for name in (q.unit, q.label, "assemblage"))
    cells = np.array([f"{u}\0{a}" for u, a in zip(unit, assemblage, strict=True)], dtype=object)
    by = frame.groupby(q.unit)
    known, own, particle = frame[q.label].notna().to_numpy(), owned(study), np.arange(len(frame))
    several = known & (by[q.label].transform("nunique") > 1).to_numpy()
    alike = (frame.groupby([q.unit, "assemblage"])[q.label].transform("nunique") == 1).to_numpy()  # one label in a cell
    strata: Any = np.full(len(frame), "", dtype=object)
    placed = own
    if q.strata is not None and q.strata != q.label:
        strata = frame[q.strata].to_numpy(dtype=object)
        one_stratum = (by[q.strata].transform("nunique") == 1).to_numpy()
        placed = own & one_stratum & frame[q.strata].notna().to_numpy()

    def test(kind: Any, rows: np.ndarray, labels: Any, units: np.ndarray, strata: np.ndarray, *words: str, **more: Any):
        if rows.any():
            labels = None if labels is None else labels[rows]
            more = {name: value[rows] for name, value in more.items()}
            found.append(kind(X[rows], labels, units[rows], strata=strata[rows], words=words, **more, **options))

    test(permanova, placed, label, unit, strata, q.label, q.unit)
    test(dispersion, placed, label, unit, strata, q.label, q.unit, within=cells)
    if q.covariate is not None:
        covariate = frame[q.covariate].to_numpy(dtype=np.float64)
        rows = placed & np.isfinite(covariate) & (by[q.covariate].transform("nunique") == 1).to_numpy()
        test(permanova, rows, None, unit, strata, q.covariate, q.unit, covariate=covariate)
    if alike[several].all():
        test(permanova, several, label, cells, unit, q.label, "assemblage")
    else:
        test(permanova, several, label, particle, cells, q.label, "particle")
    if by["assemblage"].nunique().max() > 1:
        told = known & alike
        test(permanova, told, unit, cells, apart(study, told, unit, cells, label), q.unit, "assemblage")
        test(permanova, np.ones(len(frame), dtype=bool), assemblage, particle, unit, "assemblage", "particle")
    return found


def apart(study: Study, rows: np.ndarray, labels: np.ndarray, cells: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Strata (n,) of assemblages, to deal units out among: the given, and within these those of the same stone, and so on for
    each nuisance of which every unit has as many assemblages of each kind as every other, among these rows (n,), as long
    as there is more than one way left. labels, cells: (n,) units and assemblages."""
    q, blocks = study.question, strata.astype(str).astype(object)
    frame: Any = study.particles[rows]
    kinds = frame.drop_duplicates([q.unit, "assemblage", *q.nuisances])
    if kinds.duplicated([q.unit, "assemblage"]).any():  # a nuisance varies within an assemblage
        return blocks
    for name in q.nuisances:
        counts = pd.crosstab(kinds[q.unit], kinds[name]).to_numpy()
        finer = blocks + "\0" + study.particles[name].astype(str).to_numpy(dtype=object)
        if counts.shape[1] > 1 and (counts == counts[0]).all():
            codes, of = coded(cells[rows])[0], (coded(labels[rows])[0], coded(finer[rows])[0])
            if arrange(*(belonging(each, codes) for each in of), permutations=0).distinct > 1:
                blocks = finer
    return blocks
